"""Diagonal and Frobenius norm of a symmetric operator from few products, with standard errors."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.estimate import Estimate
from landscape.operators.protocol import SymmetricOperator
from landscape.precision import in_own_precision
from landscape.progress import Progress, watching
from landscape.randomness import source_of
from landscape.spectral.draws import require_vectors, sign_images, unit_images
from landscape.spectral.krylov import working_dtype
from landscape.spectral.probes import DRAWS, Goal, Sample, check_draws, finish, probed
from landscape.spectral.regions import Array, Blocks, Regions, check_blocks, pieces


@dataclass(frozen=True, eq=False)
class Diagonal:
    """An estimate of a diagonal.

    Attributes:
        value: The estimate, of shape (p,).
        stderr: Standard errors, of shape (p,); zeros for exact values.
        draws: Number of random vectors.
        products: Operator products spent.
        converged: False where the work was interrupted.
    """

    value: Float[Tensor, " p"]
    stderr: Float[Tensor, " p"]
    draws: int
    products: int
    converged: bool = True


@in_own_precision
def diagonal(
    A: SymmetricOperator, *, draws: int = DRAWS, progress: Progress = False, generator: Generator | None = None
) -> Diagonal:
    """Estimate diag(A) as the mean of z * (A z) over Rademacher vectors z; exact, by unit vectors, if draws >= p.

    Args:
        A: Symmetric operator of shape (p, p).
        draws: Products with A; at least 2.
        progress: As in `trace`; the residual is the root mean square of the standard errors over that of the values.
        generator: Source of all randomness; None means a fresh one from seed 0.

    Returns:
        The estimate; entry i has variance Σ_{j≠i} a_ij² / draws. If the work is interrupted from the keyboard it is
        that of the draws that were done, `converged` is False and there is a RuntimeWarning.

    Raises:
        ValueError: If `draws` is below 2, and below p, or a product is not finite.

    Source:
        Bekas, Kokiopoulou and Saad (2007), Appl. Numer. Math. 57(11-12).
    """
    check_arguments(A=A, draws=draws)
    generator = source_of(generator, A.device)
    p = A.shape[0]
    if draws >= p:
        with torch.no_grad():
            value = torch.cat([a[i:].diagonal() for i, a in unit_images(A)]).to(A.dtype)
        return Diagonal(value, torch.zeros_like(value), p, p)
    check_draws(draws)
    doubles = 2 * torch.float64.itemsize / working_dtype(A.dtype).itemsize
    require_vectors(A, doubles, 2, what="diagonal", instead="take fewer of the model's parameters")
    mean = torch.zeros(p, dtype=torch.float64, device=A.device)
    squares = torch.zeros_like(mean)
    count = 0
    with watching(progress, work="diagonal", most=draws) as tell, torch.no_grad():
        try:
            for z, a in sign_images(A, draws, generator):
                new = z.shape[1]
                for at in pieces(p):
                    terms = (z[at] * a[at]).double()
                    step = terms.mean(1) - mean[at]
                    squares[at] += terms.var(1, correction=0) * new + step.square() * (count * new / (count + new))
                    mean[at] += step * (new / (count + new))
                del z, a
                count += new
                tell(count, _relative(mean, squares, count))
        except KeyboardInterrupt:
            if count < 2:
                raise
            warnings.warn(
                f"diagonal was interrupted after {count} products: the estimate is what they gave.",
                RuntimeWarning,
                stacklevel=3,
            )
    stderr = squares.div_(count - 1).div_(count).sqrt_()
    return Diagonal(mean.to(A.dtype), stderr.to(A.dtype), count, count, count == draws)


@in_own_precision
def frobenius_squared(
    A: SymmetricOperator,
    *,
    draws: int | None = None,
    tol: float | None = None,
    atol: float = 0.0,
    blocks: Blocks | None = None,
    progress: Progress = False,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate ‖A‖²_F = tr(A²) as the mean of ‖A z‖² over Rademacher vectors z.

    It is exact, by p unit vectors, if draws >= p and there is no tolerance. Unbiased for the square; its root
    would be biased low.

    Args:
        A: Symmetric operator of shape (p, p).
        draws: Largest number of products, at least 2; None means 64, or 2000 with a tolerance.
        tol: As in `trace`.
        atol: As in `trace`, in squared units of A's entries.
        blocks: As in `trace`: the squared norms of these rows of A, over all columns.
        progress: As in `trace`.
        generator: Source of all randomness; None means a fresh one from seed 0.

    Returns:
        The estimate, in squared units of A's entries; those of the blocks in `parts`. Otherwise as `trace`.

    Raises:
        ValueError: If an argument is out of range, or a product is not finite.

    Source:
        Hutchinson (1989), Commun. Stat. Simul. Comput. 18(3), applied to A².
    """
    check_arguments(A=A, draws=draws, tol=tol, atol=atol)
    generator = source_of(generator, A.device)
    p = A.shape[0]
    goal = Goal.of(tol, atol, draws)
    draws = goal.draws
    named = check_blocks(blocks, p)
    regions = Regions(p, list(named.values()))
    if goal.open and draws >= p:
        return finish(_all_squares(A, regions), Goal(0.0, 0.0, p), named, work="frobenius_squared", progress=progress)
    check_draws(draws)
    samples = probed(A, goal, regions, lambda _, image: image.double().square(), generator)
    return finish(samples, goal, named, work="frobenius_squared", progress=progress)


def _relative(mean: Tensor, squares: Tensor, count: int) -> float:
    size = float(mean @ mean)
    return math.sqrt(float(squares.sum()) / (count - 1) / count / size) if count > 1 and size > 0 else math.nan


def _all_squares(A: SymmetricOperator, regions: Regions) -> Iterator[Sample]:
    total: Array = np.zeros(len(regions))
    for _, image in unit_images(A):
        total += regions.sums(lambda t: t.double().square(), image).sum(1)
    yield Sample(total[:, None], A.shape[0], "exact", exact=True)
