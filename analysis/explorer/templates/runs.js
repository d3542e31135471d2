// Choosing runs, the coefficients of those chosen, and their list.
Explorer.runs = (() => {
  const { view, statistics } = Explorer;
  const get = (id) => document.getElementById(id);
  const MOST = 12, FEW = 200;  // levels with a box each; rows of the list before the rest is asked for
  let whole = false;

  const named = (name, text) => `<button type="button" data-drop="${view.escaped(name)}" aria-label="remove ${view.escaped(text)}">${view.escaped(text)} ✕</button>`;

  function filters() {
    const { state, data } = view, listed = [...view.variables.values()].filter((v) => !v.measure && v.levels.length > 1 && v.levels.length <= MOST);
    const boxes = listed.map((v) => `<fieldset><legend>${view.escaped(v.name)}</legend>${v.levels.map((level) => {
      const held = !state.only.has(v.id) || state.only.get(v.id).has(String(level));
      return `<label><input type="checkbox" data-of="${view.escaped(v.id)}" value="${view.escaped(level)}"${held ? " checked" : ""}>${view.escaped(view.shown(level))}</label>`;
    }).join("")}</fieldset>`);
    const numeric = [...view.variables.values()].filter((v) => v.numeric);
    const chips = [...state.ranges].map(([id, [low, high]]) => named(`range.${id}`, `${view.of(id).name}: ${view.number(low)} to ${view.number(high)}`));
    if (state.picked) chips.push(named("runs", `${state.picked.size} runs drawn around`));
    if (state.lost) chips.push("<strong>The runs that the address names are of another page, with other runs: all are chosen.</strong>");
    const before = get("range-of")?.value || state.x;
    get("filters").innerHTML = `<span class="chips" id="chips">${chips.join("")}${chips.length || state.only.size ? '<button type="button" id="all">Choose all runs</button>' : ""}</span>
      ${boxes.join("")}<fieldset><legend>Only a range of</legend><span class="range"><select id="range-of" aria-label="variable">${numeric.map((v) => `<option value="${view.escaped(v.id)}"${v.id === before ? " selected" : ""}>${view.escaped(v.name)}</option>`).join("")}</select>
      <input id="range-low" inputmode="decimal" placeholder="from" aria-label="from"><input id="range-high" inputmode="decimal" placeholder="to" aria-label="to"><button type="button" id="range-set">Set</button></span></fieldset>`;
    return data;
  }

  function ticked({ target }) {
    const id = target.dataset?.of;
    if (!id) return;
    const only = new Map(view.state.only), all = view.of(id).levels.map(String);
    const held = new Set(only.get(id) || all);
    if (target.checked) held.add(target.value); else held.delete(target.value);
    if (held.size === all.length) only.delete(id); else only.set(id, held);
    view.change({ only });
  }

  function clicked({ target }) {
    const drop = target.closest("[data-drop]")?.dataset.drop;
    if (drop === "runs") view.change({ picked: null });
    else if (drop) { const ranges = new Map(view.state.ranges); ranges.delete(drop.replace("range.", "")); view.change({ ranges }); }
    else if (target.id === "all") view.change({ picked: null, ranges: new Map(), only: new Map() });
    else if (target.id === "range-set") {
      const end = (id, other) => (get(id).value.trim() === "" ? other : Number(get(id).value.replace("−", "-").replace(",", ".")));
      const low = end("range-low", -Infinity), high = end("range-high", Infinity);
      get("range-low").setAttribute("aria-invalid", Number.isNaN(low)); get("range-high").setAttribute("aria-invalid", Number.isNaN(high));
      if (!Number.isNaN(low) && !Number.isNaN(high)) view.change({ ranges: new Map(view.state.ranges).set(get("range-of").value, [low, high]) });
    }
  }

  // The coefficients of two variables in the chosen runs of one study.
  function related(x, y, chosen, study) {
    const { runs, rules } = view.data;
    const own = chosen.map((c, run) => (runs.study[run] === study ? c : 0));
    return statistics.relate(x.values, y.values, own, runs, rules);
  }

  function coefficients(chosen) {
    const { state, data } = view, x = view.of(state.x), y = view.of(state.y);
    if (!x.numeric || !y.numeric) { get("coefficients").innerHTML = "<p class=\"note\">Coefficients need numbers on both axes.</p>"; return; }
    const some = chosen.includes(0), every = new Uint8Array(chosen.length).fill(1);
    const columns = data.studies.flatMap((study, i) => [
      ...(some ? [{ head: "chosen", title: study.name, ...related(x, y, chosen, i) }] : []),
      { head: "all runs", title: study.name, ...related(x, y, every, i) },
    ]);
    const row = (label, cell, title = "") => `<tr><th scope="row" title="${title}">${label}</th>${columns.map((c) => `<td>${cell(c)}</td>`).join("")}</tr>`;
    const heads = data.studies.length > 1 ? `<tr><td></td>${data.studies.map((s) => `<th scope="colgroup" colspan="${some ? 2 : 1}">${view.escaped(s.name)}</th>`).join("")}</tr>` : "";
    const told = data.studies.map((s) => s.correlations[state.y]?.[state.x] && [s, ...s.correlations[state.y][state.x]]).filter(Boolean);
    const nan = (v) => (v === null ? NaN : v);
    get("coefficients").innerHTML = `<table><caption>τ<sub>b</sub> of ${view.escaped(x.name)} with ${view.escaped(y.name)}</caption>
      <thead>${heads}<tr><th scope="col"></th>${columns.map((c) => `<th scope="col">${c.head}</th>`).join("")}</tr></thead><tbody>
      ${row("pooled", (c) => view.fixed(c.pooled), "over all pairs of configurations")}
      ${row("stratified", (c) => view.fixed(c.stratified), "over pairs with equal hyper-parameters of training")}
      ${row("within methods", (c) => view.fixed(c.within), "mean over methods of the coefficient inside each")}
      ${row("configurations", (c) => c.n)}${row("runs", (c) => c.runs)}${row("cells, methods", (c) => `${c.cells}, ${c.groups}`, "cells with at least three configurations; methods in the mean")}
      </tbody></table><p class="note">${some ? "<strong>Exploratory:</strong> these runs were chosen after seeing their numbers." : "Means over seeds; each configuration counts once."}
      ${told.map(([s, value, low, high]) => `In the report${data.studies.length > 1 ? ` of ${view.escaped(s.name)}` : ""}: ${view.fixed(nan(value))}${low === null ? "" : ` [${view.fixed(low)}, ${view.fixed(high)}], ${s.level} interval`}.`).join(" ")}</p>`;
  }

  function list(chosen) {
    const { state, data } = view, { runs } = data, x = view.of(state.x), y = view.of(state.y);
    const rows = [...chosen.keys()].filter((run) => chosen[run]).sort((a, b) => y.values[a] - y.values[b] || a - b);
    const settings = [...view.variables.values()].filter((v) => !v.measure && v.id !== "method");
    const cell = (v, run) => view.escaped(view.shown(v.values[run]));
    const shown = whole ? rows : rows.slice(0, FEW);
    get("list-title").textContent = `Chosen runs: ${rows.length} of ${runs.id.length}`;
    get("list").innerHTML = `<thead><tr><th scope="col">Run</th>${[...settings, x, y].map((v) => `<th scope="col">${view.escaped(v.name)}</th>`).join("")}</tr></thead><tbody>
      ${shown.map((run) => `<tr><th scope="row"><button type="button" class="plain" data-run="${run}">${view.escaped(view.of("method").values[run])} <code>${view.escaped(runs.id[run])}</code></button>${runs.status[run] === "finished" ? "" : ` <small>${view.escaped(runs.status[run])}</small>`}</th>${[...settings, x, y].map((v) => `<td>${cell(v, run)}</td>`).join("")}</tr>`).join("")}
      ${shown.length < rows.length ? `<tr><th scope="row"><button type="button" id="list-more">All ${rows.length}</button></th></tr>` : ""}</tbody>`;
  }

  function listClicked({ target }) {
    const run = target.closest("[data-run]")?.dataset.run;
    if (run) view.change({ run: view.data.runs.id[run] });
    else if (target.id === "list-more") { whole = true; list(view.chosen()); }
  }

  function start() {
    get("filters").addEventListener("change", ticked);
    get("filters").addEventListener("click", clicked);
    get("filters").addEventListener("submit", (event) => event.preventDefault());
    get("filters").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target.id.startsWith("range-")) { event.preventDefault(); get("range-set").click(); }
    });
    get("list").addEventListener("click", listClicked);
  }
  return { start, filters, coefficients, list, related };
})();
