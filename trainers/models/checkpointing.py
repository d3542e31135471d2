"""Activation checkpointing: a block's activations are computed again in the backward pass instead of kept.

The numbers are the same, for less memory and one more forward pass; so it is no part of a run's configuration.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from landscape.batchnorm import tracking_modules
from trainers.models.resnet import BasicBlock, ResidualBlock, WideBlock
from trainers.models.vit import EncoderBlock

BLOCKS = (ResidualBlock, BasicBlock, WideBlock, EncoderBlock)  # of built-in models


def checkpoint_activations(model: nn.Module, *, name: str) -> None:
    """Let a model compute the activations of its blocks again in each backward pass.

    Blocks of built-in models are wrapped; models of timm and Hugging Face have a switch of their own, which a model of
    the user's may have too (`set_grad_checkpointing()` or `gradient_checkpointing_enable()`).

    Args:
        model: Changed in place; what it computes stays the same.
        name: Of the model, for messages.

    Raises:
        ValueError: If it has neither such blocks nor a switch; or one with running statistics, which the library's
            switch would count twice.
    """
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        block.forward = functools.partial(_again, block, block.forward)  # type: ignore[method-assign]
    if blocks:
        return
    switch = _switch(model)
    if switch is None:
        raise ValueError(
            f"`checkpoint_activations`: model {name!r} cannot compute activations again: leave it out, use smaller "
            f"`micro_batch`es, or give the model a method `set_grad_checkpointing()`."
        )
    if tracking_modules(model):
        raise ValueError(
            f"`checkpoint_activations`: model {name!r} has running statistics (BatchNorm), which would count each "
            f"batch twice: leave it out, or take resnet18, resnet20 or wide_resnet, which count once."
        )
    try:
        switch()
    except (AssertionError, ValueError, NotImplementedError) as error:
        said = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(
            f"`checkpoint_activations`: model {name!r} has no such switch ({said}): leave it out."
        ) from error


def _switch(model: Any) -> Callable[[], Any] | None:
    if hasattr(model, "set_grad_checkpointing"):  # timm
        return lambda: model.set_grad_checkpointing(True)
    if hasattr(model, "activation_checkpointing_enable"):  # Hugging Face, from version 5.2
        return lambda: model.activation_checkpointing_enable({"use_reentrant": False})
    if hasattr(model, "gradient_checkpointing_enable"):
        return lambda: model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return None


def _again(block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The block's output; where a gradient may be asked for, its activations are not kept."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(x)
    out: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _second(block)))
    return out


def _second(block: nn.Module) -> AbstractContextManager[None]:
    """The second forward pass, which leaves running statistics alone."""

    @contextmanager
    def still() -> Iterator[None]:
        kept = [(buffer, buffer.clone()) for buffer in block.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)

    return still()
