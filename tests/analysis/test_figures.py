import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic import make

from analysis import figures, style
from analysis.measures.registry import MEASURES
from analysis.results import StudyResults


@pytest.fixture(scope="module")
def results():
    return make()


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3), layout="constrained").add_subplot()


def line_colours(ax):
    return [to_hex(line.get_color()) for line in ax.get_lines()]


def test_every_method_has_its_own_colour_and_marker():
    labels = [*style.METHODS, "looksam", "fsam", "esam"]
    look = style.looks(labels)
    assert len({colour for _, colour, _ in look.values()}) == len(labels)
    assert len({marker for _, _, marker in look.values()}) == len(labels)
    assert list(look)[:3] == ["sgd", "adamw", "sam"]
    assert look["sam"] == style.looks(["sam"])["sam"]


@pytest.mark.parametrize(
    ("method", "ascent", "label"),
    [
        ("sam", None, "sam"),
        ("sam", "obf", "sam+OBF"),
        ("obf", "obf", "obf"),
        ("sam", np.nan, "sam"),
        (None, None, "unknown"),
    ],
)
def test_method_labels(method, ascent, label):
    assert style.method_label(method, ascent) == label


def test_families_agree_with_the_registry_of_measures():
    shown = {"bias": "output bias"}
    found = {row: style.family(f"{row}[m=16]") for m in MEASURES.values() if m.family != "target" for row in m.rows}
    wanted = {row: shown.get(m.family, m.family) for m in MEASURES.values() if m.family != "target" for row in m.rows}
    assert found == wanted


@pytest.mark.parametrize("medium", style.WIDTHS)
def test_text_in_pdf_stays_text(medium):
    settings = style.rc(medium)
    assert (settings["pdf.fonttype"], settings["ps.fonttype"]) == (42, 42)
    with mpl.rc_context(settings):  # matplotlib refuses what it does not know
        pass


def test_an_unknown_medium_is_refused():
    with pytest.raises(ValueError, match="`medium` must be one of"):
        style.rc("poster")


@pytest.mark.parametrize(
    ("x", "shown"), [(-0.451, "−0.45"), (-0.001, "0.00"), (np.nan, "–"), (None, "–"), (np.inf, "–"), (12.345, "12.35")]
)
def test_fixed_numbers(x, shown):
    assert style.fixed(x) == shown


def test_forest_draws_the_values_of_the_frame_strongest_first(results, ax):
    figures.forest(ax, results.correlations, target="gap_error", top=7, ceilings=results.ceilings)
    rows = figures.strongest(results.correlations, target="gap_error", top=7)
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == rows["measure"].tolist()
    assert (np.diff(rows["value"].abs()) <= 0).all()
    filled = [line for line in ax.get_lines() if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in filled], rows["value"])
    hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in hollow], rows["within"])
    texts = [t.get_text() for t in ax.texts]
    r = rows.iloc[0]
    assert texts[0] == f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]".replace("-", "−")
    assert to_hex(filled[0].get_color()) == style.FAMILIES[style.family(r["measure"])]


def test_forest_flags_a_reversal(results, ax):
    figures.forest(ax, results.correlations, target="gap_error", top=None)
    flagged = [t for t in ax.texts if "⇄" in t.get_text()]
    assert len(flagged) == 1
    assert to_hex(flagged[0].get_color()) == style.ALERT


def test_forest_shows_the_ceiling_on_both_sides(results, ax):
    figures.forest(ax, results.correlations, target="gap_error", top=3, ceilings=results.ceilings)
    spans = sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches)
    np.testing.assert_allclose(spans, [(-0.886, -0.844), (0.844, 0.886)])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"coefficient": "gamma"}, "`coefficient` must be"), ({"top": 0}, "`top` must be at least 1")],
)
def test_forest_names_a_bad_argument(results, ax, options, message):
    with pytest.raises(ValueError, match=message):
        figures.forest(ax, results.correlations, target="gap_error", **options)


def test_comparison_is_hollow_where_the_interval_holds_zero(ax):
    frame = pd.DataFrame({
        "forgetting": ["f", "g", "h"], "sharpness": ["s"] * 3, "target": ["gap_error"] * 3, "tau_forgetting": 0.5,
        "tau_sharpness": 0.1, "difference": [0.4, -0.2, 0.1], "low": [0.1, -0.5, np.nan], "high": [0.7, 0.1, np.nan],
        "n_configurations": 20, "warnings": "",
    })  # fmt: skip
    figures.comparison_plot(ax, frame)
    fills = [line.get_markerfacecolor() for line in ax.get_lines() if line.get_marker() == "o"]
    assert [f == "white" for f in fills] == [False, True, True]


