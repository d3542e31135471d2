"""Whether the loss of data is the weighted mean of the losses of the parts they are cut into: checked, not supposed."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.batches import Batch, batch_size, can_be_cut, slice_batch
from landscape.params import Params

if TYPE_CHECKING:
    from landscape.risk import EmpiricalRisk

TOLERANCE = {torch.float64: 1e-5, torch.float32: 5e-4}  # relative; looser than rounding by far
HALF = 5e-2  # for other dtypes
PIECES, BYTES = 16, 64 * 2**20  # put together at once, at most; at least two
SPREAD = 0.3  # of a perturbation that makes outputs generic, relative to the size of each parameter tensor
QUARTERS = 4

MEANS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.soft_margin_loss,
)
MODULES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.MultiMarginLoss,
)

WAY_OUT = (
    "use reduction='mean', or give `weight`, what a batch counts for, such as the sum of its class weights or the "
    "number of its tokens or targets that are not ignored, as in weight=lambda x, y: w[y].sum(); for a loss that "
    "compares the examples of a batch, weight=lambda x, y: 1.0 says that the batch is the example and is never cut."
)


class NotAdditiveError(ValueError):
    """The loss of a whole is not the weighted mean of the losses of its parts."""


class _UncutError(Exception):
    """Something cannot be cut into examples, or put together."""


def require_additive(risk: "EmpiricalRisk") -> None:
    """Check that the risk does not depend on how the user's data are cut into batches.

    Neighbouring batches are put together, at outputs of perturbed weights: the value, and its slopes in the outputs,
    must be the weighted means of theirs. That is one forward pass over the data, and none for torch's own mean losses.
    A `weight` that is the same for all batches makes the batch the example, and nothing is checked.

    Raises:
        NotAdditiveError: If it does, with `weight` named as the way out.
    """
    batches = [b for b, w in zip(risk.batches, risk.weights, strict=True) if w and batch_size(b)]
    weights = [w for b, w in zip(risk.batches, risk.weights, strict=True) if w and batch_size(b)]
    given = risk.weight is not None
    if len(batches) < 2 or (given and max(weights) - min(weights) <= 1e-9 * max(weights)):
        return
    if plain_mean(risk.loss, batches):
        return
    for whole, parts in _Pieces(risk).together(batches, weights):
        shares, sizes = _shares(p.weight for p in parts), _shares(p.n for p in parts)
        if whole.is_mean_of(parts, shares) or (given and whole.is_mean_of(parts, sizes)):
            continue
        _require_shapes(risk, batches[0])
        own = whole.own_shares(parts)
        if given and own is None:  # a loss over pairs of examples, or a sum, which the user weighs as wished
            continue
        if given:
            raise NotAdditiveError(
                f"`weight` gives neighbouring batches the shares {_numbers(shares)}, but by the loss of their examples "
                f"together these are {_numbers(own or [])}: let it give what the loss divides by, such as the sum of "
                "the class weights or the number of targets that are not ignored; or 1.0 for all batches, which says "
                "that the batch is the example and is never cut."
            )
        raise NotAdditiveError(
            "`loss` of a batch is not the mean of the losses of its parts, weighted by their sizes "
            f"({whole.value:.6g} for {whole.n} examples together, {_mean(parts, sizes):.6g} from its {len(parts)} "
            f"parts), so the risk would depend on how the data are cut: {WAY_OUT}"
        )


def _require_shapes(risk: "EmpiricalRisk", batch: Batch) -> None:
    """Check first what else may be the cause: targets that torch broadcasts."""
    x, y = batch
    risk.findings.without_graph(lambda: risk.loss_on(risk.predict(risk.theta, x), y))


def require_cut(risk: "EmpiricalRisk", bounds: Sequence[Sequence[tuple[int, int]]], what: str) -> None:
    """Check that each batch may be cut at these places.

    Args:
        risk: The risk.
        bounds: For each batch, where its parts begin and end.
        what: What cuts, for the message: "`micro_batch` = 20".

    Raises:
        NotAdditiveError: If the parts' losses would not average to the batch's, by sizes or the risk's `weight`.
    """
    pieces = None
    for batch, places in zip(risk.batches, bounds, strict=True):
        if len(places) < 2:
            continue
        parts = [slice_batch(batch, a, b) for a, b in places]
        weights = [float(risk.weight(*p)) if risk.weight else float(batch_size(p)) for p in parts]
        whole = float(risk.weight(*batch)) if risk.weight else float(batch_size(batch))
        if not math.isclose(math.fsum(weights), whole, rel_tol=1e-6):
            raise NotAdditiveError(
                f"{what} would cut a batch of weight {whole:.6g} into parts of weights {_numbers(weights)}, which do "
                "not add up to it: by that `weight` the batch is the example and is never cut; give one that adds up "
                "over examples."
            )
        if plain_mean(risk.loss, [batch]):
            ratios = [w / batch_size(p) for w, p in zip(weights, parts, strict=True)]
            good = max(ratios) - min(ratios) <= 1e-6 * max(ratios)
        else:
            pieces = pieces or _Pieces(risk)
            found = pieces.apart(batch, places, weights)
            good = found is None or found[0].is_mean_of(found[1], _shares(weights))
        if not good:
            raise NotAdditiveError(_cannot(what))


def require_chunks(risk: "EmpiricalRisk", chunks: Sequence[Batch], order: Tensor | None, m: int) -> None:
    """Check that the data, put together and cut into chunks of m, have the chunks' losses as parts of theirs.

    Args:
        risk: The risk.
        chunks: What they are cut into.
        order: The order in which the examples were cut; None means their own.
        m: Examples a chunk.

    Raises:
        NotAdditiveError: If not.
    """
    if len(chunks) < 2 and len(risk.batches) < 2:
        return
    weights = [float(risk.weight(*c)) if risk.weight else float(batch_size(c)) for c in chunks]
    if not math.isclose(math.fsum(weights), math.fsum(risk.weights), rel_tol=1e-6):
        raise NotAdditiveError(_cannot(f"`m` = {m}"))
    if plain_mean(risk.loss, risk.batches):
        ratios = [w / batch_size(c) for w, c in zip(weights, chunks, strict=True)]
        if risk.weight is None or max(ratios) - min(ratios) <= 1e-6 * max(ratios):
            return
        raise NotAdditiveError(_cannot(f"`m` = {m}"))
    for whole, parts in _Pieces(risk).chunked(chunks, weights, order, m):
        if not whole.is_mean_of(parts, _shares(p.weight for p in parts)):
            raise NotAdditiveError(_cannot(f"`m` = {m}"))


def plain_mean(loss: Any, batches: Iterable[Batch]) -> bool:
    """Whether a loss is one of torch's means over examples, with no target among these batches that it leaves out."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        if loss.weight is not None or loss.reduction != "mean":
            return False
        ignored = loss.ignore_index
    elif loss is F.cross_entropy or loss is F.nll_loss:
        ignored = -100
    else:
        weighted = isinstance(loss, nn.MultiMarginLoss) and loss.weight is not None
        known = type(loss) in MODULES and loss.reduction == "mean" and not weighted
        return known or any(loss is f for f in MEANS)
    for _, y in batches:
        if not isinstance(y, Tensor):
            return False
        if not y.is_floating_point() and bool((y == ignored).any()):
            return False
    return True


