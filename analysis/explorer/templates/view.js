// The data, what can be drawn of them, and the view: everything that was chosen, which the address holds.
Explorer.view = (() => {
  let data, variables, usual;
  const state = {};
  const watchers = [];

  // Text that Python packed (gzip, base64).
  async function unpacked(id) {
    const raw = atob(document.getElementById(id).textContent), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  const levelsOf = (values) => {
    const found = [...new Set(values.filter((v) => v !== null))];
    return found.every((v) => typeof v === "number") ? found.sort((a, b) => a - b) : found.map(String).sort();
  };

  function variable(id, name, group, values, levels = null) {
    const known = values.filter((v) => v !== null);
    const numeric = known.length > 0 && known.every((v) => typeof v === "number");
    const kept = numeric ? Float64Array.from(values, (v) => (v === null ? NaN : v)) : values.map((v) => (v === null ? "–" : String(v)));
    return { id, name, group, values: kept, numeric, levels: levels || levelsOf(values) };
  }

  const GROUPS = { target: "Targets", baseline: "Baselines", setting: "Settings" };

  async function load() {
    data = JSON.parse(await unpacked("packed-data"));
    const script = document.createElement("script");
    script.textContent = await unpacked("packed-plotly");
    document.head.append(script);
    const { runs } = data, names = data.methods.map((m) => m.name);
    const all = [variable("method", "method", GROUPS.setting, runs.method.map((m) => names[m]), names)];
    if (data.studies.length > 1) {
      const titles = data.studies.map((s, i) => (data.studies.findIndex((t) => t.name === s.name) < i ? `${s.name} (${i + 1})` : s.name));
      all.unshift(variable("study", "study", GROUPS.setting, runs.study.map((s) => titles[s]), titles));
    }
    for (const s of data.settings) all.push(variable(s.id, s.name, GROUPS.setting, s.values));
    for (const m of data.measures) {
      const group = GROUPS[m.kind] || `${m.family[0].toUpperCase()}${m.family.slice(1)}`;
      all.push({ ...variable(m.id, m.name, group, m.values), measure: m, numeric: true });
    }
    variables = new Map(all.map((v) => [v.id, v]));
    usual = {
      x: data.start.x, y: data.start.y, colour: "method", size: "", facet: data.studies.length > 1 ? "study" : "",
      logx: "", logy: "", search: "", family: "", sort: "", about: "", run: "", axes: "",
    };
    read();
  }

  // 0-4_7 for the numbers 0, 1, 2, 3, 4 and 7.
  const ranges = (numbers) => {
    const found = [];
    for (const n of [...numbers].sort((a, b) => a - b)) {
      const last = found[found.length - 1];
      if (last && n === last[1] + 1) last[1] = n; else found.push([n, n]);
    }
    return found.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join("_");
  };
  const numbersOf = (text) => text.split("_").flatMap((part) => {
    const [a, b = a] = part.split("-").map(Number), end = Math.min(b, data.runs.id.length - 1);
    return Number.isInteger(a) && a >= 0 ? Array.from({ length: Math.max(0, end - a + 1) }, (_, i) => a + i) : [];
  });

  // What the address says; what it does not say, or says of names that are not here, is as usual.
  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const key of Object.keys(usual)) state[key] = given.get(key) ?? usual[key];
    for (const key of ["x", "y"]) if (!variables.has(state[key])) state[key] = usual[key];
    for (const key of ["colour", "size", "facet"]) if (state[key] && !variables.has(state[key])) state[key] = usual[key];
    state.only = new Map();
    state.ranges = new Map();
    for (const [key, value] of given) {
      const name = key.replace(/^(only|range)\./, "");
      if (!variables.has(name)) continue;
      if (key.startsWith("only.")) state.only.set(name, (state.only.get(name) || new Set()).add(value));
      const ends = value.split("..").map(Number);
      if (key.startsWith("range.") && ends.length === 2 && !ends.some(Number.isNaN)) state.ranges.set(name, ends);
    }
    const [mark, picked] = (given.get("runs") || "").split(".");
    state.picked = picked && mark === data.mark ? new Set(numbersOf(picked)) : null;
    state.lost = Boolean(picked) && mark !== data.mark;  // numbers of runs of another page
  }

  function address() {
    const told = new URLSearchParams();
    for (const key of Object.keys(usual)) if (state[key] !== usual[key]) told.set(key, state[key]);
    for (const [name, levels] of state.only) for (const level of levels) told.append(`only.${name}`, level);
    for (const [name, ends] of state.ranges) told.set(`range.${name}`, ends.join(".."));
    if (state.picked) told.set("runs", `${data.mark}.${ranges(state.picked)}`);
    return told.toString();
  }

  // Which runs pass all that was chosen; one number a run.
  function chosen() {
    const found = new Uint8Array(data.runs.id.length).fill(1);
    const keep = (passes) => found.forEach((_, run) => { if (!passes(run)) found[run] = 0; });
    for (const [name, levels] of state.only) { const { values } = variables.get(name); keep((run) => levels.has(String(values[run]))); }
    for (const [name, [low, high]] of state.ranges) { const { values } = variables.get(name); keep((run) => values[run] >= low && values[run] <= high); }
    if (state.picked) keep((run) => state.picked.has(run));
    return found;
  }

  // Change some of the view, keep it in the address, and draw it. Frames of a notebook have no address of their own.
  function change(some = {}) {
    Object.assign(state, some);
    try { history.replaceState(null, "", `#${address()}`); } catch { /* about:srcdoc */ }
    watchers.forEach((watcher) => watcher(some));
  }

  const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const number = (v, digits = 4) => (Number.isFinite(v) ? Number(v.toPrecision(digits)).toString().replace("-", "−") : "–");
  const fixed = (v) => (Number.isFinite(v) ? v.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−") : "–");

  const colours = new Map();  // of the page, kept: the browser is slow to tell them
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours.clear());
  const css = (name) => {
    if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
    return colours.get(name);
  };

  return {
    load, read, address, change, chosen, state, escaped, number, fixed, css,
    watch: (watcher) => watchers.push(watcher),
    get data() { return data; },
    get variables() { return variables; },
    of: (id) => variables.get(id),
    shown: (v) => (typeof v === "number" ? number(v) : v),
  };
})();
