"""Tensors that are spread over processes (DTensor): the part held here, and sums over all parts."""

from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)  # which are told apart sooner than a missing attribute


def spread(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "full_tensor")


def held_here(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, as a view; an ordinary tensor is its own part."""
    part: Any = tensor
    here: Tensor = part.to_local() if spread(tensor) else tensor
    return here


def total(share: Tensor, like: Tensor) -> Tensor:
    """The sum over processes of a number that each has taken over its parts of tensors spread as `like` is.

    Processes that hold copies of the same parts count once. All of them must call.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate  # takes a while, and few need it

    spread_like: Any = like
    placements = [Partial() if p.is_shard() else Replicate() for p in spread_like.placements]
    summed: Tensor = DTensor.from_local(share, spread_like.device_mesh, placements, run_check=False).full_tensor()
    return summed


def products(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The inner product over tensors that are all spread alike, in float64, the same on every process."""
    pairs = [(held_here(x), held_here(y)) for x, y in zip(a, b, strict=True)]
    share = torch.stack([torch.sum(x * y, dtype=torch.float64) for x, y in pairs]).sum()
    return total(share, a[0])
