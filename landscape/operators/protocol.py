"""What the spectral estimators ask of a matrix: a shape, and products."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.precision import in_own_precision


@runtime_checkable
class SymmetricOperator(Protocol):
    """A symmetric p × p matrix A that is multiplied from the left: `A @ v` for v of shape (p,) or (p, k).

    A dense `Tensor` is one already.
    """

    @property
    def shape(self) -> torch.Size:
        """(p, p)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the entries."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the entries live."""
        ...

    def __matmul__(self, other: Tensor, /) -> Tensor: ...


def beside_product(A: SymmetricOperator, count: int) -> int:
    """How many vectors of length p a product with `count` of them takes beside its result, where A says so.

    An operator says it by a method `beside(count)`; one without is supposed to take none.
    """
    told: int = A.beside(count) if hasattr(A, "beside") else 0
    return told


@in_own_precision
def dense(A: SymmetricOperator, *, limit: int = 4096) -> Float[Tensor, "p p"]:
    """Write an operator out as a matrix, by p products with unit vectors; for small p and for tests.

    Args:
        A: Symmetric operator of shape (p, p); a dense tensor comes back as it is.
        limit: Largest p allowed, because memory and time grow as p² and p products.

    Returns:
        The matrix, as computed: symmetric up to rounding.

    Raises:
        ValueError: If p exceeds `limit`.
    """
    if isinstance(A, Tensor):
        return A
    p = A.shape[0]
    if p > limit:
        raise ValueError(
            f"`A` has p = {p} rows, more than `limit` = {limit}: use top_eigenpairs, trace or spectral_density, "
            "restrict it by `parameters`, or raise `limit`."
        )
    unit = torch.eye(p, dtype=A.dtype, device=A.device)
    return torch.cat([A @ unit[:, i : i + 64] for i in range(0, p, 64)], dim=1)
