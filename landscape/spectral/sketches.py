"""Trace estimators that take out a low-rank part first: Hutch++, XTrace and XNysTrace.

Only the basis, or the images, are stored: products with it are used up as they come, random vectors are drawn again.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.operators.protocol import SymmetricOperator
from landscape.spectral.draws import Again, images, on_sphere, require_vectors, signs, widths
from landscape.spectral.krylov import working_dtype
from landscape.spectral.orthonormal import along, join, subtract
from landscape.spectral.probes import Goal, Sample, looked
from landscape.spectral.regions import Array, Regions, pieces, small

XTRACE_STDERR = 1.5  # leave-one-out terms are dependent: the plain standard error is 5 to 30 % too small
XNYSTRACE_STDERR = 4.0  # here 15 to 75 %, worst where the error is negligible already
HUTCH_STDERR = 1.15  # few terms, and skewed ones where the basis has not caught all that stands out
STAGE = 10  # vectors of the first stage; their number then grows by half (XTrace) or doubles
LIFT = 10.0  # tries at a shift that makes a matrix with rounding positive: 1, 10 and 100 times the machine epsilon


def hutch_plus_plus(A: SymmetricOperator, goal: Goal, regions: Regions, generator: Generator) -> Iterator[Sample]:
    """Terms tr(QᵀAQ) + zᵀ(I - QQᵀ)A u, u = (I - QQᵀ)z, with Q a basis of the images of other random vectors."""
    Q: list[Tensor] = []
    known: list[tuple[Tensor, Tensor]] = []  # with a tolerance, the probes z and A u so far
    T: Array = np.zeros((0, 0))
    inside: Array = np.zeros(len(regions))  # tr_B(QQᵀA + A QQᵀ) for each region B
    spent = 0
    for new in _stages(A, goal, 3, "Hutch++", stored=1.0 if goal.open else 2.25, worked=5, blocks=3):
        fresh = torch.empty(new, A.shape[0], dtype=working_dtype(A.dtype), device=A.device)
        for part in widths(A, new):
            fresh[part] = images(A, signs(A, part.stop - part.start, generator)).T
        join(Q, fresh)
        Q.append(fresh)
        columns = []
        for part in widths(A, new):
            q = fresh[part].T
            image = images(A, q)
            columns.append(small(along(Q, image)))
            inside += regions.sums(lambda q, a: (2 * q * a).sum(1, keepdim=True), q, image)[:, 0]
            for z, rest in known:
                rest.addmm_(image, q.T @ z.to(q), alpha=-1)
            del q, image
        T = _bordered(T, np.concatenate(columns, axis=1))
        more = goal.draws - 2 * new if goal.open else new  # all that remains, where there is one stage
        found = [] if goal.open else [_rest(Q, z, rest, regions) for z, rest in known]
        for part in widths(A, more):
            z = signs(A, part.stop - part.start, generator)
            rest = images(A, subtract(Q, z.clone()))
            found.append(_rest(Q, z, rest, regions))
            if not goal.open:
                known.append((z.to(torch.int8), rest))
            del z, rest
        spent += 2 * new + more
        terms = np.concatenate(found, axis=1)
        held = (inside - _projected(Q, T, regions))[:, None]
        yield Sample(held + terms, spent, "hutch++", HUTCH_STDERR * _looked(goal, terms.shape[1]))


def xtrace(A: SymmetricOperator, goal: Goal, regions: Regions, generator: Generator) -> Iterator[Sample]:
    """One term for each test vector ω_i on the sphere, from the basis of the other vectors' images.

    With A Ω = Q R and Z = A Q: the basis without ω_i spans what Q does but for s_i, the normalised i-th column of R⁻ᵀ:
        t_i = tr(N_i QᵀZ) + (p - k + 1) u_iᵀA u_i / ‖u_i‖²,   N_i = I - s_i s_iᵀ,   u_i = ω_i - Q N_i Qᵀω_i,
    where A u_i = Q r_i - Z N_i Qᵀω_i takes no product. All of it follows from inner products of Q, Z and Ω; for the
    whole, ZᵀΩ = R, so that Z is not stored.
    """
    p = A.shape[0]
    Q: list[Tensor] = []
    Z: list[Tensor] = []
    drawn: list[Again] = []
    R: Array = np.zeros((0, 0))
    T: Array = np.zeros((0, 0))
    before = False
    kept, worked = (2.0, 7) if regions.blocks else (1.0, 3)
    for new in _stages(A, goal, 2, "XTrace", stored=kept, worked=worked, blocks=1, growth=0.5):
        fresh, again = on_sphere(A, new, generator)
        for part in widths(A, new):
            fresh[part] = images(A, fresh[part].T).T
        above, corner = join(Q, fresh)
        R = np.block([[R, above], [np.zeros((new, R.shape[1])), corner]])
        Q, drawn = [*Q, fresh], [*drawn, again]
        if regions.blocks:
            Z.append(torch.empty_like(fresh))
        columns = []
        for part in widths(A, new):
            image = images(A, fresh[part].T)
            columns.append(small(along(Q, image)))
            if regions.blocks:
                Z[-1][part] = image.T
        T = _bordered(T, np.concatenate(columns, axis=1))
        terms = _leave_one_out(p, R, T, _moments(Q, Z, drawn, R, T, regions))
        k = len(R)
        # where the number of vectors is just that of the outliers the terms agree on a wrong value: ask two stages
        sample = Sample(terms, 2 * k, "xtrace", XTRACE_STDERR * _looked(goal, k), settled=before or k == p)
        before = sample.stderr <= goal.target(sample.value)
        yield sample


def xnystrace(A: SymmetricOperator, goal: Goal, regions: Regions, generator: Generator) -> Iterator[Sample]:
    """One term for each test vector ω_i on the sphere, from Nyström's approximation by the other vectors.

    With Y = (A + ν)Ω, ΩᵀY = CᵀC and F = Y C⁻¹ the approximation is F Fᵀ, and w_i w_iᵀ less without ω_i, where
    w_i = F s_i with s_i the normalised i-th column of C⁻ᵀ. Then
        t_i = ‖F‖² - ‖w_i‖² + (p - k + 1) u_iᵀw_i (w_iᵀω_i) / ‖u_i‖² - ν p,
    with u_i the part of ω_i that is orthogonal to the other vectors. Stored is A Ω alone.

    Raises:
        ValueError: If ΩᵀAΩ has an eigenvalue below zero beyond rounding.
    """
    image: list[Tensor] = []
    drawn: list[Again] = []
    H: Array = np.zeros((0, 0))  # ΩᵀAΩ
    G: Array = np.zeros((0, 0))  # ΩᵀΩ
    for new in _stages(A, goal, 1, "XNysTrace", stored=1.0, worked=9, blocks=1):
        rows, again = on_sphere(A, new, generator)
        G = _bordered(G, _gram(drawn, rows))
        columns = np.zeros((len(H) + new, new))
        columns[: len(H)] = small(along(image, rows.T))
        for part in widths(A, new):  # an image takes the place of its vector, once later ones have met it
            block = images(A, rows[part].T)
            columns[len(H) + part.start :, part] = small(rows[part.start :] @ block)
            rows[part] = block.T
        lower = np.tril(columns[len(H) :])
        columns[len(H) :] = lower + np.tril(lower, -1).T
        H = _bordered(H, columns)
        image, drawn = [*image, rows], [*drawn, again]
        terms = _nystrom(image, drawn, H, G, regions, torch.finfo(A.dtype).eps)
        yield Sample(terms, len(H), "xnystrace", XNYSTRACE_STDERR * _looked(goal, len(H)))


def _stages(
    A: SymmetricOperator,
    goal: Goal,
    each: int,
    name: str,
    *,
    stored: float,
    worked: int,
    blocks: int,
    growth: float = 1.0,
) -> Iterator[int]:
    """How many new vectors a stage takes, at `each` products a vector: all at once, or ever more for a tolerance.

    For each, so many vectors of length p are stored, and pieces of so many worked on; beside them are blocks of those
    multiplied at once. The first stage is refused if that does not fit, a later one left out.
    """
    p = A.shape[0]
    each_takes = stored + worked * next(pieces(p)).stop / p
    most, have = min(goal.draws // each, p), 0
    while have < most:
        new = most - have if goal.open else min(int(growth * have) if have else STAGE, most - have)
        try:
            require_vectors(
                A, each_takes * new, blocks, what=name, instead="lower `draws`, or take method='auto' or 'hutchinson'"
            )
        except MemoryError:
            if have:
                return
            raise
        yield new
        have += new


def _looked(goal: Goal, terms: int) -> float:
    return 1.0 if goal.open else looked(terms)


def _bordered(M: Array, columns: Array) -> Array:
    """A symmetric matrix with further columns, and the rows that follow from them."""
    k = len(M)
    return np.block([[M, columns[:k]], [columns[:k].T, columns[k:]]])


def _rest(Q: list[Tensor], z: Tensor, image: Tensor, regions: Regions) -> Array:
    """Σ z * (I - QQᵀ) image over each region."""
    inner = along(Q, image)

    def term(z: Tensor, image: Tensor, *columns: Tensor) -> Tensor:
        return z * subtract([q.T for q in columns], image.clone(), inner)

    return regions.sums(term, z, image, *(rows.T for rows in Q))


def _projected(Q: list[Tensor], T: Array, regions: Regions) -> Array:
    """tr_B(Q T Qᵀ) for each region B."""
    middle = torch.from_numpy(T).to(Q[0])

    def term(*columns: Tensor) -> Tensor:
        part = torch.cat([q.T for q in columns])
        return (part * (middle @ part)).sum(0).unsqueeze(1)

    return regions.sums(term, *(rows.T for rows in Q))[:, 0]


def _moments(Q: list[Tensor], Z: list[Tensor], drawn: list[Again], R: Array, T: Array, regions: Regions) -> Array:
    """QᵀQ, QᵀZ, QᵀΩ and ZᵀΩ over the entries of each region, the whole first: of shape (regions, 4, k, k)."""
    k = len(R)
    found = np.zeros((len(regions), 4, k, k))
    for (piece, parts), *omega in zip(regions.cut, *(again() for again in drawn), strict=True):
        q, o = torch.cat([rows[:, piece] for rows in Q]), torch.cat(omega)
        if not Z:
            found[0, 2] += small(q @ o.T)
            continue
        z = torch.cat([rows[:, piece] for rows in Z])
        for i, part in parts:
            a, b, c = q[:, part], z[:, part], o[:, part]
            found[i] += np.stack([small(x @ y.T) for x, y in ((a, a), (a, b), (a, c), (b, c))])
    if not Z:
        found[0, 0], found[0, 1], found[0, 3] = np.eye(k), T, R  # ZᵀΩ = QᵀAΩ
    return found


def _leave_one_out(p: int, R: Array, T: Array, moments: Array) -> Array:
    """XTrace's terms for the diagonal block of each region B, with M_i = Q N_i Qᵀ.

    tr_B(M_i A + A M_i - M_i A M_i) plus the part over B of u_iᵀ(I - M_i)A u_i, scaled as in the whole.
    """
    k, S = len(R), _excluded(R)
    W = moments[0, 2]
    P = W - S * (S * W).sum(0)  # N_i Qᵀω_i
    beside = R - T @ P  # QᵀA u_i
    c = R - beside + S * (S * beside).sum(0)
    scale = (p - k + 1) / (p - 2 * (W * P).sum(0) + (P**2).sum(0))
    TS = T @ S
    curvature = (S * TS).sum(0)
    terms = []
    for gram, cross, with_omega, image_omega in moments:
        left = (with_omega * c).sum(0) - (image_omega * P).sum(0) + (P * (cross @ P - gram @ c)).sum(0)
        linear = np.trace(cross) - (S * (cross @ S)).sum(0)
        square = (T * gram).sum() - 2 * (TS * (gram @ S)).sum(0) + curvature * (S * (gram @ S)).sum(0)
        terms.append(2 * linear - square + scale * left)
    return np.stack(terms)


def _excluded(R: Array) -> Array:
    """Columns s_i: the direction that leaves the span of the other columns of R, for each column."""
    top = float(np.abs(np.diag(R)).max()) or 1.0
    weak = np.abs(np.diag(R)) < np.finfo(np.float64).eps * top
    safe = R + np.diag(np.where(weak, np.finfo(np.float64).eps * top, 0.0))  # A of rank < k: any s_i will do there
    S = np.linalg.solve(safe.T, np.eye(len(R)))
    unit: Array = S / np.linalg.norm(S, axis=0)
    return unit


def _gram(drawn: list[Again], rows: Tensor) -> Array:
    """Inner products of vectors that are drawn again, and of rows, with these rows."""
    own = small(rows @ rows.T)
    if not drawn:
        return own
    across = [
        small(torch.cat(omega) @ rows[:, piece].T)
        for piece, *omega in zip(pieces(rows.shape[1]), *(again() for again in drawn), strict=True)
    ]
    return np.concatenate([np.sum(across, axis=0), own])


def _nystrom(image: list[Tensor], drawn: list[Again], H: Array, G: Array, regions: Regions, eps: float) -> Array:
    """XNysTrace's terms for each region."""
    p, k = regions.p, len(H)
    C, shift = _shifted(image, H, G, eps)
    inverse = np.linalg.inv(C).T  # its columns are those of C⁻ᵀ
    lengths = np.linalg.norm(inverse, axis=0)
    apart = np.linalg.inv(G)
    to_f, to_w, to_u = (
        torch.from_numpy(matrix).to(image[0]) for matrix in (inverse, (inverse / lengths).T, apart / np.diag(apart))
    )
    found = np.zeros((len(regions), 3, k))
    for (piece, parts), *omegas in zip(regions.cut, *(again() for again in drawn), strict=True):
        omega = torch.cat(omegas)
        F = to_f @ torch.cat([rows[:, piece] for rows in image]).add_(omega, alpha=shift)
        w, u = to_w @ F, to_u.T @ omega
        for i, part in parts:
            f, v = F[:, part], w[:, part]
            products = (a * b for a, b in ((u[:, part], v), (v, v), (f, f)))
            found[i] += np.stack([small(t.sum(1, dtype=torch.float64)) for t in products])
    scale = (p - k + 1) * np.diag(apart) / lengths  # 1 / ‖u_i‖² is the i-th diagonal entry, w_iᵀω_i is 1 / length
    terms: Array = found[:, 0] * scale - found[:, 1] + found[:, 2].sum(1)[:, None] - shift * regions.sizes[:, None]
    return terms


def _shifted(image: list[Tensor], H: Array, G: Array, eps: float) -> tuple[Array, float]:
    """The Cholesky factor C of Ωᵀ(A + ν)Ω = CᵀC, and ν: as small as rounding allows."""
    p = image[0].shape[1]
    size = np.linalg.norm([float(torch.linalg.vector_norm(rows)) for rows in image]) / p**0.5
    for power in range(3):
        shift = float(eps * LIFT**power * size) or eps
        try:
            return np.linalg.cholesky(H + shift * G).T, shift
        except np.linalg.LinAlgError:
            continue
    lowest = float(np.linalg.eigvalsh(H + shift * G)[0]) / p
    raise ValueError(
        f"`A` must be positive semidefinite for method='xnystrace', but it has a direction of curvature "
        f"{lowest:.3g} or less: take method='auto' or 'xtrace'."
    )
