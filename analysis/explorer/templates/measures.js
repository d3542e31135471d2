// The table of measures: what each is, and its coefficients with the vertical variable in the chosen runs.
Explorer.measures = (() => {
  const { view, runs: choice } = Explorer;
  const get = (id) => document.getElementById(id);
  const KINDS = { pooled: "τ pooled", stratified: "τ stratified", within: "τ within" }, USUAL = "pooled.0 descending";
  const SLICE = 12, FEW = 60;  // ms of work at a time; rows before the rest is asked for
  let rows = [], pending = 0, whole = false;

  const columns = () => view.data.studies.flatMap((study, i) => Object.entries(KINDS).map(([kind, text]) => ({ key: `${kind}.${i}`, kind, study: i, text: view.data.studies.length > 1 ? `${text}, ${study.name}` : text })));

  function build() {
    const { measures } = view.data, families = [...new Set(measures.filter((m) => m.kind !== "target").map((m) => m.family))];
    get("family").innerHTML = `<option value="">measures and baselines</option><option>targets</option>${families.map((f) => `<option>${view.escaped(f)}</option>`).join("")}<option>everything</option>`;
    get("measures").innerHTML = `<thead><tr>${[{ key: "name", text: "Measure" }, { key: "family", text: "Family" }, ...columns(), { key: "n", text: "n" }, { key: "report", text: `In the report${view.data.studies.length > 1 ? `, ${view.data.studies[0].name}` : ""}` }]
      .map((c) => `<th scope="col" data-key="${c.key}"><button type="button" data-sort="${c.key}">${view.escaped(c.text)}</button></th>`).join("")}</tr></thead><tbody></tbody>`;
    rows = measures.map((m, i) => {
      const tr = document.createElement("tr");
      tr.innerHTML = `<th scope="row"><button type="button" class="plain" data-x="${i}" title="put it on the horizontal axis">${view.escaped(m.name)}</button>
        <code>${view.escaped(m.id)}</code><small>${view.escaped(m.help)}. <a data-about="${i}">More</a></small></th><td>${view.escaped(m.kind === "measure" ? m.family : m.kind)}</td>${"<td></td>".repeat(columns().length + 2)}`;
      return { m, tr, cells: [...tr.querySelectorAll("td")].slice(1), found: {}, text: `${m.id} ${m.name} ${m.help} ${m.family} ${m.kind}`.toLowerCase() };
    });
  }

  const report = (m) => {
    const [value, low, high] = view.data.studies[0].correlations[view.state.y]?.[m.id] || [null, null, null];
    return { value: value ?? NaN, text: value === null ? "–" : low === null ? view.fixed(value) : `${view.fixed(value)} [${view.fixed(low)}, ${view.fixed(high)}]` };
  };

  const ofFamily = (m, family) => family === "everything" || (m.kind === "target" ? family === "targets" : !family || m.family === family);

  // The rows that are asked for, in order; the first of many, for a table of hundreds is slow to lay out.
  function arrange() {
    const { state } = view, words = state.search.toLowerCase().split(/\s+/).filter(Boolean), body = get("measures").tBodies[0];
    const wanted = rows.filter(({ m, text }) => words.every((word) => text.includes(word)) && ofFamily(m, state.family));
    const [key, way] = (state.sort || USUAL).split(" "), sign = way === "ascending" ? 1 : -1, worths = new Map(wanted.map((row) => [row, worth(row, key)]));
    wanted.sort((a, b) => sign * (worths.get(a) < worths.get(b) ? -1 : worths.get(a) > worths.get(b) ? 1 : 0));
    const open = wanted.findIndex(({ m }) => m.id === state.about), shown = whole ? wanted : wanted.slice(0, Math.max(FEW, open + 1));
    const elements = shown.flatMap(({ m, tr }) => {
      const link = tr.querySelector("[data-about]"), opened = state.about === m.id;
      tr.toggleAttribute("aria-current", m.id === state.x);
      link.href = `#about=${encodeURIComponent(opened ? "" : m.id)}`;
      link.textContent = opened ? "Less" : "More";
      link.setAttribute("aria-expanded", opened);
      return opened ? [tr, about(m)] : [tr];
    });
    if (shown.length < wanted.length) elements.push(more(wanted.length));
    const now = [...body.rows];
    if (elements.length !== now.length || elements.some((tr, i) => tr !== now[i])) body.replaceChildren(...elements);
    for (const th of get("measures").tHead.rows[0].cells) {
      if (th.dataset.key === key) th.setAttribute("aria-sort", way); else th.removeAttribute("aria-sort");
    }
    get("count").textContent = `${wanted.length} of ${rows.length}`;
    if (get("search").value !== state.search) get("search").value = state.search;
    get("family").value = state.family;
    get("measures-note").innerHTML = `Coefficients with <b>${view.escaped(view.of(state.y).name)}</b> in the chosen runs; the last column has the report's number over all runs. Choose a name to put it on the horizontal axis.`;
  }

  function more(number) {
    const tr = document.createElement("tr");
    tr.innerHTML = `<th scope="row"><button type="button" data-whole="yes">All ${number}</button></th>`;
    return tr;
  }

  function about(m) {
    const { studies } = view.data, tr = document.createElement("tr");
    tr.className = "about";
    const facts = [["Larger means", m.higher], ["Expected sign with the gap", { 1: "+", "-1": "−", 0: "none by theory" }[m.sign]], ["Does not change under", m.invariant], ["Costs", m.cost], ["Taken by", m.entry && `landscape measure FOLDER --measures ${m.entry}`]];
    tr.innerHTML = `<td colspan="${rows[0].tr.cells.length}" class="words"><dl>${facts.filter(([, v]) => v).map(([k, v]) => `<dt>${k}</dt><dd>${view.escaped(v)}</dd>`).join("")}
      ${studies[0].report ? `<dt>In the report</dt><dd><a href="${studies[0].report}#table-measures">What was measured</a></dd>` : ""}</dl></td>`;
    return tr;
  }

  const worth = (row, key) => {
    if (key === "name" || key === "family") return key === "name" ? row.m.name.toLowerCase() : row.m.family;
    const v = key === "report" ? report(row.m).value : row.found[key];
    return Number.isFinite(v) ? (key === "n" ? v : Math.abs(v)) : -1;
  };

  // Coefficients of all measures, a few at a time, so that the page goes on answering.
  function fill(chosen) {
    clearTimeout(pending);
    const { state } = view, y = view.of(state.y), told = columns();
    let at = 0;
    return new Promise((done) => {
      const some = () => {
        const until = performance.now() + SLICE;
        for (; at < rows.length && performance.now() < until; at += 1) {
          const row = rows[at], x = view.of(row.m.id), none = !y.numeric || x === y;
          const each = view.data.studies.map((_, i) => (none ? { n: 0 } : choice.related(x, y, chosen, i)));
          told.forEach((c, k) => { row.found[c.key] = each[c.study][c.kind]; row.cells[k].textContent = view.fixed(each[c.study][c.kind]); });
          row.found.n = each.reduce((sum, r) => sum + r.n, 0);
          row.cells[told.length].textContent = each.map((r) => r.n).join(", ");
          row.cells[told.length + 1].textContent = report(row.m).text;
        }
        if (at < rows.length) pending = setTimeout(some, 0);
        else { arrange(); done(); }
      };
      pending = setTimeout(some, 0);
    });
  }

  function clicked(event) {
    const { target } = event, key = target.closest("[data-sort]")?.dataset.sort, x = target.closest("[data-x]")?.dataset.x, about = target.closest("[data-about]")?.dataset.about;
    if (key) {
      const [was, way] = (view.state.sort || USUAL).split(" "), first = key === "name" || key === "family" ? "ascending" : "descending";
      view.change({ sort: `${key} ${was === key ? (way === "ascending" ? "descending" : "ascending") : first}` });
    } else if (target.dataset.whole) {
      whole = true;
      arrange();
    } else if (x) view.change({ x: view.data.measures[x].id });
    else if (about) {
      event.preventDefault();
      const { id } = view.data.measures[about];
      view.change({ about: view.state.about === id ? "" : id });
    }
  }

  function start() {
    build();
    get("measures").addEventListener("click", clicked);
    get("search").addEventListener("input", ({ target }) => view.change({ search: target.value }));
    get("family").addEventListener("change", ({ target }) => view.change({ family: target.value }));
    get("search-form").addEventListener("submit", (event) => event.preventDefault());
  }
  return { start, arrange, fill };
})();
