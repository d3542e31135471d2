"""Spectral density by stochastic Lanczos quadrature, and the spectral sums that follow from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Generator, Tensor

from landscape.estimate import Estimate
from landscape.operators.protocol import SymmetricOperator, dense
from landscape.spectral.krylov import Krylov

EXACT_SIZE = 256  # up to here the eigenvalues of the whole matrix cost no more than an estimate
BANDWIDTH = 0.01  # default standard deviation of the smoothing, in units of the nodes' range


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """The density of eigenvalues φ(t) = (1/p) Σ_i δ(t - λ_i), as weighted nodes from independent runs.

    Attributes:
        nodes: Nodes, float64 on the CPU, ascending.
        weights: Their weights; they sum to 1.
        run: The run that each node is from.
        runs: Number of runs; 1 for exact values.
        p: Size of the operator.
        products: Operator products spent.
        exact: Whether the nodes are all p eigenvalues, so that nothing is estimated.
    """

    nodes: Float[Tensor, " m"]
    weights: Float[Tensor, " m"]
    run: Tensor
    runs: int
    p: int
    products: int
    exact: bool

    def density(self, grid: Float[Tensor, " g"], *, sigma: float | None = None) -> Float[Tensor, " g"]:
        """The density smoothed by a Gaussian of standard deviation sigma, at the points of a grid.

        Args:
            grid: Points.
            sigma: None means `bandwidth`. The height of an isolated eigenvalue depends on it.

        Raises:
            ValueError: If sigma is not positive.
        """
        return self._kernels(grid, sigma).sum(0)

    def stderr(self, grid: Float[Tensor, " g"], *, sigma: float | None = None) -> Float[Tensor, " g"]:
        """The standard error of `density` at each point, over runs: zeros if exact, NaN for a single run."""
        if self.exact:
            return torch.zeros(len(grid), dtype=torch.float64)
        if self.runs < 2:
            return torch.full((len(grid),), math.nan, dtype=torch.float64)
        terms = self._kernels(grid, sigma) * self.runs
        each = torch.zeros(self.runs, len(grid), dtype=torch.float64).index_add_(0, self.run, terms)
        return each.std(0) / math.sqrt(self.runs)

    def cumulative(self, grid: Float[Tensor, " g"]) -> Float[Tensor, " g"]:
        """The share of eigenvalues <= t at each point t, without smoothing."""
        below = self.nodes[:, None] <= grid.double().cpu()[None, :]
        return (below * self.weights[:, None]).sum(0)

    def average(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """Estimate (1/p) Σ_i f(λ_i) with its standard error over runs; f maps a vector entry by entry.

        The error is that of the random start vectors; that of the quadrature, which falls with the number of steps,
        is not in it.
        """
        terms = f(self.nodes) * self.weights * self.runs
        each = torch.zeros(self.runs, dtype=torch.float64).index_add_(0, self.run, terms)
        stderr = 0.0 if self.exact else float(each.std()) / math.sqrt(self.runs) if self.runs > 1 else math.nan
        method = "exact" if self.exact else "lanczos-quadrature"
        return Estimate(float(each.mean()), stderr, self.runs, self.products, True, method)

    @property
    def bandwidth(self) -> float:
        """The default sigma: 1 % of the range of the nodes."""
        return BANDWIDTH * float(self.nodes[-1] - self.nodes[0])

    def _kernels(self, grid: Tensor, sigma: float | None) -> Tensor:
        width = self.bandwidth if sigma is None else sigma
        if not width > 0:
            raise ValueError(f"`sigma` must be > 0, got {width!r} (all eigenvalues are equal if it was not given).")
        z = (grid.double().cpu()[None, :] - self.nodes[:, None]) / width
        return self.weights[:, None] * torch.exp(-(z**2) / 2) / (width * math.sqrt(2 * math.pi))


def spectral_density(A: SymmetricOperator, *, runs: int = 10, steps: int = 80, generator: Generator) -> SpectralDensity:
    """Estimate the density of A's eigenvalues from Lanczos runs with random start vectors.

    Each run takes a Rademacher vector z and gives the Gauss quadrature of its spectral measure: the nodes are the
    eigenvalues of the tridiagonal matrix, the weights the squared first entries of its eigenvectors. A spectral sum
    (1/p) Σ f(λ_i) is the mean over z of that measure's integral of f. An eigenvalue that stands alone carries a weight
    of about 1/p in each run, so outliers are better taken from `top_eigenpairs`.

    Args:
        A: Symmetric operator of shape (p, p). For p <= 256 the result is exact, by p products.
        runs: Independent start vectors; 2 or more give standard errors.
        steps: Lanczos steps of a run, with full reorthogonalisation; memory is steps × p.
        generator: Source of the start vectors.

    Returns:
        The density, in units of one over A's entries.

    Raises:
        ValueError: If `runs` or `steps` is below 1.

    Source:
        Ubaru, Chen and Saad (2017), SIAM J. Matrix Anal. Appl. 38(4).
    """
    p = A.shape[0]
    if runs < 1 or steps < 1:
        raise ValueError(f"`runs` and `steps` must be at least 1, got {runs} and {steps}.")
    if p <= EXACT_SIZE:
        values = _eigenvalues(A)
        weights = torch.full((p,), 1 / p, dtype=torch.float64)
        return SpectralDensity(values, weights, torch.zeros(p, dtype=torch.long), 1, p, p, True)
    space = Krylov(A, capacity=min(steps, p), generator=generator)
    parts = []
    for _ in range(runs):
        signs = torch.randint(0, 2, (p,), generator=generator, device=generator.device)
        parts.append(_quadrature(space, 2 * signs - 1))
    nodes, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    run = torch.repeat_interleave(torch.arange(runs), torch.tensor([len(t) for t, _ in parts]))
    order = nodes.argsort()
    return SpectralDensity(nodes[order], weights[order] / runs, run[order], runs, p, space.products, False)


def lanczos_quadrature(
    A: SymmetricOperator, start: Float[Tensor, " p"], steps: int
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Nodes and weights of the Gauss quadrature of v ↦ vᵀf(A)v, for v = start/‖start‖.

    Args:
        A: Symmetric operator of shape (p, p).
        start: Any vector but zero.
        steps: Lanczos steps m; fewer are taken if the Krylov space closes.

    Returns:
        Nodes, ascending, and weights, which sum to 1: Σ_k w_k t_k^q = vᵀA^q v for all q <= 2m - 1.

    Raises:
        ValueError: If `steps` is out of range or `start` is zero or not finite.

    Source:
        Golub and Welsch (1969), Math. Comput. 23(106).
    """
    if not 1 <= steps <= A.shape[0]:
        raise ValueError(f"`steps` must be between 1 and {A.shape[0]}, got {steps}.")
    length = float(torch.linalg.vector_norm(start))
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"`start` must be a finite vector that is not zero, got one of length {length!r}.")
    return _quadrature(Krylov(A, capacity=steps, generator=torch.Generator()), start)


