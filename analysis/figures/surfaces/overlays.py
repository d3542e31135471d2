"""Trajectories over a plane, and beside it what the plane cannot show of them: distance and loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.surfaces.marks import HALO
from analysis.figures.surfaces.scales import quantity
from analysis.style import INK, MUTED, looks
from landscape.surfaces import Surface

if TYPE_CHECKING:  # the package of surfaces draws with these figures
    from analysis.surfaces.trajectory import SurfacePath

ARROWS = 25  # perturbed points shown of one path, at most
NEAR, FAR = 22.0, 4.0  # area of a marker on the plane, and of the farthest, in points²


def path_looks(paths: Sequence["SurfacePath"]) -> list[tuple[str, str]]:
    """Colour and marker of each path: those of its method, or where two share it, of its name."""
    methods = [path.look or path.name for path in paths]
    shared = len(set(methods)) < len(methods)
    found = looks([path.name for path in paths] if shared else methods)
    return [found[path.name if shared else method][1:] for path, method in zip(paths, methods, strict=True)]


def draw_paths(ax: Axes, surface: Surface, paths: Sequence["SurfacePath"]) -> None:
    """Projections of paths on a plane: start filled, end hollow, smaller and paler the farther off the plane.

    Arrows lead to the projections of the perturbed points. A legend entry says how many points lie outside.

    Args:
        ax: With the plane on it.
        surface: The plane.
        paths: Trajectories with columns a1 and a2.
    """
    x, y = (c.numpy() for c in surface.grid.coordinates)
    farthest = max((float(np.nanmax(p.table["distance"])) for p in paths if "distance" in p.table), default=0.0)
    for path, (colour, marker) in zip(paths, path_looks(paths), strict=True):
        t = path.table
        a, b = t["a1"].to_numpy(float), t["a2"].to_numpy(float)
        outside = int(np.sum((a < x[0]) | (a > x[-1]) | (b < y[0]) | (b > y[-1])))
        name = looks([path.look])[path.look][0] if path.name == path.look else path.name
        label = f"{name} ({outside} of {len(t)} points outside)" if outside else name
        ax.plot(a, b, color=colour, lw=1.0, path_effects=HALO, zorder=4, gid="path")
        off = t["distance"].to_numpy(float) if "distance" in t else np.zeros(len(t))
        near = 1 - np.nan_to_num(off / farthest) if farthest > 0 else np.ones(len(t))
        if len(t) > 2:
            ax.scatter(
                a[1:-1], b[1:-1], s=FAR + (NEAR - FAR) * near[1:-1] ** 2, alpha=(0.35 + 0.65 * near[1:-1]).tolist(),
                color=colour, marker=marker, edgecolor="white", linewidth=0.4, zorder=4.2, gid="path points",
            )  # fmt: skip
        if len(t) > 1:
            ax.plot(a[:1], b[:1], "o", color=colour, ms=5.5, mec="white", mew=0.7, zorder=4.5, gid="start")
        ax.plot(a[-1:], b[-1:], marker, color=colour, mfc="white", ms=6.5, mew=1.4, zorder=4.6, gid="end")
        ax.add_line(Line2D([], [], color=colour, marker=marker, mfc="white", ms=4.5, lw=1.0, label=label))
        if {"p1", "p2"} <= set(t.columns):
            chosen = np.unique(np.linspace(0, len(t) - 1, min(len(t), ARROWS)).round().astype(int))
            to = t[["p1", "p2"]].to_numpy(float)[chosen]
            ax.quiver(
                a[chosen], b[chosen], to[:, 0] - a[chosen], to[:, 1] - b[chosen], angles="xy", scale_units="xy",
                scale=1, width=0.0035, headwidth=4, color=INK, alpha=0.75, zorder=4.4, gid="perturbed",
            )  # fmt: skip
    if any({"p1", "p2"} <= set(p.table.columns) for p in paths):
        ax.add_line(Line2D([], [], color=INK, marker=r"$\rightarrow$", ms=7, ls="", label="to the perturbed point"))
    if farthest > 0:
        ax.add_line(
            Line2D([], [], color=MUTED, marker="o", ms=2, alpha=0.6, ls="", label="small, pale: far off the plane")
        )
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))


def path_panels(upper: Axes, lower: Axes, paths: Sequence["SurfacePath"], *, metric: str = "loss") -> None:
    """Loss at the points of paths against loss on the plane below them, and their distance off the plane, by step.

    Args:
        upper: For the loss; only `metric` "loss" in the paths' table is drawn.
        lower: For the distance.
        paths: Trajectories with columns loss, loss_stderr, plane_loss and distance; what is missing is left out.
        metric: What the plane shows, for the label.
    """
    name = quantity(metric).name if "loss" in metric else "loss"
    for path, (colour, _) in zip(paths, path_looks(paths), strict=True):
        t = path.table.sort_values("step")
        step = t["step"].to_numpy(float)
        if "loss" in t:
            loss = t["loss"].to_numpy(float)
            upper.plot(step, loss, color=colour, lw=1.2, gid="on path")
            if "loss_stderr" in t:
                error = 2 * np.nan_to_num(t["loss_stderr"].to_numpy(float))
                upper.fill_between(step, loss - error, loss + error, color=colour, alpha=0.2, lw=0)
        if "plane_loss" in t:
            upper.plot(step, t["plane_loss"].to_numpy(float), color=colour, lw=1.2, ls=":", gid="on plane")
        if "distance" in t:
            lower.plot(step, t["distance"].to_numpy(float), color=colour, lw=1.2)
    upper.add_line(Line2D([], [], color=MUTED, lw=1.2, label="loss at the point itself"))
    upper.add_line(Line2D([], [], color=MUTED, lw=1.2, ls=":", label="on the plane below it"))
    upper.set_ylabel(name[:1].upper() + name[1:])
    upper.tick_params(labelbottom=False)
    shown = [v for line in upper.lines for v in np.asarray(line.get_ydata(), float) if np.isfinite(v)]
    if shown and min(shown) > 0 and max(shown) > 30 * min(shown):
        upper.set_yscale("log")
    lower.set_ylabel("Distance off plane")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("Optimizer step")
    for ax in (upper, lower):
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
