"""Trace estimators that take out a low-rank part first: Hutch++, XTrace and XNysTrace."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.memory import require
from landscape.operators.protocol import SymmetricOperator
from landscape.spectral.krylov import working_dtype
from landscape.spectral.probes import Array, Goal, Region, Sample, images, looked, on_sphere, signs, small, sums

XTRACE_STDERR = 1.5  # leave-one-out terms are dependent: the plain standard error is 5 to 30 % too small
XNYSTRACE_STDERR = 4.0  # here 15 to 75 %, worst where the error is negligible already
HUTCH_STDERR = 1.15  # few terms, and skewed ones where the basis has not caught all that stands out
STAGE = 10  # vectors of the first stage; their number then grows by half (XTrace) or doubles
LIFT = 10.0  # tries at a shift that makes a matrix with rounding positive: 1, 10 and 100 times the machine epsilon


def hutch_plus_plus(A: SymmetricOperator, goal: Goal, regions: list[Region], generator: Generator) -> Iterator[Sample]:
    """Terms tr(QᵀAQ) + uᵀAu, u = (I - QQᵀ)z, with Q a basis of the images of other random vectors."""
    _require(A, 4 * (goal.draws // 3), "Hutch++")
    everywhere: list[Region] = [slice(None), *regions]
    probes, probed, Q, Z = (torch.zeros(A.shape[0], 0, dtype=working_dtype(A.dtype), device=A.device) for _ in range(4))
    spent = 0
    for new in _stages(goal, 3):
        fresh, _, _ = _join(Q, images(A, signs(A, new, generator)))
        Q, Z = torch.cat([Q, fresh], 1), torch.cat([Z, images(A, fresh)], 1)
        more = new if goal.open is False else goal.draws - 2 * new  # all that remains, where there is one stage
        block = signs(A, more, generator)
        probes, probed = torch.cat([probes, block], 1), torch.cat([probed, images(A, block)], 1)
        spent += 2 * new + more
        W = Q.T @ probes
        left = probed - Z @ W
        left = left - Q @ (Q.T @ left)
        terms = sums(probes * left, everywhere) + _inside(Q, Z, everywhere)[:, None]
        yield Sample(terms, spent, "hutch++", HUTCH_STDERR * _looked(goal, probes))


def xtrace(A: SymmetricOperator, goal: Goal, regions: list[Region], generator: Generator) -> Iterator[Sample]:
    """One term for each test vector ω_i on the sphere, from the basis of the other vectors' images.

    With A Ω = Q R and Z = A Q: the basis without ω_i spans what Q does but for s_i, the normalised i-th column of R⁻ᵀ:
        t_i = tr(N_i QᵀZ) + (p - k + 1) u_iᵀA u_i / ‖u_i‖²,   N_i = I - s_i s_iᵀ,   u_i = ω_i - Q N_i Qᵀω_i,
    where A u_i = Q r_i - Z N_i Qᵀω_i takes no product.
    """
    _require(A, 5 * (goal.draws // 2), "XTrace")
    p = A.shape[0]
    everywhere: list[Region] = [slice(None), *regions]
    omega, Q, Z = (torch.zeros(p, 0, dtype=working_dtype(A.dtype), device=A.device) for _ in range(3))
    R: Array = np.zeros((0, 0))
    before = False
    for new in _stages(goal, 2, growth=0.5):
        block = on_sphere(A, new, generator)
        fresh, above, corner = _join(Q, images(A, block))
        R = np.block([[R, above], [np.zeros((new, R.shape[1])), corner]])
        omega, Q, Z = torch.cat([omega, block], 1), torch.cat([Q, fresh], 1), torch.cat([Z, images(A, fresh)], 1)
        k = omega.shape[1]
        S = _excluded(R)
        W = small(Q.T @ omega)
        P = torch.from_numpy(W - S * (S * W).sum(0)).to(Q)  # N_i Qᵀω_i
        U = omega - Q @ P
        AU = Q @ torch.from_numpy(R).to(Q) - Z @ P
        scale = (p - k + 1) / small(U.square().sum(0, dtype=torch.float64))
        if regions:
            terms = _xtrace_parts(Q, Z, U, AU, S, scale, everywhere)
        else:
            T = small(Q.T @ Z)
            left = small((U * AU).sum(0, dtype=torch.float64))
            terms = (np.trace(T) - (S * (T @ S)).sum(0) + scale * left)[None]
        # where the number of vectors is just that of the outliers the terms agree on a wrong value: ask two stages
        sample = Sample(terms, 2 * k, "xtrace", XTRACE_STDERR * _looked(goal, omega), settled=before)
        before = sample.stderr <= goal.target(sample.value)
        yield sample


def xnystrace(A: SymmetricOperator, goal: Goal, regions: list[Region], generator: Generator) -> Iterator[Sample]:
    """One term for each test vector ω_i on the sphere, from Nyström's approximation by the other vectors.

    With Y = (A + ν)Ω, ΩᵀY = CᵀC and F = Y C⁻¹ the approximation is F Fᵀ, and w_i w_iᵀ less without ω_i, where
    w_i = F s_i with s_i the normalised i-th column of C⁻ᵀ. Then
        t_i = ‖F‖² - ‖w_i‖² + (p - k + 1) u_iᵀw_i (w_iᵀω_i) / ‖u_i‖² - ν p,
    with u_i the part of ω_i that is orthogonal to the other vectors.

    Raises:
        ValueError: If ΩᵀAΩ has an eigenvalue below zero beyond rounding.
    """
    _require(A, 5 * goal.draws, "XNysTrace")
    p = A.shape[0]
    everywhere: list[Region] = [slice(None), *regions]
    omega, image = (torch.zeros(p, 0, dtype=working_dtype(A.dtype), device=A.device) for _ in range(2))
    sizes = np.array([float(len(range(p)[r]) if isinstance(r, slice) else len(r)) for r in everywhere])
    for new in _stages(goal, 1):
        block = on_sphere(A, new, generator)
        omega, image = torch.cat([omega, block], 1), torch.cat([image, images(A, block)], 1)
        k = omega.shape[1]
        Y, C, shift = _shifted(omega, image, torch.finfo(A.dtype).eps)
        F = Y @ torch.from_numpy(np.linalg.inv(C)).to(Y)
        inverse = np.linalg.inv(C).T  # its columns are those of C⁻ᵀ
        lengths = np.linalg.norm(inverse, axis=0)
        w = F @ torch.from_numpy(inverse / lengths).to(F)
        apart = np.linalg.inv(small(omega.T @ omega))
        u = omega @ torch.from_numpy(apart / np.diag(apart)).to(omega)
        scale = (p - k + 1) * np.diag(apart) / lengths  # 1 / ‖u_i‖² is the i-th diagonal entry, w_iᵀω_i is 1 / length
        terms = sums(u * w, everywhere) * scale - sums(w * w, everywhere)
        terms = terms + sums((F * F).sum(1, keepdim=True), everywhere) - shift * sizes[:, None]
        yield Sample(terms, k, "xnystrace", XNYSTRACE_STDERR * _looked(goal, omega))


def _stages(goal: Goal, each: int, growth: float = 1.0) -> Iterator[int]:
    """How many new vectors a stage takes, at `each` products a vector: all at once, or ever more for a tolerance."""
    most, have = goal.draws // each, 0
    while have < most:
        new = most - have if goal.open else min(int(growth * have) if have else STAGE, most - have)
        yield new
        have += new


def _looked(goal: Goal, vectors: Tensor) -> float:
    return 1.0 if goal.open else looked(vectors.shape[1])


def _require(A: SymmetricOperator, vectors: int, name: str) -> None:
    require(
        vectors * A.shape[0] * A.dtype.itemsize,
        A.device,
        what=f"{name} with {vectors} vectors of {A.shape[0]} entries",
        instead="lower `draws`, or take method='auto' or 'hutchinson'",
    )


def _join(Q: Tensor, image: Tensor) -> tuple[Tensor, Array, Array]:
    """New orthonormal columns F with image = Q `above` + F `corner`."""
    first = Q.T @ image
    image = image - Q @ first
    second = Q.T @ image
    fresh, corner = torch.linalg.qr(image - Q @ second)
    third = Q.T @ fresh  # where the images add nothing, `fresh` is rounding and need not be orthogonal to Q
    fresh, turn = torch.linalg.qr(fresh - Q @ third)
    return fresh, small(first + second + third @ corner), small(turn @ corner)


def _inside(Q: Tensor, Z: Tensor, regions: list[Region]) -> Array:
    """tr_B(Q QᵀA + A QQᵀ - Q QᵀAQ Qᵀ) for each region B, with Z = A Q."""
    T = Q.T @ Z
    return sums((2 * Q * Z - Q * (Q @ T)).sum(1, keepdim=True), regions)[:, 0]


def _excluded(R: Array) -> Array:
    """Columns s_i: the direction that leaves the span of the other columns of R, for each column."""
    top = float(np.abs(np.diag(R)).max()) or 1.0
    weak = np.abs(np.diag(R)) < np.finfo(np.float64).eps * top
    safe = R + np.diag(np.where(weak, np.finfo(np.float64).eps * top, 0.0))  # A of rank < k: any s_i will do there
    S = np.linalg.solve(safe.T, np.eye(len(R)))
    unit: Array = S / np.linalg.norm(S, axis=0)
    return unit


def _xtrace_parts(Q: Tensor, Z: Tensor, U: Tensor, AU: Tensor, S: Array, scale: Array, regions: list[Region]) -> Array:
    """XTrace's terms for the diagonal block of each region B, with M_i = Q N_i Qᵀ.

    tr_B(M_i A + A M_i - M_i A M_i) plus the part over B of u_iᵀ(I - M_i)A u_i, scaled as in the whole.
    """
    T = small(Q.T @ Z)
    T = (T + T.T) / 2
    coefficients = small(Q.T @ AU)
    kept = torch.from_numpy(coefficients - S * (S * coefficients).sum(0)).to(Q)
    left = sums(U * (AU - Q @ kept), regions) * scale
    known = []
    TS = T @ S
    curvature = (S * TS).sum(0)
    for region in regions:
        cross, gram = small(Q[region].T @ Z[region]), small(Q[region].T @ Q[region])
        linear = np.trace(cross) - (S * (cross @ S)).sum(0)
        square = (T * gram).sum() - 2 * (TS * (gram @ S)).sum(0) + curvature * (S * (gram @ S)).sum(0)
        known.append(2 * linear - square)
    terms: Array = left + np.stack(known)
    return terms


def _shifted(omega: Tensor, image: Tensor, eps: float) -> tuple[Tensor, Array, float]:
    """Y = (A + ν)Ω, the Cholesky factor C of ΩᵀY = CᵀC, and ν: as small as rounding allows."""
    size = float(torch.linalg.vector_norm(image)) / image.shape[0] ** 0.5
    for power in range(3):
        shift = eps * LIFT**power * size or eps
        Y = image + shift * omega
        H = small(omega.T @ Y)
        try:
            return Y, np.linalg.cholesky((H + H.T) / 2).T, shift
        except np.linalg.LinAlgError:
            continue
    lowest = float(np.linalg.eigvalsh((H + H.T) / 2)[0]) / image.shape[0]
    raise ValueError(
        f"`A` must be positive semidefinite for method='xnystrace', but it has a direction of curvature "
        f"{lowest:.3g} or less: take method='auto' or 'xtrace'."
    )
