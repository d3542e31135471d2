"""What the loss along a curve between two models comes to."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.estimate import Estimate
from landscape.paths.curves import Bezier, Curve, Polygon
from landscape.paths.evaluation import Evaluate
from landscape.paths.profile import PathProfile, profile

POINTS = 61  # as in the code of Garipov et al. (2018)


@dataclass(frozen=True, eq=False)
class CurveSummary:
    """The loss, or another metric, along a curve.

    Attributes:
        coordinates: t of the points.
        values: The metric at each.
        stderr: Its standard error from the examples.
        max: The largest, with its standard error; biased upwards by the choice, by a part of that error.
        argmax: t where it is.
        min: The smallest.
        mean: Over the points, that is over t.
        integral: Over the curve by length: ∫ L ‖w'‖ dt / ∫ ‖w'‖ dt, by the trapezoid rule. The standard errors of
            `mean` and of `integral` are those of the same weighted sum of each example's own values.
        length: ∫ ‖w'‖ dt, in weights.
        straight: ‖w(1) - w(0)‖₂.
    """

    coordinates: Float[Tensor, " k"]
    values: Float[Tensor, " k"]
    stderr: Float[Tensor, " k"]
    max: Estimate
    argmax: float
    min: Estimate
    mean: Estimate
    integral: Estimate
    length: float
    straight: float
    profile: PathProfile = field(repr=False)


def curve_profile(curve: Curve, evaluate: Evaluate, *, points: int = POINTS) -> PathProfile:
    """Evaluate a curve at equally spaced t in [0, 1], both ends included.

    Args:
        curve: The curve.
        evaluate: Such as a `StateEvaluator` with modes=("recalibrate",): running statistics at a bend are nobody's
            own, so mode "eval", where they are interpolated between the ends, says little in the middle.
        points: At least 2.

    Raises:
        ValueError: If there are fewer.
    """
    if points < 2:
        raise ValueError(f"`points` must be at least 2, the ends, got {points!r}.")
    return profile(curve, torch.arange(points, dtype=torch.float64) / (points - 1), evaluate)


def summarise(
    curve: "Bezier | Polygon", found: PathProfile, *, subset: str, mode: str = "eval", metric: str = "loss"
) -> CurveSummary:
    """Minimum, maximum, mean and integral by length of a metric along a curve.

    Args:
        curve: The curve.
        found: Its values, from `curve_profile`.
        subset: Which data.
        mode: Which BatchNorm mode.
        metric: "loss" or "error".

    Raises:
        ValueError: If these were not evaluated, or there are fewer than two points.

    Source:
        The quantities are those that the code of Garipov et al. (2018) reports; arcs by speed, not chords, are ours.
    """
    where, table = found.coordinates, found.table(subset, mode, metric)
    if len(where) < 2:
        raise ValueError(f"`found` must hold at least 2 points of the curve, got {len(where)}.")
    values, errors = found.values(subset, mode, metric), found.stderr(subset, mode, metric)
    draws = table.shape[1]
    top, low = int(values.argmax()), int(values.argmin())
    arcs = curve.arcs(where)
    weights = torch.zeros_like(where)
    weights[:-1] += arcs / 2
    weights[1:] += arcs / 2

    def weighted(w: Tensor) -> Estimate:
        each = (w[:, None] * table).sum(0) / w.sum()
        error = float(each.std()) / math.sqrt(draws) if draws > 1 else math.nan
        return Estimate(float(each.mean()), error, draws)

    total = float(arcs.sum())
    even = torch.ones_like(where)
    return CurveSummary(
        coordinates=where,
        values=values,
        stderr=errors,
        max=Estimate(float(values[top]), float(errors[top]), draws),
        argmax=float(where[top]),
        min=Estimate(float(values[low]), float(errors[low]), draws),
        mean=weighted(even),
        integral=weighted(weights if total > 0 else even),
        length=total,
        straight=curve.straight,
        profile=found,
    )
