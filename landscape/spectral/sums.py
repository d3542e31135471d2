"""Sums over the eigenvalues of a symmetric operator: log-determinant and effective dimension."""

import math

import torch
from torch import Generator

from landscape.checks.arguments import check_arguments
from landscape.estimate import Estimate
from landscape.operators.protocol import SymmetricOperator
from landscape.precision import in_own_precision
from landscape.progress import Progress
from landscape.spectral.density import spectral_density


@in_own_precision
def log_determinant(
    A: SymmetricOperator,
    shift: float,
    *,
    runs: int = 10,
    steps: int = 80,
    progress: Progress = False,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate log det(A + shift · I) = Σ_i log(λ_i + shift).

    Args:
        A: Symmetric operator of shape (p, p).
        shift: Added to every eigenvalue; it must make all of them positive, so it belongs to the result: report it.
        runs: As in `spectral_density`.
        steps: As in `spectral_density`.
        progress: As in `spectral_density`.
        generator: Source of the start vectors; None means a fresh one from seed 0.

    Returns:
        The estimate, exact for p <= 256. Its standard error is that of the start vectors; the error of the quadrature
        is small where steps² is above the condition number of A + shift · I.

    Raises:
        ValueError: If `shift` is not finite, or leaves an eigenvalue at or below zero. For p > 256 it is the nodes of
            the quadrature that are looked at: they lie inside the spectrum, and their ends near its ends, so an
            eigenvalue slightly below the lowest node is not seen. `top_eigenpairs` with which="smallest" is the test.

    Source:
        Ubaru, Chen and Saad (2017), SIAM J. Matrix Anal. Appl. 38(4).
    """
    check_arguments(A=A, shift=shift)
    if not math.isfinite(shift):
        raise ValueError(f"`shift` must be a finite number, got {shift!r}.")
    found = spectral_density(A, runs=runs, steps=steps, progress=progress, generator=generator)
    lowest = float(found.nodes[0])
    if not lowest + shift > 0:
        seen = f"an eigenvalue {lowest:.6g}" if found.exact else f"an eigenvalue of {lowest:.6g} or below"
        raise ValueError(f"`shift` must exceed {-lowest:.6g}, because A has {seen}; got {shift!r}.")
    return found.total(lambda t: torch.log(t + shift))


@in_own_precision
def effective_dimension(
    A: SymmetricOperator,
    z: float,
    *,
    runs: int = 10,
    steps: int = 80,
    progress: Progress = False,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate the effective dimension Σ_i λ_i / (λ_i + z), the number of directions that data determine.

    Negative eigenvalues are set to zero; meant for positive semidefinite A, such as `GaussNewton`.

    Args:
        A: Symmetric operator of shape (p, p).
        z: Regularisation z > 0, in units of A's entries: for instance 1/n, or the prior precision over n.
        runs: As in `spectral_density`.
        steps: As in `spectral_density`.
        progress: As in `spectral_density`.
        generator: Source of the start vectors; None means a fresh one from seed 0.

    Returns:
        The estimate, between 0 and the rank; exact for p <= 256. For several z at the cost of one, take the `total`
        of one `spectral_density`.

    Raises:
        ValueError: If `z` is not positive.

    Source:
        MacKay (1992), Neural Comput. 4(3).
    """
    check_arguments(A=A, z=z)
    if not (math.isfinite(z) and z > 0):
        raise ValueError(f"`z` must be a finite regularisation > 0, got {z!r}.")
    found = spectral_density(A, runs=runs, steps=steps, progress=progress, generator=generator)
    return found.total(lambda t: t.clamp_min(0) / (t.clamp_min(0) + z))
