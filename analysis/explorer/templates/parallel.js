// Parallel coordinates: settings and measures side by side, one line a run, chosen runs in colour.
Explorer.parallel = (() => {
  const { view, look } = Explorer;
  const div = document.getElementById("parallel");
  const SEEDS = ["hp.seed", "hp.data_seed"], TICKS = 8;
  let drawn = [];

  function axes() {
    const { state } = view;
    const own = state.axes ? state.axes.split("|") : [...view.variables.values()].filter((v) => !v.measure && !SEEDS.includes(v.id)).slice(0, 6).map((v) => v.id);
    return [...new Set([...own, ...(state.axes ? [] : [state.x, state.y])])].filter((id) => view.variables.has(id)).map((id) => view.of(id));
  }

  // Where each value lies on its axis, between 0 and 1.
  function places(v) {
    if (!v.numeric || (!v.measure && v.levels.length <= TICKS)) {
      const n = Math.max(v.levels.length - 1, 1), order = new Map(v.levels.map((level, i) => [String(level), v.levels.length > 1 ? i / n : 0.5]));
      return { of: (run) => order.get(String(v.values[run])) ?? NaN, ticks: v.levels.length <= TICKS ? v.levels.map((level) => [order.get(String(level)), view.shown(level)]) : [], back: null, levels: order };
    }
    const known = v.values.filter(Number.isFinite), low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity), span = high - low || 1;
    return { of: (run) => (v.values[run] - low) / span, ticks: [[0, view.number(low, 3)], [1, view.number(high, 3)]], back: (p) => low + p * span };
  }

  function lines(runs, scales, more) {
    const x = [], y = [];
    for (const run of runs) {
      scales.forEach((scale, i) => { const p = scale.of(run); x.push(i); y.push(Number.isFinite(p) ? p : null); });
      x.push(null); y.push(null);
    }
    return { type: "scatter", mode: "lines", x, y, hoverinfo: "skip", showlegend: false, ...more };
  }

  function draw(chosen) {
    const marks = look.of(view.state.colour), shown = axes(), scales = shown.map(places), groups = marks.classes.map(() => []), rest = [];
    chosen.forEach((c, run) => (c ? groups[marks.at(run)] : rest).push(run));
    const opacity = Math.max(0.25, Math.min(0.8, 60 / chosen.length));
    const all = [lines(rest, scales, { line: { color: view.css("--rule"), width: 1 } }), ...groups.map((runs, i) => lines(runs, scales, { opacity, line: { color: look.legible(marks.classes[i].colour), width: 1.4 } }))];
    const annotations = scales.flatMap((scale, i) => scale.ticks.map(([p, text]) => ({ x: i, y: p, text: view.escaped(text), showarrow: false, xanchor: "left", xshift: 4, font: look.font(10.5), bgcolor: view.css("--paper"), opacity: 0.85 })));
    const held = view.state.ranges;
    const shapes = shown.flatMap((v, i) => [
      { type: "line", x0: i, x1: i, y0: 0, y1: 1, line: { color: view.css("--soft"), width: 1 } },
      ...(held.has(v.id) && scales[i].back ? [{ type: "rect", x0: i - 0.04, x1: i + 0.04, ...ends(held.get(v.id), scales[i]), line: { color: view.css("--accent"), width: 2 }, fillcolor: view.css("--accent"), opacity: 0.3 }] : []),
    ]);
    drawn = shown.map((v, i) => ({ variable: v, scale: scales[i] }));
    const wrapped = (name) => view.escaped(name).replace(/(.{9,}?) /g, "$1<br>");
    const layout = { ...look.layout(), width: look.width(div), dragmode: "select", height: 330, margin: { l: 40, r: 50, t: 24, b: 60 }, annotations, shapes,
      xaxis: { ...look.axis(""), range: [-0.15, shown.length - 1 + 0.35], tickvals: shown.map((_, i) => i), ticktext: shown.map((v) => wrapped(v.name)), showgrid: false, zeroline: false, fixedrange: true, tickangle: 0 },
      yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true } };
    const done = Plotly.react(div, all, layout, { ...look.config, displayModeBar: false });
    if (!div.listens) { div.listens = true; div.on("plotly_selected", (event) => { if (event?.range) setTimeout(() => boxed(event.range)); }); }
    return done;
  }

  const ends = ([low, high], scale) => {
    const at = (v, other) => (Number.isFinite(v) ? (v - scale.back(0)) / (scale.back(1) - scale.back(0)) : other);
    return { y0: Math.max(-0.05, at(low, -0.05)), y1: Math.min(1.05, at(high, 1.05)) };
  };

  // A box over axes chooses the runs that pass through it.
  function boxed({ x, y }) {
    const ranges = new Map(view.state.ranges), only = new Map(view.state.only), [low, high] = [Math.min(...y), Math.max(...y)];
    drawn.forEach(({ variable, scale }, i) => {
      if (i < Math.min(...x) || i > Math.max(...x)) return;
      if (scale.back) ranges.set(variable.id, [Number(scale.back(low).toPrecision(5)), Number(scale.back(high).toPrecision(5))]);
      else only.set(variable.id, new Set([...scale.levels].filter(([, p]) => p >= low && p <= high).map(([level]) => level)));
    });
    view.change({ ranges, only });
  }
  return { draw, axes };
})();
