import itertools
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from synthetic import make

from analysis import figures, style
from analysis.figures.room import folded
from analysis.measures.registry import MEASURES, family_of
from analysis.media import MEDIA
from analysis.table import with_variant


@pytest.fixture(scope="module")
def results():
    return make()


@pytest.fixture
def ax():
    return Figure(figsize=(8, 3), layout="constrained").add_subplot()


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
    shown = {"bias": "output bias", "diagnostic": "other", "target": "other"}
    rows = [row for m in MEASURES.values() for row in m.rows]
    found = {row: style.family(f"{row}[m=16]") for row in rows}
    assert found == {row: shown.get(family_of(row), family_of(row)) for row in rows}
    assert {found["validation_error"], found["mean_entropy"], style.family("train_squared_error")} == {"baseline"}
    assert found["bottom_eigenvalue"] == "other"


@pytest.mark.parametrize("medium", MEDIA)
def test_text_in_pdf_stays_text(medium):
    settings = style.rc(medium)
    assert (settings["pdf.fonttype"], settings["ps.fonttype"]) == (42, 42)
    with mpl.rc_context(settings):  # matplotlib refuses what it does not know
        pass


@pytest.mark.parametrize("family", style.FAMILIES)
def test_names_in_the_colour_of_a_family_can_be_read(family):
    def luminance(colour):
        c = np.array(to_rgb(colour))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    colour = style.FAMILIES[family]
    assert 1.05 / (luminance(style.ink(colour)) + 0.05) >= 4.5
    if 1.05 / (luminance(colour) + 0.05) >= 4.5:
        assert style.ink(colour) == colour


# Machado, Oliveira and Fernandes (2009), IEEE TVCG 15(6), severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


PALETTES = {  # with the least distance in CIELAB, where markers differ too
    "families": (list(style.FAMILIES.values()), 12),
    "methods": ([colour for _, colour, _ in style.METHODS.values()], 8),
    "strangers": ([colour for _, colour, _ in style.looks(["looksam", "fsam", "esam", "gnp", "vasso"]).values()], 8),
    "exposures": ([colour for _, colour, _ in style.EXPOSURES.values()], 8),
}