def log_determinant(
    A: SymmetricOperator, shift: float, *, runs: int = 10, steps: int = 80, generator: Generator
) -> Estimate:
    """Estimate log det(A + shift · I) = Σ_i log(λ_i + shift).

    Args:
        A: Symmetric operator of shape (p, p).
        shift: Added to every eigenvalue; it must make all of them positive.
        runs: As in `spectral_density`.
        steps: As in `spectral_density`.
        generator: Source of the start vectors.

    Returns:
        The estimate, exact for p <= 256. Its standard error is that of the start vectors.

    Raises:
        ValueError: If `shift` leaves an eigenvalue at or below zero.

    Source:
        Ubaru, Chen and Saad (2017), SIAM J. Matrix Anal. Appl. 38(4).
    """
    found = spectral_density(A, runs=runs, steps=steps, generator=generator)
    lowest = float(found.nodes[0])
    if not lowest + shift > 0:
        raise ValueError(f"`shift` must exceed {-lowest:.6g}, because A has an eigenvalue {lowest:.6g}; got {shift!r}.")
    return _times(found.average(lambda t: torch.log(t + shift)), found.p)


def effective_dimension(
    A: SymmetricOperator, z: float, *, runs: int = 10, steps: int = 80, generator: Generator
) -> Estimate:
    """Estimate the effective dimension Σ_i λ_i / (λ_i + z), the number of directions that data determine.

    Negative eigenvalues are set to zero; meant for positive semidefinite A, such as `GaussNewton`.

    Args:
        A: Symmetric operator of shape (p, p).
        z: Regularisation z > 0, in units of A's entries: for instance 1/n, or the prior precision over n.
        runs: As in `spectral_density`.
        steps: As in `spectral_density`.
        generator: Source of the start vectors.

    Returns:
        The estimate, between 0 and the rank; exact for p <= 256.

    Raises:
        ValueError: If `z` is not positive.

    Source:
        MacKay (1992), Neural Comput. 4(3).
    """
    if not (math.isfinite(z) and z > 0):
        raise ValueError(f"`z` must be a finite regularisation > 0, got {z!r}.")
    found = spectral_density(A, runs=runs, steps=steps, generator=generator)
    return _times(found.average(lambda t: t.clamp_min(0) / (t.clamp_min(0) + z)), found.p)


def _times(e: Estimate, p: int) -> Estimate:
    return Estimate(p * e.value, p * e.stderr, e.draws, e.products, e.converged, e.method)


def _eigenvalues(A: SymmetricOperator) -> Tensor:
    matrix = dense(A).detach().double().cpu()
    values: Tensor = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return values


def _quadrature(space: Krylov, start: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        space.begin(start)
        while not space.closed and space.size < space.capacity:
            space.extend()
    matrix = space.matrix[: space.size, : space.size]
    nodes, vectors = eigh_tridiagonal(np.diag(matrix), np.diag(matrix, 1))
    return torch.from_numpy(nodes), torch.from_numpy(vectors[0] ** 2)
