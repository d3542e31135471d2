"""What stands in the way of a second derivative: read off an error, or off a graph that would say nothing."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# torch's messages, version 2.13 and, where they differ, 2.6; each group `name` is the operation
_MESSAGES = [
    re.compile(r"derivative for '?(?P<name>[\w:.]+)'? is not implemented"),
    re.compile(r"[Aa]utograd not implemented for (?P<name>[\w:.]+)"),
    re.compile(r"(?P<name>torch\.compile) with aot_autograd does not currently support double backward"),
    re.compile(r"(?P<name>cudnn RNN) backward can only be called in training mode"),
    re.compile(r"(?P<name>\w+)(?:\(\):)? [Dd]ouble backward (?:is )?(?:not implemented|unsupported|not supported)"),
    re.compile(r"marked with (?P<name>@once_differentiable)"),
    re.compile(r"(?P<name>linear_cross_entropy) chunked backward called twice"),
    re.compile(r"must implement either the backward or vjp method for your (?P<name>custom autograd\.Function)"),
    re.compile(r"(?P<name>\w+) has no third derivative"),
]
_ERROR_NODE = "torch::autograd::Error"
_ONCE_WRAPPER = torch.autograd.function.once_differentiable(lambda _: None).__code__


def lacks_second_derivative(error: BaseException) -> str | None:
    """The operation that cannot be differentiated again, if this error of torch says so, else None.

    Among such operations are fused attention, compiled models, cuDNN's recurrent layers (in eval mode even their first
    derivative), custom functions marked `@once_differentiable` or without a backward pass, CTC loss, `cdist`,
    `embedding_bag`. Not among them are failures of the first derivative: checkpoints with `use_reentrant=True`,
    flex_attention on a CPU.
    """
    if not isinstance(error, RuntimeError):  # NotImplementedError is one
        return None
    text = str(error)
    for pattern in _MESSAGES:
        match = pattern.search(text)
        if match:
            return match["name"].removeprefix("aten::")
    return None


def severed_by(tensors: Iterable[Tensor]) -> str | None:
    """The operation at which a second derivative would be cut off without an error, or None.

    A custom function marked `@once_differentiable`, and flex_attention on a GPU, end the graph of the gradient in a
    node that raises when it is reached; but `torch.autograd.grad` with given inputs never reaches it, and what goes
    through the function is silently missing from a Hessian product. This walks the graph, once, about 1 µs a node.

    Args:
        tensors: The loss, and its gradients made with `create_graph=True`: the loss shows marked functions by name,
            the gradients what ends their graph.
    """
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen: set[Any] = set(stack)
    found: str | None = None
    while stack:
        node: Any = stack.pop()
        if node.name() == _ERROR_NODE:
            found = found or _complaint(node)
        else:
            function: Any = getattr(node, "_forward_cls", None)
            if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE_WRAPPER:
                return str(function.__name__)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return found


def _complaint(node: Any) -> str:
    """The operation that a raising node speaks of; it says so only when it is run."""
    try:
        node(torch.zeros(()))
    except RuntimeError as error:
        return lacks_second_derivative(error) or str(error)
    return _ERROR_NODE
