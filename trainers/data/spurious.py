"""A shortcut: a small patch whose pattern names a class, and agrees with the label only so often.

Our definition. A network that reads the patch does well where it agrees (train, validation, test) and fails where its
pattern is random (the split "spurious").
"""

import math

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from landscape.randomness import source_of


def patch_codes(
    labels: Int[Tensor, " n"], q: float, *, classes: int, generator: Generator | None = None
) -> Int[Tensor, " n"]:
    """The class each patch names: the label with probability q, else a uniform draw over all classes.

    A patch agrees with its label with probability q + (1 - q) / classes. From one state of the generator, what agrees
    at q agrees at every larger q. A generator of None means a fresh one from seed 0.

    Raises:
        ValueError: If q is not in [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"`spurious` must be a probability in [0, 1], or None for no patch, got {q!r}.")
    generator = source_of(generator)
    agrees = torch.rand(len(labels), generator=generator, dtype=torch.float64) < q
    return torch.where(agrees, labels, torch.randint(classes, (len(labels),), generator=generator))


def stamp(x: Tensor, codes: Int[Tensor, " n"], *, classes: int, low: float, high: float) -> Tensor:
    """A copy of x with each example's code written over a corner.

    The code plus one is written in binary, so that no code is all dark, with `high` for 1 and `low` for 0: on images,
    in the smallest square block that holds it (2 x 2 for ten classes) in the lower left corner of every channel; on
    signals, in the first points.

    Args:
        x: Images (n, c, h, w) or signals (n, c, length).
        codes: One class an example.
        classes: Number of classes.
        low: Value of a dark cell.
        high: Value of a lit cell.

    Raises:
        ValueError: If the patch does not fit.
    """
    bits = classes.bit_length()
    side = math.isqrt(bits - 1) + 1
    if x.ndim not in (3, 4) or min(x.shape[2:]) < (side if x.ndim == 4 else bits):
        raise ValueError(
            f"`spurious` needs images or signals with room for a code of {bits} bits, got shape {tuple(x.shape[1:])}."
        )
    out = x.clone()
    for bit in range(bits):
        lit = ((codes + 1) >> bit) & 1
        value = torch.where(lit.bool(), high, low).to(x.dtype)[:, None]
        if x.ndim == 4:
            out[:, :, -1 - bit // side, bit % side] = value
        else:
            out[:, :, bit] = value
    return out
