"""Spectral density by stochastic Lanczos quadrature, with its error from run to run."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.estimate import Estimate
from landscape.memory import require
from landscape.operators.protocol import SymmetricOperator, dense
from landscape.precision import in_own_precision
from landscape.progress import Progress, watching
from landscape.randomness import source_of
from landscape.showing import curve
from landscape.spectral.draws import signs
from landscape.spectral.krylov import Krylov, working_dtype

EXACT_SIZE = 256  # up to here the eigenvalues of the whole matrix cost no more than an estimate
ZERO = 1e-3  # of the largest modulus: where single precision may put the nodes of eigenvalues that are zero
BESIDE = 4  # vectors beside the basis: the next one, and an image while it is made orthogonal
CURVE = 200  # points of the curve in a notebook
BANDWIDTH = 0.01  # default standard deviation of the smoothing, in units of the nodes' range


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity:
    """The density of eigenvalues φ(t) = (1/p) Σ_i δ(t - λ_i), as weighted nodes from independent runs.

    Standard errors are those of the random start vectors, by the jackknife over runs; the error of the quadrature,
    which falls with the number of steps, is not in them. They are 0 if exact and NaN for a single run.

    Attributes:
        nodes: Nodes, float64 on the CPU, ascending.
        weights: Their weights; they sum to 1.
        run: The run that each node is from.
        runs: Number of runs; 1 for exact values.
        p: Size of the operator.
        products: Operator products spent.
        exact: Whether the nodes are all p eigenvalues, so that nothing is estimated.
        converged: False where the work was interrupted before all runs were done.
    """

    nodes: Float[Tensor, " m"]
    weights: Float[Tensor, " m"]
    run: Tensor
    runs: int
    p: int
    products: int
    exact: bool
    converged: bool = True

    def __repr__(self) -> str:
        how = "exact" if self.exact else f"{self.runs} run{'s' * (self.runs != 1)}, {self.products} products"
        state = "" if self.converged else ", NOT converged"
        return f"SpectralDensity(p = {self.p:,} between {self.nodes[0]:.4g} and {self.nodes[-1]:.4g}; {how}{state})"

    def _repr_html_(self) -> str:
        """The curve log(1 + p · range · φ), in which single eigenvalues are seen, for a notebook."""
        low, high = float(self.nodes[0]), float(self.nodes[-1])
        if low == high:
            return f"<p>{escape(repr(self))}</p>"
        heights = self.density(torch.linspace(low, high, CURVE, dtype=torch.float64)) * (high - low) * self.p
        shown = curve(
            heights.log1p().tolist(), ends=(f"{low:.4g}", f"{high:.4g}"), title="log(1 + p · range · density)"
        )
        return f"<p>{escape(repr(self))}</p>{shown}"

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
        """The standard error of `density` at each point: the error band around it."""
        if self.exact:
            return torch.zeros(len(grid), dtype=torch.float64)
        if self.runs < 2:
            return torch.full((len(grid),), math.nan, dtype=torch.float64)
        terms = self._kernels(grid, sigma) * self.runs
        each = torch.zeros(self.runs, len(grid), dtype=torch.float64).index_add_(0, self.run, terms)
        return each.std(0) / math.sqrt(self.runs)

    def cumulative(self, grid: Float[Tensor, " g"]) -> Float[Tensor, " g"]:
        """The share of eigenvalues <= t at each point t, without smoothing."""
        points = grid.double().cpu()
        before = torch.cat([torch.zeros(1, dtype=torch.float64), self.weights.cumsum(0)])
        return before[torch.searchsorted(self.nodes, points, right=True)]

    def average(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """Estimate (1/p) Σ_i f(λ_i); f maps a vector entry by entry."""
        values = f(self.nodes)
        return self._estimate(lambda keep, weights: float((values[keep] * weights).sum()))

    def total(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """Estimate the spectral sum Σ_i f(λ_i) = tr f(A); f maps a vector entry by entry."""
        values = self.p * f(self.nodes)
        return self._estimate(lambda keep, weights: float((values[keep] * weights).sum()))

    def negative_mass(self, tol: float | None = None) -> Estimate:
        """Estimate the share of eigenvalues below -tol, between 0 and 1.

        Args:
            tol: None means 1e-3 of the largest modulus, so that zeros, whose nodes rounding puts on either side in
                single precision, do not count.

        Raises:
            ValueError: If `tol` is negative.
        """
        level = ZERO * float(self.nodes.abs().max()) if tol is None else tol
        if not level >= 0:
            raise ValueError(f"`tol` must be a distance from zero >= 0, got {tol!r}.")
        return self.average(lambda t: (t < -level).double())

    def quantile(self, share: float) -> Estimate:
        """Estimate the point below which this share of the eigenvalues lies, between nodes by interpolation.

        Args:
            share: Between 0 and 1.

        Raises:
            ValueError: If `share` is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"`share` must be between 0 and 1, got {share!r}.")
        return self._made(*self._quantile(share))

    def bulk_width(self, share: float = 0.95) -> Estimate:
        """Estimate the length of the interval that holds the central share of the eigenvalues.

        Args:
            share: Between 0 and 1; half of the rest lies on either side.

        Raises:
            ValueError: If `share` is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"`share` must be between 0 and 1, got {share!r}.")
        (low, low_error), (high, high_error) = self._quantile((1 - share) / 2), self._quantile((1 + share) / 2)
        return self._made(high - low, math.hypot(low_error, high_error))  # they rise together: rather too large

    def entropy(self) -> Estimate:
        """Estimate the spectral entropy -Σ_i q_i log q_i with q_i = |λ_i| / Σ_j |λ_j|, between 0 and log p.

        Its exponential is an effective number of eigenvalues. NaN for a matrix of zeros.
        """
        size = self.nodes.abs()
        return self._estimate(lambda keep, weights: _entropy(size[keep], weights, self.p))

    @property
    def bandwidth(self) -> float:
        """The default sigma: 1 % of the range of the nodes."""
        return BANDWIDTH * float(self.nodes[-1] - self.nodes[0])

    def _estimate(self, statistic: Callable[[Tensor, Tensor], float]) -> Estimate:
        """A statistic of (which nodes, their weights), with the jackknife's standard error over runs."""
        everything = torch.ones(len(self.nodes), dtype=torch.bool)
        value, stderr = statistic(everything, self.weights), math.nan
        if self.exact:
            stderr = 0.0
        elif self.runs > 1:
            rest = self.runs / (self.runs - 1)
            without = [statistic(self.run != r, self.weights[self.run != r] * rest) for r in range(self.runs)]
            stderr = float(np.std(without)) * math.sqrt(self.runs - 1)
        return self._made(value, stderr)

    def _made(self, value: float, stderr: float) -> Estimate:
        method = "exact" if self.exact else "lanczos-quadrature"
        draws = self.p if self.exact else self.runs
        return Estimate(value, stderr, draws, self.products, self.converged, method)

    def _quantile(self, share: float) -> tuple[float, float]:
        """A quantile and its standard error: that of the share below it, carried over to the nodes (Woodruff 1952)."""
        middle = self.weights.cumsum(0) - self.weights / 2
        value = float(np.interp(share, middle.numpy(), self.nodes.numpy()))
        if self.exact or self.runs < 2:
            return value, 0.0 if self.exact else math.nan
        below = torch.where(self.nodes <= value, self.weights * self.runs, 0.0)
        each = torch.zeros(self.runs, dtype=torch.float64).index_add_(0, self.run, below)
        error = float(each.std()) / math.sqrt(self.runs)
        ends = np.interp([share - 2 * error, share + 2 * error], middle.numpy(), self.nodes.numpy())
        return value, float(ends[1] - ends[0]) / 4

    def _kernels(self, grid: Tensor, sigma: float | None) -> Tensor:
        width = self.bandwidth if sigma is None else sigma
        if not width > 0:
            raise ValueError(f"`sigma` must be > 0, got {width!r} (all eigenvalues are equal if it was not given).")
        z = (grid.double().cpu()[None, :] - self.nodes[:, None]) / width
        return self.weights[:, None] * torch.exp(-(z**2) / 2) / (width * math.sqrt(2 * math.pi))


