"""A growing orthonormal basis of a Krylov space, with full reorthogonalisation and restarts."""

import math
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.operators.protocol import SymmetricOperator

Array = np.ndarray[Any, np.dtype[Any]]

CLOSED = 0.75  # a vector below ‖A‖ ε^0.75 is mostly rounding that earlier steps amplified: the Krylov space is closed


class Krylov:
    """A growing orthonormal basis Q, as rows, and the projection Qᵀ A Q of a symmetric operator onto it.

    The first `held` rows are locked vectors, kept orthogonal to the rest; the projection is of the `size` others.

    Args:
        A: The operator.
        locked: Rows to reserve for locked vectors.
        capacity: Largest `size`.
        generator: Source of start vectors.
    """

    def __init__(self, A: SymmetricOperator, *, locked: int = 0, capacity: int, generator: Generator) -> None:
        self.A, self.generator, self.capacity = A, generator, capacity
        self.rows = torch.empty(locked + capacity + 1, A.shape[0], dtype=A.dtype, device=A.device)
        self.matrix: Array = np.zeros((capacity, capacity))
        self.coupling: Array = np.zeros(0)  # row `size` of the projection, which the next step puts in place
        self.held_values: Array = np.zeros(0)
        self.held = self.size = self.products = 0
        self.scale = 0.0  # largest ‖A q‖ seen, a lower bound of ‖A‖
        self.closed = False
        self.epsilon = torch.finfo(A.dtype).eps

    def begin(self, start: Tensor | None = None) -> None:
        """Start a Krylov space, from a random vector in the complement of the locked ones unless one is given."""
        if start is None:
            p = self.rows.shape[1]
            start = torch.randn(p, generator=self.generator, dtype=self.A.dtype, device=self.generator.device)
        vector, _ = self._orthogonal(start.to(self.rows), self.held)
        vector = vector / torch.linalg.vector_norm(vector)
        vector, _ = self._orthogonal(vector, self.held)  # again: a small complement cancels most of a random vector
        self.rows[self.held] = vector / torch.linalg.vector_norm(vector)
        self.matrix[:] = 0
        self.coupling = np.zeros(0)
        self.size, self.closed = 0, False

    def extend(self) -> None:
        """Take one product and add one dimension."""
        j, at = self.size, self.held + self.size
        w = self.A @ self.rows[at]
        self.products += 1
        length = float(torch.linalg.vector_norm(w))
        if not math.isfinite(length):
            raise ValueError("`A` gave a product that is not finite: the loss diverges, or overflows, at this point.")
        self.scale = max(self.scale, length)
        w, along = self._orthogonal(w, at + 1)
        beta = float(torch.linalg.vector_norm(w))
        self.matrix[j, :j] = self.matrix[:j, j] = self.coupling
        self.matrix[j, j] = float(along[-1])
        self.size += 1
        self.closed = beta <= self.scale * self.epsilon**CLOSED or self.held + self.size == self.rows.shape[1]
        self.coupling = np.zeros(self.size)
        if not self.closed:
            self.coupling[j] = beta
            self.rows[at + 1] = w / beta

    def ritz(self) -> tuple[Array, Array, Array]:
        """Ritz values, their coefficient vectors as columns, and the residuals that they imply."""
        values, vectors = np.linalg.eigh(self.matrix[: self.size, : self.size])
        return values, vectors, np.abs(self.coupling @ vectors)

    def restart(self, values: Array, vectors: Array) -> None:
        """Shrink the basis to some Ritz vectors, followed by the vector that comes next."""
        keep, at = len(values), self.held + self.size
        self.rows[self.held : self.held + keep] = self.combine(vectors)
        self.rows[self.held + keep] = self.rows[at]
        self.coupling = self.coupling @ vectors
        self.matrix[:] = 0
        self.matrix[:keep, :keep] = np.diag(values)
        self.size = keep

    def combine(self, coefficients: Array) -> Tensor:
        """Vectors with the given coefficients (columns) in the basis, as rows."""
        return torch.from_numpy(coefficients.T.copy()).to(self.rows) @ self.rows[self.held : self.held + self.size]

    def lock(self, values: Array, vectors: Tensor) -> None:
        """Make these vectors (rows) the locked ones; the Krylov space is then to be begun again."""
        self.rows[: len(values)] = vectors
        self.held, self.held_values = len(values), values

    def _orthogonal(self, w: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Take out of w its part along the first rows, twice (once is not enough in floating point)."""
        rows = self.rows[:count]
        first = rows @ w
        w = torch.addmv(w, rows.T, first, alpha=-1)
        second = rows @ w
        return torch.addmv(w, rows.T, second, alpha=-1), first + second
