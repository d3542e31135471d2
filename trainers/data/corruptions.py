"""Corrupted copies of images (n, c, h, w) and signals (n, c, length), at three severities.

Pure functions: the input is never changed, and all randomness comes from the generator. The severities are our own
choice, made so that a small network loses a little at 1 and much at 3; they are not those of CIFAR-10-C.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from landscape.naming import nearest
from landscape.randomness import source_of


def gaussian_noise(x: Tensor, sigma: float, *, generator: Generator) -> Tensor:
    """Add noise: x + σ n with n ~ N(0, I); σ ≥ 0 in units of x."""
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return x + sigma * noise.to(x.device)


def blur(x: Tensor, width: float) -> Tensor:
    """Average each point with its neighbours along every axis, weights ∝ exp(-d² / 2σ²), σ = width · side.

    At the border the weights are renormalised, so a constant image stays as it is.
    """
    for axis in range(2, x.ndim):
        at = torch.arange(x.shape[axis], dtype=x.dtype, device=x.device)
        weights = torch.exp(-0.5 * ((at[:, None] - at) / (width * x.shape[axis])) ** 2)
        weights = weights / weights.sum(1, keepdim=True)
        x = (x.transpose(axis, -1) @ weights.T).transpose(axis, -1)
    return x.contiguous()


def shift(x: Tensor, fraction: float, *, generator: Generator, fill: float = 0.0) -> Tensor:
    """Move each example by `fraction` of its side in a random direction along one axis; `fill` enters behind.

    Images go up, down, left or right, signals back or forth, each equally likely. Parts of a pixel are interpolated
    linearly.
    """
    out = torch.empty_like(x)
    ways = [(axis, sign) for axis in range(2, x.ndim) for sign in (1, -1)]
    choice = torch.randint(len(ways), (len(x),), generator=generator, device=generator.device).to(x.device)
    for way, (axis, sign) in enumerate(ways):
        part = x[choice == way]
        whole, rest = divmod(fraction * x.shape[axis], 1)
        moved = _moved(part, axis, sign * int(whole), fill)
        if rest:
            moved = moved.lerp(_moved(part, axis, sign * (int(whole) + 1), fill), rest)
        out[choice == way] = moved
    return out


def _moved(x: Tensor, axis: int, step: int, fill: float) -> Tensor:
    side = x.shape[axis]
    empty = min(abs(step), side)
    moved = x.roll(step, dims=axis)
    moved.narrow(axis, 0 if step > 0 else side - empty, empty).fill_(fill)
    return moved


def contrast(x: Tensor, factor: float) -> Tensor:
    """Lower the contrast: μ + factor · (x - μ), with μ the mean of each example."""
    mean = x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return mean + factor * (x - mean)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        apply: Called as apply(x, amount, generator, fill, scale).
        amounts: What `amount` is at severities 1, 2 and 3.
        help: One line on what it does and what the amounts mean.
    """

    apply: Callable[[Tensor, float, Generator, float, float], Tensor]
    amounts: tuple[float, float, float]
    help: str


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption(
        lambda x, a, g, _f, s: gaussian_noise(x, a * s, generator=g),
        (0.5, 1.0, 1.5),
        "Gaussian noise; amount in standard deviations of the data.",
    ),
    "blur": Corruption(
        lambda x, a, _g, _f, _s: blur(x, a),
        (1 / 16, 3 / 32, 1 / 8),
        "Gaussian blur; amount is the kernel's standard deviation as a part of the side.",
    ),
    "shift": Corruption(
        lambda x, a, g, f, _s: shift(x, a, generator=g, fill=f),
        (1 / 16, 3 / 32, 1 / 8),
        "Shift in a random direction; amount is a part of the side.",
    ),
    "contrast": Corruption(
        lambda x, a, _g, _f, _s: contrast(x, a),
        (0.6, 0.4, 0.25),
        "Contrast lowered towards the example's mean; amount is what is left of it.",
    ),
}


def corrupt(
    x: Tensor,
    kind: str,
    severity: int,
    *,
    generator: Generator | None = None,
    fill: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """A corrupted copy of x, of the same shape and type.

    Args:
        x: Images (n, c, h, w) or signals (n, c, length), floating point.
        kind: A name in `CORRUPTIONS`.
        severity: 1, 2 or 3.
        generator: Source of all randomness. The same state gives the three severities the same draws.
            None means a fresh one from seed 0.
        fill: Value of the background, which enters where an image is shifted.
        scale: Standard deviation of the data, the unit of noise.

    Raises:
        ValueError: If the kind or severity is unknown, or x is neither images nor signals.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(
            f"`kind` {kind!r} is not a corruption; there are {', '.join(CORRUPTIONS)}.{nearest(kind, CORRUPTIONS)}"
        )
    if severity not in (1, 2, 3):
        raise ValueError(f"`severity` must be 1, 2 or 3, got {severity!r}.")
    if x.ndim not in (3, 4) or not x.is_floating_point():
        raise ValueError(
            "`x` must be floating-point images (n, c, h, w) or signals (n, c, length), "
            f"got {x.dtype} of shape {tuple(x.shape)}."
        )
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"`scale` must be a finite standard deviation > 0, got {scale!r}.")
    entry = CORRUPTIONS[kind]
    return entry.apply(x, entry.amounts[severity - 1], source_of(generator), fill, scale)
