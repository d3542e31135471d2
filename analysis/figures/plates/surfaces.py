"""Figures of the report on loss surfaces: of one run of each of some methods, on common axes and one scale."""

from analysis.figures.plates.plate import OWN, Drawn, NothingToDraw, Plate, Wanted
from analysis.figures.surfaces import comparison
from analysis.figures.surfaces.comparison import columns_of
from analysis.figures.surfaces.scales import compact
from analysis.results import StudyResults
from analysis.surfaces.context import number, prediction_of
from landscape.surfaces import Surface

HEIGHT, NARROW_HEIGHT = 3.1, 2.7  # inches on a screen, of a row of three planes, and of two


def _compared(results: StudyResults, metric: str, wanted: Wanted) -> Drawn:
    surfaces = {name: s for name, s in results.surfaces.items() if metric in s.values and len(s.grid.shape) == 2}
    if not surfaces:
        raise NothingToDraw("No surfaces were drawn: name methods under `surfaces` in the study.")
    columns = columns_of(len(surfaces))
    figure = wanted.page((HEIGHT if columns > 2 else NARROW_HEIGHT) * -(-len(surfaces) // columns))
    second = {name: p for name, s in surfaces.items() if (p := prediction_of(s, metric)) is not None}
    scale = comparison(figure, surfaces, metric=metric, predictions=second)
    first = next(iter(surfaces.values()))
    return figure, {
        "n": _examples(first, metric),
        "axes": " and ".join(str(axis["name"]) for axis in first.axes),
        "said": f" {scale.said[:1].upper()}{scale.said[1:]}." if scale.said else "",
        "broken": " Broken lines: what gradient and Hessian predict." if second else "",
        "share": _share(surfaces, metric),
    }


def _examples(surface: Surface, metric: str) -> str:
    examples = surface.context.get("examples", {})
    split = metric.split()[0]
    return str(examples.get(split, "all")) if isinstance(examples, dict) else str(examples)


def _share(surfaces: dict[str, Surface], metric: str) -> str:
    """How much of the largest eigenvalue the planes of a loss show, at most; empty for what has no curvature."""
    found = []
    for surface in surfaces.values():
        second, top = prediction_of(surface, metric), number(surface, "top_eigenvalue")
        if second is not None and top > 0:
            found.append(float(second.principal[0]) / top)
    if not found:
        return ""
    return (
        f" The planes bend by at most {compact(100 * max(found), 2)} % of the largest Hessian eigenvalue: they show "
        "mean curvature, not the sharpest."
    )


def _plate(metric: str, what: str) -> Plate:
    return Plate(
        title=f"Surfaces of the {what}",
        draw=lambda results, wanted=OWN: _compared(results, metric, wanted),
        caption=(
            f"{what[:1].upper()}{what[1:]} over {{axes}}, one run of each method at the configuration that validation "
            "data choose, on {n} examples; one scale for all.{broken}{share}{said}"
        ),
        alt=f"Contours of the {what} around one model of each method.",
    )


PLATES: dict[str, Plate] = {
    "surface_train_loss": _plate("train loss", "training loss"),
    "surface_test_error": _plate("test error", "test error"),
}
