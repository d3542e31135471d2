"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dims = data.models[0].grid.length;
  const get = (id) => document.getElementById(id);
  const STATES = ["", " (interpolated)", "NaN", "infinite", "not evaluated yet"];
  const config = {  // nothing leaves the page: no button that uploads it, and nowhere to upload it to
    responsive: true, displaylogo: false, showSendToCloud: false, showEditInChartStudio: false, showLink: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "sendDataToCloud", "editInChartStudio", "sendChartToCloud"],
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => (dark.matches ? { ink: "#e6e8eb", paper: "#1e2227", grid: "#4a525c" } : { ink: "#22262b", paper: "#ffffff", grid: "#d5d9de" });
  const font = () => ({ family: "system-ui, sans-serif", size: 12, color: theme().ink });
  const axis = () => ({ gridcolor: theme().grid, zerolinecolor: theme().grid, automargin: true });  // room for long names
  const number = (v) => (v === null || v === undefined ? "–" : Number(v.toPrecision(4)).toString().replace("-", "−"));
  const chosen = (id, other) => (get(id) ? get(id).value : other);
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/\n/g, " ");
  const metric = () => data.metrics[get("metric").value];
  const scale = () => metric().scales[chosen("scale", "linear")];
  const rows = (i, at) => (dims === 3 ? i.map((row) => row.map((cell) => cell[at])) : i);
  const place = (v) => {  // 0 at the lowest value of all models, 1 at the end of the scale
    if (v === null) return null;
    const s = scale(), rise = v - s.low, whole = s.high - s.low;
    if (chosen("scale", "linear") === "linear") return rise / whole;
    return Math.log10(Math.max(rise, s.least) / s.least) / Math.log10(whole / s.least);
  };
  const turned = (table) => table[0].map((_, j) => table.map((row) => row[j]));  // plotly: rows are the second axis
  const described = (model, key, value, error, state, at) => {
    const f = data.metrics[key].factor, where = at.map((a, i) => `${plain(model.axes[i])}: ${number(a)}`).join("<br>");
    const what = state > 1 ? STATES[state] : number(f * value) + (error === null ? "" : ` ± ${number(f * error)}`) + STATES[state];
    return `${where}<br>${plain(data.metrics[key].label)}: ${what}`;
  };
  const holds = dims === 3 ? 2 : 1;  // the axis that the slider moves along
  const held = () => (get("cut") ? data.models[0].grid[holds][Number(get("cut").value)] : 0);
  const slider = (model) => {  // the model's own grid may be another: its nearest point
    if (!get("cut")) return 0;
    const off = model.grid[holds].map((a) => Math.abs(a - held()));
    return off.indexOf(Math.min(...off));
  };

  function slice(model) {
    const key = get("metric").value, at = slider(model);
    const values = rows(model.values[key], at), errors = rows(model.stderr[key], at), states = rows(model.state[key], at);
    const [x, y] = model.grid;
    const coordinates = (i, j) => (dims === 3 ? [x[i], y[j], model.grid[2][at]] : [x[i], y[j]]);
    const text = values.map((row, i) => row.map((v, j) => described(model, key, v, errors[i][j], states[i][j], coordinates(i, j))));
    const lost = [];
    states.forEach((row, i) => row.forEach((s, j) => { if (s > 1) lost.push([x[i], y[j], text[i][j]]); }));
    return { x, y, u: turned(values.map((row) => row.map(place))), text: turned(text), lost };
  }

  const bar = () => ({
    title: { text: plain(scale().label) + (scale().cut ? ", cut above" : ""), side: "right" }, tickvals: scale().ticks, ticktext: scale().texts,
    thickness: 12, outlinewidth: 0, len: 0.9,
  });

  function relief(model, div) {
    const s = slice(model);
    const cut = s.u.map((row) => row.map((v) => (v === null ? null : Math.min(v, 1))));
    const width = div.clientWidth || 380, size = Math.min(1, width / 430);  // names of axes need room beside it
    const title = (i) => ({ gridcolor: theme().grid, title: { text: plain(model.axes[i]), font: { ...font(), size: 11 } } });
    const traces = [{
      type: "surface", x: s.x, y: s.y, z: cut, surfacecolor: s.u, cmin: 0, cmax: 1, colorscale: data.map, showscale: false,
      text: s.text, hovertemplate: "%{text}<extra></extra>", connectgaps: false,
      contours: { z: { show: true, start: 0, end: 1, size: 0.0625, color: "rgba(255,255,255,.35)", width: 1, project: { z: true } } },
      lighting: { ambient: 0.72, diffuse: 0.55, specular: 0.08, roughness: 0.9 },
    }];
    Plotly.react(div, traces, {
      height: Math.max(240, Math.min(380, 0.95 * width)), margin: { l: 0, r: 0, t: 0, b: 0 }, font: font(), uirevision: "kept", paper_bgcolor: theme().paper,
      scene: {
        xaxis: title(0), yaxis: title(1), aspectmode: "manual", aspectratio: { x: size, y: size, z: 0.6 * size },
        zaxis: { gridcolor: theme().grid, title: { text: plain(metric().label), font: { ...font(), size: 11 } }, range: [-0.02, 1], tickvals: scale().ticks, ticktext: scale().texts },
        camera: { eye: { x: 1.35, y: -1.45, z: 0.95 }, projection: { type: "orthographic" } },
      },
    }, config);
  }

  function contour(model, div) {
    const s = slice(model);
    const traces = [{
      type: "contour", x: s.x, y: s.y, z: s.u, zmin: 0, zmax: 1, colorscale: data.map, text: s.text, hovertemplate: "%{text}<extra></extra>",
      contours: { start: 0, end: 1, size: 0.0625 }, line: { width: 0.5, color: "rgba(34,38,43,.45)" }, colorbar: bar(), connectgaps: false, hoverongaps: false,
    }];
    const lost = s.lost;
    if (lost.length) traces.push({
      type: "scatter", mode: "markers", x: lost.map((p) => p[0]), y: lost.map((p) => p[1]), text: lost.map((p) => p[2]), showlegend: false,
      marker: { symbol: "x-thin", size: 6, line: { width: 1.2, color: "#6b7280" } }, hovertemplate: "%{text}<extra></extra>",
    });
    for (const p of dims === 2 ? model.paths : []) traces.push({
      type: "scatter", mode: "lines+markers", x: p.a1, y: p.a2, name: plain(p.name), line: { color: p.colour, width: 2 },
      marker: { size: p.a1.map((_, i) => (i === p.a1.length - 1 ? 11 : i === 0 ? 9 : 5)), color: p.a1.map((_, i) => (i === p.a1.length - 1 ? "#fff" : p.colour)), line: { width: 1.5, color: p.colour } },
      text: p.step.map((t, i) => `${plain(p.name)}, step ${t}<br>off the plane by ${number(p.distance ? p.distance[i] : null)}<br>loss there ${number(p.loss ? p.loss[i] : null)}`),
      hovertemplate: "%{text}<extra></extra>",
    });
    const inside = s.x[0] <= 0 && s.x[s.x.length - 1] >= 0 && s.y[0] <= 0 && s.y[s.y.length - 1] >= 0;
    if (inside) traces.push({
      type: "scatter", mode: "markers", x: [0], y: [0], showlegend: false, marker: { symbol: "cross", size: 9, color: "#22262b", line: { width: 1.5, color: "#fff" } },
      hovertemplate: `the model: ${centre(model)}<extra></extra>`,
    });
    const range = (c) => [c[0], c[c.length - 1]];
    const shapes = dims === 2 ? [{ type: "line", x0: s.x[0], x1: s.x[s.x.length - 1], y0: s.y[slider(model)], y1: s.y[slider(model)], line: { color: "#22262b", width: 1, dash: "dot" } }] : [];
    Plotly.react(div, traces, {
      height: Math.max(260, Math.min(400, 0.9 * (div.clientWidth || 400))), margin: { l: 56, r: 10, t: 34, b: 44 }, font: font(), shapes, paper_bgcolor: theme().paper, plot_bgcolor: theme().paper, legend: { orientation: "h", y: 1.12 }, showlegend: model.paths.length > 0,
      xaxis: { ...axis(), title: { text: plain(model.axes[0]) }, range: range(s.x), constrain: "domain" }, yaxis: { ...axis(), title: { text: plain(model.axes[1]) }, range: range(s.y), constrain: "domain", ...(model.equal ? { scaleanchor: "x" } : {}) },
    }, config);
  }

  const centre = (model) => {
    const [v, e] = model.centre[get("metric").value], f = metric().factor;
    return v === null ? "–" : number(f * v) + (e === null ? "" : ` ± ${number(f * e)}`);
  };

  function runs(known) {
    const found = [];
    known.forEach((k, i) => {
      if (k && i && known[i - 1]) found[found.length - 1].push(i);
      else if (k) found.push([i]);
    });
    return found;
  }

  function lines() {
    const key = get("metric").value, f = metric().factor, traces = [];
    shown().forEach((model) => {
      const at = slider(model);
      const pick = (t) => (dims === 1 ? t : t.map((row) => row[at]));
      const x = model.grid[0], v = pick(model.values[key]), e = pick(model.stderr[key]), s = pick(model.state[key]);
      const y = v.map((a) => (a === null ? null : f * a));
      const edge = (i, sign) => f * (v[i] + sign * 2 * (e[i] || 0));
      const known = v.map((a) => a !== null);
      for (const run of runs(known)) {  // a band never bridges points without a value
        const hidden = { x: run.map((i) => x[i]), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, type: "scatter" };
        traces.push({ ...hidden, y: run.map((i) => edge(i, -1)) });
        traces.push({ ...hidden, y: run.map((i) => edge(i, 1)), fill: "tonexty", fillcolor: model.colour + "33" });
      }
      const alone = known.map((k, i) => (k && !known[i - 1] && !known[i + 1] ? 6 : 0));
      traces.push({
        type: "scatter", mode: "lines+markers", x, y, name: plain(model.name), line: { color: model.colour, width: 2 },
        marker: { size: alone, color: model.colour }, hovertemplate: "%{text}<extra></extra>",
        text: v.map((a, i) => `${plain(model.name)}<br>` + described(model, key, a, e[i], s[i], dims === 1 ? [x[i]] : [x[i], model.grid[1][at]])),
      });
      const lost = x.filter((_, i) => s[i] > 1);
      if (lost.length) traces.push({
        type: "scatter", mode: "markers", x: lost, y: lost.map(() => 1), yaxis: "y2", name: `${plain(model.name)}: not finite`, hoverinfo: "x+name",
        marker: { symbol: "x-thin", size: 8, line: { width: 2, color: model.colour } },
      });
    });
    const first = data.models[0];
    const where = dims === 1 ? "" : `, at ${plain(first.axes[1])} = ${number(held())}`;
    Plotly.react(get("lines"), traces, {
      height: 320, margin: { l: 60, r: 12, t: 34, b: 46 }, font: font(), paper_bgcolor: theme().paper, plot_bgcolor: theme().paper, legend: { orientation: "h", y: 1.15, traceorder: "normal" }, showlegend: true,
      xaxis: { ...axis(), title: { text: plain(first.axes[0]) + where } }, yaxis: { ...axis(), title: { text: plain(metric().label) } },
      yaxis2: { overlaying: "y", range: [0, 1.02], visible: false },
    }, config);
  }

  const shown = () => {
    const one = Number(chosen("model", "-1"));
    return one < 0 ? data.models : [data.models[one]];
  };

  function layout() {
    const box = get("figures");
    box.querySelectorAll(".plot").forEach((div) => Plotly.purge(div));
    box.replaceChildren();
    box.classList.toggle("single", shown().length === 1);
    if (dims === 1) return;
    shown().forEach((model) => {
      const card = document.createElement("div"), head = document.createElement("h2"), pair = document.createElement("div");
      card.className = "card"; pair.className = "pair"; head.className = "name"; head.textContent = model.name;
      if (data.models.length > 1) card.append(head);
      for (const [kind, draw] of [["relief", relief], ["contours", contour]]) {
        const div = document.createElement("div");
        div.className = "plot"; div.setAttribute("role", "img"); div.setAttribute("aria-label", `${model.name}: ${kind} of the surface`);
        div.draw = () => draw(model, div);
        pair.append(div);
      }
      card.append(pair); box.append(card);
    });
  }

  function draw() {
    if (get("cut")) {
      const name = data.models[0].axes[holds].replace("\n", " ");
      get("cut-label").textContent = `${dims === 3 ? "Plane" : "Cut"} at ${name} = ${number(held())}`;
    }
    document.querySelectorAll("#figures .plot").forEach((div) => div.draw());
    if (get("lines")) lines();
  }

  if (get("cut")) {
    const most = data.models[0].grid[holds].length - 1;
    get("cut").max = most;
    get("cut").value = Math.round(most / 2);
    get("cut").addEventListener("input", draw);
  }
  for (const id of ["metric", "scale"]) if (get(id)) get(id).addEventListener("change", draw);
  if (get("model")) get("model").addEventListener("change", () => { layout(); draw(); });
  dark.addEventListener("change", draw);
  layout();
  draw();
  document.documentElement.dataset.ready = "yes";
})();
