"""Numbers in the parameters' own precision, whatever `torch.autocast` is around the call."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
KINDS = ("cpu", "cuda", "mps", "xpu")
_NOTHING: AbstractContextManager[object] = nullcontext()


def own_precision() -> AbstractContextManager[object]:
    """A block in which a caller's autocast is off: differences of losses and second derivatives need all digits.

    A model that is to be measured as autocast runs it has the autocast in its own `forward`.
    """
    on = [kind for kind in KINDS if torch.is_autocast_enabled(kind)]
    if not on:
        return _NOTHING
    stack = ExitStack()
    for kind in on:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def in_own_precision(function: Callable[P, R]) -> Callable[P, R]:
    """The function, all of it in `own_precision`: also the algebra on vectors that is not a model's.

    A warning that it makes for its caller passes one frame more.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_precision():
            return function(*args, **kwargs)

    return call
