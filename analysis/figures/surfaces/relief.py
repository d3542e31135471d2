"""Planes as reliefs in three dimensions: lit, cut level where a wall rises above the scale, contours on the ground."""

import numpy as np
from matplotlib.colors import LightSource
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]
from scipy.interpolate import RegularGridInterpolator

from analysis.figures.surfaces.marks import axis_label, fitted
from analysis.figures.surfaces.scales import MAP, Scale, checked, shared_scale
from analysis.style import INK, MUTED, RULE
from landscape.surfaces import Surface

FACETS = 110  # a side: smooth at the size of a column, and quick enough
DEPTH = 0.42  # of the ground below the relief, in heights of the relief
LIGHT = LightSource(azdeg=300, altdeg=50)
VIEW = (27.0, -52.0)  # elevation and azimuth


def relief(
    ax: Axes3D,
    surface: Surface,
    *,
    metric: str | None = None,
    scale: Scale | None = None,
    labels: bool = True,
) -> Axes3D:
    """A plane as a relief over its two axes.

    Heights are linear between the grid's points. Where values rise above the end of the scale the relief is cut off;
    where they are not finite it has a hole, and the ground a hatching of crosses.

    Args:
        ax: Of projection "3d".
        surface: A plane.
        metric: Which metric; None is the first.
        scale: The shared scale of several reliefs: equal heights are then equal values. None is this one's own.
        labels: Whether to name the axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the surface is no plane, or lacks the metric.
    """
    metric = checked(surface, metric, dimensions=2)
    scale = scale or shared_scale([surface], metric)
    x, y = (c.numpy() for c in surface.grid.coordinates)
    places = scale.positions(surface.values[metric].numpy())
    fine_x, fine_y = _refined(x), _refined(y)
    heights = RegularGridInterpolator((x, y), places)(np.stack(np.meshgrid(fine_x, fine_y, indexing="ij"), -1))
    ax.computed_zorder = False
    _ground(ax, surface, places, scale)
    _skin(ax, fine_x, fine_y, heights)
    if x[0] <= 0 <= x[-1] and y[0] <= 0 <= y[-1]:
        ax.plot([0], [0], [-DEPTH], "+", color=INK, ms=6, mew=1.3, zorder=3, label="model", gid="centre")
    _dress(ax, surface, scale, labels)
    return ax


def _refined(c: np.ndarray) -> np.ndarray:
    """The grid's own coordinates with equal parts between them, so that its points stay on the relief."""
    parts = max(1, round(FACETS / (len(c) - 1)))
    inner = c[:-1, None] + np.diff(c)[:, None] * np.arange(parts) / parts
    return np.append(inner.ravel(), c[-1])


def _skin(ax: Axes3D, x: np.ndarray, y: np.ndarray, heights: np.ndarray) -> None:
    """The lit facets, cut at height 1."""
    known = np.where(np.isfinite(heights), heights, 0.0)
    box = (x[-1] - x[0], y[-1] - y[0])
    shade = LIGHT.hillshade(known.T, vert_exag=0.75, dx=1 / (len(x) - 1), dy=1 / (len(y) - 1), fraction=1.0).T
    facets, colours, height = _cut_facets(x / box[0], y / box[1], heights)
    facets = facets * np.array([box[0], box[1], 1.0])
    middle = (shade[:-1, :-1] + shade[1:, :-1] + shade[:-1, 1:] + shade[1:, 1:])[height] / 4
    base = MAP(np.clip(colours, 0, 1))[:, :3]
    light = (0.62 + 0.46 * middle)[:, None]
    lit = np.clip(base * light + np.clip(light - 1, 0, None), 0, 1)
    skin = Poly3DCollection(list(facets), facecolors=lit, edgecolors=lit, linewidths=0.25, zorder=2, gid="relief")
    skin.set_rasterized(True)  # thousands of facets; all text stays text
    ax.add_collection3d(skin)


def _cut_facets(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Facets with at least one corner below the cut, the other corners drawn down to it; those with a hole go."""
    grid = np.stack(np.broadcast_arrays(x[:, None], y[None, :], z), -1)
    corners = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], -2)
    tall = corners[..., 2]
    kept = np.nonzero(np.isfinite(tall).all(-1) & (tall < 1).any(-1))
    chosen = corners[kept].copy()
    chosen[..., 2] = np.minimum(chosen[..., 2], 1.0)
    return chosen, chosen[..., 2].mean(-1), kept


def _ground(ax: Axes3D, surface: Surface, places: np.ndarray, scale: Scale) -> None:
    """Contours and holes, on the ground."""
    x, y = (c.numpy() for c in surface.grid.coordinates)
    shown = np.ma.masked_invalid(places.T)
    levels = scale.positions(scale.levels(12))
    if len(levels) and shown.count():
        ax.contour(
            x, y, shown, levels=levels, cmap=MAP, vmin=-0.25, vmax=1, zdir="z", offset=-DEPTH, linewidths=0.8, zorder=1
        )
    bad = ~np.isfinite(surface.values[checked(surface, scale.metric)].numpy())
    if bad.any():
        i, j = np.nonzero(bad)
        ax.plot(x[i], y[j], np.full(len(i), -DEPTH), "x", color=MUTED, ms=2.2, mew=0.5, zorder=1, label="not finite")


def _dress(ax: Axes3D, surface: Surface, scale: Scale, labels: bool) -> None:
    """Quiet walls, few ticks, and the same box for all."""
    x, y = (c.numpy() for c in surface.grid.coordinates)
    ax.set_proj_type("ortho")
    ax.view_init(*VIEW)
    ax.set_box_aspect((1, 1, 0.62 * (1 + DEPTH)), zoom=0.9 if labels else 1.12)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), zlim=(-DEPTH, 1))
    values = scale.levels(5)
    ax.set_zticks(list(scale.positions(values)), labels=scale.labels(values))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis._axinfo["grid"].update(color=RULE, linewidth=0.5)
        axis.line.set(color=MUTED, linewidth=0.6)
    for axis, middle in ((ax.xaxis, 0.0), (ax.yaxis, 0.0)):
        low, high = axis.get_view_interval()
        axis.set_ticks([low, middle, high] if low < middle < high else [low, high])
        axis.set_major_formatter(lambda v, _: f"{v:.3g}".replace("-", "−"))
    ax.tick_params(pad=-3, labelsize="x-small")
    if labels:
        room = 0.42 * ax.figure.bbox.width / ax.figure.dpi
        ax.set_xlabel(fitted(axis_label(surface, 0), ax, room), labelpad=-6, fontsize="small")
        ax.set_ylabel(fitted(axis_label(surface, 1), ax, room), labelpad=-6, fontsize="small")
        ax.set_zlabel(scale.label, labelpad=-5, fontsize="small")
