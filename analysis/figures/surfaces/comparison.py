"""Several models side by side on common axes and one scale."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis.figures.room import inches
from analysis.figures.surfaces import marks
from analysis.figures.surfaces.contour import colour_bar, contour
from analysis.figures.surfaces.line import Slice, lines
from analysis.figures.surfaces.relief import relief
from analysis.figures.surfaces.scales import Cut, Kind, Scale, checked, compact, quantity, shared_scale, with_error
from analysis.style import ink, looks
from landscape.surfaces import Surface

Form = Literal["contour", "relief", "line"]
WIDE = 5.0  # inches from which three panels stand in a row


def comparison(
    figure: Figure | SubFigure,
    surfaces: Mapping[str, Surface],
    *,
    form: Form = "contour",
    metric: str | None = None,
    kind: Kind = "linear",
    cut: Cut = "auto",
    predictions: Mapping[str, marks.Prediction] | None = None,
    columns: int | None = None,
) -> Scale:
    """Several models, one panel each, with one scale: equal colours, heights and lengths mean the same in all.

    Each title is the model's name, with its loss and curvature at the centre where they are known. Lines share one
    panel.

    Args:
        figure: Where to draw; with layout "constrained" for contours and lines.
        surfaces: By name; the name of a training method has its colour. Planes, or lines for form "line".
        form: "contour", "relief" (in three dimensions) or "line".
        metric: Which metric; None is the first.
        kind: Of the scale: "linear" or "log"; lines are linear.
        cut: See `shared_scale`.
        predictions: The loss to second order, by the same names.
        columns: Panels in a row; None is 3 in a wide figure, 2 in a narrow one.

    Returns:
        The scale, whose `said` belongs into the caption.

    Raises:
        ValueError: If there is no surface, one is not of the form's dimensions, or lacks the metric.
    """
    if not surfaces:
        raise ValueError("`surfaces` must name at least one surface, got none.")
    metric = checked(next(iter(surfaces.values())), metric)
    for surface in surfaces.values():
        checked(surface, metric, dimensions=1 if form == "line" else 2)
    second = predictions or {}
    scale = shared_scale(surfaces.values(), metric, kind="linear" if form == "line" else kind, cut=cut)
    if form == "line":
        slices = [Slice(s, name, metric, second.get(name)) for name, s in surfaces.items()]
        lines(figure.subplots(), slices, cut=cut)
        return scale
    wide = inches(figure) > WIDE
    k = columns or columns_of(len(surfaces), figure)
    rows = -(-len(surfaces) // k)
    if form == "relief":
        axes = figure.subplots(rows, k, squeeze=False, subplot_kw={"projection": "3d"})
    else:
        axes = figure.subplots(rows, k, squeeze=False, sharex=_common(surfaces, 0), sharey=_common(surfaces, 1))
    for ax in axes.flat[len(surfaces) :]:
        ax.remove()
    used: list[Any] = list(axes.flat[: len(surfaces)])
    drawn = None
    for (name, surface), ax in zip(surfaces.items(), used, strict=True):
        if form == "relief":
            relief(ax, surface, metric=metric, scale=scale, labels=len(surfaces) == 1)
        else:
            drawn = contour(ax, surface, metric=metric, scale=scale, prediction=second.get(name), lines=16, short=True)
    _titles(surfaces, used, metric)
    if form == "relief":
        _arrange_reliefs(figure, next(iter(surfaces.values())), scale, len(surfaces))
        return scale
    room = inches(figure) / (k + (0.6 if wide else 1.2))
    for i, ax in enumerate(used):
        ax.tick_params(labelbottom=i + k >= len(used) or not _common(surfaces, 0))
        ax.set_xlabel(marks.fitted(ax.get_xlabel(), ax, room) if i + k >= len(used) or not _common(surfaces, 0) else "")
        ax.set_ylabel(marks.fitted(ax.get_ylabel(), ax, room) if not i % k or not _common(surfaces, 1) else "")
    assert drawn is not None
    colour_bar(figure, drawn, used, scale)
    marks.legend_below(figure, used, columns=4 if wide else 2)
    return scale


def columns_of(count: int, figure: Figure | SubFigure | None = None) -> int:
    """How many of so many panels stand in a row: 3 at most in a wide figure, or page to be, 2 in a narrow one."""
    return min(count, 3 if inches(figure) > WIDE else 2)


def numbers_at_centre(surface: Surface, metric: str) -> list[str]:
    """Short texts of what is known at the centre: the metric, the other of loss and error on the same set, λ max."""
    partner = metric.replace("loss", "error") if "loss" in metric else metric.replace("error", "loss")
    texts = []
    for name in dict.fromkeys([metric, partner]):
        value, stderr = surface.centre.get(name, (math.nan, math.nan))
        if not np.isfinite(value):
            continue
        q = quantity(name)
        unit = " %" if q.factor == 100 else ""
        short = next(word for word in ("loss", "error", q.name) if word in q.name)
        texts.append(f"{short} {with_error(value, stderr, q.factor)}{unit}")
    top = surface.context.get("top_eigenvalue")
    if isinstance(top, int | float) and math.isfinite(top):
        texts.append(f"λ max {compact(float(top))}")
    return texts


def _titles(surfaces: Mapping[str, Surface], axes: Sequence[Axes], metric: str) -> None:
    found = looks(surfaces)
    for (name, surface), ax in zip(surfaces.items(), axes, strict=True):
        shown, colour, _ = found[name]
        texts = numbers_at_centre(surface, metric)
        size = float(ax.xaxis.label.get_fontsize())
        ax.set_title(shown, loc="left", color=ink(colour), y=1.0, pad=4 + 1.3 * (size - 1.5) * len(texts))
        if texts:
            place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
            ax.annotate(
                "\n".join(texts), (0, 1), xytext=(0, 3), fontsize=size - 1.5, linespacing=1.2, gid="numbers", **place
            )


def _arrange_reliefs(figure: Figure | SubFigure, surface: Surface, scale: Scale, count: int) -> None:
    """Room for the panels, and one line below for what they share: the axes and the height."""
    line = (
        float(mpl.rcParams["font.size"]) / 72 / (figure.bbox.height / figure.dpi)
    )  # of text, in heights of the figure
    if count == 1:
        figure.subplots_adjust(left=0.0, right=0.95, bottom=0.03, top=1 - 5 * line)
        return
    figure.subplots_adjust(left=0.01, right=0.97, bottom=4.5 * line, top=1 - 5.5 * line, wspace=0.08, hspace=0.3)
    left, right = (marks.axis_label(surface, i).replace("\n", " ") for i in (0, 1))
    said = f"Left edge: {left} · right edge: {right} · height: {scale.label}"
    width = int(figure.bbox.width / figure.dpi * 72 / (marks.LETTER * 0.75 * float(mpl.rcParams["font.size"])))
    figure.text(0.5, 0.015, textwrap.fill(said, width), ha="center", va="bottom", fontsize="x-small")


def _common(surfaces: Mapping[str, Surface], number: int) -> bool:
    """Whether all share an axis by name, unit and reach, so that one label does for all."""
    seen = {
        (marks.axis_label(s, number), float(s.grid.coordinates[number][0]), float(s.grid.coordinates[number][-1]))
        for s in surfaces.values()
    }
    return len(seen) == 1
