"""A growing orthonormal basis of a block Krylov space, with full reorthogonalisation and restarts."""

import math
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Generator, Tensor

from landscape.operators.protocol import SymmetricOperator
from landscape.spectral.basis import Basis

Array = np.ndarray[Any, np.dtype[Any]]

SHORT = 60  # a longer tridiagonal projection is cheaper for its own solver, a shorter one for the general one
IMAGES = 24  # products kept while the basis is short, so that the check at the end takes none
IMAGE_BYTES = 64 * 2**20  # what they may occupy
CLOSED = 0.75  # a vector below ‖A‖ ε^0.75 is mostly rounding that earlier steps amplified: there is no such direction


class Krylov:
    """A growing orthonormal basis Q of a Krylov space, as rows, and the projection T = Qᵀ A Q of a symmetric operator.

    A step multiplies the `width` rows that come next, orthogonalises the images against all there is, twice, and puts
    what is left behind them: A Q = Q T + Q_next C, where C is `coupling`. A direction that vanishes is dropped, so a
    block gets narrower; when none is left the space is closed. The first `held` rows are locked vectors, kept
    orthogonal to the rest; the projection is of the `size` others. An interrupt in `extend` or `restart` leaves the
    state before or after it.

    Args:
        A: The operator. Work is done in its dtype, in float32 if that has fewer bits.
        locked: Rows to reserve for locked vectors.
        capacity: Largest `size`.
        block: Vectors that `begin` starts from.
        kept: Dtype and device of the basis; None means the work's. With fewer bits, vectors are rounded when they are
            put down, and the relation above holds up to `slack`.
        images: Products to keep while the basis is short; None means as many as `images_kept`.
        generator: Source of start vectors.

    Attributes:
        products: Products spent, counted in vectors.
        scale: Largest ‖A q‖ seen for a unit vector q, a lower bound of ‖A‖.
        largest: Largest |θ| among all Ritz values seen, another one.
        slack: For each row of the basis, the norm of what the relation leaves out: dropped directions, and rounding.
    """

    def __init__(
        self,
        A: SymmetricOperator,
        *,
        locked: int = 0,
        capacity: int,
        block: int = 1,
        kept: tuple[torch.dtype, torch.device] | None = None,
        images: int | None = None,
        generator: Generator,
    ) -> None:
        self.A, self.generator, self.capacity, self.block = A, generator, capacity, block
        self.p, self.work = A.shape[0], working_dtype(A.dtype)
        self.room = capacity + block
        self._most = images_kept(self.p, self.work) if images is None else images
        self._images: Tensor | None = None  # room for the products that are kept, and
        self._kept = 0  # how many these are; -1 where that has ended
        self.basis = Basis(
            locked + self.room,
            self.p,
            dtype=self.work,
            device=A.device,
            kept=kept or (self.work, A.device),
            fine=locked,
        )
        self.matrix: Array = np.zeros((capacity, capacity))
        self.coupling: Array = np.zeros((0, 0))
        self.slack: Array = np.zeros(0)
        self.held_values: Array = np.zeros(0)
        self.held_residuals: Array = np.zeros(0)
        self.held = self.size = self.width = self.products = 0
        self.scale = self.largest = 0.0
        self.closed = self.tridiagonal = False
        self.epsilon = torch.finfo(A.dtype).eps

    @property
    def full(self) -> bool:
        """Whether there is no room for the next block and the one that comes after it."""
        return self.size + 2 * self.width > self.room

    def begin(self, start: Tensor | None = None) -> None:
        """Start a Krylov space in the complement of the locked vectors.

        Args:
            start: A vector of shape (p,), or several as rows, linearly independent; None means `block` random ones.
        """
        if start is None:
            start = self.random_rows()
        start = start.to(self.A.device, self.work).reshape(-1, self.p)
        for i, row in enumerate(start):
            self._put_unit(self.held + i, row)
        self.coupling, self.slack = np.zeros((len(start), 0)), np.zeros(0)
        self.size, self.width, self.closed, self.tridiagonal = 0, len(start), False, len(start) == 1
        self._images, self._kept = None, 0 if self._most else -1

    def random_rows(self) -> Tensor:
        """A block of random vectors, as rows; fewer if the complement of the locked vectors has no more room."""
        count, device = min(self.block, self.p - self.held), self.generator.device
        return torch.randn(count, self.p, generator=self.generator, dtype=self.work, device=device)

    def extend(self) -> None:
        """Multiply the next block and add it to the basis.

        Raises:
            ValueError: If a product is not finite.
        """
        j, b, at = self.size, self.width, self.held + self.size
        end = at + b
        images = self.product(self.basis.get(at, end))
        self._keep(images)
        first = self.basis.project(images.T if b > 1 else images[0], end).reshape(end, b)
        images = self.basis.subtract(images.T, first).T if b > 1 else self.basis.subtract(images[0], first[:, 0])[None]
        inner, after, lost, dropped = np.zeros((b, b)), np.zeros((b, b)), np.zeros(b), np.zeros(b)
        new = 0
        for i in range(b):
            w, along = self._orthogonal(images[i], end + new, 2 if new else 1)
            along[:end] += first[:, i]
            length = float(torch.linalg.vector_norm(w))
            inner[:, i] = along[at:end].cpu().double().numpy()
            after[:new, i] = along[end:].cpu().double().numpy()
            if length <= self.scale * self.epsilon**CLOSED or end + new == self.p:
                dropped[i] = length
            else:
                row = w / length
                self.basis.put(end + new, row[None])
                after[new, i] = length
                if self.basis.lossy:
                    lost[new] = float(torch.linalg.vector_norm(row - self.basis.get(end + new, end + new + 1)[0]))
                new += 1
        coupling = np.zeros((new, j + b))
        coupling[:, j:] = after[:new]
        slack = np.concatenate([self.slack, np.hypot(np.linalg.norm(lost[:, None] * after, axis=0), dropped)])
        self.matrix[j : j + b, :j] = self.coupling
        self.matrix[:j, j : j + b] = self.coupling.T
        self.matrix[j : j + b, j : j + b] = (inner + inner.T) / 2
        self.size, self.width, self.coupling, self.slack, self.closed = j + b, new, coupling, slack, new == 0

    def images(self, coefficients: Array) -> Tensor | None:
        """A times the vectors with these coefficients (columns), from the products taken; None if not all are kept.

        They are the true images: A is linear, so nothing of the recurrence is supposed.
        """
        if self._images is None or self._kept != self.size or self.held:
            return None
        return self._tensor(coefficients).T @ self._images[: self._kept]

    def _keep(self, images: Tensor) -> None:
        """Keep the images of a short basis; a restart, or too many of them, ends that."""
        end = self._kept + len(images)
        if self._kept < 0 or end > self._most or self.held:
            self._forget()
            return
        if self._images is None:
            self._images = images.new_empty(min(self._most, self.capacity), self.p)
        self._images[self._kept : end] = images
        self._kept = end

    def _forget(self) -> None:
        self._images, self._kept = None, -1

    def product(self, rows: Tensor) -> Tensor:
        """A times each row, as rows, in the working dtype; counted, and refused if it is not finite."""
        v = rows.to(self.A.dtype)
        images = (self.A @ v[0])[None] if len(v) == 1 else (self.A @ v.T).T
        images = images.detach().to(self.work)
        self.products += len(v)
        length = max(float(torch.linalg.vector_norm(image)) for image in images)
        if not math.isfinite(length):
            raise ValueError(
                "`A` gave a product that is not finite: the loss diverges, or overflows, at this point. Look for "
                "weights and data that are not finite, or take a dtype with a larger range."
            )
        self.scale = max(self.scale, length)
        return images

    def ritz(self) -> tuple[Array, Array, Array]:
        """Ritz values, their coefficient vectors as columns, and the residuals that the coupling implies."""
        T = self.matrix[: self.size, : self.size]
        if self.tridiagonal and self.size > SHORT:
            values, vectors = eigh_tridiagonal(np.diag(T), np.diag(T, 1))
        else:
            values, vectors = np.linalg.eigh(T)
        self.largest = max(self.largest, float(np.abs(values).max()))
        return values, vectors, np.linalg.norm(self.coupling @ vectors, axis=0)

    def loose(self, vectors: Array) -> Array:
        """What `slack` adds to the residuals of Ritz vectors."""
        added: Array = np.sqrt(self.slack**2 @ vectors**2)
        return added

    def restart(self, values: Array, vectors: Array) -> None:
        """Shrink the basis to some Ritz vectors, followed by the block that comes next; in place.

        With a basis in fewer bits, as many of the first Ritz vectors are kept in full as there are rows for.
        """
        keep, width = len(values), self.width
        self._forget()
        mix = np.zeros((self.size + width, keep + width))
        mix[: self.size, :keep], mix[self.size :, keep:] = vectors, np.eye(width)
        coupling = self.coupling @ vectors
        slack = self.loose(vectors)
        if self.basis.lossy:
            coarse = self.held + np.arange(keep) >= self.basis.fine
            slack += coarse * (np.abs(values) + self.scale) * torch.finfo(self.basis.rest.dtype).eps / 2
        matrix = np.zeros_like(self.matrix)
        matrix[:keep, :keep] = np.diag(values)
        interrupted = self.basis.mix(self.held, self._tensor(mix))
        self.matrix, self.size, self.coupling, self.slack, self.tridiagonal = matrix, keep, coupling, slack, False
        if interrupted:
            raise KeyboardInterrupt

    def combine(self, coefficients: Array) -> Tensor:
        """Vectors with the given coefficients (columns) in the basis, and in the next block if they go on, as rows."""
        return self.basis.combine(self.held, self._tensor(coefficients))

    def lock(self, values: Array, residuals: Array, vectors: Tensor) -> None:
        """Make these vectors (rows) the locked ones; a Krylov space is then to be begun in their complement."""
        self.size = self.width = 0
        self._forget()
        self.basis.put(0, vectors)
        self.held, self.held_values, self.held_residuals = len(values), values, residuals

    def unlock(self) -> None:
        """Make the locked vectors the first block of a new Krylov space, so that its first step multiplies them.

        The projection is then theirs alone, so the Ritz pairs after that step have true products behind them. What
        `lock` was told stays in `held_values` and `held_residuals`.
        """
        count, self.held, self.size = self.held, 0, 0
        for i, row in enumerate(self.basis.get(0, count).clone()):
            self._put_unit(i, row)
        self.coupling, self.slack = np.zeros((count, 0)), np.zeros(0)
        self.width, self.closed, self.tridiagonal = count, False, False

    def _tensor(self, coefficients: Array) -> Tensor:
        return torch.from_numpy(coefficients).to(self.work).to(self.A.device)

    def _put_unit(self, at: int, row: Tensor) -> None:
        """Put a vector down, orthogonal to the rows before it."""
        for _ in range(2):  # a small complement cancels most of a random vector
            row, _ = self._orthogonal(row, at)
            row = row / torch.linalg.vector_norm(row)
        self.basis.put(at, row[None])

    def _orthogonal(self, w: Tensor, count: int, passes: int = 2) -> tuple[Tensor, Tensor]:
        """Take out of w its part along the first rows; once is not enough in floating point."""
        along = w.new_zeros(count)
        for _ in range(passes):
            part = self.basis.project(w, count)
            w = self.basis.subtract(w, part)
            along += part
        return w, along


def images_kept(p: int, work: torch.dtype) -> int:
    """How many products of length p are kept beside a basis: all that can be, or none where they are long."""
    return IMAGES if IMAGES * p * work.itemsize <= IMAGE_BYTES else 0


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operator's vectors are worked on: its own, or float32 if that has more bits."""
    return torch.promote_types(dtype, torch.float32)