@dataclass(frozen=True, eq=False)
class _Reading:
    """A loss and its slopes in the outputs, of some examples."""

    n: int
    weight: float
    value: float
    slopes: list[Tensor]
    tolerance: float

    def is_mean_of(self, parts: Sequence["_Reading"], shares: Sequence[float]) -> bool:
        """Whether this is Σ share · part, in value and slopes; a loss that is not finite says nothing."""
        if not math.isfinite(self.value):
            return True
        if not all(math.isfinite(p.value) for p in parts):
            return False
        mean = _mean(parts, shares)
        scale = abs(self.value) + sum(s * abs(p.value) for s, p in zip(shares, parts, strict=True))
        if abs(mean - self.value) > self.tolerance * scale:
            return False
        for whole, alone, share in self._beside(parts, shares):
            far = float((whole - share * alone).norm())
            if not far <= self.tolerance * max(float(whole.norm()), share * float(alone.norm())):
                return False
        return True

    def own_shares(self, parts: Sequence["_Reading"]) -> list[float] | None:
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

    def _beside(self, parts: Sequence["_Reading"], shares: Sequence[float]) -> Iterator[tuple[Tensor, Tensor, float]]:
        """The slopes of each part among the others and alone, all tensors in a row."""
        start = 0
        for part, share in zip(parts, shares, strict=True):
            if self.slopes:
                among = torch.cat([s[start : start + part.n].reshape(-1) for s in self.slopes])
                yield among, torch.cat([s.reshape(-1) for s in part.slopes]), share
            start += part.n


