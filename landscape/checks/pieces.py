"""Losses of batches, of parts of them and of several together, at outputs that are equal by no chance."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.examples import Batch, batch_size, can_be_cut, join, select, slice_batch
from landscape.params import Params
from landscape.precision import own_precision
from landscape.trees import map_tensors, tensors

if TYPE_CHECKING:
    from landscape.risk import EmpiricalRisk

TOLERANCE = {torch.float64: 1e-5, torch.float32: 5e-4}  # relative; looser than rounding by far
HALF = 5e-2  # for other dtypes
PIECES, BYTES = 16, 64 * 2**20  # put together at once, at most; at least two
SPREAD = 0.3  # of a perturbation that makes outputs generic, relative to the size of each parameter tensor
QUARTERS = 4


@dataclass(frozen=True, eq=False)
class Reading:
    """A loss and its slopes in the outputs, of some examples."""

    n: int
    weight: float
    value: float
    slopes: list[Tensor]
    tolerance: float

    def is_mean_of(self, parts: Sequence["Reading"], shares: Sequence[float]) -> bool:
        """Whether this is Σ share · part, in value and slopes; a loss that is not finite says nothing.

        A part without a share counts for nothing: its own loss may be anything, such as 0/0 where all is ignored.
        """
        if not math.isfinite(self.value):
            return True
        if not all(math.isfinite(p.value) for p, share in zip(parts, shares, strict=True) if share):
            return False
        mean = mean_of(parts, shares)
        scale = abs(self.value) + sum(s * abs(p.value) for s, p in zip(shares, parts, strict=True) if s)
        if abs(mean - self.value) > self.tolerance * scale:
            return False
        length = math.sqrt(math.fsum(float((s * s).sum()) for s in self.slopes))
        for whole, alone, share in self._beside(parts, shares):
            far = float((whole - share * alone if share else whole).norm())
            if not far <= self.tolerance * (max(float(whole.norm()), share * float(alone.norm())) if share else length):
                return False
        return True

    def own_shares(self, parts: Sequence["Reading"]) -> list[float] | None:
        """The shares by which this would be a weighted mean of the parts; None if by none, as for losses over pairs."""
        shares = []
        for whole, alone, _ in self._beside(parts, [1.0] * len(parts)):
            square = float((alone * alone).sum())
            share = float((whole * alone).sum()) / square if square else 0.0
            if not float((whole - share * alone).norm()) <= 10 * self.tolerance * float(whole.norm()):
                return None
            shares.append(share)
        if not shares and self.value and len(parts) > 1:  # nothing but values: no more can be said
            return [math.nan] * len(parts)
        return shares if abs(sum(shares) - 1) < 1e-2 else None

    def _beside(self, parts: Sequence["Reading"], shares: Sequence[float]) -> Iterator[tuple[Tensor, Tensor, float]]:
        """The slopes of each part among the others and alone, all tensors in a row."""
        start = 0
        for part, share in zip(parts, shares, strict=True):
            if self.slopes:
                among = torch.cat([s[start : start + part.n].reshape(-1) for s in self.slopes])
                yield among, torch.cat([s.reshape(-1) for s in part.slopes]), share
            start += part.n


class Pieces:
    """Losses of batches, of parts of them and of several together, from one forward pass at perturbed weights."""

    def __init__(self, risk: "EmpiricalRisk") -> None:
        self.risk = risk
        self.theta = _generic(risk)
        self.by_outputs = True  # False where only the model itself can be given other examples
        mixing = risk.mode in ("batch", "train")
        self.model_may = not mixing  # otherwise an example's outputs depend on the others

    def together(self, batches: Iterable[Batch], weights: Sequence[float]) -> Iterator[tuple[Reading, list[Reading]]]:
        """Neighbours together and apart; each group begins with the last batch of the one before."""
        yield from self._groups(((self._outputs(b), *b) for b in batches), weights)

    def apart(
        self, batch: Batch, places: Sequence[tuple[int, int]], weights: Sequence[float]
    ) -> tuple[Reading, list[Reading]] | None:
        """A batch, and its parts; None where these cannot be had."""
        out = self._outputs(batch)
        n = batch_size(batch)
        try:
            whole = self._read(out, batch, sum(weights))
            parts = []
            for (a, b), w in zip(places, weights, strict=True):
                part = slice_batch(batch, a, b)
                parts.append(self._read(None if out is None else select(out, n, slice(a, b)), part, w))
            return whole, parts
        except _AskModelError:
            return self.apart(batch, places, weights)
        except Exception:  # whatever cannot be cut is not for us to judge
            return self.apart(batch, places, weights) if self._asks_model() else None

    def chunked(
        self, chunks: Sequence[Batch], weights: Sequence[float], order: Tensor | None, m: int
    ) -> Iterator[tuple[Reading, list[Reading]]]:
        """Chunks together and apart."""
        made = [self._outputs(b) for b in self.risk.batches]
        sizes = [batch_size(b) for b in self.risk.batches]
        outs: list[Any] = [None] * len(chunks)
        if self.by_outputs:
            try:
                every, n = join(made, sizes), sum(sizes)
                where = torch.arange(n) if order is None else order
                outs = [select(every, n, where[i * m : (i + 1) * m]) for i in range(len(chunks))]
            except Exception:
                self.by_outputs = False
        yield from self._groups(((o, *c) for o, c in zip(outs, chunks, strict=True)), weights)

    def _groups(
        self, pieces: Iterable[tuple[Any, Any, Any]], weights: Sequence[float]
    ) -> Iterator[tuple[Reading, list[Reading]]]:
        group: list[tuple[Any, Batch, float]] = []
        held = 0
        for (out, x, y), w in zip(pieces, weights, strict=True):
            group.append((out, (x, y), w))
            held += sum(t.numel() * t.element_size() for t in tensors(out))
            if len(group) > 1 and (len(group) == PIECES or held > BYTES):
                yield from self._group(group)
                group, held = group[-1:], 0
        if len(group) > 1:
            yield from self._group(group)

    def _group(self, group: list[tuple[Any, Batch, float]]) -> Iterator[tuple[Reading, list[Reading]]]:
        sizes = [batch_size(b) for _, b, _ in group]
        try:
            y = join([b[1] for _, b, _ in group], sizes)
            if self.by_outputs:
                out, x = join([o for o, _, _ in group], sizes), None
            else:
                out, x = None, join([b[0] for _, b, _ in group], sizes)
            whole = self._read(out, (x, y), math.fsum(w for _, _, w in group), n=sum(sizes))
            yield whole, [self._read(o if self.by_outputs else None, b, w) for o, b, w in group]
        except _AskModelError:
            yield from self._group(group)
        except Exception:  # of other lengths, say: the batches cannot be put together, but perhaps cut
            for _, batch, _ in group:
                if not can_be_cut(batch):
                    continue
                n = batch_size(batch)
                places = [(n * i // QUARTERS, n * (i + 1) // QUARTERS) for i in range(QUARTERS)]
                places = [(a, b) for a, b in places if a < b]
                weight = self.risk.weight
                weights: list[float] = [
                    float(weight(*slice_batch(batch, a, b))) if weight else float(b - a) for a, b in places
                ]
                found = self.apart(batch, places, weights) if len(places) > 1 and math.fsum(weights) else None
                if found is not None:
                    yield found

    def _asks_model(self) -> bool:
        """Turn to the model itself from now on, where that may be given other examples and has not been yet."""
        turned = self.by_outputs and self.model_may
        self.by_outputs = self.by_outputs and not turned
        return turned

    def _outputs(self, batch: Batch) -> Any:
        if not self.by_outputs:
            return None

        def ask() -> Any:
            return self.risk.predict(self.theta, batch[0])

        out = self.risk.findings.without_graph(ask)
        if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in tensors(out)):
            self.theta = self.risk.theta
            out = self.risk.findings.without_graph(ask)
        return out

    def _read(self, out: Any, batch: Batch, weight: float, n: int | None = None) -> Reading:
        """Loss and slopes, at given outputs or the model's own."""
        count = batch_size(batch) if n is None else n
        if not self.by_outputs:
            x, y = batch
            loss = self.risk.findings.without_graph(lambda: self.risk.loss(self.risk.predict(self.theta, x), y))
            return Reading(count, weight, float(loss), [], _tolerance([loss]))
        leaves: list[Tensor] = []

        def leaf(t: Tensor) -> Tensor:
            if t.is_floating_point():
                t = t.detach().requires_grad_()
                leaves.append(t)
            return t

        with own_precision(), torch.enable_grad():
            loss = self.risk.loss(map_tensors(leaf, out), batch[1])
        slopes: Sequence[Tensor] = []
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, leaves, materialize_grads=True)
        by_example = [s for s in slopes if s.ndim and len(s) == count]
        if any(bool(s.any()) for s in slopes if not (s.ndim and len(s) == count)) or not slopes:
            if self.model_may:  # a loss of the model's own, say
                self.by_outputs = False
                raise _AskModelError
            raise TypeError("slopes of a loss in something else than outputs of examples")
        wide = [s.double() if s.device.type != "mps" else s.float() for s in by_example]
        return Reading(count, weight, float(loss.detach()), wide, _tolerance([loss, *leaves]))


