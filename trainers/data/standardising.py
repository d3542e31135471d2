"""Inputs and targets in units of the training examples' own spread."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def mean_and_deviation(x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Mean and deviation (over n) of each column, in float64; 1 for the deviation of a column that does not vary."""
    wide = x.double()
    mean, std = wide.mean(0), wide.std(0, correction=0)
    tiny = torch.finfo(x.dtype).eps * mean.abs()
    return mean, torch.where(std > tiny, std, 1.0)


def standardised(
    parts: Sequence[Float[Tensor, "n ..."]], train: Float[Tensor, "m ..."]
) -> tuple[list[Tensor], dict[str, Any]]:
    """(x - mean) / deviation of each column, by the mean and deviation of the training examples.

    Args:
        parts: What is to be standardised.
        train: The training examples.

    Returns:
        The parts, and the mean and deviation by name, for the notes on the data.
    """
    mean, std = mean_and_deviation(train)
    done = [((part.double() - mean) / std).to(part.dtype) for part in parts]
    return done, {"mean": mean.tolist(), "deviation": std.tolist()}
