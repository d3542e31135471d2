"""Spectral norms: of weight matrices, and of convolutions as the linear maps that they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Generator, Tensor

from landscape.operators import SymmetricOperator
from landscape.randomness import source_of
from landscape.spectral import top_eigenpairs

DENSE = 512  # rows or columns up to which all singular values are found at once
CHUNK_BYTES = 64 * 2**20  # of a convolution's blocks held at once
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
FORWARD: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class SpectralNorm:
    """A largest singular value.

    Attributes:
        value: σ, in units of the entries.
        error: Bound of its error from the residual of the iteration; 0 where all singular values were found.
        converged: Whether the iteration met its tolerance.
    """

    value: float
    error: float = 0.0
    converged: bool = True


def spectral_norm(
    matrix: Float[Tensor, "n k"], *, tol: float = 1e-8, generator: Generator | None = None
) -> SpectralNorm:
    """The largest singular value of a matrix.

    Up to 512 rows or columns from all eigenvalues of the smaller of WᵀW and WWᵀ, above by Lanczos iteration on it.

    Args:
        matrix: W, best in float64.
        tol: Residual that the iteration may leave on σ², relative to it.
        generator: Source of the iteration's random start; None means a fresh one from seed 0.

    Returns:
        The norm; NaN if an entry is not finite.
    """
    generator = source_of(generator)
    if not bool(matrix.isfinite().all()):
        return SpectralNorm(math.nan, math.nan, converged=False)
    W = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if len(W) <= DENSE:
        # in units of the largest entry, so that squares neither overflow nor vanish
        unit = float(W.abs().max())
        if unit == 0:
            return SpectralNorm(0.0)
        W = W / unit
        return SpectralNorm(unit * math.sqrt(max(float(torch.linalg.eigvalsh(W @ W.T)[-1]), 0.0)))
    return _iterated(_Gram(W), tol, generator)


def circular_spectral_norm(
    kernel: Float[Tensor, "out in *taps"],
    size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> float:
    """The exact spectral norm of a convolution with circular boundary, from the DFT of its kernel.

    Circular convolution is block diagonal in frequency: its singular values are those of the matrices
    K(f)_oi = Σ_t k_oit e^{-2πi f·t}, of shape (out, in), over all frequencies f of the input's grid. With stride s the
    blocks of the s frequencies that coincide after subsampling stand side by side, over √s an axis. Kernels longer than
    the input wrap around it.

    Args:
        kernel: Real weights; `in` is channels a group.
        size: Lengths of the input's axes.
        stride: Of the convolution, which must divide the sizes; 1 gives the norm before subsampling, an upper bound.
        dilation: Distance of the kernel's taps.
        groups: Of channels, each with its own rows of the kernel.

    Returns:
        The norm; NaN if an entry is not finite.

    Raises:
        ValueError: If sizes, stride or groups do not fit the kernel.

    Source:
        Sedghi, Gupta and Long (2019), ICLR, for stride 1; the other cases follow from the same diagonalisation.
    """
    waves = _Waves(kernel, size, stride, dilation, groups)
    if not bool(kernel.isfinite().all()):
        return math.nan
    best = 0.0
    for part in torch.arange(waves.count, device=kernel.device).split(waves.chunk):
        blocks = waves.blocks(part)
        gram = blocks @ blocks.mH if blocks.shape[1] <= blocks.shape[2] else blocks.mH @ blocks
        best = max(best, float(torch.linalg.eigvalsh(gram)[:, -1].max()))
    return math.sqrt(best)


def circular_singular_values(
    kernel: Float[Tensor, "out in *taps"],
    size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Tensor, " r"]:
    """All singular values of a convolution with circular boundary, in descending order; see `circular_spectral_norm`.

    Raises:
        ValueError: If sizes, stride or groups do not fit the kernel.
    """
    waves = _Waves(kernel, size, stride, dilation, groups, half=False)
    parts = torch.arange(waves.count, device=kernel.device).split(waves.chunk)
    found = torch.cat([torch.linalg.svdvals(waves.blocks(part)).flatten() for part in parts])
    return found.sort(descending=True).values


def padded_spectral_norm(
    kernel: Float[Tensor, "out in *taps"],
    size: Sequence[int],
    *,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    tol: float = 1e-8,
    generator: Generator | None = None,
) -> SpectralNorm:
    """The spectral norm of a convolution with zero padding, as networks apply it: Lanczos iteration on AᵀA.

    A is applied as a convolution and Aᵀ as a transposed one; no matrix is formed.

    Args:
        kernel: Real weights; `in` is channels a group.
        size: Lengths of the input's axes.
        padding: Zeros on both sides of each axis.
        stride: Of the convolution.
        dilation: Distance of the kernel's taps.
        groups: Of channels.
        tol: Residual that the iteration may leave on σ², relative to it.
        generator: Source of the random start; None means a fresh one from seed 0.

    Raises:
        ValueError: If sizes or groups do not fit the kernel.
    """
    axes = _checked(kernel, size, groups)
    if axes > 3:
        raise ValueError(f"`kernel` must have 1 to 3 axes of taps, got {axes}.")
    gram = _ConvolutionGram(
        kernel, tuple(size), _each(padding, axes), _each(stride, axes), _each(dilation, axes), groups
    )
    return _iterated(gram, tol, source_of(generator))


class _Waves:
    """The diagonal blocks of a circular convolution in the basis of waves, made a few frequencies at a time.

    By the symmetry K(-f) = conj K(f) half of the last axis' frequencies do; a kernel of one tap is the same at all.
    """

    def __init__(
        self,
        kernel: Tensor,
        size: Sequence[int],
        stride: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        half: bool = True,
    ) -> None:
        axes = _checked(kernel, size, groups)
        self.size, self.steps, self.gaps = tuple(size), _each(stride, axes), _each(dilation, axes)
        if any(n % s for n, s in zip(size, self.steps, strict=True)):
            raise ValueError(f"`stride` must divide the sizes {self.size}, got {self.steps}; 1 gives an upper bound.")
        self.kernel = kernel.reshape(groups, kernel.shape[0] // groups, kernel.shape[1], -1)
        self.taps = kernel.shape[2:]
        self.rows = [n // s for n, s in zip(size, self.steps, strict=True)]
        if half:
            self.rows[-1] = self.rows[-1] // 2 + 1
            if math.prod(self.taps) * math.prod(self.steps) == 1:
                self.rows = [1] * axes
        self.count = math.prod(self.rows)
        block = kernel.shape[0] * kernel.shape[1] * math.prod(self.steps)
        self.chunk = max(1, CHUNK_BYTES // (2 * kernel.element_size() * block))

    def blocks(self, frequencies: Tensor) -> Complex[Tensor, "f out in"]:
        """The blocks at frequencies numbered in row order; those of the groups follow each other."""
        grid = torch.unravel_index(frequencies, tuple(self.rows))
        wave = torch.ones(len(frequencies), 1, 1, dtype=self.kernel.dtype, device=self.kernel.device).to(
            _complex(self.kernel)
        )
        for f, n, s, gap, taps in zip(grid, self.size, self.steps, self.gaps, self.taps, strict=True):
            # the s frequencies that one output frequency stands for
            every = f[:, None, None] + torch.arange(s, device=f.device)[:, None] * (n // s)
            turns = (every * gap * torch.arange(taps, device=f.device) % n).to(self.kernel.dtype) / n
            own = torch.polar(torch.full_like(turns, 1 / math.sqrt(s)), -2 * math.pi * turns)
            wave = (wave[:, :, None, :, None] * own[:, None, :, None, :]).flatten(3, 4).flatten(1, 2)
        found = torch.einsum("goit,fat->fgoia", self.kernel.to(wave.dtype), wave)
        return found.flatten(3, 4).flatten(0, 1)


def _complex(like: Tensor) -> torch.dtype:
    return torch.complex128 if like.dtype == torch.float64 else torch.complex64


def _checked(kernel: Tensor, size: Sequence[int], groups: int) -> int:
    axes = kernel.ndim - 2
    if axes < 1 or len(size) != axes or min(size) < 1:
        raise ValueError(
            f"`size` must have one length >= 1 for each axis of the kernel of shape {tuple(kernel.shape)} after its "
            f"first two, got {tuple(size)}."
        )
    if groups < 1 or kernel.shape[0] % groups:
        raise ValueError(f"`groups` must divide the {kernel.shape[0]} outputs of the kernel, got {groups!r}.")
    return axes


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


class _Gram:
    """W Wᵀ as an operator, without forming it."""

    def __init__(self, W: Tensor) -> None:
        self.W = W
        self.shape, self.dtype, self.device = torch.Size((len(W), len(W))), W.dtype, W.device

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.W @ (self.W.T @ v)


class _ConvolutionGram:
    """AᵀA of a convolution A, as an operator on flattened inputs."""

    def __init__(
        self,
        kernel: Tensor,
        size: tuple[int, ...],
        padding: tuple[int, ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        self.kernel, self.axes = kernel, len(size)
        self.inputs = (kernel.shape[1] * groups, *size)
        self.options = {"padding": padding, "stride": stride, "dilation": dilation, "groups": groups}
        reach = [
            n + 2 * p - d * (k - 1) - 1 for n, p, d, k in zip(size, padding, dilation, kernel.shape[2:], strict=True)
        ]
        if min(reach) < 0:
            raise ValueError(f"`size` {size} is smaller than the kernel of shape {tuple(kernel.shape)}: add `padding`.")
        self.beyond = [r % s for r, s in zip(reach, stride, strict=True)]  # inputs that no window's end reaches
        p = math.prod(self.inputs)
        self.shape, self.dtype, self.device = torch.Size((p, p)), kernel.dtype, kernel.device

    def __matmul__(self, v: Tensor) -> Tensor:
        columns = v.reshape(v.shape[0], -1).T.reshape(-1, *self.inputs)
        out = FORWARD[self.axes](columns, self.kernel, **self.options)
        back = TRANSPOSED[self.axes](out, self.kernel, output_padding=self.beyond, **self.options)
        rows: Tensor = back.reshape(len(columns), -1).T.reshape(v.shape)
        return rows


def _iterated(operator: SymmetricOperator, tol: float, generator: Generator) -> SpectralNorm:
    pairs = top_eigenpairs(operator, tol=tol, vectors=False, generator=generator)
    square, residual = max(float(pairs.values[0]), 0.0), float(pairs.residuals[0])
    value = math.sqrt(square)
    return SpectralNorm(value, residual / (2 * value) if value > 0 else math.sqrt(residual), bool(pairs.converged))
