"""Trace, diagonal and Frobenius norm of a symmetric operator from few products, with standard errors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.estimate import Estimate
from landscape.operators.protocol import SymmetricOperator

Method = Literal["auto", "hutchinson", "xtrace", "exact"]
Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 16  # vectors multiplied at once
FEWEST = 10  # draws before a tolerance may stop Hutchinson's estimator
XTRACE_BYTES = 512 * 2**20  # what `method="auto"` lets XTrace store
XTRACE_STDERR = 1.5  # its leave-one-out terms are dependent: the plain standard error is 5 to 30 % too small


@dataclass(frozen=True, eq=False)
class Diagonal:
    """An estimate of a diagonal.

    Attributes:
        value: The estimate, of shape (p,).
        stderr: Standard errors, of shape (p,); zeros for exact values.
        draws: Number of random vectors.
        products: Operator products spent.
    """

    value: Float[Tensor, " p"]
    stderr: Float[Tensor, " p"]
    draws: int
    products: int


def trace(
    A: SymmetricOperator,
    *,
    method: Method = "auto",
    draws: int = 64,
    tol: float | None = None,
    generator: Generator,
) -> Estimate:
    """Estimate tr(A) from products with random vectors.

    "hutchinson": mean of zᵀAz over Rademacher vectors z; unbiased, variance 2 (‖A‖²_F - Σ_i a_ii²) / draws.
    "xtrace": draws/2 random vectors and as many products with an orthonormal basis of their images; the trace on that
    basis plus a leave-one-out estimate of the rest. "exact": p products with unit vectors. "auto": exact if draws >= p;
    else XTrace, if draws >= 8 and its three arrays of p × draws/2 entries fit in 512 MiB; else Hutchinson. The reason:
    on a spectrum with outliers, as Hessians have, XTrace is far ahead (40 times at i⁻², 30 draws), and on a flat one
    it loses a factor of about 1.4.

    Args:
        A: Symmetric operator of shape (p, p).
        method: See above. XTrace with draws >= p is replaced by the exact sum, which costs no more.
        draws: Largest number of products.
        tol: Stop earlier, once the standard error is at most tol · |value| (Hutchinson: after 10 draws); None spends
            all draws. If it is not reached, `converged` is False.
        generator: Source of all randomness.

    Returns:
        The estimate, in units of A's entries; XTrace's standard error is made conservative by a factor of 1.5.

    Raises:
        ValueError: If `method` is unknown, `draws` too small for it or `tol` not positive.

    Source:
        Hutchinson (1989), Commun. Stat. Simul. Comput. 18(3); its variance: Avron and Toledo (2011), J. ACM 58(2);
        Epperly, Tropp and Webber (2024), SIAM J. Matrix Anal. Appl. 45(1), for XTrace, with vectors on the sphere.
    """
    p = A.shape[0]
    if method not in ("auto", "hutchinson", "xtrace", "exact"):
        raise ValueError(f"`method` must be 'auto', 'hutchinson', 'xtrace' or 'exact', got {method!r}.")
    if tol is not None and not tol > 0:
        raise ValueError(f"`tol` must be a relative standard error > 0, or None, got {tol!r}.")
    if method == "exact" or (draws >= p and method in ("auto", "xtrace")):
        value = math.fsum(float((z * a).sum()) for z, a in _unit_images(A))
        return Estimate(value, 0.0, p, p, True, "exact")
    if method == "auto":
        fits = 3 * p * (draws // 2) * A.dtype.itemsize <= XTRACE_BYTES
        method = "xtrace" if draws >= 8 and fits else "hutchinson"
    if method == "xtrace":
        return _xtrace(A, draws, tol, generator)
    _check_draws(draws)
    values: list[float] = []
    for z, a in _sign_images(A, draws, generator):
        values += (z * a).sum(0).tolist()
        estimate = _mean(values, len(values), "hutchinson")
        if tol is not None and len(values) >= FEWEST and estimate.stderr <= tol * abs(estimate.value):
            return estimate
    return _mean(values, len(values), "hutchinson", converged=tol is None)


def diagonal(A: SymmetricOperator, *, draws: int = 64, generator: Generator) -> Diagonal:
    """Estimate diag(A) as the mean of z * (A z) over Rademacher vectors z; exact, by unit vectors, if draws >= p.

    Args:
        A: Symmetric operator of shape (p, p).
        draws: Products with A; at least 2.
        generator: Source of all randomness.

    Returns:
        The estimate; entry i has variance Σ_{j≠i} a_ij² / draws.

    Raises:
        ValueError: If `draws` is below 2, and below p.

    Source:
        Bekas, Kokiopoulou and Saad (2007), Appl. Numer. Math. 57(11-12).
    """
    p = A.shape[0]
    if draws >= p:
        value = torch.cat([(z * a).sum(0) for z, a in _unit_images(A)])
        return Diagonal(value, torch.zeros_like(value), p, p)
    _check_draws(draws)
    mean = torch.zeros(p, dtype=torch.float64, device=A.device)
    squares = torch.zeros_like(mean)
    count = 0
    for z, a in _sign_images(A, draws, generator):
        for term in (z * a).T.double():  # Welford's update, one draw at a time
            count += 1
            step = term - mean
            mean += step / count
            squares += step * (term - mean)
    stderr = (squares / (count - 1) / count).sqrt()
    return Diagonal(mean.to(A.dtype), stderr.to(A.dtype), count, count)


def frobenius_squared(A: SymmetricOperator, *, draws: int = 64, generator: Generator) -> Estimate:
    """Estimate ‖A‖²_F = tr(A²) as the mean of ‖A z‖² over Rademacher vectors z; exact if draws >= p.

    Unbiased for the square; its root would be biased low.

    Args:
        A: Symmetric operator of shape (p, p).
        draws: Products with A; at least 2.
        generator: Source of all randomness.

    Returns:
        The estimate, in squared units of A's entries.

    Raises:
        ValueError: If `draws` is below 2, and below p.

    Source:
        Hutchinson (1989), applied to A².
    """
    p = A.shape[0]
    if draws >= p:
        return Estimate(
            math.fsum(float(a.double().square().sum()) for _, a in _unit_images(A)), 0.0, p, p, True, "exact"
        )
    _check_draws(draws)
    values: list[float] = []
    for _, a in _sign_images(A, draws, generator):
        values += a.double().square().sum(0).tolist()
    return _mean(values, len(values), "hutchinson")


def _check_draws(draws: int) -> None:
    if draws < 2:
        raise ValueError(f"`draws` must be at least 2, for a standard error, got {draws}.")


def _unit_images(A: SymmetricOperator) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (E, A E), where the E are blocks of the identity's columns."""
    p = A.shape[0]
    for start in range(0, p, BLOCK):
        block = torch.zeros(p, min(BLOCK, p - start), dtype=A.dtype, device=A.device)
        block[start : start + block.shape[1]].fill_diagonal_(1)
        yield block, A @ block


