// The scatter plot: one point a run, in panels.
Explorer.scatter = (() => {
  const { view, look, runs: choice } = Explorer;
  const div = document.getElementById("scatter");
  const PANELS = 12, SMALL = 6, LARGE = 20, MANY = 400;  // more points have no rims, which take a third of the time
  let told = null;  // what is said of each run where the pointer rests: made once

  const described = (run) => {
    const { data } = view, settings = [...view.variables.values()].filter((v) => !v.measure && v.id !== "method" && v.values[run] !== "–");
    const lines = settings.filter((v) => !v.numeric || Number.isFinite(v.values[run])).map((v) => `${view.escaped(v.name)} ${view.escaped(view.shown(v.values[run]))}`);
    return `<b>${view.escaped(view.of("method").values[run])}</b> ${data.runs.id[run]}<br>${lines.join("<br>")}`;
  };

  // Sizes of points by rank of the values, so that one extreme value does not make all others alike.
  function sizes(variable) {
    if (!variable?.numeric) return () => 9;
    const sorted = Float64Array.from(variable.values.filter(Number.isFinite)).sort(), n = Math.max(sorted.length - 1, 1);
    const place = new Map([...sorted].map((v, i) => [v, i]));
    return (run) => (place.has(variable.values[run]) ? SMALL + ((LARGE - SMALL) * place.get(variable.values[run])) / n : SMALL - 2);
  }

  function panels() {
    const v = view.of(view.state.facet);
    if (!v) return [{ name: "", has: () => true }];
    if (v.levels.length <= PANELS) return v.levels.map((level) => ({ name: `${v.name} ${view.shown(level)}`, has: (run) => String(v.values[run]) === String(level) }));
    const sorted = Float64Array.from(v.values.filter(Number.isFinite)).sort(), third = (k) => sorted[Math.floor((k * (sorted.length - 1)) / 3)];
    if (!v.numeric || third(1) === third(2)) return [{ name: `${v.name}: too many values for panels`, has: () => true }];
    const above = [-Infinity, third(1), third(2)], upto = [third(1), third(2), Infinity];
    return ["lowest third", "middle third", "highest third"].map((name, i) => ({ name: `${v.name}: ${name}`, has: (run) => v.values[run] > above[i] && v.values[run] <= upto[i] }));
  }

  function traces(chosen, panel, k, marks, size) {
    const { state } = view, x = view.of(state.x), y = view.of(state.y), axes = { xaxis: `x${k ? k + 1 : ""}`, yaxis: `y${k ? k + 1 : ""}` };
    const groups = marks.classes.map(() => []), rest = [];
    for (let run = 0; run < chosen.length; run += 1) {
      if (!panel.has(run) || (x.numeric && !Number.isFinite(x.values[run])) || (y.numeric && !Number.isFinite(y.values[run]))) continue;
      (chosen[run] ? groups[marks.at(run)] : rest).push(run);
    }
    const trace = (own, more) => ({
      type: "scatter", mode: "markers", ...axes, x: own.map((run) => x.values[run]), y: own.map((run) => y.values[run]), customdata: own,
      text: own.map((run) => told[run]), hovertemplate: `%{text}<br>${view.escaped(x.name)} %{x:.4~g}<br>${view.escaped(y.name)} %{y:.4~g}<extra></extra>`, ...more,
    });
    const found = groups.map((own, i) => [own, marks.classes[i]]).filter(([own]) => own.length).map(([own, c]) => trace(own, {
      name: view.escaped(c.name), legendgroup: c.name,
      marker: {
        symbol: c.symbol, size: view.of(state.size) ? own.map(size) : 9, opacity: 0.85, line: { width: chosen.length > MANY ? 0 : 0.8, color: view.css("--paper") },
        ...(marks.scale ? { color: own.map((run) => marks.variable.values[run]), coloraxis: "coloraxis" } : { color: c.colour }),
      },
    }));
    if (rest.length) found.unshift(trace(rest, { name: "not chosen", legendgroup: "not chosen", marker: { symbol: "circle-open", size: 6, color: view.css("--soft"), opacity: 0.45 } }));
    return found;
  }

  function titled(panel, chosen) {
    const { state, data } = view, x = view.of(state.x), y = view.of(state.y);
    if (!panel.name || !x.numeric || !y.numeric) return view.escaped(panel.name);
    const own = chosen.map((c, run) => (panel.has(run) ? c : 0));
    const said = data.studies.map((_, i) => choice.related(x, y, own, i)).filter((r) => r.n > 1).map((r) => `τ ${view.fixed(r.pooled)} (${r.n})`);
    return `${view.escaped(panel.name)}${said.length ? `<br><span style="font-size:11px">${said.join(", ")}</span>` : ""}`;
  }

  function draw(chosen) {
    const { state, data } = view, x = view.of(state.x), y = view.of(state.y), marks = look.of(state.colour), shown = panels(), size = sizes(view.of(state.size));
    told ||= data.runs.id.map((_, run) => described(run));
    const width = look.width(div), columns = Math.min(shown.length, width > 640 ? (shown.length === 4 ? 2 : 3) : width > 480 ? 2 : 1), rows = Math.ceil(shown.length / columns);
    const layout = { ...look.layout(), width, dragmode: "lasso", margin: { l: 60, r: 12, t: 34, b: 48 }, height: rows === 1 ? Math.max(340, Math.min(560, 0.7 * width)) : 90 + 260 * rows,
      showlegend: !marks.scale && Boolean(marks.variable), legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, itemclick: false, itemdoubleclick: false, font: look.font(11) }, annotations: [] };
    if (marks.scale) layout.coloraxis = { colorscale: look.SCALE, colorbar: { title: { text: view.escaped(marks.variable.name), side: "right", font: look.font(11) }, thickness: 10, outlinewidth: 0, tickfont: look.font(11) } };
    const gap = [0.05, 0.1 + 0.05 / rows], plot = layout.height - layout.margin.t - layout.margin.b, head = shown[0].name ? 34 / plot : 0;  // of a panel, for its name
    const all = [], seen = new Set(), alike = state.facet !== "study";  // studies have scales of their own
    shown.forEach((panel, k) => {
      const column = k % columns, row = Math.floor(k / columns), n = k ? k + 1 : "", w = (1 - gap[0] * (columns - 1)) / columns, h = (1 - gap[1] * (rows - 1)) / rows;
      const across = [column * (w + gap[0]), column * (w + gap[0]) + w], up = [1 - row * (h + gap[1]) - h, 1 - row * (h + gap[1]) - head];
      const log = (id, v) => (v.numeric ? (state[id] ? "log" : "linear") : "category");
      layout[`xaxis${n}`] = { ...look.axis(row === rows - 1 || k + columns >= shown.length ? view.escaped(x.name) : ""), domain: across, anchor: `y${n}`, type: log("logx", x), automargin: !x.numeric, ...(k && alike ? { matches: "x" } : {}) };
      layout[`yaxis${n}`] = { ...look.axis(column === 0 ? view.escaped(y.name) : ""), domain: up, anchor: `x${n}`, type: log("logy", y), automargin: !y.numeric, ...(k && alike ? { matches: "y", showticklabels: column === 0 } : {}) };
      if (panel.name) layout.annotations.push({ text: titled(panel, chosen), x: across[0], xanchor: "left", xref: "paper", y: up[1], yanchor: "bottom", yref: "paper", showarrow: false, align: "left", font: look.font(12) });
      for (const trace of traces(chosen, panel, k, marks, size)) {
        trace.showlegend = !seen.has(trace.legendgroup);
        seen.add(trace.legendgroup);
        all.push(trace);
      }
    });
    const done = Plotly.react(div, all, layout, look.config);
    if (!div.listens) {
      div.listens = true;
      const after = (some) => setTimeout(() => view.change(some));  // plotly draws its own idea of what is selected first
      div.on("plotly_selected", (event) => { if (event?.lassoPoints || event?.range) after({ picked: event.points.length ? new Set(event.points.map((p) => p.customdata)) : null }); });
      div.on("plotly_deselect", () => { if (view.state.picked) after({ picked: null }); });
      div.on("plotly_click", (event) => after({ run: view.data.runs.id[event.points[0].customdata] }));
    }
    const count = chosen.reduce((a, b) => a + b, 0);
    div.setAttribute("aria-label", `Scatter plot of ${count} chosen runs of ${chosen.length}: ${x.name} across, ${y.name} up; the same runs are listed below`);
    return done;
  }
  return { draw };
})();
