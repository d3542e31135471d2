"""Numbers in the parameters' own precision, whatever `torch.autocast` is around the call."""

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

_NOTHING: AbstractContextManager[object] = nullcontext()


def own_precision() -> AbstractContextManager[object]:
    """A block in which a caller's autocast is off: differences of losses and second derivatives need all digits.

    A model that is to be measured as autocast runs it has the autocast in its own `forward`.
    """
    if not torch._C._is_any_autocast_enabled():
        return _NOTHING
    on = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    stack = ExitStack()
    for kind in on:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
