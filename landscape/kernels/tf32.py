"""TensorFloat-32: whether matrix products and convolutions of float32 may drop half of their digits on a GPU."""

from collections.abc import Callable
from typing import Any

import torch

Undo = Callable[[], None]


def allow_tf32(allowed: bool) -> list[Undo]:
    """Switch TF32 on or off, in whichever of torch's two ways the process uses: it refuses to read a mixture.

    Where both could serve it is the older one, which leaves both readable.

    Args:
        allowed: Products of float32 with 10 bits of mantissa, for all of matrix products, convolutions and recurrent
            layers; they are several times faster on the GPUs that have them, and lose three digits.

    Returns:
        What puts the settings back, to be called from the last to the first: a default that was never set is one again.
    """
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    newer: list[tuple[Any, str]] = []
    if hasattr(cudnn, "conv"):
        newer = [(cuda.matmul, "fp32_precision"), (cudnn.conv, "fp32_precision"), (cudnn.rnn, "fp32_precision")]
    places: list[tuple[Any, str]] = [(cuda.matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    value: Any = allowed
    undo = [put_back(owner, name) for owner, name in newer]
    try:
        undo += [put_back(owner, name) for owner, name in places]
    except RuntimeError:
        places, value = newer, "tf32" if allowed else "ieee"
    for owner, name in places:
        setattr(owner, name, value)
    return undo


def put_back(owner: Any, name: str) -> Undo:
    """What sets an attribute to what it is now."""
    value = getattr(owner, name)
    return lambda: setattr(owner, name, value)
