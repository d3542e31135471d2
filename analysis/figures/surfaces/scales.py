"""Scales of surfaces: what a metric is called, from where to where it is drawn, and what was cut to show the rest."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from analysis.score import is_share
from analysis.style import fixed
from landscape.surfaces import Surface

Kind = Literal["linear", "log"]
Cut = float | Literal["auto"] | None

# Light where the loss is low, so that paths and labels near a minimum stay readable; lightness falls evenly, so that
# a grey print and a colour-blind reader see the same order. The colours of seaborn's "mako", without its black end.
COLOURS = (
    "#d4f1dc", "#a1dfb9", "#5ecdad", "#3fb5ad", "#349aaa", "#347fa4", "#37659e", "#40498e", "#3e3367", "#30203e",
)  # fmt: skip
MAP = LinearSegmentedColormap.from_list("surface", COLOURS)
DECADES = 4.0  # of a logarithmic scale, at most
STEEP = 20.0  # a highest rise of so many times the middle one is a wall that would flatten all the rest
ABOVE = 6.0  # a scale that is cut ends at so many times the middle rise
SETS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Quantity:
    """A metric as readers meet it.

    Attributes:
        name: In words, such as "training loss".
        factor: What values are multiplied by for display: 100 for shares, which are shown in percent.
    """

    name: str
    factor: float = 1.0

    @property
    def label(self) -> str:
        """For an axis, with the unit."""
        name = self.name[:1].upper() + self.name[1:]
        return f"{name} (%)" if self.factor == 100 else name


def quantity(metric: str) -> Quantity:
    """What a metric of a surface is called, and in what unit it is shown: errors and accuracies in percent."""
    words = [SETS.get(word, word) for word in metric.replace("_", " ").split()]
    return Quantity(" ".join(words), 100.0 if is_share(metric) else 1.0)


@dataclass(frozen=True)
class Scale:
    """From where to where a metric is drawn, in its own units; the same for all the surfaces it was made of.

    Attributes:
        metric: Name of the metric.
        kind: "linear", or "log": of the rise above `low`.
        low: The lowest finite value.
        high: Where the scale ends.
        highest: The highest finite value; above `high` where the scale is cut.
        least: The smallest rise above `low` that a logarithmic scale tells apart.
    """

    metric: str
    kind: Kind
    low: float
    high: float
    highest: float
    least: float = 0.0

    @property
    def cut(self) -> bool:
        """Whether there are values above the end."""
        return self.highest > self.high

    @property
    def quantity(self) -> Quantity:
        """The metric as readers meet it."""
        return quantity(self.metric)

    def positions(self, values: np.ndarray) -> np.ndarray:
        """Where values lie on the scale: 0 at the lowest, 1 at the end; NaN where a value is not finite."""
        v = np.where(np.isfinite(values), values, np.nan)
        rise = v - self.low
        if self.kind == "linear":
            return np.asarray(rise / (self.high - self.low))
        span = math.log10((self.high - self.low) / self.least)
        return np.asarray(np.log10(np.maximum(rise, self.least) / self.least) / span)

    def levels(self, count: int = 12) -> np.ndarray:
        """Values of contour lines, inside the scale: round ones, or a logarithmic scale's round rises."""
        if self.kind == "linear":
            f = self.quantity.factor
            found = (
                np.asarray(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(f * self.low, f * self.high)) / f
            )
        else:
            found = self.low + _round_rises(self.least, self.high - self.low, count, self.quantity.factor)
        slack = 1e-9 * (self.high - self.low)
        return np.asarray(found[(found > self.low + slack) & (found < self.high - slack)])

    def labels(self, values: Sequence[float] | np.ndarray) -> list[str]:
        """Texts for values on this scale, in display units, told apart; rises with a plus on a logarithmic scale."""
        f = self.quantity.factor
        shown = [f * (float(v) - (self.low if self.kind == "log" else 0.0)) for v in values]
        if self.kind == "log":
            return [f"+{compact(v)}" for v in shown]
        gaps = np.diff(sorted({round(v, 12) for v in shown}))
        step = float(gaps.min()) if len(gaps) else abs(shown[0]) if shown else 1.0
        digits = min(8, max(0, -math.floor(math.log10(step) + 1e-9))) if step > 0 else 2
        if any(abs(round(v, digits) - v) > 1e-3 * step for v in shown):  # 0.25 beside 0.5
            digits += 1
        return [fixed(v, digits) for v in shown]

    @property
    def label(self) -> str:
        """For a colour bar or an axis: the quantity with its unit, and what the scale does to it."""
        f, unit = self.quantity.factor, "%" if self.quantity.factor == 100 else ""
        text = self.quantity.label
        if self.kind == "log":
            text = f"{text}: rise above {compact(f * self.low)}{unit}, log scale"
        return text

    @property
    def said(self) -> str:
        """What is not shown as it is, for a caption; empty if nothing is."""
        f, unit = self.quantity.factor, " %" if self.quantity.factor == 100 else ""
        parts = []
        if self.cut:
            parts.append(
                f"for display only, values above {compact(f * self.high)}{unit} are cut "
                f"(the highest is {compact(f * self.highest)}{unit})"
            )
        if self.kind == "log":
            parts.append(
                f"the scale is logarithmic in the rise above {compact(f * self.low)}{unit}, the lowest value; rises "
                f"below {compact(f * self.least)}{unit} are drawn as one"
            )
        return "; ".join(parts)