def linear(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("palette", PALETTES)
def test_colours_are_told_apart_by_the_colour_blind(palette, kind):
    def lab(colour):
        seen = np.clip(np.array(BLINDNESS[kind]) @ linear(colour), 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
        f = np.cbrt(xyz / [0.9505, 1, 1.089])
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    colours, least = PALETTES[palette]
    for a, b in itertools.combinations(colours, 2):
        assert np.linalg.norm(lab(a) - lab(b)) > least, (a, b)
    assert len(set(style.FAMILY_MARKERS.values())) == len(style.FAMILIES)


@pytest.mark.parametrize("palette", PALETTES)
def test_colours_stand_out_from_white(palette):
    for colour in PALETTES[palette][0]:
        assert 1.05 / (linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3.0, colour  # WCAG 2, for graphics


@pytest.mark.parametrize(
    ("variant", "shown"),
    [
        ("top_eigenvalue", "largest eigenvalue"),
        ("F_mi[obf, iso-loss, m=64, other_train]", "F_mi [OBF, iso-loss, m=64, other train]"),
        ("M_gap_cw[sam, own, m=16, exposed]", "M-gap of right → wrong [SAM, own, m=16, exposed]"),
        ("parameter_norm", "parameter norm"),
        ("my_own", "my own"),
    ],
)
def test_names_of_measures_for_a_reader(variant, shown):
    assert style.measure_name(variant) == shown


def test_no_two_measures_have_one_name():
    rows = [row for m in MEASURES.values() for row in m.rows]
    assert len({style.measure_name(row) for row in rows}) == len(set(rows))
    assert set(style.NAMES) <= set(rows)


def test_long_names_are_put_on_two_lines():
    assert folded("F_mi [OBF, iso-loss, m=64, other train]", 34) == "F_mi\n[OBF, iso-loss, m=64, other train]"
    assert folded("F_mi [OBF, iso-loss, m=64]", 18) == "F_mi\n[OBF, iso-loss,\nm=64]"
    assert folded("largest eigenvalue", 18) == "largest eigenvalue"


def test_an_unknown_medium_is_refused():
    with pytest.raises(ValueError, match="`medium` must be one of"):
        style.rc("poster")


@pytest.mark.parametrize(
    ("x", "shown"), [(-0.451, "−0.45"), (-0.001, "0.00"), (np.nan, "–"), (None, "–"), (np.inf, "–"), (12.345, "12.35")]
)
def test_fixed_numbers(x, shown):
    assert style.fixed(x) == shown


def drawn(ax):
    """Places of the filled and of the hollow markers, from the top down."""
    markers = (*style.FAMILY_MARKERS.values(), "P")
    points = [line for line in ax.get_lines() if line.get_marker() in markers]
    filled = [line for line in points if line.get_markerfacecolor() != "white"]
    hollow = [line for line in points if line.get_markerfacecolor() == "white"]
    return filled, [line.get_xdata()[0] for line in hollow]


def test_forest_draws_the_values_of_the_frame_strongest_first(results, ax):
    figures.forest(ax, results.correlations, target="gap_error", top=7, ceilings=results.ceilings)
    rows = figures.strongest(results.correlations, target="gap_error", top=7)
    names = [t.get_text().removesuffix(" †") for t in ax.get_yticklabels()]
    assert names == [style.measure_name(m) for m in rows["measure"]]
    assert (np.diff(rows["value"].abs()) <= 0).all()
    filled, hollow = drawn(ax)
    np.testing.assert_allclose([line.get_xdata()[0] for line in filled], rows["value"])
    np.testing.assert_allclose(hollow, rows["stratified"])
    texts = [t.get_text() for t in ax.texts]
    r = rows.iloc[0]
    assert texts[0] == style.interval(r["value"], r["low"], r["high"])
    assert texts[1] == style.interval(r["stratified"], r["stratified_low"], r["stratified_high"])
    assert to_hex(filled[0].get_color()) == style.FAMILIES[style.family(r["measure"])]


def test_forest_without_cells_shows_the_mean_within_methods(results, ax):
    older = results.correlations.query("role == 'candidate'").drop(columns=["stratified", "role", "warned"])
    figures.forest(ax, older, target="gap_error", top=7)
    rows = figures.strongest(older, target="gap_error", top=7)
    np.testing.assert_allclose(drawn(ax)[1], rows["within"])
    assert len(ax.texts) == 7


def test_forest_shows_named_measures_and_baselines_in_the_order_given(results, ax):
    given = ["top_eigenvalue", "gradient_norm", "validation_error"]
    figures.forest(ax, results.correlations, target="gap_error", measures=given)
    rows = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'").set_index("measure")
    np.testing.assert_allclose([line.get_xdata()[0] for line in drawn(ax)[0]], rows.loc[given, "value"])
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "largest eigenvalue",
        "gradient norm",
        "validation error †",
    ]
    assert [("⚠" in t.get_text()) for t in ax.texts] == [False, False, True, False, False, False]


def test_forest_flags_reversals_within_methods_and_inside_cells(results, ax):
    figures.forest(ax, results.correlations, target="gap_error", top=None)
    flagged = [t for t in ax.texts if "⇄" in t.get_text()]
    rows = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'").set_index("measure")
    turned, held = rows.loc["top_eigenvalue"], rows.loc["trace"]
    wanted = {
        style.interval(turned["value"], turned["low"], turned["high"]),
        style.interval(held["stratified"], held["stratified_low"], held["stratified_high"]),
    }
    assert {t.get_text().removesuffix("  ⇄") for t in flagged} == wanted
    assert {to_hex(t.get_color()) for t in flagged} == {style.ALERT}


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


def test_a_difference_is_clear_only_where_that_over_draws_is(ax):
    row = {"forgetting": "F_mi", "sharpness": "trace", "pairs": "pooled", "difference": 0.3, "low": 0.1, "high": 0.5}
    frame = pd.DataFrame([
        {**row, "low_draws": -0.1, "high_draws": 0.6},
        {**row, "forgetting": "cw", "low_draws": 0.05, "high_draws": 0.6},
    ])  # fmt: skip
    figures.comparison_plot(ax, frame)
    fills = [line.get_markerfacecolor() for line in ax.get_lines() if line.get_marker() == "o"]
    assert [f == "white" for f in fills] == [True, False]
    assert [t.get_text() for t in ax.texts[:2]] == ["0.30 [−0.10, 0.60]", "0.30 [0.05, 0.60]"]


@pytest.mark.parametrize("noisy", [True, False])
def test_the_forest_marks_what_takes_noisy_labels_as_given(results, ax, noisy):
    given = ["cw[sam, own, m=16, exposed]", "trace"]
    figures.forest(ax, results.correlations, target="gap_error", measures=given, noisy=noisy)
    assert [t.get_text().endswith(" ‡") for t in ax.get_yticklabels()] == [noisy, False]


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
        dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
        assert len(dashed) == wanted
        assert ("⇄ inside methods −0.30" in ax.get_title(loc="left") + ax.get_title()) == wanted
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
    sparse = replace(results, measures=results.measures[~single])
    _, facts = figures.FIGURES["forgetting_curves"].draw(sparse)
    assert facts["runs"] == "16 runs"
    last = replace(results, measures=results.measures[results.measures["step"] == 500])
    with pytest.raises(figures.NothingToDraw, match="last checkpoint only"):
        figures.FIGURES["forgetting_curves"].draw(last)


def test_the_matrix_writes_the_values_of_the_frame(results, ax):
    figures.correlation_matrix(ax, results.correlations, top=5, targets=["gap_error", "test_error"])
    known = ["train_error", "validation_error", "parameter_norm"]
    assert len(ax.texts) == 2 * (5 + len(known))
    frame = results.correlations.query("coefficient == 'kendall'").set_index(["measure", "target"])
    rows = figures.matrix_rows(
        results.correlations.query("coefficient == 'kendall' and target != 'ood_error_mean'"), top=5
    )
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert sorted(labels) == sorted(map(style.measure_name, [*known, *rows]))
    assert sorted(labels[:3]) == sorted(map(style.measure_name, known))  # baselines stand above all others
    rows = sorted([*known, *rows], key=lambda m: labels.index(style.measure_name(m)))
    for i, measure in enumerate(rows):
        for j, target in enumerate(("gap_error", "test_error")):
            r = frame.loc[(measure, target)]
            text = ax.texts[2 * i + j]
            assert text.get_text() == style.fixed(r["value"]).replace("0.", ".", 1)
            assert (text.get_fontweight() == "bold") == bool(r["low"] > 0 or r["high"] < 0)


def test_level_lines_stand_for_methods_without_a_radius(results, ax):
    final, _ = results.best_configurations("hp.rho")
    figures.accuracy_by_radius(ax, final, methods=results.methods)
    labels = ax.get_legend_handles_labels()[1]
    assert "SGD (no radius)" in labels
    assert "ASAM" in labels


def test_the_forest_caption_tells_how_many_were_tried(results):
    _, facts = figures.FIGURES["forest"].draw(results)
    tried = results.correlations.query("target == 'gap_error' and coefficient == 'kendall' and role == 'candidate'")
    assert facts["all"] == len(tried)
    assert "3 baselines" in facts["known"]
    assert "4 cells, 1 left out" in facts["hollow"]
    assert facts["n"] == "15"


def many(n, family="F_mi"):
    """n variants of one measure, all stronger than the others."""
    rows = [
        {"measure": f"{family}[m={k}]", "target": "gap_error", "coefficient": "kendall", "value": 0.9 - k / 1000,
         "n_configurations": 20}
        for k in range(n)
    ]  # fmt: skip
    names = ("cw", "KL", "JS", "TV", "dH", "top_eigenvalue", "distance_from_init", "path_norm", "b_marg")
    rows += [
        {"measure": m, "target": "gap_error", "coefficient": "kendall", "value": 0.1 + i / 100, "n_configurations": 20}
        for i, m in enumerate(names)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("top", [5, 8])
def test_no_measure_and_no_family_fills_a_figure(top):
    shown = figures.strongest(many(100), target="gap_error", top=top)["measure"]
    assert len(shown) == top
    assert shown.str.startswith("F_mi[").sum() <= 3
    assert (shown.map(style.family) == "forgetting").sum() <= int(np.ceil(0.4 * top))
    assert sorted(figures.matrix_rows(many(100), top=top)) == sorted(shown)


def test_variants_fill_up_where_there_is_nothing_else():
    only = many(30).iloc[:30]
    shown = figures.strongest(only, target="gap_error", top=20)["measure"].tolist()
    assert shown == [f"F_mi[m={k}]" for k in range(20)]


def test_coefficients_of_a_few_configurations_come_last():
    rows = many(3).assign(n_configurations=[2, 20, 20, *[20] * 9])
    assert figures.strongest(rows, target="gap_error")["measure"].tolist()[-1] == "F_mi[m=0]"
    assert "F_mi[m=0]" not in figures.matrix_rows(rows, top=5)


def test_the_caption_of_the_matrix_says_what_is_left_out(results):
    _, facts = figures.FIGURES["correlation_matrix"].draw(results)
    tau = results.correlations.query("coefficient == 'kendall' and role == 'candidate'")
    rows = pd.Series(tau["measure"].unique())
    shown = figures.matrix_rows(tau, top=20)
    left = rows[~rows.isin(shown)].map(style.family)
    assert f"{(left == 'forgetting').sum()} of forgetting" in facts["left"]


def test_a_reversal_is_among_the_scatter_plots(results):
    figure, facts = figures.FIGURES["scatter"].draw(results)
    titles = [ax.get_title(loc="left") + ax.get_title() for ax in figure.axes]
    assert sum("⇄" in title for title in titles) == 1
    assert "within methods for 1 of the" in facts["reversals"]
    psi = results.further["granulated"].query("axis == 'all' and target == 'gap_error'").set_index("measure")["psi"]
    assert any(f"Ψ = {style.fixed(psi['top_eigenvalue'])}" in title for title in titles)
    inside = results.correlations.assign(reversal=False, cell_reversal=True, stratified=-0.7)
    inside["value"] = inside["value"].abs()
    figure, _ = figures.FIGURES["scatter"].draw(replace(results, correlations=inside))
    assert all("⇄ inside cells −0.70" in ax.get_title(loc="left") + ax.get_title() for ax in figure.axes)
    rows = results.correlations.assign(reversal=False)
    none = replace(results, correlations=rows)
    figure, facts = figures.FIGURES["scatter"].draw(none)
    assert facts["reversals"].startswith("In none of them")
    assert not [t for legend in figure.legends for t in legend.get_texts() if "fit" in t.get_text()]


def test_forgetting_by_size_is_the_mean_over_runs_in_order_of_size(results):
    rows = results.forgetting().query(
        "epoch == 20 and radius == 'iso-loss' and provider == 'sam' and split == 'held_out'"
    )
    figure = Figure()
    figures.forgetting_by_size(figure, rows, measures=("cw",))
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "16", "all"]
    drawn = ax.containers[0].lines[0].get_ydata()
    means = rows[rows["measure"] == "cw"].groupby(rows["m"].map(str))["value"].mean()
    np.testing.assert_allclose(drawn.astype(float), means[["1", "16", "all"]].to_numpy(float))


def test_forgetting_by_size_needs_two_sizes(results):
    measures = results.measures[~results.measures["options"].str.contains('"m": (?:1,|"all")', regex=True)]
    with pytest.raises(figures.NothingToDraw, match="fewer than 3 sizes m"):
        figures.FIGURES["forgetting_by_m"].draw(replace(results, measures=measures))


def test_sizes_of_batches_that_are_numbers_and_words_stand_side_by_side(results):
    rows = results.measures[results.measures["split"] == "exposed"]
    last = rows[rows["step"] == 500]
    even = last[last["options"].str.contains('"m": (?:1,|"all")', regex=True)]  # as many of one as of the other
    _, facts = figures.FIGURES["forgetting_bars"].draw(replace(results, measures=even))
    assert facts["m"] == "1"


def test_measures_along_training_are_means_over_runs(results):
    rows = with_variant(results.measures)
    rows = rows[rows["run_id"].str.startswith("sgd")].assign(method="sgd")
    figure = Figure()
    figures.along_training(figure, rows, columns=[["top_eigenvalue"], ["F_mi[sam, iso-loss, m=16, held_out]"]])
    left, right = figure.axes
    for ax, name in ((left, "top_eigenvalue"), (right, "F_mi[sam, iso-loss, m=16, held_out]")):
        line = next(li for li in ax.get_lines() if li.get_marker() == style.METHODS["sgd"][2])
        mean = rows[rows["variant"] == name].groupby("epoch")["value"].mean()
        np.testing.assert_allclose(line.get_xydata(), np.stack([mean.index, mean], axis=1))


def test_along_training_shows_sharpness_beside_forgetting(results):
    figure, facts = figures.FIGURES["along_training"].draw(results)
    titles = [ax.get_title(loc="left") + ax.get_title() for ax in figure.axes if ax.get_visible()]
    assert [t.split("\n")[0] for t in titles] == ["largest eigenvalue", "F_mi", "right → wrong"]
    counts = results.configurations().query("status == 'finished'").groupby("method").size()
    assert facts["each"] == f"mean and one standard deviation over {counts.min()} to {counts.max()} runs of each method"
    last = results.measures[(results.measures["step"] == 500) | (results.measures["measure"] != "top_eigenvalue")]
    with pytest.raises(figures.NothingToDraw, match="Sharpness was measured at the last checkpoint only"):
        figures.FIGURES["along_training"].draw(replace(results, measures=last))


def test_along_training_needs_a_name(results):
    with pytest.raises(ValueError, match="`columns` names no variant"):
        figures.along_training(Figure(), results.measures, columns=[[], []])


def test_calibration_is_filled_as_trained_and_hollow_when_scaled():
    rows = pd.DataFrame({
        "method": ["sam"] * 4 + ["sgd"] * 2, "measure": ["ece", "ece", "ece_scaled", "ece_scaled", "ece", "ece_scaled"],
        "value": [0.1, 0.3, 0.05, 0.07, 0.4, np.nan],
    })  # fmt: skip
    figure = Figure()
    figures.calibration(figure, rows)
    (ax,) = figure.axes
    drawn = {
        (line.get_marker(), line.get_markerfacecolor() == "white"): line.get_xdata()[0]
        for line in ax.get_lines()
        if line.get_marker() in "so"
    }
    sam, sgd = style.METHODS["sam"][2], style.METHODS["sgd"][2]
    assert drawn == pytest.approx({(sgd, False): 0.4, (sam, False): 0.2, (sam, True): 0.06})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["SGD", "SAM"]


def test_calibration_without_scores_is_told(results):
    with pytest.raises(ValueError, match="`rows` holds no finite score"):
        figures.calibration(Figure(), pd.DataFrame({"method": ["sam"], "measure": ["ece"], "value": [np.nan]}))
    rows = results.measures[~results.measures["measure"].str.startswith(("ece", "brier"))]
    with pytest.raises(figures.NothingToDraw, match="Calibration was not measured"):
        figures.FIGURES["calibration"].draw(replace(results, measures=rows))


def test_costs_are_bars_the_most_expensive_first(ax):
    costs = pd.DataFrame({
        "measure": ["norms", "hessian_trace", "free", "keskar"], "family": ["norm", "sharpness", "other", "sharpness"],
        "cost": [1.0, 60.0, 0.0, 13.0],
    })  # fmt: skip
    figures.measure_costs(ax, costs, unit="gradients")
    assert [bar.get_width() for bar in ax.patches] == [60.0, 13.0, 1.0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["hessian trace", "keskar", "norms"]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "gradients"
    with pytest.raises(ValueError, match="`costs` has no measure with a cost above 0"):
        figures.measure_costs(ax, costs.assign(cost=0.0), unit="gradients")


def test_costs_are_seconds_where_the_table_has_them(results):
    timed = results.measures.assign(seconds=np.where(results.measures["measure"] == "top_eigenvalue", 2.0, np.nan))
    figure, facts = figures.FIGURES["costs"].draw(replace(results, measures=timed))
    assert facts["what"].startswith("Seconds that each measure took")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [2.0]
