"""Embeddings as functions of their weights: nothing is written on them, and derivatives are those of the loss."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = 1e-7  # what torch adds to a norm that it divides by


def bound_embeddings(module: nn.Module, tied: set[int]) -> None:
    """Let the embeddings of a model, a copy of our own, compute their largest norm and write on nothing.

    With `max_norm`, torch rewrites the rows that are looked up before it reads them. Here the same rows are computed
    from the weights, w · min(1, max_norm / (‖w‖_p + 1e-7)), so that this is part of the function and of its
    derivatives. `scale_grad_by_freq` and `sparse`, which change gradients only, are switched off.

    Args:
        module: The model; it is changed.
        tied: Identities of weights that other modules use too.

    Raises:
        ValueError: If an embedding with a largest norm shares its weights, because what the others see would depend on
            what has been looked up.
    """
    for name, child in module.named_modules():
        if not isinstance(child, nn.Embedding | nn.EmbeddingBag):
            continue
        child.scale_grad_by_freq = child.sparse = False
        if child.max_norm is None:
            continue
        if id(child.weight) in tied:
            raise ValueError(
                f"`model` has {name!r}, an embedding with max_norm whose weights another layer uses too: what that "
                "layer computes would depend on the rows looked up before. Set max_norm to None, or untie them."
            )
        bound, child.max_norm = (float(child.max_norm), float(child.norm_type)), None
        setattr(child, "forward", partial(_bounded, child, child.forward, *bound))  # noqa: B010


def _bounded(layer: Any, usual: Any, most: float, p: float, *args: Any, **kwargs: Any) -> Tensor:
    own = layer._parameters["weight"]
    try:
        layer._parameters["weight"] = _within(own, most, p)
        out: Tensor = usual(*args, **kwargs)
        return out
    finally:
        layer._parameters["weight"] = own


def _within(weight: Tensor, most: float, p: float) -> Tensor:
    """The rows, those longer than `most` shortened to it."""
    long = torch.linalg.vector_norm(weight.detach(), p, dim=1, keepdim=True) > most
    size = torch.linalg.vector_norm(
        torch.where(long, weight, 1.0), p, dim=1, keepdim=True
    )  # never 0, where a norm kinks
    return weight * torch.where(long, most / (size + ROUNDING), 1.0)
