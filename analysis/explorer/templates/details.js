// One run: its settings, training, spectrum, forgetting, files, and the command that trains it again.
Explorer.details = (() => {
  const { view, look } = Explorer;
  const dialog = document.getElementById("run");
  const SPECTRUM = /eigenvalue|trace|lambda|spectr|bulk|negative_mass|stability/;
  const SPLITS = { train: ["training", "#0072b2"], validation: ["validation", "#d55e00"], test: ["test", "#009e73"] };

  let remarks = null;  // of each measure, what is said of it in which run

  const rows = (found, run) => found.map((m) => {
    const error = m.errors?.[run], said = Object.entries(m.remarks || {}).filter(([text]) => remarks.get(m)[text].has(run)).map(([text]) => text);
    return `<tr><th scope="row">${view.escaped(m.name)} <code>${view.escaped(m.id)}</code>${said.map((text) => `<br><small>⚠ ${view.escaped(text)}</small>`).join("")}</th>
      <td>${view.number(m.values[run])}${error ? ` ± ${view.number(error, 2)}` : ""}</td></tr>`;
  }).join("");

  const section = (title, found, run, open) => (found.length ? `<details${open ? " open" : ""}><summary>${title} (${found.length})</summary><div class="scroll" tabindex="0" role="region" aria-label="${title}"><table><thead><tr><th scope="col">Measure</th><th scope="col">Value ± standard error</th></tr></thead><tbody>${rows(found, run)}</tbody></table></div></details>` : "");

  function curves(run) {
    const { columns, runs } = view.data.history, own = runs[run], epoch = columns.indexOf("epoch");
    if (!own.length) return [];
    const kinds = [...new Set(columns.filter((c) => /^(train|validation|test)_/.test(c)).map((c) => c.replace(/^[a-z]+_/, "")))];
    return kinds.map((kind) => [kind, Object.entries(SPLITS).flatMap(([split, [name, colour]]) => {
      const at = columns.indexOf(`${split}_${kind}`);
      if (at < 0 || own[at].every((v) => v === null)) return [];
      return [{ type: "scatter", mode: "lines+markers", connectgaps: true, name, x: own[epoch], y: own[at], line: { color: look.legible(colour), width: 2 }, marker: { size: 4 } }];
    })]).filter(([, traces]) => traces.length);
  }

  function open(id) {
    const { data } = view, run = data.runs.id.indexOf(id);
    if (run < 0) { if (dialog.open) dialog.close(); return; }
    remarks ||= new Map(data.measures.filter((m) => m.remarks).map((m) => [m, Object.fromEntries(Object.entries(m.remarks).map(([text, own]) => [text, new Set(own)]))]));
    const { runs } = data, study = data.studies[runs.study[run]], settings = [...view.variables.values()].filter((v) => !v.measure);
    const known = data.measures.filter((m) => m.values[run] !== null || m.remarks), of = (test) => known.filter(test);
    const spectrum = of((m) => m.kind === "measure" && SPECTRUM.test(m.id)), forgetting = of((m) => m.kind === "measure" && m.family === "forgetting");
    const rest = of((m) => m.kind === "measure" && !spectrum.includes(m) && !forgetting.includes(m));
    const folder = `${study.folder}/runs/${id}`, drawn = curves(run), status = runs.status[run] + (runs.reason[run] ? `: ${runs.reason[run]}` : "");
    dialog.innerHTML = `<header><h2 id="run-title">${view.escaped(view.of("method").values[run])} <code>${view.escaped(id)}</code></h2><button type="button" id="close">Close</button></header>
      <dl><dt>Status</dt><dd>${view.escaped(status)}, ${runs.epochs[run]} epochs${runs.seconds[run] ? `, ${view.number(runs.seconds[run], 3)} s` : ""}</dd>
      ${settings.map((v) => `<dt>${view.escaped(v.name)}</dt><dd>${view.escaped(view.shown(v.values[run]))}</dd>`).join("")}</dl>
      <details><summary>Settings that all runs share</summary><dl>${Object.entries(study.same).map(([k, v]) => `<dt>${view.escaped(k)}</dt><dd>${view.escaped(v)}</dd>`).join("")}</dl></details>
      ${drawn.length ? `<h3>Training</h3><div class="beside" style="grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr))">${drawn.map(([kind]) => `<div class="plot curve" role="img" aria-label="${view.escaped(kind.replaceAll("_", " "))} by epoch"></div>`).join("")}</div>` : "<p class=\"note\">No history was kept.</p>"}
      <h3>Measures</h3>${section("Targets", of((m) => m.kind === "target"), run, true)}${section("Spectrum", spectrum, run, true)}${section("Forgetting", forgetting, run, false)}${section("Other measures", rest, run, false)}${section("Baselines", of((m) => m.kind === "baseline"), run, false)}
      <h3>Files</h3><pre>${["config.json", "history.parquet", "checkpoints/", "measures/"].map((file) => view.escaped(`${folder}/${file}`)).join("\n")}</pre>
      <h3>Again</h3>${runs.command[run] ? `<pre>${view.escaped(runs.command[run])}</pre>` : `<p class="note">This run was not trained from settings of ours.</p>`}${study.command ? `<p class="note">The whole study: <code>${view.escaped(study.command)}</code></p>` : ""}`;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    setTimeout(() => dialog.querySelectorAll(".curve").forEach((div, i) => {
      const [kind, traces] = drawn[i];
      Plotly.newPlot(div, traces, { ...look.layout(), width: div.clientWidth, height: 240, margin: { l: 50, r: 10, t: 30, b: 40 }, xaxis: look.axis("epoch"), yaxis: { ...look.axis(kind.replaceAll("_", " ")), rangemode: "tozero" }, legend: { orientation: "h", y: 1.2 } }, { ...look.config, displayModeBar: false });
    }));
  }

  function start() {
    dialog.addEventListener("click", ({ target }) => { if (target.id === "close" || target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => { if (view.state.run) view.change({ run: "" }); });
  }
  return { start, open };
})();
