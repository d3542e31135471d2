"""Sums, multiples, shifts and rescalings of symmetric operators, and their form for SciPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from landscape.operators.protocol import SymmetricOperator, beside_product, dense


class Algebra:
    """What operators can do beside products: A + B, A - B, c * A, -A, and the methods below.

    A subclass has `shape`, `dtype`, `device` and `@`.
    """

    def __add__(self, other: SymmetricOperator) -> "Sum":
        return Sum(((1.0, self), (1.0, other)))  # type: ignore[arg-type]

    def __radd__(self, other: SymmetricOperator) -> "Sum":
        return Sum(((1.0, other), (1.0, self)))  # type: ignore[arg-type]

    def __sub__(self, other: SymmetricOperator) -> "Sum":
        return Sum(((1.0, self), (-1.0, other)))  # type: ignore[arg-type]

    def __rsub__(self, other: SymmetricOperator) -> "Sum":
        return Sum(((1.0, other), (-1.0, self)))  # type: ignore[arg-type]

    def __mul__(self, factor: float) -> "Sum":
        return Sum(((float(factor), self),))  # type: ignore[arg-type]

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> "Sum":
        return Sum(((1 / float(factor), self),))  # type: ignore[arg-type]

    def __neg__(self) -> "Sum":
        return Sum(((-1.0, self),))  # type: ignore[arg-type]

    def shifted(self, shift: float) -> "Shifted":
        """A + shift · I."""
        return Shifted(self, float(shift))  # type: ignore[arg-type]

    def rescaled(self, scale: Float[Tensor, " p"]) -> "Rescaled":
        """S A S with S = diag(scale)."""
        return Rescaled(self, scale)  # type: ignore[arg-type]

    def dense(self, *, limit: int = 4096) -> Float[Tensor, "p p"]:
        """The matrix itself, see `landscape.dense`."""
        return dense(self, limit=limit)  # type: ignore[arg-type]

    def to_scipy(self) -> LinearOperator:
        """The operator as SciPy's `LinearOperator`, see `landscape.to_scipy`."""
        return to_scipy(self)  # type: ignore[arg-type]


@final
@dataclass(frozen=True, eq=False)
class Sum(Algebra):
    """Σ_j c_j A_j.

    Attributes:
        terms: Pairs (c_j, A_j).

    Raises:
        ValueError: If there is no term, or shapes, dtypes or devices differ.
    """

    terms: Sequence[tuple[float, SymmetricOperator]]

    def __post_init__(self) -> None:
        kinds = {(tuple(A.shape), A.dtype, str(A.device)) for _, A in self.terms}
        if len(kinds) != 1:
            raise ValueError(
                f"`terms` must be operators of one shape, dtype and device, got {sorted(map(str, kinds))}."
            )

    @property
    def shape(self) -> torch.Size:
        """(p, p)."""
        return torch.Size(self.terms[0][1].shape)

    @property
    def dtype(self) -> torch.dtype:
        """The terms' dtype."""
        return self.terms[0][1].dtype

    @property
    def device(self) -> torch.device:
        """The terms' device."""
        return self.terms[0][1].device

    def beside(self, count: int) -> int:
        """Vectors that a product takes beside its result: one term's."""
        return count + max(beside_product(A, count) for _, A in self.terms)

    def __matmul__(self, other: Float[Tensor, "p ..."], /) -> Float[Tensor, "p ..."]:
        total = torch.zeros_like(other)
        for factor, A in self.terms:
            total.add_(A @ other, alpha=factor)
        return total


@dataclass(frozen=True, eq=False)
class _OfOne(Algebra):
    """What is made of one operator A, of its shape, dtype and device."""

    operator: SymmetricOperator

    @property
    def shape(self) -> torch.Size:
        """(p, p)."""
        return self.operator.shape

    @property
    def dtype(self) -> torch.dtype:
        """A's dtype."""
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        """A's device."""
        return self.operator.device

    def beside(self, count: int) -> int:
        """Vectors that a product takes beside its result: A's product, and what goes with it."""
        return count + beside_product(self.operator, count)


@final
@dataclass(frozen=True, eq=False)
class Shifted(_OfOne):
    """A + c · I.

    Attributes:
        operator: A.
        shift: c.
    """

    shift: float

    def __matmul__(self, other: Float[Tensor, "p ..."], /) -> Float[Tensor, "p ..."]:
        return torch.add(self.operator @ other, other, alpha=self.shift)


@final
@dataclass(frozen=True, eq=False)
class Rescaled(_OfOne):
    """S A S with S = diag(scale), at no cost beyond A's product.

    With scale = |θ| it is the Hessian in relative units: its largest eigenvalue and its trace are the small-radius
    limits of adaptive worst-case and average sharpness, up to ρ²/2.

    Attributes:
        operator: A, of shape (p, p).
        scale: The diagonal of S, of shape (p,).

    Raises:
        ValueError: If `scale` has not p entries.
    """

    scale: Float[Tensor, " p"]

    def __post_init__(self) -> None:
        if self.scale.shape != self.operator.shape[:1]:
            raise ValueError(
                f"`scale` must have shape ({self.operator.shape[0]},), one factor per parameter, "
                f"got {tuple(self.scale.shape)}."
            )

    def __matmul__(self, other: Float[Tensor, "p ..."], /) -> Float[Tensor, "p ..."]:
        s = self.scale.view(-1, *[1] * (other.ndim - 1))
        return s * (self.operator @ (s * other))


def to_scipy(A: SymmetricOperator) -> LinearOperator:
    """An operator as SciPy's `LinearOperator`, for `scipy.sparse.linalg.eigsh`, `cg` and the like.

    Args:
        A: Symmetric operator of shape (p, p), on any device. NumPy has no bfloat16: such an operator says float32.

    Returns:
        A LinearOperator of the same entries, with products of one vector or several, which is its own adjoint.
    """
    wide = torch.float32 if A.dtype == torch.bfloat16 else A.dtype
    kind = torch.zeros(0, dtype=wide).numpy().dtype

    def product(v: Any) -> Any:
        vectors = torch.from_numpy(np.array(v, dtype=kind)).to(device=A.device, dtype=A.dtype)
        return (A @ vectors).to(device="cpu", dtype=wide).numpy()

    def column(v: Any) -> Any:
        return product(v.reshape(-1))

    return LinearOperator(tuple(A.shape), matvec=column, matmat=product, rmatvec=column, rmatmat=product, dtype=kind)
