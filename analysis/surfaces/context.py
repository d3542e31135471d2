"""What the context of a surface tells: numbers at the centre, and the loss to second order."""

import math
from typing import Any

import torch

from landscape.surfaces import SecondOrder, Surface


def prediction_of(surface: Surface, metric: str) -> SecondOrder | None:
    """The second-order prediction that was kept with a surface; None if there is none for this metric.

    It is that of the loss on the first set of examples.
    """
    kept = surface.context.get("second_order")
    losses = [name for name in surface.metrics if name.split()[-1] == "loss"]
    if not kept or not losses or metric != losses[0] or len(kept["slope"]) != len(surface.gram):
        return None
    return SecondOrder(
        float(kept["value"]),
        torch.tensor(kept["slope"], dtype=torch.float64),
        torch.tensor(kept["curvature"], dtype=torch.float64),
        surface.gram.double(),
        note=str(kept.get("note", "")),
    )


def number(surface: Surface, key: str) -> float:
    """A number of the context; NaN if it is not there, or is none."""
    value: Any = surface.context.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
