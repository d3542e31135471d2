"""Hutchinson's estimator on what is left of a matrix beside a Krylov space that grows while it pays."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.memory import free_bytes
from landscape.operators.protocol import SymmetricOperator
from landscape.spectral.draws import BLOCK, images, require_vectors, sign_images
from landscape.spectral.krylov import working_dtype
from landscape.spectral.probes import FEWEST, Goal, Sample, looked
from landscape.spectral.regions import Array, Region, Regions, small
from landscape.spectral.subspace import Subspace

SHARE = 0.06  # of the products that the rest would take: what may go into columns that turn out not to pay
OPEN_SHARE = 0.2  # the same where all draws are spent anyway, so that it costs accuracy alone
WARM = 3  # columns before a start is judged: a random vector itself explains little, its images much
FADE = 4.0  # how fast a chain's promise falls while its columns do not pay: their gains go up and down
MEMORY_SHARE = 0.25  # of what is free, for the columns, and as much for the probes
CLOSED = 0.75  # what is left of a product below ‖A‖ ε^0.75 is rounding


@dataclass(frozen=True)
class _Outlook:
    """What is left to do, as the terms stand.

    Attributes:
        reach: The variance that the estimate is to reach: the tolerance's, or what the budget allows.
        missing: Probes still missing for it.
        price: By how much a column must lower the variance of a term to save one probe.
    """

    reach: float
    missing: float
    price: float


@dataclass(frozen=True)
class _Lead:
    """A row that can be multiplied next: the end of a chain of Lanczos steps.

    Attributes:
        promise: What its column may take off the variance of a term, to judge by the chain so far.
        depth: Columns of the chain.
        debt: Those that did not pay, less what the others paid beyond their price, up to a few.
        best: The most that one of them took off.
    """

    promise: float = float("inf")
    depth: int = 0
    debt: float = 0.0
    best: float = 0.0

    def after(self, gain: float, price: float) -> "_Lead":
        """The next row of the chain."""
        fading = 0.0 if self.promise == float("inf") else self.promise / FADE
        promise = float("inf") if self.depth + 1 < WARM else max(gain, fading)
        debt = max(-WARM, self.debt + 1 - (gain / price if gain >= price else 0.0))
        return _Lead(promise, self.depth + 1, debt, max(self.best, gain))


def deflated(
    A: SymmetricOperator, goal: Goal, regions: Regions, generator: Generator, known: Subspace | None = None
) -> Iterator[Sample]:
    """Terms of tr(A) = tr(QᵀAQ) + E[uᵀAu], u = (I - QQᵀ)z, with as many columns in Q as pay for themselves.

    Every product is either a probe A z with a Rademacher vector z, or a Lanczos step A q with a new column q of Q. A
    term has the variance 2 Σ_{i≠j} b_ij² with B = (I - QQᵀ)A(I - QQᵀ); by how much a column lowered it is known, but
    for the diagonal of A, which the probes give. A column pays where that exceeds the variance to be reached, because
    it then saves more than one probe. The terms of all probes follow each new column at no product.

    The chain of steps that promises most goes on while it pays; else a new one is tried from a random vector (which
    also finds multiple eigenvalues), as long as the columns that did not pay are few beside the products that are
    still to come; else a probe is drawn. A subspace that is known from before is in Q from the start.

    Source:
        Our definition, after Chen and Hallman (2023), SIAM J. Matrix Anal. Appl. 44(3).
    """
    instead = "take fewer of the model's parameters"
    require_vectors(A, 2 + FEWEST / working_dtype(A.dtype).itemsize, 2, what="A trace", instead=instead)
    pool = _Pool(A, goal, regions, generator)
    if known is not None:
        pool.take(known)
    pool.probe(min(FEWEST, max(2, goal.draws // 3) if goal.open else goal.draws))
    yield pool.sample()
    share = OPEN_SHARE if goal.open else SHARE
    while pool.products < goal.draws:
        now = pool.outlook()
        all_of_it = pool.completes(now)
        best = max(pool.leads, key=lambda row: pool.leads[row].promise, default=None)
        if best is not None and pool.room(1) and (all_of_it or pool.leads[best].promise > now.price):
            pool.step(best, now.price)
        elif pool.room(WARM + 1) and (
            all_of_it
            or (pool.doubt and not goal.open)
            or (pool.debt + WARM < share * (now.missing + pool.products) and now.missing > WARM)
        ):
            pool.begin()
            continue
        else:
            want = BLOCK if goal.open else max(1, int(1 + now.missing / 2))
            pool.probe(min(want, BLOCK, goal.draws - pool.products))
        yield pool.sample()


class _Pool:
    """Orthonormal rows R, some of them multiplied by A (the columns of Q), and probes, known by inner products alone.

    A Q = Rᵀ H, because what a product adds to the span becomes a row. With g = R z and a probe's zᵀA z everything
    follows: zᵀQQᵀA z = g_Qᵀ Hᵀg, and QᵀAQ = H_Q. Neither images nor products are stored.
    """

    def __init__(self, A: SymmetricOperator, goal: Goal, regions: Regions, generator: Generator) -> None:
        self.A, self.goal, self.generator = A, goal, generator
        self.sums = regions.sums
        self.regions: list[Region] = [slice(None), *regions.blocks]
        self.p = A.shape[0]
        share = MEMORY_SHARE * free_bytes(A.device)
        self.capacity = min(self.p, goal.draws, int(share / (1.5 * self.p * A.dtype.itemsize)))
        self.probe_capacity = share / self.p  # one byte a sign
        self.rows = torch.empty(min(self.capacity, BLOCK), self.p, dtype=working_dtype(A.dtype), device=A.device)
        self.signs: list[Tensor] = []
        self.straight: Array = np.zeros((len(self.regions), 0))  # zᵀA z, over the entries of each region
        self.inner: Array = np.zeros((len(self.regions), BLOCK, BLOCK))  # g, likewise: regions × rows × probes
        self.gram: Array = np.zeros((len(self.regions), BLOCK, BLOCK))  # R Rᵀ, likewise
        self.H: Array = np.zeros((0, 0))
        self.done: list[int] = []  # rows that were multiplied, in the order of H's columns
        self.held = self.probes = self.products = 0
        self.known: Sample | None = None
        self.leads: dict[int, _Lead] = {}
        self.chains, self.doubt = 0, False
        self.ended = 0.0  # debt of the chains that closed
        self.scale = self.level = self.newest = 0.0
        self.diagonal = torch.zeros(
            self.p, dtype=working_dtype(A.dtype), device=A.device
        )  # sum of z * A z over the probes
        self.removed = torch.zeros_like(self.diagonal)  # the diagonal of A less that of what is left
        self.frozen = False  # too many probes to let them follow

    @property
    def debt(self) -> float:
        """Columns that did not pay."""
        return self.ended + sum(max(0.0, lead.debt) for lead in self.leads.values())

    def room(self, columns: int) -> bool:
        """Whether so many further rows fit."""
        free = self.capacity - self.held if self.capacity < self.p else self.p - len(self.done)
        return not self.frozen and free >= min(columns, self.p - len(self.done)) > 0

    def completes(self, outlook: _Outlook) -> bool:
        """Whether all columns, and so the exact trace, cost no more than the probes that are missing."""
        rest = self.p - len(self.done)
        return self.capacity == self.p and rest <= min(outlook.missing, self.goal.draws - self.products)

    def take(self, known: Subspace) -> None:
        """Begin with rows that others have multiplied."""
        for row in known.rows.to(self.rows):
            self._append(row)
        k = known.products
        self.H, self.done = known.images, list(range(k))
        self.scale = float(np.linalg.norm(known.images, axis=0).max(initial=0.0))
        self.leads = {row: _Lead() for row in range(k, self.held)}
        self.chains = 1
        H, rows = (torch.from_numpy(known.images).to(self.rows), self.rows[: self.held])
        T = (H[:k] + H[:k].T) / 2
        # the diagonal of QQᵀA + A QQᵀ - QQᵀA QQᵀ
        self.removed = (rows[:k] * (2 * (H.T @ rows) - T @ rows[:k])).sum(0)

    def probe(self, count: int) -> None:
        """Multiply some Rademacher vectors."""
        for block, image in sign_images(self.A, count, self.generator):
            self._meet(block, image)
            del block, image

    def _meet(self, block: Tensor, image: Tensor) -> None:
        """Add probes, the columns of a block, with their images."""
        straight = np.concatenate([self.straight, self.sums(torch.mul, block, image)], axis=1)
        n = self.probes + block.shape[1]
        if n > self.inner.shape[2]:
            self.inner = np.concatenate([self.inner, np.zeros_like(self.inner)], axis=2)
        for b, region in enumerate(self.regions):
            self.inner[b, : self.held, self.probes : n] = small(self.rows[: self.held, region] @ block[region])
        self.frozen = self.frozen or n > self.probe_capacity
        self.signs = [] if self.frozen else [*self.signs, block.to(torch.int8)]
        self.diagonal += (block * image).sum(1)
        self.straight, self.probes = straight, n
        self.products += block.shape[1]

    def begin(self) -> None:
        """Start a chain from a random vector in the complement of the rows."""
        start = torch.randn(
            self.p, generator=self.generator, dtype=working_dtype(self.A.dtype), device=self.generator.device
        )
        vector = start.to(self.rows.device)
        for _ in range(2):  # twice: a small complement cancels most of a random vector
            vector, _ = self._orthogonal(vector / torch.linalg.vector_norm(vector))
        self._append(vector / torch.linalg.vector_norm(vector))
        self.leads = {**self.leads, self.held - 1: _Lead()}
        self.chains += 1

    def step(self, at: int, price: float) -> None:
        """Multiply a row and make it a column of Q; what is left of its image is the next row of the chain."""
        q = self.rows[at]
        image = images(self.A, q)
        scale = max(self.scale, float(torch.linalg.vector_norm(image)))
        rest, along = self._orthogonal(image)
        beta = float(torch.linalg.vector_norm(rest))
        column = small(along)
        others = [i for i in range(self.held) if i not in self.done]
        beside = rest + self.rows[others].T @ along[others]  # (I - QQᵀ) A q
        own = float(column[at])
        shrunk = own * q.square() - 2 * q * beside  # of the diagonal of what is left
        gain = 2 * (self._norm_gain(beside, own) + self._diagonal_gain(shrunk, q))
        lead = self.leads[at].after(gain, price)
        grows = beta > scale * torch.finfo(self.A.dtype).eps ** CLOSED and self.held < self.p
        H = np.zeros((self.held + grows, len(self.done) + 1))
        H[: self.H.shape[0], :-1] = self.H
        H[: self.held, -1] = column
        leads = {row: other for row, other in self.leads.items() if row != at}
        if grows:
            H[-1, -1] = beta
            self._append(rest / beta)
            leads[self.held - 1] = lead
        else:
            self.ended += max(0.0, lead.debt)
        self.removed -= shrunk
        self.newest = gain if grows else 0.0
        if self.chains > 1 and (lead.depth >= WARM or not grows):
            # a new start that found much where the first had ended: the next may, and ten probes can miss it
            self.doubt = lead.best > self.probes * price
        self.H, self.done, self.scale, self.leads = H, [*self.done, at], scale, leads
        self.products += 1

    def _norm_gain(self, beside: Tensor, own: float) -> float:
        """How much a column takes off ‖B - c(I - QQᵀ)‖²_F: that of c is out of the terms already."""
        return 2 * (float(beside.double().square().sum()) - own**2) + (own - self.level) ** 2

    def _diagonal_gain(self, shrunk: Tensor, q: Tensor) -> float:
        """How much it adds to the sum of squares of that matrix's diagonal."""
        diagonal = self.diagonal / self.probes - self.removed - self.level
        change = shrunk + self.level * q.square()
        return float(((2 * diagonal + change) * change).double().sum())

    def outlook(self) -> _Outlook:
        """What is left to do."""
        sample = self.sample()
        value, variance = sample.value, float(np.var(sample.terms[0], ddof=1))
        left = self.goal.draws - self.products
        reach = max(self.goal.target(value) ** 2, variance / (self.probes + left), 1e-300)
        inside = float(np.trace(self.H[self.done]))
        self.level = (value - inside) / max(1, self.p - len(self.done))
        return _Outlook(reach, variance / reach - self.probes, reach)

    def sample(self) -> Sample:
        """The terms as they stand; those of the regions are computed when they are asked for."""
        if self.known is not None and self.known.products == self.products:
            return self.known
        n, done, H = self.probes, list(self.done), self.H
        terms, _ = self._whole(n, done, H)
        variance = float(np.var(terms, ddof=1)) if n > 1 else 0.0
        # where the last column took off more than is seen to be left, the terms have missed what else may be there
        enough = max(variance, self.goal.target(float(terms.mean())) ** 2)
        settled = (self.newest <= enough and not self.doubt) or not self.room(WARM + 1)
        name = "lanczos-hutchinson" if done else "hutchinson"
        factor = looked(n) if done or not self.goal.open else 1.0
        parts = partial(self._parts, n, done, H)
        self.known = Sample(terms[None], self.products, name, factor, settled=settled, parts=parts)
        return self.known

    def _whole(self, n: int, done: list[int], H: Array) -> tuple[Array, float]:
        """Term tr(QᵀAQ) + uᵀAu for each probe z, with u = (I - QQᵀ)z, and less of the variance.

        Added is c(|Qᵀz|² - its mean), with c the mean eigenvalue of what is left: it takes out the part of the variance
        that comes from the length of u. Returned too.
        """
        rows = self.inner[0, : H.shape[0], :n]
        T, g = (H[done] + H[done].T) / 2, rows[done]
        left = self.straight[0, :n] - (g * (2 * (H.T @ rows) - T @ g)).sum(0)
        level = float(left.mean()) / max(1, self.p - len(done))
        terms: Array = float(np.trace(T)) + left + level * ((g**2).sum(0) - len(done))
        return terms, level

    def _parts(self, n: int, done: list[int], H: Array) -> Array:
        """The same for the whole and for each region B, with what is known and what is left cut to its diagonal block.

        tr_B(Q QᵀA + A QQᵀ - Q QᵀAQ Qᵀ) is known, and z_Bᵀ[(I - QQᵀ)A(I - QQᵀ)z]_B estimates the rest.
        """
        whole, level = self._whole(n, done, H)
        rows = self.inner[0, : H.shape[0], :n]
        T, g = (H[done] + H[done].T) / 2, rows[done]
        across = H.T @ rows - T @ g
        terms = [whole]
        for b in range(1, len(self.regions)):
            part, gram = self.inner[b, : H.shape[0], :n], self.gram[b, : H.shape[0], : H.shape[0]]
            inside = part[done]
            left = self.straight[b, :n] - (g * (H.T @ part)).sum(0) - (inside * across).sum(0)
            known = 2 * float((H * gram[:, done]).sum()) - float((T * gram[np.ix_(done, done)]).sum())
            terms.append(known + left + level * ((inside * g).sum(0) - float(np.diag(gram)[done].sum())))
        return np.stack(terms)

    def _append(self, row: Tensor) -> None:
        at = self.held
        if at == len(self.rows):
            more = torch.empty(min(2 * at, self.p), self.p, dtype=self.rows.dtype, device=self.rows.device)
            more[:at] = self.rows
            self.rows = more
        if at == self.inner.shape[1]:
            self.inner = np.concatenate([self.inner, np.zeros_like(self.inner)], axis=1)
            wider = np.zeros((len(self.regions), 2 * at, 2 * at))
            wider[:, :at, :at] = self.gram
            self.gram = wider
        self.rows[at] = row
        for b, region in enumerate(self.regions):
            piece = row[region]
            first = 0
            for block in self.signs:
                self.inner[b, at, first : first + block.shape[1]] = small(piece @ block[region].to(piece.dtype))
                first += block.shape[1]
            self.gram[b, at, : at + 1] = self.gram[b, : at + 1, at] = small(self.rows[: at + 1, region] @ piece)
        self.held = at + 1

    def _orthogonal(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Take out of w its part along the rows, twice (once is not enough in floating point)."""
        rows = self.rows[: self.held]
        first = rows @ w
        w = torch.addmv(w, rows.T, first, alpha=-1)
        second = rows @ w
        return torch.addmv(w, rows.T, second, alpha=-1), first + second