class _Pieces:
    """Losses of batches, of parts of them and of several together, from one forward pass at perturbed weights."""

    def __init__(self, risk: "EmpiricalRisk") -> None:
        self.risk = risk
        self.theta = _generic(risk)
        self.by_outputs = True  # False where only the model itself can be given other examples
        mixing = risk.mode in ("batch", "train")
        self.model_may = not mixing  # otherwise an example's outputs depend on the others

    def together(self, batches: Sequence[Batch], weights: Sequence[float]) -> Iterator[tuple[_Reading, list[_Reading]]]:
        """Neighbours together and apart; each group begins with the last batch of the one before."""
        yield from self._groups(((self._outputs(b), *b) for b in batches), weights)

    def apart(
        self, batch: Batch, places: Sequence[tuple[int, int]], weights: Sequence[float]
    ) -> tuple[_Reading, list[_Reading]] | None:
        """A batch, and its parts; None where these cannot be had."""
        out = self._outputs(batch)
        n = batch_size(batch)
        try:
            whole = self._read(out, batch, sum(weights))
            parts = []
            for (a, b), w in zip(places, weights, strict=True):
                part = slice_batch(batch, a, b)
                parts.append(self._read(None if out is None else _cut(out, n, slice(a, b)), part, w))
            return whole, parts
        except _AskModelError:
            return self.apart(batch, places, weights)
        except Exception:  # whatever cannot be cut is not for us to judge
            return self._again(lambda: self.apart(batch, places, weights))

    def chunked(
        self, chunks: Sequence[Batch], weights: Sequence[float], order: Tensor | None, m: int
    ) -> Iterator[tuple[_Reading, list[_Reading]]]:
        """Chunks together and apart."""
        made = [self._outputs(b) for b in self.risk.batches]
        sizes = [batch_size(b) for b in self.risk.batches]
        outs: list[Any] = [None] * len(chunks)
        if self.by_outputs:
            try:
                every, n = _join(made, sizes), sum(sizes)
                where = torch.arange(n) if order is None else order
                outs = [_cut(every, n, where[i * m : (i + 1) * m]) for i in range(len(chunks))]
            except Exception:
                self.by_outputs = False
        yield from self._groups(((o, *c) for o, c in zip(outs, chunks, strict=True)), weights)

    def _groups(
        self, pieces: Iterable[tuple[Any, Any, Any]], weights: Sequence[float]
    ) -> Iterator[tuple[_Reading, list[_Reading]]]:
        group: list[tuple[Any, Batch, float]] = []
        held = 0
        for (out, x, y), w in zip(pieces, weights, strict=True):
            group.append((out, (x, y), w))
            held += sum(t.numel() * t.element_size() for t in _leaves(out))
            if len(group) > 1 and (len(group) == PIECES or held > BYTES):
                yield from self._group(group)
                group, held = group[-1:], 0
        if len(group) > 1:
            yield from self._group(group)

    def _group(self, group: list[tuple[Any, Batch, float]]) -> Iterator[tuple[_Reading, list[_Reading]]]:
        sizes = [batch_size(b) for _, b, _ in group]
        try:
            y = _join([b[1] for _, b, _ in group], sizes)
            if self.by_outputs:
                out, x = _join([o for o, _, _ in group], sizes), None
            else:
                out, x = None, _join([b[0] for _, b, _ in group], sizes)
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
                weights = [float(weight(*slice_batch(batch, a, b))) if weight else float(b - a) for a, b in places]
                found = self.apart(batch, places, weights) if len(places) > 1 and sum(weights) else None
                if found is not None:
                    yield found

    def _again(self, ask: Callable[[], Any]) -> Any:
        """Once more by the model itself, where that may be given other examples; None after that."""
        if not self.by_outputs or not self.model_may:
            return None
        self.by_outputs = False
        return ask()

    def _outputs(self, batch: Batch) -> Any:
        if not self.by_outputs:
            return None

        def ask() -> Any:
            return self.risk.predict(self.theta, batch[0])

        out = self.risk.findings.without_graph(ask)
        if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in _leaves(out)):
            self.theta = self.risk.theta
            out = self.risk.findings.without_graph(ask)
        return out

    def _read(self, out: Any, batch: Batch, weight: float, n: int | None = None) -> _Reading:
        """Loss and slopes, at given outputs or the model's own."""
        count = batch_size(batch) if n is None else n
        if not self.by_outputs:
            x, y = batch
            loss = self.risk.findings.without_graph(lambda: self.risk.loss(self.risk.predict(self.theta, x), y))
            return _Reading(count, weight, float(loss), [], _tolerance([loss]))
        leaves: list[Tensor] = []

        def leaf(ts: list[Tensor], _: list[int]) -> Tensor:
            t = ts[0]
            if t.is_floating_point():
                t = t.detach().requires_grad_()
                leaves.append(t)
            return t

        with torch.enable_grad():
            loss = self.risk.loss(_rebuilt([out], [count], leaf), batch[1])
        slopes: Sequence[Tensor] = []
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, leaves, materialize_grads=True)
        by_example = [s for s in slopes if s.ndim and len(s) == count]
        if any(bool(s.any()) for s in slopes if not (s.ndim and len(s) == count)) or not slopes:
            if self.model_may:  # a loss of the model's own, say
                self.by_outputs = False
                raise _AskModelError
            raise _UncutError
        wide = [s.double() if s.device.type != "mps" else s.float() for s in by_example]
        return _Reading(count, weight, float(loss.detach()), wide, _tolerance([loss, *leaves]))


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


