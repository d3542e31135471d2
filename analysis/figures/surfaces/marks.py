"""What all figures of surfaces share: labels of axes, the model and the lowest point, points without a value."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.figures.room import letters
from analysis.figures.surfaces.scales import compact
from analysis.style import INK, MUTED
from landscape.surfaces import Surface

HALO: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=2.2, foreground="white")]
SECOND_ORDER = "#c04000"  # of what the second order predicts, on lines and in planes
STRETCHED = 4.0  # a plane longer than this times its height is not drawn with equal units
WIDE = 34  # letters of a label that a narrow panel has room for
TICKS = 32  # letters across a panel from which four ticks have room
LETTER = 0.6  # width of a letter, in sizes of the text


class Prediction(Protocol):
    """The loss to second order, such as `landscape.surfaces.second_order.SecondOrder`."""

    def predict(self, where: Tensor, /) -> Tensor:
        """Values at coordinates, whose last axis has one number an axis of the surface."""
        ...


def axis_label(surface: Surface, number: int, *, own: bool = False) -> str:
    """The name of an axis with its unit; an eigenvector's has its signed eigenvalue.

    Args:
        surface: Whose axis.
        number: Which, from 0.
        own: Leave out what belongs to one model alone, such as the eigenvalue, where several share the axis.
    """
    axis = surface.axes[number]
    name, unit = str(axis.get("name", f"axis {number + 1}")), str(axis.get("unit", ""))
    value = (axis.get("recipe") or {}).get("eigenvalue")
    if own:
        name = name.partition(",")[0]
    elif "λ" not in name and isinstance(value, int | float):
        name = f"{name}, λ = {compact(float(value))}"
    name = name.replace("= -", "= −")
    name = name[:1].upper() + name[1:]
    gap = "\n" if len(name) + len(unit) > WIDE else " "
    return f"{name}{gap}({unit})" if unit else name


def fitted(label: str, ax: Axes, inches: float) -> str:
    """The label on as many lines as it needs to be at most so wide."""
    letters = max(12, int(72 * inches / (LETTER * float(ax.xaxis.label.get_fontsize()))))
    return textwrap.fill(label.replace("\n", " "), letters, break_long_words=False)


def cosine_text(surface: Surface, *, short: bool = False) -> str:
    """The cosines of the angles between the axes; empty for a line."""
    k = len(surface.grid.shape)
    cosines = surface.cosines
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    if not pairs:
        return ""
    if k == 2:
        return f"{'cos' if short else 'cosine of the axes'} {_cosine(float(cosines[0, 1]))}"
    return "cosines of the axes: " + ", ".join(f"{i + 1}·{j + 1} {_cosine(float(cosines[i, j]))}" for i, j in pairs)


def _cosine(value: float) -> str:
    return "0" if abs(value) < 5e-7 else compact(value, 2)


def same_units(surface: Surface) -> bool:
    """Whether a step of one coordinate means as much along both axes of a plane, so that circles should be circles."""
    units = {str(axis.get("unit", "")) for axis in surface.axes}
    return len(units) == 1


def frame(ax: Axes, surface: Surface, *, short: bool = False) -> None:
    """Limits, labels, aspect and the cosine of a plane."""
    x, y = (c.numpy() for c in surface.grid.coordinates)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel=axis_label(surface, 0), ylabel=axis_label(surface, 1))
    shape = (x[-1] - x[0]) / (y[-1] - y[0])
    if same_units(surface) and 1 / STRETCHED < shape < STRETCHED:
        ax.set_aspect("equal")
    ticks = 4 if letters(ax) > TICKS else 2
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    for spine in ax.spines.values():
        spine.set_visible(True)
    ax.text(
        0.985, 0.015, cosine_text(surface, short=short), transform=ax.transAxes, ha="right", va="bottom",
        fontsize="x-small", color=INK, path_effects=HALO, zorder=6, gid="cosine",
    )  # fmt: skip


def mark_centre(ax: Axes, surface: Surface, metric: str) -> None:
    """A cross at the model itself, and a ring at the lowest point of the grid where that is another place."""
    x, y = (c.numpy() for c in surface.grid.coordinates)
    if x[0] <= 0 <= x[-1] and y[0] <= 0 <= y[-1]:
        ax.plot(0, 0, "+", color=INK, ms=7, mew=1.5, path_effects=HALO, zorder=5, label="model", gid="centre")
    lowest = lowest_point(surface, metric)
    if lowest is not None and any(lowest):
        ax.plot(
            *lowest, "o", color=INK, mfc="none", ms=5.5, mew=1.1, path_effects=HALO, zorder=5,
            label="lowest point", gid="lowest",
        )  # fmt: skip


def lowest_point(surface: Surface, metric: str) -> tuple[float, ...] | None:
    """Coordinates of the lowest value: the origin, unless a point of the grid is lower; None if nothing is finite."""
    values = surface.values[metric]
    shown = torch.where(values.isfinite(), values, torch.full_like(values, math.inf))
    value, centre = float(shown.min()), surface.centre.get(metric, (math.nan, math.nan))[0]
    if math.isfinite(centre) and centre <= value:
        return (0.0,) * values.ndim
    return surface.grid.point(int(shown.argmin())) if math.isfinite(value) else None


def not_finite(surface: Surface, metric: str) -> np.ndarray:
    """Points whose value is NaN or infinite though they were evaluated, or filled in by refinement."""
    bad = ~np.isfinite(surface.values[metric].numpy())
    return np.asarray(bad & (surface.computed.numpy() | surface.whole))


def pending(surface: Surface, metric: str) -> np.ndarray:
    """Points that are still to be evaluated, and have no value."""
    bad = ~np.isfinite(surface.values[metric].numpy())
    return np.asarray(bad & ~surface.computed.numpy() & (not surface.whole))


def mark_missing(ax: Axes, surface: Surface, metric: str) -> None:
    """Hatch, behind what is drawn, where the model gave no finite value, and dot where no point was evaluated yet."""
    x, y = (c.numpy() for c in surface.grid.coordinates)
    kinds = ((not_finite, "xxxx", "not finite (NaN or ∞)", "missing"), (pending, "....", "not evaluated yet", "open"))
    for find, hatch, label, gid in kinds:
        mask = find(surface, metric)
        if not mask.any():
            continue
        boxes = [_box(x, y, *block) for block in _blocks(mask)]
        ax.add_patch(
            PathPatch(
                Path.make_compound_path(*boxes), facecolor="#f1f2f4", edgecolor=MUTED, hatch=hatch, lw=0.0,
                zorder=0.5, label=label, gid=gid,
            )
        )  # fmt: skip


def mark_evaluated(ax: Axes, surface: Surface) -> None:
    """Dots where the model was evaluated, if refinement filled in the other points."""
    seen = surface.computed.numpy()
    if seen.all() or not surface.whole:
        return
    x, y = (mesh.numpy()[seen] for mesh in surface.grid.mesh())
    ax.plot(
        x, y, ".", color="white", ms=1.6, mew=0, alpha=0.8, zorder=2.5, label="evaluated (between: interpolated)",
        gid="evaluated",
    )  # fmt: skip


def legend_below(figure: Figure | SubFigure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    """One legend for the labelled parts of some axes, below them."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, _proxy(handle))
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(columns, len(found)))


def _proxy(handle: Any) -> Any:
    """White dots would not be seen on a white page."""
    if isinstance(handle, Line2D) and handle.get_gid() == "evaluated":
        return Line2D([], [], ls="", marker=".", color=MUTED, ms=4)
    return handle


def _blocks(mask: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Rectangles that cover the true entries: runs along the second axis. The plane's first axis is x."""
    table = mask.T  # rows are y
    blocks = []
    for i, row in enumerate(table):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        blocks += [((i, int(a)), (int(b - a), 1)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return blocks


def _box(x: np.ndarray, y: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> Path:
    """The cells around some points as far as their neighbours: filled contours end there, and cover the rest."""
    (i, j), (width, height) = corner, size
    left, right = x[max(j - 1, 0)], x[min(j + width, len(x) - 1)]
    low, high = y[max(i - 1, 0)], y[min(i + height, len(y) - 1)]
    return Path([(left, low), (right, low), (right, high), (left, high), (left, low)], closed=True)
