"""How to read a surface: short sentences with its own numbers, and whether the plot is fine, to be minded, or wrong."""

from collections.abc import Mapping, Sequence

from analysis.figures.surfaces.scales import checked
from analysis.reporting.markup import escape_markdown, marked_markdown
from analysis.surfaces.context import prediction_of
from analysis.surfaces.reading import between, curvature, directions, picture, together
from analysis.surfaces.reading.curvature import LocalFit, local_fit
from analysis.surfaces.reading.remark import LEVELS, Level, Remark, verdict
from landscape.surfaces import Surface

__all__ = [
    "ANSWERS",
    "LEVELS",
    "Level",
    "LocalFit",
    "Remark",
    "local_fit",
    "prediction_of",
    "reading",
    "reading_together",
    "to_markdown",
    "verdict",
]

ANSWERS: dict[Level, str] = {
    "fine": "The plot is fine.",
    "mind": "The plot is right; mind what it cannot show.",
    "wrong": "Do not draw conclusions from this plot yet.",
}


def reading(surface: Surface, metric: str | None = None) -> list[Remark]:
    """What a surface shows and what it does not, in sentences with its numbers; what is unknown is left out.

    Args:
        surface: A line, a plane or a volume.
        metric: Which metric; None is the first. Curvature is only spoken of for losses.

    Returns:
        Remarks, the gravest first and else in the order of reading; `verdict` sums them up.

    Raises:
        ValueError: If the surface lacks the metric.

    Source:
        Random directions and planes: the squared cosine of a fixed direction with a random k-plane in p dimensions has
        the distribution Beta(k/2, (p - k)/2). Random walks: Antognini and Sohl-Dickstein (2018), NeurIPS.
        Normalisation: Li et al. (2018), NeurIPS. The limits between the levels are ours.
    """
    metric = checked(surface, metric)
    if between.is_between(surface):
        return _graver_first(_between(surface, metric))
    found = [
        *picture.wholeness(surface, metric),
        *picture.finiteness(surface, metric),
        *picture.centre(surface, metric),
        *picture.noise(surface, metric),
        *picture.resolution(surface, metric),
    ]
    if metric.split()[-1] == "loss":
        found += [*curvature.slice_curvature(surface, metric), *picture.reach(surface, metric)]
    found += [
        *curvature.what_chance_misses(surface),
        *directions.sharpness(surface),
        *directions.angles(surface),
        *directions.meaning(surface),
        *directions.scaling(surface),
        *directions.statistics_mode(surface),
        *directions.eigenvectors(surface),
        *directions.variance(surface),
        *directions.still(surface),
    ]
    return _graver_first(found)


def _between(surface: Surface, metric: str) -> list[Remark]:
    return [
        *between.barriers(surface, metric),
        *between.curve(surface, metric),
        *between.alignment(surface),
        *picture.wholeness(surface, metric),
        *picture.finiteness(surface, metric),
        *picture.noise(surface, metric),
        *between.beyond(surface),
        *between.statistics(surface),
    ]


def _graver_first(found: Sequence[Remark]) -> list[Remark]:
    return sorted(found, key=lambda remark: -LEVELS.index(remark.level))


def reading_together(surfaces: Mapping[str, Surface]) -> list[Remark]:
    """Whether surfaces may be compared, in the same form; nothing for fewer than two."""
    if len(surfaces) < 2:
        return []
    found = [*together.same_context(surfaces), *together.same_axes(surfaces), *together.same_size(surfaces)]
    return _graver_first(found)


def to_markdown(remarks: Sequence[Remark], title: str = "How to read this") -> str:
    """The remarks as a list, with the answer above it."""
    lines = [f"**{escape_markdown(title)}.** {ANSWERS[verdict(remarks)]}", ""]
    marks = {"fine": "", "mind": "Mind: ", "wrong": "Wrong: "}
    return "\n".join([*lines, *(f"- {marks[r.level]}{marked_markdown(r.text)}" for r in remarks)]) + "\n"