def _shares(weights: Iterable[float]) -> list[float]:
    every = list(weights)
    total = math.fsum(every)
    return [w / total if total else 0.0 for w in every]


def _mean(parts: Sequence[_Reading], shares: Sequence[float]) -> float:
    return math.fsum(s * p.value for s, p in zip(shares, parts, strict=True))


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{v:.4g}" for v in values[:4])
    return f"[{shown}, ...]" if len(values) > 4 else f"[{shown}]"


def _cannot(what: str) -> str:
    return (
        f"{what} would cut batches whose loss is not the weighted mean of the losses of their parts, which changes the "
        f"risk: {WAY_OUT}"
    )


def _leaves(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(ts: list[Tensor], _: list[int]) -> Tensor:
        found.append(ts[0])
        return ts[0]

    if tree is not None:
        _rebuilt([tree], [0], note)
    return found


def _join(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Examples of several trees in one; what is no row of examples must be the same in all."""

    def joined(ts: list[Tensor], sizes: list[int]) -> Tensor:
        if all(t.ndim and len(t) == n for t, n in zip(ts, sizes, strict=True)):
            return torch.cat(ts)
        if all(t.shape == ts[0].shape and torch.equal(t, ts[0]) for t in ts[1:]):
            return ts[0]
        raise _UncutError

    return _rebuilt(list(trees), list(sizes), joined, items=lambda lists: [i for part in lists for i in part])


def _cut(tree: Any, n: int, where: slice | Tensor) -> Any:
    """Some of n examples."""

    def cut(ts: list[Tensor], _: list[int]) -> Tensor:
        t = ts[0]
        return t[where.to(t.device) if isinstance(where, Tensor) else where] if t.ndim and len(t) == n else t

    return _rebuilt([tree], [n], cut, items=lambda lists: [lists[0][i] for i in torch.arange(n)[where].tolist()])


def _rebuilt(
    trees: list[Any],
    sizes: list[int],
    of_tensors: Callable[[list[Tensor], list[int]], Tensor],
    items: Callable[[list[Any]], list[Any]] | None = None,
) -> Any:
    """One tree of the same kind, with a tensor made of those that lie at the same place; lists of examples by `items`."""

    def down(parts: list[Any]) -> Any:
        first = parts[0]
        if isinstance(first, Tensor):
            return of_tensors(parts, sizes)
        if isinstance(first, list | tuple):
            lengths = all(len(p) == n for p, n in zip(parts, sizes, strict=True))
            rows = all(isinstance(t, Tensor) and t.ndim and len(t) == sizes[0] for t in first)
            if items is not None and lengths and not rows and isinstance(first, list):
                return items(parts)
            made = [down(list(p)) for p in zip(*parts, strict=True)]
            return type(first)(*made) if hasattr(first, "_fields") else type(first)(made)
        if isinstance(first, Mapping):
            other: Any = copy.copy(first)
            for key in first:
                other[key] = down([p[key] for p in parts])
            return other
        if is_dataclass(first) and not isinstance(first, type):
            other = copy.copy(first)
            for field in fields(first):
                setattr(other, field.name, down([getattr(p, field.name) for p in parts]))
            return other
        if len(parts) > 1 and not can_be_cut((first, None)):
            raise _UncutError
        return first

    return down(trees)
