"""Several points of a surface at once: weights stacked along a new axis, and one forward pass for all by vmap."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.kernels import math_attention
from landscape.params import Params
from landscape.surfaces.axes import Axes
from landscape.surfaces.metrics import Metric, columns_of

Predict = Callable[[Params, Any], Any]

CPU_BYTES = 4 * 2**20
OTHER_BYTES = 2**30
FEWEST_POINTS, MOST_POINTS = 4, 64


def stacked(axes: Axes, points: Sequence[Sequence[float]], *, pad: int) -> Params:
    """θ + Σ a_i d_i for many points at once, each tensor that moves of shape (pad, *parameter's shape).

    Args:
        axes: Origin and directions.
        points: Coordinates.
        pad: Number of points to make; the last one is repeated.
    """
    rows = [*points, *[points[-1]] * (pad - len(points))]
    at = torch.tensor(rows, dtype=torch.float64)
    made: Params = {}
    for axis, column in zip(axes.axes, at.unbind(1), strict=True):
        for name, d in axis.direction.items():
            a = column.to(d.device, d.dtype).view(-1, *[1] * d.ndim)
            before = made.get(name, axes.origin[name])
            made[name] = torch.addcmul(before, a, d)
    return made


def batched_columns(
    predict: Predict, metrics: Sequence[Metric], moved: Params, fixed: Params, batch: tuple[Any, Any], weights: Any
) -> tuple[Float[Tensor, "k n c"], Float[Tensor, "k n c"] | None]:
    """What `columns_of` gives, for each of K points.

    Args:
        predict: Maps (θ, inputs) to outputs.
        metrics: What to evaluate.
        moved: Stacked weights.
        fixed: Weights that are the same at all points.
        batch: Inputs and targets.
        weights: As for `columns_of`.
    """
    x, y = batch

    def one(theta: Params) -> tuple[Tensor, ...]:
        table, shares = columns_of(metrics, predict({**fixed, **theta}, x), y, weights)
        return (table,) if shares is None else (table, shares)

    with math_attention(), _plain_encoders():
        found = torch.func.vmap(one)(moved)
    return found[0], found[1] if len(found) > 1 else None


@contextmanager
def _plain_encoders() -> Iterator[None]:
    """Without the fused passes of torch's own encoders: vmap has no rule for them, nor for fused attention."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def usual_points(axes: Axes, *, examples: int, activation: int) -> int:
    """How many points at once are worth while: a rule of sizes alone, so that it is the same at every call.

    A power of two, at most 64, whose weights and largest activations fit into 4 MiB on the CPU, a processor's cache,
    and into 1 GiB elsewhere; 1 where fewer than 4 fit, because a pass is then more work than calls.

    Args:
        axes: Origin and directions.
        examples: Number of examples in all subsets.
        activation: Bytes of the largest activation of one example; 0 where unknown, which gives 1.
    """
    weights = sum(t.numel() * t.element_size() for t in axes.origin.values())
    room = CPU_BYTES if next(iter(axes.origin.values())).device.type == "cpu" else OTHER_BYTES
    fit = room // (weights + examples * activation) if activation else 1
    return min(MOST_POINTS, 1 << (fit.bit_length() - 1)) if fit >= FEWEST_POINTS else 1