class _AskModelError(Exception):
    """The loss is not a function of outputs that can be cut: the model must be asked."""


def _generic(risk: "EmpiricalRisk") -> Params:
    """Weights near the risk's own where nothing is equal by chance, as all outputs are at weights of zero."""
    source = torch.Generator().manual_seed(0)
    moved = {}
    for name, t in risk.theta.items():
        if not t.is_floating_point():
            moved[name] = t
            continue
        noise = torch.randn(t.shape, generator=source, dtype=torch.float32).to(t)
        fan = max(1, t.numel() // max(1, len(t))) if t.ndim > 1 else 1
        size = float(torch.linalg.vector_norm(t.float())) / math.sqrt(max(1, t.numel()))
        moved[name] = t + SPREAD * max(size, 1 / math.sqrt(fan) if t.ndim > 1 else 0.1) * noise
    return moved


def _tolerance(read: Sequence[Tensor]) -> float:
    return max(TOLERANCE.get(t.dtype, HALF) for t in read if t.is_floating_point())


def shares_of(weights: Iterable[float]) -> list[float]:
    """W / Σ w."""
    every = list(weights)
    total = math.fsum(every)
    return [w / total if total else 0.0 for w in every]


def mean_of(parts: Sequence[Reading], shares: Sequence[float]) -> float:
    """Σ share · loss, over the parts that have a share."""
    return math.fsum(s * p.value for s, p in zip(shares, parts, strict=True) if s)
