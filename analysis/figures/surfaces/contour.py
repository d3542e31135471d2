"""Planes as filled contours with labelled lines, and what lies over them: second order, paths, perturbed points."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.path import Path

from analysis.figures.room import inches
from analysis.figures.surfaces import marks
from analysis.figures.surfaces.overlays import draw_paths, path_panels
from analysis.figures.surfaces.scales import MAP, Cut, Kind, Scale, checked, shared_scale
from analysis.style import INK
from landscape.surfaces import Surface

if TYPE_CHECKING:  # the package of surfaces draws with these figures
    from analysis.surfaces.trajectory import SurfacePath

LABELLED = 0.35  # of the plane's diagonal: lines that reach less far have no room for a label
LABEL = 0.36  # inches that a label needs for itself
STEPS = 24  # of colour between two labelled lines' range: fine enough to look even, few enough for a small PDF


def contour(
    ax: Axes,
    surface: Surface,
    *,
    metric: str | None = None,
    scale: Scale | None = None,
    prediction: marks.Prediction | None = None,
    paths: Sequence["SurfacePath"] = (),
    lines: int = 12,
    short: bool = False,
) -> QuadContourSet:
    """A plane: colours and labelled lines of one metric, with the model and the lowest point marked.

    Where the model gave no finite value the plane is hatched; above the end of a scale that is cut it has the last
    colour. Nothing is smoothed, and between the grid's points it is linear.

    Args:
        ax: Where to draw. Labelled parts are left to a legend of the caller, such as `marks.legend_below`.
        surface: A plane.
        metric: Which metric; None is the first.
        scale: The shared scale of several surfaces; None is this one's own, linear.
        prediction: The loss to second order, drawn as broken lines of the same values; for a metric that it predicts.
        paths: Trajectories over the plane.
        lines: Labelled lines, about.
        short: Whether the panel is small, and the cosine of the axes is written short.

    Returns:
        The filled contours, for `colour_bar`.

    Raises:
        ValueError: If the surface is no plane, or lacks the metric.
    """
    metric = checked(surface, metric, dimensions=2)
    scale = scale or shared_scale([surface], metric)
    x, y = (c.numpy() for c in surface.grid.coordinates)
    places = np.ma.masked_invalid(scale.positions(surface.values[metric].numpy()).T)
    marks.mark_missing(ax, surface, metric)
    filled = ax.contourf(
        x, y, places, levels=np.linspace(0, 1, 2 * STEPS + 1), cmap=MAP, vmin=0, vmax=1,
        extend="max" if scale.cut else "neither", zorder=1,
    )  # fmt: skip
    filled.set_edgecolor("face")  # no hairlines between the colours of a PDF
    filled.set_linewidth(0.3)
    values = scale.levels(lines)
    if len(values):
        at = scale.positions(values)
        drawn = ax.contour(x, y, places, levels=at, colors=INK, linewidths=0.5, alpha=0.65, zorder=2)
        texts = dict(zip(at, scale.labels(values), strict=True))
        size = np.array([x[-1] - x[0], y[-1] - y[0]])
        paths_of = dict(zip(at, drawn.get_paths(), strict=True))
        places_of = _spread(paths_of, np.array([x[0], y[0]]), size, LABEL / inches(ax))
        for level, place in places_of.items():
            label = ax.clabel(
                drawn, levels=[level], manual=[place], fmt=texts, fontsize="x-small", inline=True, inline_spacing=2
            )
            for text in label:
                text.set_color(INK)
                text.set_path_effects(marks.HALO)
    if prediction is not None and len(values):
        _second_order(ax, surface, prediction, scale, values)
    marks.mark_evaluated(ax, surface)
    marks.frame(ax, surface, short=short)
    marks.mark_centre(ax, surface, metric)
    draw_paths(ax, surface, paths)
    return filled


def _second_order(ax: Axes, surface: Surface, prediction: marks.Prediction, scale: Scale, values: np.ndarray) -> None:
    """Broken lines where the prediction has the values of the full ones; the legend says so if it has none of them."""
    x, y = (c.numpy() for c in surface.grid.coordinates)
    predicted = prediction.predict(torch.stack(surface.grid.mesh(), -1)).numpy().T
    met = values[(values > predicted.min()) & (values < predicted.max())]
    if len(met):
        ax.contour(
            x, y, scale.positions(predicted), levels=scale.positions(met), colors=marks.SECOND_ORDER,
            linewidths=0.9, linestyles="--", zorder=3,
        )  # fmt: skip
    label = "second order, same levels" if len(met) else "second order: reaches no line"
    ax.add_line(Line2D([], [], color=marks.SECOND_ORDER, lw=0.9, ls="--", label=label))


def _spread(
    paths: Mapping[float, Path], corner: np.ndarray, size: np.ndarray, gap: float
) -> dict[float, tuple[float, float]]:
    """Where each level has its label: on its longest line, as far from the others as it goes.

    Args:
        paths: Lines of each level.
        corner: Lower left of the plane.
        size: Of the plane.
        gap: Least distance from another label, in widths of the plane; a level without such a place has no label.
    """
    taken = [np.array([x, 0.0]) for x in (1.0, 0.8, 0.6)]  # where the cosine of the axes stands
    found = {}
    for level, path in paths.items():
        pieces = path.to_polygons(closed_only=False) if len(np.asarray(path.vertices)) else []
        scaled = [(np.asarray(piece) - corner) / size for piece in pieces]
        longest = max(scaled, key=lambda piece: float(np.hypot(*np.ptp(piece, axis=0))), default=np.empty((0, 2)))
        inside = longest[((longest > gap / 2) & (longest < 1 - gap / 2)).all(axis=1)]
        if not len(inside) or np.hypot(*np.ptp(longest, axis=0)) < LABELLED * np.sqrt(2):
            continue
        distance = np.min([np.hypot(*(inside - place).T) for place in taken], axis=0)
        if distance.max() >= gap:
            taken.append(inside[distance.argmax()])
            x, y = corner + size * taken[-1]
            found[level] = (float(x), float(y))
    return found


def colour_bar(
    figure: Figure | SubFigure, drawn: QuadContourSet, axes: Axes | Sequence[Axes], scale: Scale
) -> Colorbar:
    """The colour bar of a scale, with values in the metric's unit; an arrow at its end says that it is cut.

    Args:
        figure: Where to draw.
        drawn: From `contour`.
        axes: Whose space it takes.
        scale: The scale that `contour` was given.
    """
    bar = figure.colorbar(drawn, ax=axes, label=scale.label, aspect=28, pad=0.02, shrink=0.98)
    values = scale.levels(8)
    bar.set_ticks(list(scale.positions(values)), labels=scale.labels(values))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
    if scale.cut:
        bar.ax.set_title("cut", fontsize="x-small", fontweight="normal", loc="center", pad=9)
    return bar


def plane(
    figure: Figure | SubFigure,
    surface: Surface,
    *,
    metric: str | None = None,
    kind: Kind = "linear",
    cut: Cut = "auto",
    prediction: marks.Prediction | None = None,
    paths: Sequence["SurfacePath"] = (),
) -> Scale:
    """A whole figure of one plane: contours, colour bar, legend, and for paths what the plane does not show of them.

    Beside the plane stand, by step, each path's loss against the loss on the plane below it, and its distance off the
    plane; in the narrow figure of one column they stand below.

    Args:
        figure: Where to draw; with layout "constrained".
        surface: A plane.
        metric: Which metric; None is the first.
        kind: Of the scale: "linear" or "log".
        cut: See `shared_scale`.
        prediction: The loss to second order.
        paths: Trajectories over the plane.

    Returns:
        The scale, whose `said` belongs into the caption.

    Raises:
        ValueError: As `contour` and `shared_scale`.
    """
    metric = checked(surface, metric, dimensions=2)
    scale = shared_scale([surface], metric, kind=kind, cut=cut)
    if all(len(path.table) < 2 for path in paths):  # none, or the places of some models
        ax = figure.subplots()
        side: list[Axes] = []
    elif figure.bbox.width / figure.dpi > 5:
        ax, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        right.remove()
        grid = right.get_subplotspec().subgridspec(2, 1)
        upper = figure.add_subplot(grid[0])
        side = [upper, figure.add_subplot(grid[1], sharex=upper)]
    else:
        ax, upper, lower = figure.subplots(3, 1, height_ratios=[3.4, 1, 1])
        lower.sharex(upper)
        side = [upper, lower]
    drawn = contour(ax, surface, metric=metric, scale=scale, prediction=prediction, paths=paths)
    colour_bar(figure, drawn, ax, scale)
    if side:
        path_panels(side[0], side[1], paths, metric=metric)
    marks.legend_below(figure, [ax, *side], columns=3 if figure.bbox.width / figure.dpi > 5 else 2)
    return scale