def _sign_images(A: SymmetricOperator, draws: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (Z, A Z), where the Z are blocks of Rademacher columns; the draws do not depend on the blocks."""
    p = A.shape[0]
    for start in range(0, draws, BLOCK):
        signs = torch.randint(0, 2, (min(BLOCK, draws - start), p), generator=generator, device=generator.device)
        block = (2 * signs - 1).to(device=A.device, dtype=A.dtype).T.contiguous()
        yield block, A @ block


def _mean(values: list[float], products: int, method: str, converged: bool = True, factor: float = 1.0) -> Estimate:
    n = len(values)
    stderr = factor * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(math.fsum(values) / n, stderr, n, products, converged, method)


def _xtrace(A: SymmetricOperator, draws: int, tol: float | None, generator: Generator) -> Estimate:
    """XTrace with at most `draws` products; with a tolerance, the number of vectors doubles from 8 to draws/2."""
    if draws < 4:
        raise ValueError(
            f"`draws` must be at least 4 for method='xtrace' (two vectors, two products each), got {draws}."
        )
    p, most = A.shape[0], draws // 2
    omega, Q, Z = (torch.zeros(p, 0, dtype=A.dtype, device=A.device) for _ in range(3))
    R: Array = np.zeros((0, 0))
    while True:
        have = omega.shape[1]
        new = most - have if tol is None else min(max(8, have), most - have)
        block = torch.randn(new, p, generator=generator, dtype=A.dtype, device=generator.device)
        block = (block / torch.linalg.vector_norm(block, dim=1, keepdim=True) * math.sqrt(p)).T.to(A.device)
        image = A @ block
        first = Q.T @ image
        image = image - Q @ first
        second = Q.T @ image
        fresh, corner = torch.linalg.qr(image - Q @ second)
        third = Q.T @ fresh  # where the images add nothing, `fresh` is rounding and need not be orthogonal to Q
        fresh, turn = torch.linalg.qr(fresh - Q @ third)
        above = first + second + third @ corner
        R = np.block([[R, _small(above)], [np.zeros((new, have)), _small(turn @ corner)]])
        omega, Q, Z = torch.cat([omega, block], 1), torch.cat([Q, fresh], 1), torch.cat([Z, A @ fresh], 1)
        k = have + new
        estimate = _mean(_leave_one_out(omega, Q, Z, R), 2 * k, "xtrace", factor=XTRACE_STDERR)
        reached = tol is None or estimate.stderr <= tol * abs(estimate.value)
        if reached or k == most:
            return Estimate(estimate.value, estimate.stderr, k, 2 * k, reached, "xtrace")


def _small(t: Tensor) -> Array:
    return np.asarray(t.double().cpu().numpy())


def _leave_one_out(omega: Tensor, Q: Tensor, Z: Tensor, R: Array) -> list[float]:
    """One trace estimate for each test vector ω_i, from the basis of the other vectors' images.

    With A Ω = Q R and Z = A Q: the basis without ω_i is Q (I - s_i s_iᵀ), s_i the normalised i-th column of R⁻ᵀ, and
        t_i = tr(QᵀZ) - s_iᵀQᵀZ s_i + (p - k + 1) u_iᵀA u_i / ‖u_i‖²,   u_i = ω_i - Q (I - s_i s_iᵀ) Qᵀω_i,
    where A u_i = Q r_i - Z (I - s_i s_iᵀ) Qᵀω_i takes no product. Everything but Qᵀ[Ω Q Z] is k × k, in float64.
    """
    p, k = omega.shape
    top = float(np.abs(np.diag(R)).max()) or 1.0
    weak = np.abs(np.diag(R)) < np.finfo(np.float64).eps * top
    R_safe = R + np.diag(np.where(weak, np.finfo(np.float64).eps * top, 0.0))  # A of rank < k: any s_i will do there
    S = np.linalg.solve(R_safe.T, np.eye(k))
    S = S / np.linalg.norm(S, axis=0)
    T = _small(Q.T @ Z)
    W = _small(Q.T @ omega)
    P = W - S * (S * W).sum(0)  # (I - s_i s_iᵀ) Qᵀω_i
    small = torch.from_numpy(P).to(Q)
    U = omega - Q @ small
    AU = Q @ torch.from_numpy(R).to(Q) - Z @ small
    curvature = (U * AU).sum(0).double().cpu().numpy() / (U * U).sum(0).double().cpu().numpy()
    terms: Array = np.trace(T) - (S * (T @ S)).sum(0) + (p - k + 1) * curvature
    return [float(t) for t in terms]
