"""Barriers: how much higher the loss, or the error, is between two models than at them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape.estimate import Estimate
from landscape.paths.profile import standard_error
from landscape.precision import in_own_precision

Definition = Literal["B_lin", "B_max"]


@dataclass(frozen=True)
class Barrier(Estimate):
    """A barrier between two models; value and standard error are in units of the metric.

    Attributes:
        location: a*, where the maximum is attained; NaN for a barrier that is NaN.
        definition: "B_lin" or "B_max".
        evaluations: Points behind it.
    """

    location: float = math.nan
    definition: str = "B_lin"
    evaluations: int = 0


@in_own_precision
def barrier(
    coordinates: Sequence[float] | Tensor, values: Tensor | Sequence[float], *, definition: Definition = "B_lin"
) -> Barrier:
    """The barrier on the grid between coordinates 0 and 1.

        B_lin = max_a [L(a) - ((1 - a) L(0) + a L(1))],    B_max = max_a L(a) - max(L(0), L(1))

    Both are at least 0, for a = 0 and a = 1 belong to the maximum. Coordinates outside [0, 1] do not count.

    Args:
        coordinates: k numbers, 0 and 1 among them.
        values: L at the coordinates, of shape (k,), or (k, n) with one column an example, L being the mean.
        definition: Which of the two.

    Returns:
        The barrier. Its standard error, for n > 1 examples, is the paired one: what is averaged is the difference of
        each example's own values at a*, 0 and 1. It takes a* as given: the choice of the highest point biases a
        barrier upwards, by a part of that error. `draws` is n. Without examples the error is NaN. A value that is NaN
        makes the barrier NaN.

    Raises:
        ValueError: If 0 or 1 is not among the coordinates, or sizes do not fit.

    Source:
        B_lin: Frankle et al. (2020), ICML, and Entezari et al. (2022), ICLR; both names are ours.
    """
    if definition not in ("B_lin", "B_max"):
        raise ValueError(f"`definition` must be 'B_lin' or 'B_max', got {definition!r}.")
    where = torch.as_tensor(coordinates, dtype=torch.float64)
    table = torch.as_tensor(values, dtype=torch.float64)
    table = table[:, None] if table.ndim == 1 else table
    if where.ndim != 1 or len(table) != len(where):
        raise ValueError(f"`values` must have a row for each of the {len(where)} coordinates, got {len(table)}.")
    inside = [i for i, a in enumerate(where.tolist()) if 0 <= a <= 1]
    ends = [next((i for i in inside if where[i] == end), None) for end in (0, 1)]
    if ends[0] is None or ends[1] is None:
        raise ValueError(f"`coordinates` must hold 0 and 1, the two models, exactly, got {where.tolist()}.")
    a, low, high = where[inside, None], table[ends[0]], table[ends[1]]
    if definition == "B_lin":
        rises = table[inside] - ((1 - a) * low + a * high)
        rises[(a == 0).flatten()], rises[(a == 1).flatten()] = 0, 0
    else:
        rises = table[inside] - (low if bool(low.mean() >= high.mean()) else high)
    means = rises.mean(1)
    draws = table.shape[1]
    if bool(table[inside].mean(1).isnan().any()) or bool(means.isnan().any()):
        return Barrier(math.nan, math.nan, draws, definition=definition, evaluations=len(inside))
    top = int(means.argmax())
    error = float(standard_error(rises[top : top + 1])[0])
    return Barrier(
        float(means[top]),
        error,
        draws,
        method=definition,
        location=float(a[top, 0]),
        definition=definition,
        evaluations=len(inside),
    )
