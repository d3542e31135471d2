"""Paths between models and out of one: barriers, curves against lines, the ascent of SAM, and variance explained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analysis.figures.surfaces.marks import HALO
from analysis.figures.surfaces.scales import quantity, with_error
from analysis.style import ALERT, INK, MUTED

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#4d4d4d")
WIDE = 5.0  # inches
BRACKET = {"arrowstyle": "|-|, widthA=0.18, widthB=0.18", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
MARKERS = "osD^v"


@dataclass(frozen=True, eq=False)
class Along:
    """One metric along a path.

    Attributes:
        coordinates: Where, ascending; 0 and 1 are the two models, or 0 the model and 1 its perturbed weights.
        values: In the metric's own unit; shares are drawn in percent.
        stderr: Standard errors, NaN where there are none.
        label: For the legend, such as "aligned, running statistics estimated anew".
        metric: Name of the metric.
        barriers: To be written on the figure.
        solid: Whether the line is drawn full: the same models before alignment, or another BatchNorm mode, are broken.
        group: Lines of one group share a colour; empty gives each its own.
    """

    coordinates: np.ndarray
    values: np.ndarray
    stderr: np.ndarray
    label: str = ""
    metric: str = "loss"
    barriers: Sequence[Any] = field(default=())
    solid: bool = True
    group: str = ""

    def __post_init__(self) -> None:
        sizes = {len(self.coordinates), len(self.values), len(self.stderr)}
        if len(sizes) > 1 or not len(self.coordinates):
            raise ValueError(
                f"`coordinates`, `values` and `stderr` must have one number a point, got {sorted(sizes)} of them."
            )


def barrier_plot(ax: Axes, profiles: Sequence[Along], *, ends: tuple[str, str] = ("model 1", "model 2")) -> Axes:
    """A metric on the line between two models, with the barriers marked where they are reached.

    B_lin is measured from the straight line between the ends, which is dotted, and B_max from the higher end.

    Args:
        ax: Where to draw.
        profiles: Lines of one metric, such as before and after alignment, with running statistics kept and anew.
        ends: Names of the models at 0 and 1.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no profile, or metrics differ.
    """
    f = _draw(ax, profiles)
    for profile, colour, _ in _looks(profiles):
        x, y = profile.coordinates, f * profile.values
        at = [int(np.argmin(abs(x - end))) for end in (0, 1)]
        ax.plot(x[at], y[at], "o", color=colour, ms=4.5, mec="white", mew=0.8, path_effects=HALO, zorder=5, gid="ends")
        for number, found in enumerate(profile.barriers):
            if not (math.isfinite(found.value) and found.value > 0):
                continue
            a = found.location
            base = y[at[0]] + a * (y[at[1]] - y[at[0]]) if found.definition == "B_lin" else y[at].max()
            if found.definition == "B_lin":
                ax.plot([0, 1], y[at], color=colour, lw=0.8, ls=":", gid="straight")
            shift = 0.012 * (number - (len(profile.barriers) - 1) / 2) * (x[-1] - x[0])
            ax.annotate(
                "", (a + shift, base + f * found.value), (a + shift, base),
                arrowprops={**BRACKET, "color": colour},
            )  # fmt: skip
    for a in (0, 1):
        ax.axvline(a, color=MUTED, lw=0.6, zorder=0)
    ax.set_xticks(sorted({0.0, 0.5, 1.0, *[t for t in (-0.5, 1.5) if _within(t, profiles)]}))
    ax.set_xticklabels(
        [{0.0: f"0\n{ends[0]}", 1.0: f"1\n{ends[1]}"}.get(t, f"{t:g}".replace("-", "−")) for t in ax.get_xticks()]
    )
    ax.set_xlabel("Position a on (1 − a)·w₁ + a·w₂")
    return _legend(ax, profiles, f)


def curve_against_line(
    ax: Axes, curve: Along, line: Along, *, ends: tuple[str, str] = ("model 1", "model 2"), longer: float | None = None
) -> Axes:
    """A curve of low loss between two models against the straight line between them.

    Args:
        ax: Where to draw.
        curve: Along the curve, by its parameter t.
        line: Along the straight line.
        ends: Names of the models at 0 and 1.
        longer: Length of the curve over that of the line, for the legend.

    Returns:
        The axes.

    Raises:
        ValueError: If metrics differ.
    """
    f = _draw(ax, [curve, line])
    for profile, colour, _ in _looks([curve, line]):
        top = int(np.nanargmax(np.where(np.isfinite(profile.values), profile.values, np.nan)))
        ax.plot(
            profile.coordinates[top], f * profile.values[top], "^", color=colour, ms=5, mec="white", mew=0.8, zorder=5,
            gid="highest",
        )  # fmt: skip
    ax.plot([], [], "^", color=MUTED, ms=5, label="highest")
    if longer is not None:
        ax.plot([], [], " ", label=f"the curve is {longer:.2f} × as long")
    ax.set_xticks([0, 0.5, 1], [f"0\n{ends[0]}", "0.5", f"1\n{ends[1]}"])
    ax.set_xlabel("Parameter t")
    return _legend(ax, [curve, line], f)


def ascent_path(
    ax: Axes,
    profiles: Sequence[Along],
    *,
    slope: float | None = None,
    curvature: float | None = None,
    value: float | None = None,
    step: str = "ε",
) -> Axes:
    """The loss from the weights w through the perturbed weights w + ε and beyond, with its Taylor lines.

    Args:
        ax: Where to draw.
        profiles: Along the path, such as on the perturbation's own batch and on other examples; 1 is w + ε.
        slope: ⟨∇L, ε⟩ on the examples of the first profile, for the line of first order; None leaves it out.
        curvature: εᵀHε on the same, for the line of second order.
        value: L(w) on the same; None takes the first profile's at coordinate 0.
        step: Name of the perturbation.

    Returns:
        The axes. The vertical axis is that of the profiles: Taylor lines may leave it.

    Raises:
        ValueError: If there is no profile, metrics differ, or the first has no point at 0 and `value` is not given.
    """
    f = _draw(ax, profiles)
    first = profiles[0]
    at = np.flatnonzero(first.coordinates == 0)
    if value is None and not len(at):
        raise ValueError("`profiles` has no point at coordinate 0: give the loss there as `value`.")
    start = float(first.values[at[0]]) if value is None else value
    ax.margins(y=0.08)
    ax.autoscale_view()
    limits = ax.get_ylim()
    x = np.linspace(float(first.coordinates[0]), float(first.coordinates[-1]), 101)
    for order, (given, style) in enumerate(((slope, ":"), (curvature, "--")), start=1):
        if given is None or (order == 2 and slope is None):
            continue
        y = start + x * float(slope or 0.0) + (x * x * float(curvature or 0.0) / 2 if order == 2 else 0.0)
        ax.plot(x, f * y, color=INK, lw=0.9, ls=style, label=f"Taylor, order {order}", gid=f"order {order}")
    ax.set_ylim(limits)
    ax.axvline(1, color=MUTED, lw=0.7, zorder=0)
    ax.text(1, 1.0, f"w + {step}", transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize="small")
    ax.set_xlabel(f"Position a on w + a·{step}")
    return _legend(ax, profiles, f)


def explained_variance(ax: Axes, explained: Sequence[float], null: Sequence[float] = ()) -> Axes:
    """Shares of a trajectory's variance by principal component, next to those of a random walk in high dimension.

    Args:
        ax: Where to draw.
        explained: Shares, in order.
        null: The random walk's, of as many steps and taken in the same way.

    Returns:
        The axes.

    Raises:
        ValueError: If a share is not between 0 and 1.
    """
    shares = np.asarray(explained, dtype=float)
    if not len(shares) or not bool(np.all((shares >= -1e-9) & (shares <= 1 + 1e-9))):
        raise ValueError(f"`explained` must be shares between 0 and 1, at least one, got {list(explained)}.")
    place = np.arange(1, len(shares) + 1)
    walk = np.asarray(null, dtype=float)[: len(shares)]
    ax.bar(place - 0.19, 100 * shares, width=0.36, color="#0072b2", label="this trajectory")
    if len(walk):
        ax.bar(
            place[: len(walk)] + 0.19, 100 * walk, width=0.36, color="white", edgecolor=MUTED, hatch="////", lw=0.7,
            label="random walk",
        )  # fmt: skip
    for x, y in [*zip(place - 0.19, shares, strict=True), *zip(place + 0.19, walk, strict=False)]:
        ax.text(x, 100 * y + 1, f"{100 * y:.0f}", ha="center", va="bottom", fontsize="x-small")
    ax.set_xticks(place)
    ax.set_ylim(0, 100)
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    ax.set_xlabel("Principal component")
    ax.set_ylabel("Variance of the path")
    ax.grid(axis="y")
    ax.legend()
    return ax


def _looks(profiles: Sequence[Along]) -> list[tuple[Along, str, str]]:
    groups = list(dict.fromkeys(p.group or str(i) for i, p in enumerate(profiles)))
    numbers = [groups.index(p.group or str(i)) % len(COLOURS) for i, p in enumerate(profiles)]
    return [(p, COLOURS[n], MARKERS[n]) for p, n in zip(profiles, numbers, strict=True)]


def _draw(ax: Axes, profiles: Sequence[Along]) -> float:
    """Lines with bands; what is not finite is crossed at the upper edge. Returns the factor of display."""
    metrics = {p.metric for p in profiles}
    if not profiles or len(metrics) > 1:
        raise ValueError(f"`profiles` must be of one metric, at least one of them, got {sorted(metrics)}.")
    q = quantity(metrics.pop())
    for p, colour, _ in _looks(profiles):
        y = q.factor * np.where(np.isfinite(p.values), p.values, np.nan)
        error = 2 * q.factor * np.nan_to_num(p.stderr, posinf=0.0)
        ax.fill_between(p.coordinates, y - error, y + error, color=colour, alpha=0.15, lw=0)
        ax.plot(p.coordinates, y, color=colour, ls="-" if p.solid else "--", label=p.label or None, gid="profile")
        lost = p.coordinates[~np.isfinite(p.values)]
        ax.plot(
            lost, np.ones(len(lost)), "x", color=colour, ms=4, mew=1.1, transform=ax.get_xaxis_transform(),
            clip_on=False, gid="lost",
        )  # fmt: skip
    if any(not np.isfinite(p.values).all() for p in profiles):
        ax.plot([], [], "x", color=ALERT, ms=4, ls="", label="not finite (NaN or ∞)")
    ax.set_ylabel(q.label)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlim(min(float(p.coordinates[0]) for p in profiles), max(float(p.coordinates[-1]) for p in profiles))
    ax.grid(axis="y")
    return q.factor


def _within(a: float, profiles: Sequence[Along]) -> bool:
    return any(p.coordinates[0] <= a <= p.coordinates[-1] for p in profiles)


def _legend(ax: Axes, profiles: Sequence[Along], f: float) -> Axes:
    """The legend, with the barriers' values below each line's name."""
    texts: dict[str, str] = {}
    for p in profiles:
        unit = " %" if f == 100 else ""
        values = [f"{b.definition} {with_error(b.value, b.stderr, f)}{unit}" for b in p.barriers]
        texts[p.label] = "\n".join([p.label, *values]) if p.label else "\n".join(values)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        shown = [texts.get(label, label) for label in labels]
        wide = ax.figure.bbox.width / ax.figure.dpi > WIDE
        if any(p.barriers for p in profiles):  # tall entries would cover the lines
            ax.legend(
                handles, shown, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3 if wide else 2, borderaxespad=0
            )
        else:
            ax.legend(handles, shown)
    return ax
