"""Figures for a paper: they hold at the widths of its columns, and take a user's choices."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from collisions import collisions, texts
from made_surfaces import made, second_order
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic import make

import analysis
from analysis import figures, style
from analysis.figures.curvature import edge_of_stability, eigenvalue_curves, layer_traces
from analysis.figures.surfaces import comparison, plane
from analysis.labels import Labels, labelled
from analysis.media import MEDIA, Medium, medium
from analysis.reporting.drawing import Edition
from analysis.reporting.pages import report
from landscape import Estimate

WIDTHS = {"icml": 3.25, "neurips": 5.5}
LEAST = 5.5  # points: below, print cannot be read


@pytest.fixture(scope="module")
def results():
    return make()


def assert_holds(figure):
    assert collisions(figure) == []
    assert min(t.get_fontsize() for t in texts(figure)) >= LEAST


@pytest.mark.parametrize("name", figures.FIGURES)
@pytest.mark.parametrize("where", WIDTHS)
def test_every_figure_holds_in_a_column_and_over_a_page(results, name, where):
    plate = figures.FIGURES[name]
    with mpl.rc_context(style.rc(where)):
        figure, facts = plate.draw(results)
        assert figure.get_figwidth() == WIDTHS[where]
        assert_holds(figure)
    caption = plate.says(results, facts)
    assert "{" not in caption
    assert caption.endswith(".")
    assert plate.alt.endswith(".")


def curves():
    rows = [
        {"run_id": run, "step": step, "measure": measure, "value": 10.0 + step / 50 + k, "stderr": 0.1,
         "converged": True, "options": '{"threshold": 20.0}'}
        for k, run in enumerate(("sam", "sgd"))
        for step in (0, 500, 1000)
        for measure in ("top_eigenvalue", "bottom_eigenvalue", "stability_ratio")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def costs():
    return pd.DataFrame(
        {"method": ["sgd", "sam", "gsam"], "seed": 0, "cost": [1.0, 2.0, 2.1], "error": [0.1, 0.05, 0.07]}
    )


def paths():
    return pd.DataFrame({"method": ["sam", "sgd"] * 2, "step": [0, 0, 1, 1], "x": [0.0, 0, 1, 2], "y": [0.0, 0, 3, 4]})


PARTS = Estimate(4.0, 0.6, 10, parts={f"layer{k}.conv.weight": Estimate(5.0 - k, 0.5, 10) for k in range(6)})
OTHERS = {
    "eigenvalue_curves": lambda f: eigenvalue_curves(f, curves()),
    "edge_of_stability": lambda f: edge_of_stability(f.subplots(), curves()),
    "layer_traces": lambda f: layer_traces(f.subplots(), PARTS),
    "cost_against_error": lambda f: figures.cost_against_error(f.subplots(), costs()),
    "paths_on_surface": lambda f: figures.paths_on_surface(
        f.subplots(), lambda x, y: x**2 + y**2, paths(), limits=(-1, 3, -1, 5)
    ),
    "plane": lambda f: plane(f, made(), prediction=second_order()),
    "planes": lambda f: comparison(f, {"sgd": made(points=9), "sam": made(points=9)}),
    "line": lambda f: comparison(f, {"sgd": made(points=9, axes=1)}, form="line"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("where", WIDTHS)
def test_figures_beside_the_report_hold_too(name, where):
    with mpl.rc_context(style.rc(where)):
        figure = Figure(figsize=(WIDTHS[where], 0.8 * WIDTHS[where]), layout="constrained")
        OTHERS[name](figure)
        assert_holds(figure)


def test_texts_that_run_into_each_other_or_off_the_page_are_found():
    figure = Figure(figsize=(3, 2))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.5, "two")
    figure.text(0.9, 0.1, "too far right")
    assert collisions(figure) == [("too far right", "off the page"), ("one", "two")]


def test_a_figure_shows_the_measures_asked_for_with_the_names_given(results):
    names = Labels(methods={"sam": {"name": "Ours", "colour": "#123456"}}, measures={"top_eigenvalue": "sharpness S"})
    figure = analysis.figure(results, "forest", medium="neurips", measures=["cw", "top_eigenvalue"], labels=names)
    shown = [t.get_text().removesuffix(" †") for t in figure.axes[0].get_yticklabels()]
    assert [shown[0].partition(" [")[0], shown[1]] == ["right → wrong", "sharpness S"]
    with labelled(names):
        assert style.looks(["sam", "sgd"])["sam"] == ("Ours", "#123456", "s")
    assert style.looks(["sam", "sgd"])["sam"] == style.METHODS["sam"]
    scatter = analysis.figure(results, "scatter", measures=["trace"], labels=names)
    assert "Ours" in [t.get_text() for t in scatter.legends[0].get_texts()]
    assert "#123456" in {to_hex(line.get_color()) for line in scatter.axes[0].get_lines()}
    assert len(scatter.axes) == 1


def test_a_figure_is_drawn_on_the_axes_given(results):
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.75, 3), layout="constrained")
    assert analysis.figure(results, "radius", medium="page", on=right) is figure
    assert not left.lines
    assert right.lines
    assert figure.legends == []  # it belongs to one of two panels
    with pytest.raises(ValueError, match="`on` is one Axes, but the figure has several panels"):
        analysis.figure(results, "scatter", on=left)
    parts = Figure(figsize=(6.75, 6), layout="constrained").subfigures(2, 1)
    assert analysis.figure(results, "scatter", medium="page", on=parts[0]) is parts[0]
    plt.close(figure)


def test_a_serif_paper_has_its_font_embedded_as_type_42_and_nothing_as_pixels(results, tmp_path):
    made = report(results, out=tmp_path, figures=["forest"], edition=Edition("icml", font="serif"))
    assert made == tmp_path / "figures" / "icml"
    pdf = (made / "forest.pdf").read_bytes()
    assert b"STIXGeneral" in pdf
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"/Subtype /Image" not in pdf
    assert sorted(p.name for p in made.iterdir()) == ["forest.pdf", "forest.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"medium": "nips"}, "`medium` must be one of"),
        ({"font": "comic"}, "`font` must be one of"),
        ({"measures": ["top_eigenvalu"]}, "`measures` holds 'top_eigenvalu'.*did you mean 'top_eigenvalue'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(results, arguments, message):
    with pytest.raises(ValueError, match=message):
        analysis.figure(results, "forest", **arguments)


def test_measures_are_refused_where_a_figure_has_no_choice(results):
    with pytest.raises(ValueError, match=r"`measures` can be chosen for .*, not for \['radius'\]"):
        analysis.figure(results, "radius", measures=["trace"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method:\n  sam: SAM\n", "`labels` has the key 'method'.*did you mean 'methods'"),
        ("methods:\n  sam: {color: red}\n", "`methods` must give 'sam' a name, or some of"),
        ("methods:\n  sam: {colour: rouge}\n", "`colour` of 'sam' must be a colour"),
        ("methods:\n  sam: {marker: box}\n", "`marker` of 'sam' must be one of matplotlib's"),
        ("measures:\n  trace: 3\n", "`measures` must give each a name"),
        ("- sam\n", "`labels` must be a file with"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path, text, message):
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Labels.read(tmp_path / "labels.yaml")
    with pytest.raises(FileNotFoundError, match="`labels` names no file"):
        Labels.read(tmp_path / "none.yaml")


def test_a_medium_of_ones_own():
    assert medium(Medium(4.0, 8.0), font="serif") == Medium(4.0, 8.0, "serif")
    with pytest.raises(ValueError, match="`width` of a medium must be a number above 0"):
        Medium(0.0, 8.0)
    assert {name: MEDIA[name].width for name in WIDTHS} == WIDTHS