def shared_scale(
    surfaces: Iterable[Surface], metric: str | None = None, *, kind: Kind = "linear", cut: Cut = "auto"
) -> Scale:
    """One scale for all the surfaces, so that equal colours and heights are equal values.

    Args:
        surfaces: What is drawn with it.
        metric: Which of their metrics; None is the first one's first.
        kind: "linear", or "log": logarithmic in the rise above the lowest value.
        cut: Where the scale ends, in the metric's own unit (a share for errors); None is the highest finite value.
            "auto" cuts a linear scale whose highest value is more than 20 times as far above the lowest as the median
            is, and ends it 6 times as far.

    Raises:
        ValueError: If a surface lacks the metric or none has a finite value, or `cut` is below all of them.
    """
    if kind not in ("linear", "log"):
        raise ValueError(f"`kind` must be 'linear' or 'log', got {kind!r}.")
    given = list(surfaces)
    if not given:
        raise ValueError("`surfaces` must hold at least one surface, got none.")
    metric = checked(given[0], metric)
    every = np.concatenate([finite_values(surface, metric) for surface in given])
    if not len(every):
        raise ValueError(f"`surfaces` have no finite value of {metric!r}: there is nothing to draw.")
    low, highest = float(every.min()), float(every.max())
    high = highest
    if cut == "auto":
        middle = float(np.median(every)) - low
        if kind == "linear" and 0 < STEEP * middle < highest - low:
            high = low + ABOVE * middle
    elif cut is not None:
        if not (math.isfinite(cut) and cut > low):
            raise ValueError(f"`cut` must be above the lowest value of {metric!r}, {low:.6g}, got {cut!r}.")
        high = min(float(cut), highest)
    if high == low:  # a level surface: any span shows it
        high = highest = low + max(abs(low), 1.0) * 1e-3
    rises = every - low
    rises = rises[rises > 0]
    span = high - low
    smallest = float(rises.min()) if len(rises) else span
    least = min(max(smallest, span * 10**-DECADES), span / 10)
    return Scale(metric, kind, low, high, highest, least)


def finite_values(surface: Surface, metric: str) -> np.ndarray:
    """All finite values of a metric, that of the centre among them.

    Raises:
        ValueError: If the surface lacks the metric.
    """
    checked(surface, metric)
    values = np.append(surface.values[metric].numpy().ravel(), surface.centre.get(metric, (math.nan, math.nan))[0])
    return np.asarray(values[np.isfinite(values)])


def checked(surface: Surface, metric: str | None = None, *, dimensions: int | None = None) -> str:
    """The metric's name, None being the surface's first, if the surface has it and so many axes.

    Raises:
        ValueError: If it does not.
    """
    name = surface.metrics[0] if metric is None else metric
    if name not in surface.values:
        raise ValueError(f"`metric` must be one of the surface's {surface.metrics}, got {name!r}.")
    if dimensions is not None and len(surface.grid.shape) != dimensions:
        what = {1: "a line", 2: "a plane", 3: "a volume"}[dimensions]
        raise ValueError(
            f"`surface` must be {what} ({dimensions} axes), got {len(surface.grid.shape)}: take a line from a plane, "
            "or a plane from a volume, with `section`."
        )
    return name


def compact(value: float, digits: int = 3) -> str:
    """A number for a reader with so many significant digits: 0.0132, 12.3, 4.1×10⁵; "–" for none."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= power < 5:
        text = f"{value:.{max(0, digits - 1 - power)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace("-", "−")
    base, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    base = base.rstrip("0").rstrip(".") if "." in base else base
    power_text = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{base}×10{power_text}".replace("-", "−")


def with_error(value: float, stderr: float, factor: float = 1.0) -> str:
    """`value ± stderr`, as many digits as the error allows; the value alone where there is no error."""
    v, s = factor * value, factor * stderr
    if not (math.isfinite(s) and s > 0 and math.isfinite(v)):
        return compact(v)
    digits = max(0, 1 - math.floor(math.log10(s)))
    if digits > 6 or abs(v) >= 1e6:
        return f"{compact(v)} ± {compact(s, 2)}"
    return f"{fixed(v, digits)} ± {fixed(s, digits)}"


def _round_rises(least: float, most: float, count: int, factor: float) -> np.ndarray:
    """Rises 1, 2, 5 times powers of ten in display units, thinned to about `count`."""
    low, high = math.floor(math.log10(factor * least)), math.ceil(math.log10(factor * most))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = np.array([s * 10.0**k for k in range(low, high + 1) for s in steps]) / factor
        found = found[(found >= least) & (found <= most)]
        if len(found) <= 1.5 * count:
            break
    return found
