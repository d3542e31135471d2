"""The straight line between two models, and the plane through three."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.params import length
from landscape.paths.evaluation import StateEvaluator, Statistics
from landscape.paths.profile import PathProfile, profile
from landscape.paths.states import ModelState, check_same, combine
from landscape.precision import in_own_precision
from landscape.surfaces.axes import Axes, Axis


@dataclass(frozen=True, eq=False)
class LinearPath:
    """w(a) = (1 - a) w1 + a w2, parameters and running statistics alike; a = 0 and 1 are the models to the bit.

    Raises:
        ValueError: If the two are not of one architecture.
    """

    start: ModelState
    end: ModelState

    def __post_init__(self) -> None:
        check_same(self.start, self.end)

    def point(self, t: float) -> ModelState:
        """The state at a = t, inside [0, 1] or beyond."""
        return combine((1 - t, t), (self.start, self.end))

    @property
    def distance(self) -> float:
        """‖w2 - w1‖₂ over all parameters."""
        first, last = self.start.parameters, self.end.parameters
        return length({name: last[name].double() - t.double() for name, t in first.items()})


def line_coordinates(low: float = -0.5, high: float = 1.5, points: int = 41) -> Float[Tensor, " k"]:
    """Equally spaced coordinates, with 0 and 1 exact; those of the two that no step falls on are added.

    Raises:
        ValueError: If low > 0, high < 1, or there are fewer than 2 points.
    """
    if not (low <= 0 and high >= 1):
        raise ValueError(f"`low` and `high` must enclose 0 and 1, the two models, got {(low, high)}.")
    if points < 2:
        raise ValueError(f"`points` must be at least 2, got {points!r}.")
    steps = [low + (high - low) * i / (points - 1) for i in range(points)]
    near = 1e-9 * (high - low)
    made = {0.0 if abs(a) < near else 1.0 if abs(a - 1) < near else a for a in steps}
    return torch.tensor(sorted(made | {0.0, 1.0}), dtype=torch.float64)


@in_own_precision
def interpolate(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    start: nn.Module | ModelState,
    end: nn.Module | ModelState,
    data: Mapping[str, Any],
    *,
    coordinates: Sequence[float] | Tensor | None = None,
    modes: Sequence[Statistics] | None = None,
    calibration: Any = None,
) -> PathProfile:
    """Loss and error along the straight line between two models.

    Args:
        model: The architecture; its own weights do not matter, and nothing is changed.
        loss: Mean loss of one batch, called as loss(outputs, targets).
        start: w1, at a = 0.
        end: w2, at a = 1.
        data: By name of the subset, what `EmpiricalRisk.from_model` accepts.
        coordinates: None means 41 points from -0.5 to 1.5.
        modes: BatchNorm modes; None means both "eval", with interpolated statistics, and "recalibrate", with statistics
            estimated afresh at every point, where the model has any.
        calibration: Data for "recalibrate"; None means the subset "train", or the first where there is none.

    Returns:
        Values at every point, by subset, mode and metric; see `barrier` for what lies between the ends.

    Raises:
        ValueError: If the two are not of one architecture, or data, modes or coordinates are out of order.

    Source:
        Goodfellow et al. (2015), ICLR, for the line; statistics estimated afresh: Izmailov et al. (2018), UAI.
    """
    path = LinearPath(ModelState.of(start), ModelState.of(end))
    evaluate = StateEvaluator(model, loss, data, modes=modes, calibration=calibration)
    return profile(path, line_coordinates() if coordinates is None else coordinates, evaluate)


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane through three models.

    Attributes:
        axes: Origin w1; u along w2 - w1, and v, the part of w3 - w1 orthogonal to u, with the length of w3 - w1.
        coordinates: The three models' coordinates, one a row.
    """

    axes: Axes
    coordinates: Float[Tensor, "3 2"]


@in_own_precision
def plane_through(
    first: nn.Module | ModelState, second: nn.Module | ModelState, third: nn.Module | ModelState
) -> Plane:
    """The plane through three models, for pictures of what lies between them.

    Running statistics go along: at the three points they are the models' own. They follow the weights, so that between
    the models they are interpolated; for values that do not depend on that, recalibrate.

    Raises:
        ValueError: If the models are not of one architecture, two are equal, or all three lie on a line.

    Source:
        Garipov et al. (2018), NeurIPS, sec. 3, up to the lengths of the axes.
    """
    states = [ModelState.of(s) for s in (first, second, third)]
    for other, name in ((states[1], "second"), (states[2], "third")):
        check_same(states[0], other, ("first", name))
    origin = states[0]
    sides = [
        Axis(
            {n: s.parameters[n] - t for n, t in origin.parameters.items()},
            name,
            recipe={"kind": "between models"},
            buffers={n: s.buffers[n] - t for n, t in origin.buffers.items() if t.is_floating_point()},
        )
        for s, name in ((states[1], "towards the second model"), (states[2], "off the line, towards the third model"))
    ]
    raw = Axes(origin.parameters, (sides[0], sides[1]))
    try:
        axes = raw.orthogonalised()
    except ValueError as error:
        raise ValueError(
            f"`third` lies on the line through `first` and `second` (cosine {float(raw.cosines[0, 1]):.9f}): three "
            "models on a line span no plane. Choose another, or draw the line."
        ) from error
    last = axes.project(states[2].parameters)[0].tolist()
    return Plane(axes, torch.tensor([[0.0, 0.0], [1.0, 0.0], last], dtype=torch.float64))
