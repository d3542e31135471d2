// Colours and symbols of runs, the same in all views, and light enough on a dark page.
Explorer.look = (() => {
  const { view } = Explorer;
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#8b3fe8", "#c86fa0", "#7d5f10", "#4d4d4d", "#2995ff", "#882255", "#117733"];
  const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "x", "cross", "triangle-down", "star", "pentagon", "hexagon"];
  const SCALE = "Viridis", MOST = 10;
  const config = {  // nothing leaves the page: no button that uploads it, and nowhere to upload it to
    displaylogo: false, showSendToCloud: false, showEditInChartStudio: false, showLink: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendDataToCloud", "editInChartStudio", "sendChartToCloud", "autoScale2d"],
  };

  const luminance = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const lighter = (hex) => `#${[1, 3, 5].map((i) => Math.ceil(parseInt(hex.slice(i, i + 2), 16) * 0.92 + 255 * 0.08).toString(16).padStart(2, "0")).join("")}`;

  // The colour, lightened as far as 3:1 on a dark page needs (WCAG 2, for graphics).
  function legible(hex) {
    const paper = luminance(view.css("--paper"));
    let found = hex;
    while (paper < 0.2 && (luminance(found) + 0.05) / (paper + 0.05) < 3) found = lighter(found);
    return found;
  }

  // How runs are told apart: classes with a colour and a symbol each, or a scale of numbers.
  function of(id) {
    const v = view.of(id), { data } = view;
    if (v && v.numeric && (v.measure || v.levels.length > MOST)) return { variable: v, scale: true, classes: data.methods.map((m) => ({ name: m.name, colour: m.colour, symbol: m.symbol })), at: (run) => data.runs.method[run] };
    if (!v) return { variable: null, classes: [{ name: "runs", colour: legible(COLOURS[0]), symbol: "circle" }], at: () => 0 };
    if (id === "method") return { variable: v, classes: data.methods.map((m) => ({ name: m.name, colour: legible(m.colour), symbol: m.symbol })), at: (run) => data.runs.method[run] };
    const shown = v.levels.length > MOST ? v.levels.slice(0, MOST - 1) : v.levels;  // more colours are not told apart
    const place = new Map(shown.map((level, i) => [String(level), i])), n = shown.length;
    return {
      variable: v,
      classes: [...shown, v.levels.length > MOST ? "others" : "–"].map((level, i) => ({ name: view.shown(level), colour: legible(i === n ? "#8c9196" : COLOURS[i % COLOURS.length]), symbol: SYMBOLS[i % SYMBOLS.length] })),
      at: (run) => place.get(String(v.values[run])) ?? n,
    };
  }

  // The width of a plot, kept until the window's changes: to ask for it lays out the whole page.
  const widths = new Map();
  const width = (div) => {
    if (!widths.has(div)) widths.set(div, div.clientWidth || 700);
    return widths.get(div);
  };
  const resized = () => widths.clear();

  const font = (size = 12) => ({ family: view.css("--sans"), size, color: view.css("--ink") });
  const layout = () => ({
    font: font(), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", selections: [],
    modebar: { bgcolor: "rgba(0,0,0,0)", color: view.css("--soft"), activecolor: view.css("--accent") },
    newselection: { line: { color: view.css("--accent"), width: 2, dash: "solid" } },
    hoverlabel: { bgcolor: view.css("--panel"), bordercolor: view.css("--soft"), font: font(), align: "left" },
    colorway: COLOURS,
  });
  const axis = (title) => ({
    title: { text: title, font: font(12), standoff: 6 }, gridcolor: view.css("--rule"), linecolor: view.css("--soft"), zerolinecolor: view.css("--rule"),
    tickfont: { ...font(11), color: view.css("--soft") },
  });
  return { of, layout, axis, font, config, SCALE, legible, width, resized };
})();
