// Kendall's tau_b of chosen runs: pooled, inside cells of equal hyper-parameters, and inside methods. The same numbers
// as analysis/statistics (units.py, kendall.py, strata.py, coefficients.py), which the tests compare.
Explorer.statistics = (() => {
  const roundHalfEven = (v) => {
    const below = Math.floor(v), rest = v - below;
    if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
    return below % 2 === 0 ? below : below + 1;
  };

  // About 12 significant digits, so that means that differ by rounding alone are ties.
  function significant(x) {
    if (x === 0) return 0;
    let exponent = Math.max(-1022, Math.floor(Math.log2(Math.abs(x))) + 1), fraction = x * 2 ** -(exponent - 1) / 2;
    while (Math.abs(fraction) < 0.5) { fraction *= 2; exponent -= 1; }
    while (Math.abs(fraction) >= 1) { fraction /= 2; exponent += 1; }
    return (roundHalfEven(fraction * 1e12) / 1e12) * 2 * 2 ** (exponent - 1);
  }

  // Values nearer than the rounding of single precision made equal, to the smallest of them; whole numbers stay.
  function withoutRounding(x, rounding) {
    if (x.every((v) => v === Math.round(v))) return x;
    const order = Array.from(x.keys()).sort((a, b) => x[a] - x[b]), out = Float64Array.from(x);
    let start = x[order[0]];
    for (const i of order) {
      if (!(x[i] - start <= rounding * Math.abs(start))) start = x[i];
      out[i] = start;
    }
    return out;
  }

  const runsOf = (sorted, same) => {  // pairs inside groups of equal neighbours
    let pairs = 0, length = 1;
    for (let i = 1; i <= sorted.length; i += 1) {
      if (i < sorted.length && same(sorted[i - 1], sorted[i])) length += 1;
      else { pairs += (length * (length - 1)) / 2; length = 1; }
    }
    return pairs;
  };

  // How many pairs of a list are in descending order; sorts it.
  function inversions(values) {
    let from = values, to = new Float64Array(values.length), count = 0;
    for (let width = 1; width < values.length; width *= 2) {
      for (let low = 0; low < values.length; low += 2 * width) {
        const middle = Math.min(low + width, values.length), high = Math.min(low + 2 * width, values.length);
        let i = low, j = middle;
        for (let k = low; k < high; k += 1) {
          if (i < middle && (j >= high || from[i] <= from[j])) to[k] = from[i++];
          else { to[k] = from[j++]; count += middle - i; }
        }
      }
      [from, to] = [to, from];
    }
    return [count, from];
  }

  // Sums over pairs: concordant minus discordant, untied in x, untied in y (Knight 1966, J. Am. Stat. Assoc. 61).
  function pairSums(x, y) {
    const n = x.length, all = (n * (n - 1)) / 2;
    const order = Array.from(x.keys()).sort((a, b) => x[a] - x[b] || y[a] - y[b]);
    const tiedX = runsOf(order, (a, b) => x[a] === x[b]);
    const tiedBoth = runsOf(order, (a, b) => x[a] === x[b] && y[a] === y[b]);
    const [discordant, sorted] = inversions(Float64Array.from(order, (i) => y[i]));
    const tiedY = runsOf(sorted, (a, b) => a === b);
    return [all - tiedX - tiedY + tiedBoth - 2 * discordant, all - tiedX, all - tiedY];
  }

  const tau = ([score, untiedX, untiedY]) => (untiedX * untiedY > 0 ? score / Math.sqrt(untiedX * untiedY) : NaN);

  const gathered = (labels) => {
    const found = new Map();
    labels.forEach((label, i) => (found.has(label) ? found.get(label).push(i) : found.set(label, [i])));
    return [...found.values()];
  };

  // Values of two variables in chosen runs, averaged over the seeds of each configuration.
  function averaged(x, y, chosen, runs, rounding) {
    const places = new Map();
    for (let run = 0; run < chosen.length; run += 1) {
      if (!chosen[run] || runs.configuration[run] < 0 || !Number.isFinite(x[run]) || !Number.isFinite(y[run])) continue;
      const own = places.get(runs.configuration[run]);
      if (own) own.push(run); else places.set(runs.configuration[run], [run]);
    }
    const each = [...places.values()];
    const mean = (values) => withoutRounding(Float64Array.from(each, (own) => {
      const share = 1 / own.length;
      return significant(own.reduce((sum, run) => sum + values[run] * share, 0));
    }), rounding);
    return {
      x: mean(x), y: mean(y), runs: each.reduce((sum, own) => sum + own.length, 0),
      group: each.map((own) => runs.group[own[0]]), cell: each.map((own) => runs.cell[own[0]]),
    };
  }

  // All numbers of one pair of variables; NaN where a coefficient is not defined.
  function relate(x, y, chosen, runs, rules) {
    const data = averaged(x, y, chosen, runs, rules.rounding), n = data.x.length;
    const found = { n, runs: data.runs, pooled: NaN, within: NaN, groups: 0, stratified: NaN, cells: 0 };
    if (n < 2) return found;
    const sums = (rows) => pairSums(rows.map((i) => data.x[i]), rows.map((i) => data.y[i]));
    found.pooled = tau(pairSums(data.x, data.y));
    const groups = gathered(data.group), large = groups.filter((rows) => rows.length >= rules.cell);
    const inside = large.map((rows) => tau(sums(rows))).filter(Number.isFinite);
    found.groups = inside.length;
    if (inside.length) found.within = inside.reduce((a, b) => a + b, 0) / inside.length;
    if (groups.length === 1) found.within = found.pooled;
    const cells = gathered(data.cell).filter((rows) => rows.length >= rules.cell);
    found.cells = cells.length;
    const total = cells.map(sums).reduce((a, b) => a.map((v, i) => v + b[i]), [0, 0, 0]);
    if (cells.length) found.stratified = tau(total);
    return found;
  }

  return { relate, significant, withoutRounding };
})();
