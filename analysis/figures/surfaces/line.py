"""Lines: one metric along one axis, of one model or several, with its error and what the second order predicts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.surfaces.marks import HALO, Prediction, axis_label
from analysis.figures.surfaces.scales import Cut, checked, quantity, shared_scale
from analysis.style import INK, MUTED, looks
from landscape.surfaces import Surface

STYLES = ("-", (0, (4, 1.2, 1, 1.2)), (0, (1, 1)))  # of the first metric, the second, ...; short dashes: second order


@dataclass(frozen=True, eq=False)
class Slice:
    """One line to draw.

    Attributes:
        surface: Of one axis.
        label: For the legend; the name of a training method has its colour.
        metric: Which metric, "" for the surface's first; slices of one label and two metrics share a colour and
            differ in style.
        prediction: The loss to second order, or None.
    """

    surface: Surface
    label: str
    metric: str = ""
    prediction: Prediction | None = None


def lines(ax: Axes, slices: Sequence[Slice], *, cut: Cut = "auto", legend: bool = True) -> Axes:
    """Metrics along one axis with bands of two standard errors.

    Points that refinement filled in are pale; values that are not finite are crosses at the upper edge, and values
    above it triangles, so that nothing is dropped in silence.

    Args:
        ax: Where to draw.
        slices: What to draw; of one unit, for they share the vertical axis.
        cut: Where the vertical axis ends: see `shared_scale`.
        legend: Whether to draw one.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no slice, one is no line or lacks its metric, or shares and other numbers are mixed.
    """
    if not slices:
        raise ValueError("`slices` must hold at least one line to draw, got none.")
    slices = [replace(s, metric=checked(s.surface, s.metric or None, dimensions=1)) for s in slices]
    metrics = list(dict.fromkeys(s.metric for s in slices))
    kinds = [quantity(m) for m in metrics]
    if len({k.factor for k in kinds}) > 1:
        raise ValueError(f"`slices` mix shares in percent and other numbers, {metrics}: draw them on two axes.")
    f = kinds[0].factor
    look = looks([s.label for s in slices])
    scales = [shared_scale([s.surface for s in slices if s.metric == m], m, cut=cut) for m in metrics]
    low, high = f * min(s.low for s in scales), f * max(s.high for s in scales)
    is_cut = f * max(s.highest for s in scales) > high
    top, lost = [], []
    for s in slices:
        name, colour, _ = look[s.label]
        style = STYLES[metrics.index(s.metric) % len(STYLES)]
        label = (
            name if len(metrics) == 1 else f"{name}, {quantity(s.metric).name}" if s.label else quantity(s.metric).name
        )
        x = s.surface.grid.coordinates[0].numpy()
        y = f * np.where(np.isfinite(s.surface.values[s.metric].numpy()), s.surface.values[s.metric].numpy(), np.nan)
        error = 2 * f * np.nan_to_num(s.surface.stderr[s.metric].numpy(), posinf=0.0)
        ax.fill_between(x, y - error, y + error, color=colour, alpha=0.16, lw=0)
        seen = s.surface.computed.numpy()
        if seen.all():
            ax.plot(x, y, color=colour, ls=style, label=label, gid="line")
        else:
            ax.plot(x, y, color=colour, ls=style, alpha=0.35, gid="interpolated")
            ax.plot(x, np.where(seen, y, np.nan), color=colour, ls=style, marker=".", ms=3, label=label, gid="line")
        if s.prediction is not None:
            at = s.surface.grid.coordinates[0][:, None]
            ax.plot(x, f * s.prediction.predict(at).numpy(), color=colour, lw=0.9, ls="--", gid="second order")
        bad = ~np.isfinite(s.surface.values[s.metric].numpy()) & (seen | s.surface.whole)
        lost += [(a, colour) for a in x[bad]]
        top += [(a, colour) for a in x[np.nan_to_num(y, nan=-np.inf) > high]] if is_cut else []
        centre = s.surface.centre.get(s.metric, (np.nan, np.nan))[0]
        if x[0] <= 0 <= x[-1] and np.isfinite(centre):
            ax.plot(
                0,
                f * centre,
                "o",
                color=colour,
                ms=4.5,
                mec="white",
                mew=0.8,
                path_effects=HALO,
                zorder=5,
                gid="centre",
            )
    room = 0.06 * (high - low)
    ax.set_ylim(low - room, high + (0.01 if is_cut else 1) * room)
    _edge_marks(ax, top, "^", "above the axis", "above")
    _edge_marks(ax, lost, "x", "not finite (NaN or ∞)", "lost")
    if any(s.prediction is not None for s in slices):
        ax.plot([], [], color=MUTED, lw=0.9, ls="--", label="second order")
    if any(not s.surface.computed.all() and s.surface.whole for s in slices):
        ax.plot([], [], color=MUTED, alpha=0.5, label="pale: interpolated")
    labels = {axis_label(s.surface, 0) for s in slices}
    ax.set_xlabel(labels.pop() if len(labels) == 1 else axis_label(slices[0].surface, 0, own=True))
    names = {k.label for k in kinds}
    ax.set_ylabel(names.pop() if len(names) == 1 else "Error (%)" if f == 100 else "Loss")
    ends = [c for s in slices for c in (s.surface.grid.coordinates[0][0], s.surface.grid.coordinates[0][-1])]
    ax.set_xlim(float(min(ends)), float(max(ends)))
    ax.grid(axis="y")
    if legend and ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best")
    return ax


def _edge_marks(ax: Axes, points: Sequence[tuple[float, str]], marker: str, label: str, gid: str) -> None:
    """Marks at the upper edge, above where the line would be."""
    for a, colour in points:
        ax.plot(
            a, 1.0, marker, color=colour, ms=4, mew=1.1, transform=ax.get_xaxis_transform(), clip_on=False, zorder=6,
            gid=gid,
        )  # fmt: skip
    if points:
        ax.plot([], [], marker, color=INK, ms=4, ls="", label=label)
