"""A subspace whose products with an operator are known, handed from one estimator to the next."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Subspace:
    """Orthonormal rows R of which the first k were multiplied by a symmetric A: A R_jᵀ = Σ_i R_iᵀ H_ij for j < k.

    Attributes:
        rows: R, of shape (r, p); the products of the first k lie in the span of all.
        images: H, of shape (r, k).
    """

    rows: Float[Tensor, "r p"]
    images: Float[np.ndarray[Any, Any], "r k"]

    @property
    def products(self) -> int:
        """k, the products behind it."""
        return int(self.images.shape[1])
