"""Figures of surfaces: what stands on the axes is what the surface says, and nothing is dropped in silence."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from made_surfaces import banana, bowl, hole, made, path, second_order
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.figures.surfaces import (
    Along,
    Slice,
    ascent_path,
    barrier_plot,
    colour_bar,
    comparison,
    contour,
    curve_against_line,
    explained_variance,
    lines,
    plane,
    relief,
    section,
    shared_scale,
)
from analysis.figures.surfaces.marks import axis_label, cosine_text
from analysis.figures.surfaces.relief import _cut_facets
from analysis.figures.surfaces.scales import MAP, compact, quantity, with_error
from analysis.style import METHODS, rc
from landscape.paths.barrier import Barrier


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3), layout="constrained").add_subplot()


def by_id(ax, gid):
    return [a for a in (*ax.lines, *ax.patches, *ax.collections, *ax.texts) if a.get_gid() == gid]


def legend_of(figure):
    return [t.get_text() for box in figure.legends for t in box.get_texts()]


def wall(x, y=None):
    """A bowl of 1 beside a wall of 1000."""
    return 0.1 + x**2 + 1000.0 * (x > 0.85)


# scales ---------------------------------------------------------------------------------------------------------------


def test_a_scale_spans_all_surfaces_and_their_centres():
    low, high = made(lambda x, y: bowl(x, y, value=-0.3), points=4), made(lambda x, y: bowl(x, y, value=2.0), points=4)
    scale = shared_scale([low, high], "loss")
    assert scale.low == pytest.approx(-0.3)  # between the points of a grid of even size
    assert scale.high == scale.highest == pytest.approx(2.0 + 1.25)
    assert not scale.cut
    np.testing.assert_allclose(
        scale.positions(np.array([-0.3, 3.25, 1.475, math.nan, math.inf])), [0, 1, 0.5, *[math.nan] * 2]
    )


def test_a_wall_is_cut_for_display_and_said():
    scale = shared_scale([made(wall)], "loss")
    middle = np.median(np.append(made(wall).values["loss"].numpy(), 0.1)) - 0.1
    assert scale.high == pytest.approx(0.1 + 6 * middle)
    assert scale.cut
    assert scale.said.startswith("for display only, values above 1.6 are cut")
    assert "(the highest is 1001)" in scale.said
    assert shared_scale([made(wall)], "loss", cut=None).high > 1000
    assert shared_scale([made(wall)], "loss", cut=0.5).high == 0.5
    for function in (bowl, lambda x, y: x**4 + y**4):  # no wall
        assert not shared_scale([made(function)], "loss").cut
    assert shared_scale([made()], "loss").said == ""


def test_a_logarithmic_scale_is_of_the_rise_above_the_lowest():
    scale = shared_scale([made(lambda x, y: -5 + 10 ** (3 * x + 0 * y), points=41)], "loss", kind="log")
    assert scale.low == pytest.approx(-4.999)
    rises = 10.0 ** np.arange(3)
    np.testing.assert_allclose(np.diff(scale.positions(scale.low + rises)), 0.25)  # of four decades
    assert scale.positions(np.array([scale.high]))[0] == pytest.approx(1)
    assert scale.labels(scale.low + rises) == ["+1", "+10", "+100"]
    assert scale.label == "Loss: rise above −5, log scale"
    assert "logarithmic in the rise above −5" in scale.said
    assert not scale.cut


@pytest.mark.parametrize("kind", ["linear", "log"])
@pytest.mark.parametrize(
    "function",
    [bowl, banana, wall, lambda x, y: 0 * (x + y), lambda x, y: -3 + 1e-6 * bowl(x, y), lambda x, y: 1e7 * bowl(x, y)],
    ids=["bowl", "banana", "wall", "level", "tiny", "large"],
)
def test_levels_are_inside_and_their_labels_differ(kind, function):
    scale = shared_scale([made(function)], "loss", kind=kind)
    values = scale.levels()
    assert len(values) or function(torch.zeros(1), torch.zeros(1)) == 0
    assert (values > scale.low).all()
    assert (values < scale.high).all()
    texts = scale.labels(values)
    assert len(set(texts)) == len(texts)
    for value, text in zip(values, texts, strict=True):
        if "×" not in text:
            told = float(text.replace("−", "-")) + (scale.low if kind == "log" else 0)
            assert told == pytest.approx(value, abs=0.051 * (scale.high - scale.low))


def test_errors_are_in_percent_and_losses_are_not():
    assert quantity("train error").label == "Training error (%)"
    assert quantity("test loss").label == "Test loss"
    assert quantity("error of class 3").factor == 100
    scale = shared_scale([made()], "error")
    assert scale.labels([0.25, 0.3]) == ["25", "30"]
    assert shared_scale([made()], "error", cut=0.2).said == (
        "for display only, values above 20 % are cut (the highest is 43.8 %)"
    )


def test_scales_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match=r"`metric` must be one of the surface's \['loss', 'error'\], got 'lss'"):
        shared_scale([made()], "lss")
    with pytest.raises(ValueError, match="no finite value of 'loss'"):
        shared_scale([made(lambda x, y: (x + y) * math.nan)], "loss")
    with pytest.raises(ValueError, match="`surfaces` must hold at least one surface"):
        shared_scale([])
    with pytest.raises(ValueError, match=r"`cut` must be above the lowest value of 'loss', 0.1, got 0.05"):
        shared_scale([made()], "loss", cut=0.05)
    with pytest.raises(ValueError, match="`kind` must be 'linear' or 'log', got 'sqrt'"):
        shared_scale([made()], "loss", kind="sqrt")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0132, "0.0132"),
        (12.345, "12.3"),
        (-410000.0, "−4.1×10⁵"),
        (0.0, "0"),
        (9.999, "10"),
        (math.nan, "–"),
        (1e-7, "1×10⁻⁷"),
        (-math.inf, "−∞"),
        (1000.0, "1000"),
    ],
)
def test_compact_numbers(value, text):
    assert compact(value) == text


def test_a_value_has_as_many_digits_as_its_error_allows():
    assert with_error(0.12345, 0.0123) == "0.123 ± 0.012"
    assert with_error(0.12345, math.nan) == "0.123"
    assert with_error(0.02, 0.005, 100) == "2.00 ± 0.50"


def test_the_map_grows_darker_evenly():
    rgb = MAP(np.linspace(0, 1, 40))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness = np.cbrt(linear @ np.array([0.2126, 0.7152, 0.0722]))
    steps = -np.diff(lightness)
    assert (steps > 0).all()
    assert steps.max() < 4 * steps.min()


# lines ----------------------------------------------------------------------------------------------------------------


def line(k=2.0, **options):
    return made(lambda x: bowl(x, curvature=(k,)), axes=1, **options)


def test_a_line_is_the_values_with_a_band_of_two_errors(ax):
    surface = line(stderr=0.03)
    lines(ax, [Slice(surface, "sam", prediction=second_order((3.0,), lengths=(1.0,)))])
    (drawn,) = by_id(ax, "line")
    np.testing.assert_array_equal(drawn.get_xdata(), surface.grid.coordinates[0])
    np.testing.assert_allclose(drawn.get_ydata(), surface.values["loss"])
    assert drawn.get_color() == METHODS["sam"][1]
    band = ax.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 0, 1].tolist() == pytest.approx([0.04, 0.16])
    (dashed,) = by_id(ax, "second order")
    np.testing.assert_allclose(dashed.get_ydata(), 0.1 + 1.5 * surface.grid.coordinates[0].numpy() ** 2)
    assert dashed.get_linestyle() == "--"
    assert ax.get_xlabel() == "Random direction 1 (filter norms)"
    assert ax.get_ylabel() == "Loss"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["SAM", "second order"]
    assert by_id(ax, "centre")[0].get_ydata() == [pytest.approx(0.1)]


def test_models_and_sets_are_told_apart_on_common_axes(ax):
    slices = [Slice(line(metric=m), n, m) for n in ("sgd", "sam") for m in ("train loss", "test loss")]
    lines(ax, slices)
    drawn = by_id(ax, "line")
    assert [d.get_label() for d in drawn] == [
        "SGD, training loss",
        "SGD, test loss",
        "SAM, training loss",
        "SAM, test loss",
    ]
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    assert drawn[0].get_linestyle() == drawn[2].get_linestyle() != drawn[1].get_linestyle()
    assert ax.get_ylabel() == "Loss"


def test_errors_are_drawn_in_percent(ax):
    surface = line()
    lines(ax, [Slice(surface, "sam", "error")])
    np.testing.assert_allclose(by_id(ax, "line")[0].get_ydata(), 100 * surface.values["error"])
    assert ax.get_ylabel() == "Error (%)"


def test_points_that_are_not_finite_or_cut_stay_in_sight(ax):
    def broken(t, x):
        t[2], t[-1] = math.nan, math.inf
        return t

    surface = made(wall, axes=1, spoil=broken, points=21)
    lines(ax, [Slice(surface, "sam")])
    x = surface.grid.coordinates[0].numpy()
    assert [float(m.get_xdata()[0]) for m in by_id(ax, "lost")] == [x[2], x[-1]]
    top = ax.get_ylim()[1]
    above = x[np.nan_to_num(surface.values["loss"].numpy(), nan=0, posinf=0) > shared_scale([surface]).high]
    assert [float(m.get_xdata()[0]) for m in by_id(ax, "above")] == above.tolist()
    assert len(above)
    assert top < 10
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["SAM", "above the axis", "not finite (NaN or ∞)"]


def test_nothing_is_marked_where_all_is_well(ax):
    lines(ax, [Slice(line(), "sam")])
    assert not by_id(ax, "lost") + by_id(ax, "above") + by_id(ax, "interpolated")


def test_interpolated_points_are_pale(ax):
    surface = line(points=11, computed=lambda x: (10 * x).round() % 4 == 2, refined=True)
    lines(ax, [Slice(surface, "sam")])
    (pale,), (full,) = by_id(ax, "interpolated"), by_id(ax, "line")
    assert pale.get_alpha() < 0.5
    seen = np.isfinite(np.asarray(full.get_ydata(), float))
    np.testing.assert_array_equal(seen, surface.computed)
    assert full.get_marker() == "."


def test_lines_refuse_what_cannot_share_an_axis(ax):
    with pytest.raises(ValueError, match="`slices` mix shares in percent and other numbers"):
        lines(ax, [Slice(line(), "a", "loss"), Slice(line(), "a", "error")])
    with pytest.raises(ValueError, match=r"`surface` must be a line \(1 axes\), got 2"):
        lines(ax, [Slice(made(), "a")])
    with pytest.raises(ValueError, match="`slices` must hold at least one"):
        lines(ax, [])


# planes ---------------------------------------------------------------------------------------------------------------


def test_contours_lie_where_the_values_are(ax):
    surface = made(points=41)
    drawn = contour(ax, surface)
    scale = shared_scale([surface])
    found = next(c for c in ax.collections if c is not drawn)
    for level, shape in zip(scale.levels(), found.get_paths(), strict=True):
        x, y = shape.vertices.T
        np.testing.assert_allclose(0.1 + x**2 + 0.25 * y**2, level, atol=0.004)  # linear between points
    assert ax.get_aspect() == 1.0
    assert by_id(ax, "cosine")[0].get_text() == "cosine of the axes 0"
    assert by_id(ax, "centre")[0].get_xydata().tolist() == [[0, 0]]
    assert not by_id(ax, "lowest")
    assert not by_id(ax, "missing")


def test_the_first_coordinate_is_across(ax):
    surface = made(lambda x, y: 10 * x + y, points=[5, 9], radius=[1.0, 1.0])
    contour(ax, surface)
    lowest = by_id(ax, "lowest")[0]
    assert lowest.get_xydata().tolist() == [[-1, -1]]
    assert ax.get_xlabel().startswith("Random direction 1")
    shape = ax.collections[1].get_paths()[5].vertices
    assert np.ptp(shape[:, 1]) > 5 * np.ptp(shape[:, 0])


def test_units_that_differ_are_not_drawn_as_equal(ax):
    surface = made()
    surface.axes[0]["unit"] = "weights"
    contour(ax, surface)
    assert ax.get_aspect() == "auto"


def test_second_order_is_drawn_at_the_same_values(ax):
    surface = made(lambda x, y: bowl(x, y) + 0.4 * x**4, points=41)
    contour(ax, surface, prediction=second_order())
    dashed = [c for c in ax.collections if len(c.get_paths()) and c.get_linestyle()[0][1]]
    assert len(dashed) == 1
    met = [level for level in shared_scale([surface]).levels() if 0.1 < level < 1.35]  # what the prediction reaches
    assert len(met) > 5
    for level, shape in zip(met, dashed[0].get_paths(), strict=True):
        x, y = shape.vertices.T
        np.testing.assert_allclose(0.1 + x**2 + 0.25 * y**2, level, atol=0.004)


def test_a_prediction_below_all_lines_says_so(ax):
    contour(ax, made(lambda x, y: 100 * bowl(x, y)), prediction=second_order())
    assert "second order: reaches no line" in ax.get_legend_handles_labels()[1]
    assert not [c for c in ax.collections if len(c.get_paths()) and c.get_linestyle()[0][1]]


def test_what_is_not_finite_is_hatched_and_in_the_legend():
    figure = Figure(figsize=(5, 4), layout="constrained")
    surface = made(spoil=hole)
    plane(figure, surface)
    (patch,) = by_id(figure.axes[0], "missing")
    assert patch.get_hatch()
    bad = ~torch.isfinite(surface.values["loss"])
    x, y = (m[bad].numpy() for m in surface.grid.mesh())
    inside = np.zeros(len(x), bool)
    boxes = [patch.get_path().vertices[i : i + 5] for i in range(0, len(patch.get_path().vertices), 5)]
    for box in boxes:
        inside |= (box[:, 0].min() <= x) & (x <= box[:, 0].max()) & (box[:, 1].min() <= y) & (y <= box[:, 1].max())
    assert inside.all()
    assert "not finite (NaN or ∞)" in legend_of(figure)


def test_points_to_come_are_not_called_broken():
    figure = Figure(figsize=(5, 4), layout="constrained")

    def unfinished(t, x, y):
        t[x > 0.5] = math.nan
        return t

    plane(figure, made(spoil=unfinished, computed=lambda x, _: x <= 0.5))
    assert "not evaluated yet" in legend_of(figure)
    assert "not finite (NaN or ∞)" not in legend_of(figure)


def test_refined_points_are_dotted(ax):
    surface = made(points=11, computed=lambda x, _: x.abs() > 0.5, refined=True)
    contour(ax, surface)
    (dots,) = by_id(ax, "evaluated")
    assert len(dots.get_xdata()) == int(surface.computed.sum())


def test_a_cut_is_said_at_the_colour_bar():
    figure = Figure(figsize=(5, 4), layout="constrained")
    scale = shared_scale([made(wall)])
    ax = figure.subplots()
    bar = colour_bar(figure, contour(ax, made(wall), scale=scale), ax, scale)
    assert bar.extend == "max"
    assert bar.ax.get_title() == "cut"
    assert [t.get_text() for t in bar.ax.get_yticklabels()] == scale.labels(scale.levels(8))
    figure = Figure(figsize=(5, 4), layout="constrained")
    ax = figure.subplots()
    bar = colour_bar(figure, contour(ax, made()), ax, shared_scale([made()]))
    assert bar.extend == "neither"
    assert bar.ax.get_title() == ""


def test_paths_lie_over_the_plane_with_what_it_hides():
    figure = Figure(figsize=(7, 4), layout="constrained")
    one, other = path(), path("OBF", "obf", bend=-0.4, perturbed=False)
    plane(figure, made(), paths=[one, other])
    ax, upper, lower = (figure.axes[i] for i in (0, 1, 2))
    drawn = by_id(ax, "path")
    np.testing.assert_allclose(drawn[0].get_xydata(), one.table[["a1", "a2"]])
    assert [d.get_color() for d in drawn] == [METHODS["sam"][1], METHODS["obf"][1]]
    assert by_id(ax, "start")[0].get_xydata().tolist() == one.table[["a1", "a2"]].iloc[:1].to_numpy().tolist()
    assert to_hex(by_id(ax, "end")[0].get_markerfacecolor()) == "#ffffff"
    sizes = by_id(ax, "path points")[0].get_sizes()
    assert sizes[np.argmax(one.table["distance"][1:-1])] == sizes.min()
    (arrows,) = by_id(ax, "perturbed")
    np.testing.assert_allclose(arrows.U, 0.08)
    np.testing.assert_allclose(by_id(upper, "on path")[0].get_ydata(), one.table["loss"])
    np.testing.assert_allclose(by_id(upper, "on plane")[0].get_ydata(), one.table["plane_loss"])
    np.testing.assert_allclose(lower.lines[0].get_ydata(), one.table["distance"])
    assert {"SAM", "OBF", "to the perturbed point", "loss at the point itself"} <= set(legend_of(figure))


def test_points_of_a_path_outside_the_plane_are_counted(ax):
    far = path()
    far.table.loc[:2, "a1"] = -3.0
    contour(ax, made(), paths=[far])
    assert ax.get_xlim() == (-1, 1)
    assert "SAM (3 of 12 points outside)" in ax.get_legend_handles_labels()[1]


def test_labels_of_axes_name_unit_eigenvalue_and_angle():
    surface = made(kind="eigenvector", names=["Hessian eigenvector", "x"], unit="weights", cosine=-0.0123)
    surface.axes[0]["recipe"]["eigenvalue"] = -3.2
    assert axis_label(surface, 0) == "Hessian eigenvector, λ = −3.2\n(weights)"
    assert axis_label(surface, 0, own=True) == "Hessian eigenvector (weights)"
    assert cosine_text(surface) == "cosine of the axes −0.012"
    assert cosine_text(line()) == ""


# relief and comparison ------------------------------------------------------------------------------------------------


def test_a_relief_is_cut_not_spiked():
    z = np.array([[0.0, 0.5, 9.0, 9.0], [0.0, 0.5, 9.0, 9.0], [np.nan, 3.0, 9.0, 9.0]])
    facets, _, kept = _cut_facets(np.arange(3.0), np.arange(4.0), z)
    assert sorted(zip(*kept, strict=True)) == [(0, 0), (0, 1), (1, 1)]  # without the hole and the wall behind the cut
    assert facets[..., 2].max() == 1.0
    np.testing.assert_allclose(facets[0][:, 2], [0, 0, 0.5, 0.5])


def test_a_relief_stands_on_its_grid():
    ax = Figure().add_subplot(projection="3d")
    surface = made(points=5)
    relief(ax, surface)
    skin = next(c for c in ax.collections if c.get_gid() == "relief")
    corners = skin._faces.reshape(-1, 3)
    scale = shared_scale([surface])
    for i, x in enumerate(surface.grid.coordinates[0].tolist()):
        for j, y in enumerate(surface.grid.coordinates[1].tolist()):
            at = np.isclose(corners[:, 0], x) & np.isclose(corners[:, 1], y)
            height = scale.positions(surface.values["loss"].numpy())[i, j]
            np.testing.assert_allclose(corners[at, 2], height, atol=1e-9)
            assert at.any()
    assert skin.get_rasterized()


@pytest.mark.parametrize("form", ["contour", "relief"])
def test_a_comparison_has_one_scale_and_the_numbers(form):
    figure = Figure(figsize=(7, 3), layout=None if form == "relief" else "constrained")
    low, high = made(top_eigenvalue=31.2), made(lambda x, y: 3 * bowl(x, y), top_eigenvalue=93.6)
    scale = comparison(figure, {"sgd": high, "sam": low}, form=form)
    assert scale.high == pytest.approx(3 * 1.35)
    panels = figure.axes[:2]
    assert [ax.get_title(loc="left") for ax in panels] == ["SGD", "SAM"]
    texts = [t.get_text() for ax in panels for t in ax.texts if t.get_gid() == "numbers"]
    assert texts[1] == "loss 0.100 ± 0.010\nerror 2.00 ± 0.50 %\nλ max 31.2"
    if form == "contour":
        assert len(figure.axes) == 3  # one colour bar
        assert panels[1].get_ylabel() == ""
    else:
        assert {ax.get_zlim() for ax in panels} == {panels[0].get_zlim()}
        tall = [next(c for c in ax.collections if c.get_gid() == "relief")._faces[..., 2].max() for ax in panels]
        assert tall == pytest.approx([1.0, (1.35 - 0.1) / (4.05 - 0.1)])


def test_axes_that_differ_are_named_in_every_panel():
    figure = Figure(figsize=(7, 3), layout="constrained")
    names = ["Hessian eigenvector, λ = 3", "other"]
    comparison(figure, {"sgd": made(names=names), "sam": made()})
    assert "λ = 3" in figure.axes[0].get_xlabel().replace("\n", " ")
    assert figure.axes[1].get_xlabel().replace("\n", " ").startswith("Random direction 1")


def test_a_comparison_of_lines_shares_the_axes():
    figure = Figure(layout="constrained")
    comparison(
        figure,
        {"sgd": line(4.0), "sam": line()},
        form="line",
        predictions={"sam": second_order((2.0,), lengths=(1.0,))},
    )
    (ax,) = figure.axes
    assert len(by_id(ax, "line")) == 2
    assert len(by_id(ax, "second order")) == 1


def test_comparisons_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="`surfaces` must name at least one"):
        comparison(Figure(), {})
    with pytest.raises(ValueError, match=r"`surface` must be a plane \(2 axes\), got 1"):
        comparison(Figure(), {"sgd": made(), "sam": line()})
    with pytest.raises(ValueError, match=r"`surface` must be a plane \(2 axes\), got 3.*`section`"):
        relief(Figure().add_subplot(projection="3d"), made(axes=3, points=3))


def test_a_section_is_the_volume_at_the_nearest_point():
    volume = made(lambda x, y, z: bowl(x, y) + 5 * z, axes=3, points=[5, 7, 9], lengths=(1.0, 2.0, 3.0))
    cut = section(volume, {2: 0.3})
    torch.testing.assert_close(cut.values["loss"], volume.values["loss"][:, :, 5], rtol=0, atol=0)
    assert cut.context["section"] == {"random direction 3": 0.25}
    assert cut.centre == {}
    assert section(volume, {0: 0.0, 2: 0.0}).centre == volume.centre
    assert float(section(volume, {0: 0.0, 2: 0.0}).gram) == 4.0
    with pytest.raises(ValueError, match=r"`held` must name 1 to 2 of the axes 0 to 2, got \[3\]"):
        section(volume, {3: 0.0})


# paths ----------------------------------------------------------------------------------------------------------------


def along(values, *, start=0.0, end=1.0, **options):
    values = np.asarray(values, float)
    return Along(np.linspace(start, end, len(values)), values, np.full(len(values), 0.01), **options)


def test_barriers_are_measured_from_their_own_base(ax):
    found = [
        Barrier(0.6, 0.02, 100, location=0.5, definition="B_lin"),
        Barrier(0.5, 0.02, 100, location=0.5, definition="B_max"),
    ]
    barrier_plot(ax, [along([0.2, 0.9, 0.4], label="as trained", barriers=found)], ends=("SGD", "SAM"))
    brackets = [(a.xyann[1], a.xy[1]) for a in ax.texts if a.arrow_patch is not None]
    np.testing.assert_allclose(brackets, [(0.3, 0.9), (0.4, 0.9)])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "as trained\nB_lin 0.600 ± 0.020\nB_max 0.500 ± 0.020"
    ]
    assert by_id(ax, "straight")[0].get_ydata().tolist() == [0.2, 0.4]
    assert by_id(ax, "ends")[0].get_ydata().tolist() == [0.2, 0.4]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0\nSGD", "0.5", "1\nSAM"]


def test_no_barrier_no_bracket(ax):
    none = [Barrier(0.0, 0.0, 100, location=0.0), Barrier(math.nan, location=math.nan)]
    barrier_plot(ax, [along([0.2, 0.1, 0.2], label="aligned", barriers=none, metric="test error")])
    assert not [a for a in ax.texts if a.arrow_patch is not None]
    assert ax.get_ylabel() == "Test error (%)"
    np.testing.assert_allclose(by_id(ax, "profile")[0].get_ydata(), [20, 10, 20])


def test_a_curve_stands_against_the_line(ax):
    curve_against_line(
        ax, along([0.2, 0.3, 0.2], label="Bézier"), along([0.2, 1.3, np.inf], label="straight"), longer=1.25
    )
    assert [float(m.get_ydata()[0]) for m in by_id(ax, "highest")] == [0.3, 1.3]
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["Bézier", "straight", "not finite (NaN or ∞)", "highest", "the curve is 1.25 × as long"]
    assert by_id(ax, "lost")[1].get_xdata().tolist() == [1.0]


def test_taylor_lines_start_at_the_model(ax):
    a = np.linspace(0, 3, 31)
    profile = along(0.3 + 0.5 * a + 0.2 * a * a, end=3.0, label="own batch")
    ascent_path(ax, [profile], slope=0.5, curvature=0.4)
    first, second = by_id(ax, "order 1")[0], by_id(ax, "order 2")[0]
    x = first.get_xdata()
    np.testing.assert_allclose(first.get_ydata(), 0.3 + 0.5 * x)
    np.testing.assert_allclose(second.get_ydata(), 0.3 + 0.5 * x + 0.2 * x * x)
    assert ax.get_xlabel() == "Position a on w + a·ε"
    with pytest.raises(ValueError, match="no point at coordinate 0"):
        ascent_path(ax, [along([1.0, 2.0], start=0.5)], slope=1.0)


def test_variance_stands_next_to_the_random_walk(ax):
    explained_variance(ax, [0.7, 0.2], [0.608, 0.152, 0.068])
    assert [p.get_height() for p in ax.patches] == pytest.approx([70, 20, 60.8, 15.2])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["this trajectory", "random walk"]
    with pytest.raises(ValueError, match="`explained` must be shares between 0 and 1"):
        explained_variance(ax, [1.2])


def test_profiles_refuse_what_does_not_fit(ax):
    with pytest.raises(ValueError, match="`profiles` must be of one metric"):
        barrier_plot(ax, [along([1, 2]), along([1, 2], metric="error")])
    with pytest.raises(ValueError, match="`profiles` must be of one metric, at least one"):
        barrier_plot(ax, [])
    with pytest.raises(ValueError, match=r"must have one number a point, got \[2, 3\]"):
        Along(np.zeros(2), np.zeros(3), np.zeros(3))


@pytest.mark.parametrize("medium", ["screen", "icml", "page"])
def test_they_draw_in_every_medium_with_text_as_text(medium, tmp_path):
    with mpl.rc_context(rc(medium)):
        width = mpl.rcParams["figure.figsize"][0]
        figure = Figure(figsize=(width, width), layout="constrained")
        plane(figure, made(banana, spoil=hole), kind="log", prediction=second_order(), paths=[path()])
        figure.savefig(tmp_path / "plane.pdf")
        figure = Figure(figsize=(width, width / 2))
        figure.dpi = 50
        comparison(figure, {"sgd": made(banana, points=9), "sam": made(points=9)}, form="relief")
        figure.savefig(tmp_path / "relief.pdf")
    for name in ("plane", "relief"):
        assert b"/FontDescriptor" in (tmp_path / f"{name}.pdf").read_bytes()