def test_scatter_says_tau_and_n_and_draws_lines_only_for_a_reversal(results):
    rows = figures.strongest(results.correlations, target="gap_error").set_index("measure", drop=False)
    for measure, wanted in (("top_eigenvalue", True), ("trace", False)):
        ax = Figure().add_subplot()
        points = results.points(measure, "gap_error")
        row = rows.loc[measure].to_dict()
        figures.scatter(ax, points, measure=measure, target="gap_error", row=row, methods=results.methods)
        assert f"n = {row['n_configurations']}" in ax.get_title(loc="left") + ax.get_title()
        assert style.fixed(row["value"]) in ax.get_title(loc="left") + ax.get_title()
        lines = [line for line in ax.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
        assert bool(lines) == wanted
        drawn = np.concatenate([line.get_xdata() for line in ax.get_lines() if line.get_marker() in "osD^v<"])
        np.testing.assert_allclose(np.sort(drawn), np.sort(points["x"]))


def test_curves_are_means_over_runs_in_percent(results):
    figure = Figure()
    history = results.history[results.history["run_id"].str.startswith("sgd")].assign(method="sgd")
    figures.training_curves(figure, history)
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), 100 * history.groupby("epoch")["test_error"].mean())
    assert to_hex(line.get_color()) == style.METHODS["sgd"][1]


def test_curves_pass_over_epochs_without_an_error(results):
    history = results.history[results.history["run_id"].str.startswith("sgd")].assign(method="sgd")
    history.loc[history["epoch"] % 2 == 1, "test_error"] = np.nan
    figure = Figure()
    figures.training_curves(figure, history)
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == list(range(2, 21, 2))


def test_bars_are_means_over_runs(results):
    rows = results.forgetting()
    rows = rows[rows["epoch"] == 20]
    figure = Figure()
    figures.forgetting_bars(figure, rows, measures=("cw",))
    here = rows.query("measure == 'cw' and radius == 'own' and split == 'exposed'").groupby("provider")["value"].mean()
    heights = [p.get_height() for p in figure.axes[0].patches[:3]]
    np.testing.assert_allclose(heights[:2], here[["sam", "obf"]])
    assert [t.get_text() for t in figure.axes[0].texts] == ["not measured"]  # random at its own radius


def test_lines_of_forgetting_must_be_exposures_or_methods(results):
    with pytest.raises(ValueError, match="`by` must be"):
        figures.forgetting_curves(Figure(), results.forgetting(), by="seed")


def test_curves_over_training_use_only_runs_measured_along_the_way(results):
    single = results.measures["run_id"].str.endswith("s1") & (results.measures["step"] < 500)
    sparse = StudyResults(**{**results.__dict__, "measures": results.measures[~single]})
    _, facts = figures.FIGURES["forgetting_curves"].draw(sparse)
    assert facts["runs"] == "16 runs"
    last = StudyResults(**{**results.__dict__, "measures": results.measures[results.measures["step"] == 500]})
    with pytest.raises(figures.NothingToDraw, match="last checkpoint only"):
        figures.FIGURES["forgetting_curves"].draw(last)


def test_the_matrix_writes_the_values_of_the_frame(results, ax):
    figures.correlation_matrix(ax, results.correlations, top=5, targets=["gap_error", "test_error"])
    assert len(ax.texts) == 10
    frame = results.correlations.query("coefficient == 'kendall'").set_index(["measure", "target"])
    rows = [t.get_text() for t in ax.get_yticklabels()]
    for i, measure in enumerate(rows):
        for j, target in enumerate(("gap_error", "test_error")):
            r = frame.loc[(measure, target)]
            text = ax.texts[2 * i + j]
            assert text.get_text() == style.fixed(r["value"])
            assert (text.get_fontweight() == "bold") == bool(r["low"] > 0 or r["high"] < 0)


def test_level_lines_stand_for_methods_without_a_radius(results, ax):
    final, _ = results.best_configurations("hp.rho")
    figures.accuracy_by_radius(ax, final, methods=results.methods)
    labels = ax.get_legend_handles_labels()[1]
    assert "SGD (no radius)" in labels
    assert "ASAM" in labels


@pytest.mark.parametrize("name", figures.FIGURES)
def test_captions_are_filled_in_from_the_study(results, name):
    plate = figures.FIGURES[name]
    figure, facts = plate.draw(results)
    caption = plate.says(results, facts)
    assert "{" not in caption
    assert isinstance(figure, Figure)
    assert caption.endswith(".")


def test_the_forest_caption_tells_how_many_were_tried(results):
    _, facts = figures.FIGURES["forest"].draw(results)
    tried = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'")
    assert (facts["all"], facts["shown"]) == (len(tried), 20)
    assert facts["n"] == "13 to 15"
