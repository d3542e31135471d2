// What the tests ask of the page.
const probes = (() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const APART = ".scroll, .modebar-container, dialog:not([open]), svg";  // these scroll, or are drawn by plotly

  function sticksOut() {
    const width = document.documentElement.clientWidth, box = (e) => e.getBoundingClientRect();
    return all("body *").filter((e) => !e.parentElement.closest(APART) && e.id !== "js-plotly-tester")
      .filter((e) => box(e).right > width + 1 || box(e).left < -1).map((e) => `${e.tagName}.${e.className}`);
  }

  function unnamed() {
    const controls = all("#page button, #page select, #page input, #page a, dialog[open] button");
    const named = (e) => e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length;
    return controls.filter((e) => e.checkVisibility() && !named(e)).map((e) => e.outerHTML);
  }

  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (text) => {
    const [r, g, b] = text.match(/\d+(\.\d+)?/g).map((c) => linear(Number(c) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };

  // The least contrast of a point of the plot with the page, and the page's luminance.
  function contrast() {
    const paper = luminance(getComputedStyle(document.body).backgroundColor);
    const marks = all("#scatter .point").map((e) => luminance(getComputedStyle(e).fill));
    const of = (m) => (Math.max(m, paper) + 0.05) / (Math.min(m, paper) + 0.05);
    return { paper, least: Math.min(...marks.map(of)), number: marks.length };
  }

  // Coefficients as lists, null where there is none.
  const listed = (r) => [r.pooled, r.stratified, r.within, r.n, r.runs, r.cells, r.groups]
    .map((v) => (Number.isNaN(v) ? null : v));

  const related = (y, names, chosen) => {
    const { view, runs } = Explorer;
    return names.map((x) => listed(runs.related(view.of(x), view.of(y), Uint8Array.from(chosen), 0)));
  };

  // Of values of runs that are of these configurations, all of one method and one cell.
  const alone = (x, y, configuration) => {
    const none = x.map(() => 0), rules = { rounding: 2 ** -20, cell: 3 };
    return listed(Explorer.statistics.relate(x, y, Uint8Array.from(x, () => 1), { configuration, group: none, cell: none }, rules));
  };

  return { sticksOut, unnamed, contrast, related, alone };
})();