@in_own_precision
def spectral_density(
    A: SymmetricOperator,
    *,
    runs: int = 10,
    steps: int = 80,
    progress: Progress = False,
    generator: Generator | None = None,
) -> SpectralDensity:
    """Estimate the density of A's eigenvalues from Lanczos runs with random start vectors.

    Each run takes a Rademacher vector z and gives the Gauss quadrature of its spectral measure: the nodes are the
    eigenvalues of the tridiagonal matrix, the weights the squared first entries of its eigenvectors. A spectral sum
    (1/p) Σ f(λ_i) is the mean over z of that measure's integral of f. An eigenvalue that stands alone carries a weight
    of about 1/p in each run, so outliers are better taken from `top_eigenpairs`.

    Args:
        A: Symmetric operator of shape (p, p). For p <= 256 the result is exact, by p products.
        runs: Independent start vectors; 2 or more give standard errors.
        steps: Lanczos steps of a run, with full reorthogonalisation; memory is steps × p, used again by each run. A
            run ends earlier where its Krylov space closes, and its quadrature is exact then.
        progress: A function that is called with each `Status`, after each run; see `analysis.shown`.
        generator: Source of the start vectors; None means a fresh one from seed 0.

    Returns:
        The density, in units of one over A's entries. If the work is interrupted from the keyboard it is that of the
        runs that were done, `converged` is False and there is a RuntimeWarning.

    Raises:
        ValueError: If `runs` or `steps` is below 1, or a product is not finite.
        MemoryError: If the basis does not fit in what is free.

    Source:
        Ubaru, Chen and Saad (2017), SIAM J. Matrix Anal. Appl. 38(4).
    """
    check_arguments(A=A, runs=runs, steps=steps)
    generator = source_of(generator, A.device)
    p = A.shape[0]
    if runs < 1 or steps < 1:
        raise ValueError(f"`runs` and `steps` must be at least 1, got {runs} and {steps}.")
    length = min(steps, p)
    if p <= EXACT_SIZE:
        with torch.no_grad():
            matrix = dense(A).detach().double().cpu()
            values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        weights = torch.full((p,), 1 / p, dtype=torch.float64)
        return SpectralDensity(values, weights, torch.zeros(p, dtype=torch.long), 1, p, p, True)
    require(
        (length + BESIDE) * p * working_dtype(A.dtype).itemsize,
        A.device,
        what=f"A Lanczos basis of {length} vectors of {p} entries",
        instead="lower `steps`, or take fewer `parameters`",
    )
    space = Krylov(A, capacity=length, images=0, generator=generator)
    parts: list[tuple[Tensor, Tensor]] = []
    with watching(progress, work="spectral_density", most=runs * length) as tell:
        try:
            for _ in range(runs):
                space.begin(signs(A, 1, generator)[:, 0])
                parts.append(_quadrature(space))
                tell(space.products, math.nan)
        except KeyboardInterrupt:
            if not parts:
                raise
            warnings.warn(
                f"spectral_density was interrupted after {len(parts)} of {runs} runs: the density is theirs.",
                RuntimeWarning,
                stacklevel=3,
            )
    done = len(parts)
    nodes, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    run = torch.repeat_interleave(torch.arange(done), torch.tensor([len(t) for t, _ in parts]))
    order = nodes.argsort()
    return SpectralDensity(
        nodes[order], weights[order] / done, run[order], done, p, space.products, False, done == runs
    )


def _quadrature(space: Krylov) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        while not space.closed and space.size < space.capacity:
            space.extend()
    matrix = space.matrix[: space.size, : space.size]
    nodes, vectors = eigh_tridiagonal(np.diag(matrix), np.diag(matrix, 1))
    return torch.from_numpy(nodes), torch.from_numpy(vectors[0] ** 2)


def _entropy(size: Tensor, weights: Tensor, p: int) -> float:
    """Entropy log S - (1/S) Σ |λ| log |λ| with S = Σ |λ|, in units of the largest modulus, which cancels."""
    top = float(size.max())
    if top == 0:
        return math.nan
    x = size / top
    total = p * float((weights * x).sum())
    return math.log(total) - p * float((weights * torch.special.xlogy(x, x)).sum()) / total
