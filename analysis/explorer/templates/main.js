// Menus, and what is drawn again when the view changes.
(async () => {
  const { view, look, runs, scatter, parallel, measures, details } = Explorer;
  const get = (id) => document.getElementById(id);

  function options(id, first, test) {
    const groups = new Map();
    for (const v of view.variables.values()) if (test(v)) groups.set(v.group, [...(groups.get(v.group) || []), v]);
    const order = (name) => ({ Targets: 0, Settings: 1 })[name] ?? 2;
    get(id).innerHTML = first + [...groups].sort((a, b) => order(a[0]) - order(b[0])).map(([group, own]) => `<optgroup label="${view.escaped(group)}">${own.map((v) => `<option value="${view.escaped(v.id)}">${view.escaped(v.name)}</option>`).join("")}</optgroup>`).join("");
  }

  function menus() {
    const none = '<option value="">none</option>';
    options("x", "", () => true);
    options("y", "", () => true);
    options("colour", none, () => true);
    options("size", none, (v) => v.numeric);
    options("facet", none, () => true);
    options("axis", '<option value="">choose …</option>', () => true);
    for (const id of ["x", "y", "colour", "size", "facet"]) get(id).addEventListener("change", ({ target }) => view.change({ [id]: target.value }));
    for (const id of ["logx", "logy"]) get(id).addEventListener("change", ({ target }) => view.change({ [id]: target.checked ? "log" : "" }));
    get("swap").addEventListener("click", () => view.change({ x: view.state.y, y: view.state.x, logx: view.state.logy, logy: view.state.logx }));
    get("axis").addEventListener("change", ({ target }) => { if (target.value) view.change({ axes: [...parallel.axes().map((v) => v.id), target.value].join("|") }); });
    get("axes").addEventListener("click", ({ target }) => {
      const gone = target.closest("[data-axis]")?.dataset.axis;
      if (gone) view.change({ axes: parallel.axes().map((v) => v.id).filter((id) => id !== gone).join("|") });
    });
  }

  // What of the page hangs on which part of the view: words and open rows of the table move no point.
  const OF_TABLE = ["search", "family", "sort", "about", "run"];
  let later = 0;

  function draw(some = null) {
    const { state } = view, moved = some === null || Object.keys(some).some((key) => !OF_TABLE.includes(key));
    if (moved) {
      const chosen = view.chosen();
      for (const id of ["x", "y", "colour", "size", "facet"]) get(id).value = state[id];
      get("logx").checked = Boolean(state.logx);
      get("logy").checked = Boolean(state.logy);
      get("axis").value = "";
      scatter.draw(chosen);
      runs.coefficients(chosen);
      clearTimeout(later);
      document.documentElement.dataset.ready = "drawing";
      const painted = () => new Promise((done) => { later = setTimeout(done, 20); });
      (async () => {  // the rest follows, so that the plot answers at once
        await painted();
        if (some === null || some.only || some.ranges || "picked" in some) runs.filters();
        get("axes").innerHTML = parallel.axes().map((v) => `<button type="button" data-axis="${view.escaped(v.id)}" aria-label="remove the axis ${view.escaped(v.name)}">${view.escaped(v.name)} ✕</button>`).join("");
        parallel.draw(chosen);
        await painted();
        runs.list(chosen);
        await measures.fill(chosen);
        document.documentElement.dataset.ready = "yes";
      })();
    }
    if (!moved && !("run" in some)) measures.arrange();
    if (some === null || "run" in some) details.open(state.run);
  }

  try {
    await view.load();
  } catch (error) {
    get("wait").textContent = `The page could not be unpacked (${error.message}): a browser from 2023 or later is needed.`;
    throw error;
  }
  get("wait").remove();
  get("page").hidden = false;
  menus();
  for (const part of [runs, measures, details]) part.start();
  if (innerWidth < 640) get("narrow").open = false;
  view.watch(draw);
  addEventListener("hashchange", () => { view.read(); draw(); });
  let wait = 0;
  addEventListener("resize", () => {
    clearTimeout(wait);
    wait = setTimeout(() => { look.resized(); draw(); }, 100);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  draw();
})();
