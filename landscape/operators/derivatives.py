"""Second derivatives against differences: torch's kernels, and functions of a user's own, sometimes have wrong ones."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.batches import Batch, map_tensors
from landscape.functional import PureModel
from landscape.memory import free_bytes
from landscape.operators.point import Point, row

Product = Callable[[Point, Batch, Tensor], Tensor]
Difference = Callable[[Point, Batch, Tensor, float], Tensor]

# Steps relative to ‖θ‖, each far from rounding and from the curvature of the difference; what then passes for equal
LADDERS: dict[torch.dtype, tuple[tuple[float, ...], float]] = {
    torch.float64: ((1e-5, 1e-6, 1e-7, 1e-8), 1e-5),
    torch.float32: ((5e-3, 1e-3, 2e-4), 3e-2),
}
STEADY = 0.1  # an entry of the disagreement that changes by less, from step to step, is no kink and no rounding
BESIDE = 1e-2  # how far away, relative to ‖θ‖, what was found is looked at again: not at a kink that the point is at
SLOPE = 1e-2  # relative difference of a slope of the loss and its gradient's that passes
SMALL = 64 * 2**20  # bytes that are always there
COPIES = 20  # vectors of length p in float64 that the check may hold


@dataclass(frozen=True)
class Disagreement:
    """What was found.

    Attributes:
        relative: Length of the difference to the product that persists, over the product's; 0 for none.
        gradient: Whether the gradient itself is not the derivative of the loss.
        changing: By how much of its length the product differs when it is taken again.
    """

    relative: float = 0.0
    gradient: bool = False
    changing: float = 0.0


def compared(point: Point, batch: Batch, product: Product, difference: Difference) -> Disagreement:
    """Compare a product with differences, on a copy in float64 where the model can be had in it.

    A random direction moves each parameter tensor in proportion to its size. The step shrinks until both agree, or an
    entry's disagreement no longer changes: at a kink beside the point it vanishes. It must be found again at a point
    beside, where no kink is by chance, as there are at weights of zero. Where something computes in float32, steps and
    tolerance are those of float32; in half precision nothing can be told.

    Args:
        point: Where.
        batch: A few examples.
        product: Maps (point, batch, v) to the product.
        difference: Maps (point, batch, v, step) to its central difference, with ‖v‖ = 1.
    """
    if point.dtype != torch.float64 and _room(point):
        with suppress(Exception), in_double(point) as wide:  # not every model can be had in float64
            return _compared(wide, _doubled(batch), product, difference)
    with suppress(Exception):  # what fails here fails in the product too
        return _compared(point, batch, product, difference)
    return Disagreement()


def _compared(point: Point, batch: Batch, product: Product, difference: Difference) -> Disagreement:
    if point.dtype not in LADDERS:
        return Disagreement()
    v, size = _direction(point, 0)
    found = product(point, batch, v)
    if not bool(torch.isfinite(found).all()):
        return Disagreement()
    ladder = _Ladder(point, batch, v, size, difference, point.dtype)
    slope, relative = ladder.slope_is_wrong(), ladder.persisting(found)
    if relative or slope:
        lowest = lowest_precision(point, batch)
        if lowest not in LADDERS:
            return Disagreement()
        w, _ = _direction(point, 1)
        beside = replace(ladder, dtype=lowest, point=_moved(point, w, BESIDE * size))
        slope = slope and beside.slope_is_wrong()
        relative = min(relative, beside.persisting(product(beside.point, batch, v)))
    changing = 0.0
    if relative:
        again = product(point, batch, v)
        changing = float((again - found).norm() / found.norm().clamp_min(1e-300))
    return Disagreement(relative, slope, changing if changing > LADDERS[point.dtype][1] else 0.0)


@dataclass(frozen=True, eq=False)
class _Ladder:
    """Differences of steps that shrink, beside a product along v."""

    point: Point
    batch: Batch
    v: Tensor
    size: float
    difference: Difference
    dtype: torch.dtype

    def persisting(self, product: Tensor) -> float:
        """What persists of the disagreement, relative to the length of a parameter tensor's part of the product."""
        steps, tolerance = LADDERS[self.dtype]
        before: Tensor | None = None
        noise = 0.0
        for h in steps:
            other = self.difference(self.point, self.batch, self.v, h * self.size)
            off = product - other
            if before is None and self._worst(off, product, other, tolerance, 0.0) <= tolerance:
                return 0.0
            noise = noise or self._noise()
            if self._worst(off, product, other, tolerance, noise / h) <= tolerance:
                return 0.0
            if before is not None:
                steady = torch.where((off - before).abs() <= STEADY * off.abs(), off, 0.0)
                if float(steady.norm()) > 0.5 * float(off.norm()):
                    worst = self._worst(steady, product, other, tolerance, noise / h)
                    return worst if worst > 3 * tolerance else 0.0
            before = off
        return 0.0

    def _worst(self, off: Tensor, a: Tensor, b: Tensor, tolerance: float, noise: float) -> float:
        """The largest part of a parameter tensor that differs, where that is more than rounding."""
        sizes = [t.numel() for t in self.point.leaves]
        least = 1e-2 * max(float(a.norm()), float(b.norm()))
        worst = 0.0
        for parts in zip(off.split(sizes), a.split(sizes), b.split(sizes), strict=True):
            far, one, other = (float(part.norm()) for part in parts)
            scale = max(one, other, least)
            if far > tolerance * scale + noise:
                worst = max(worst, far / scale)
        return worst

    def _noise(self) -> float:
        """Rounding of a product by differences, times the relative step, from the loss at weights far away."""
        losses = [abs(self._loss(h * self.size)) for h in (0.0, 0.5, -0.5, 1.0, -1.0)]
        kind = torch.finfo(self.dtype)
        return 1e2 * kind.eps * max(*losses, kind.eps) / self.size**2

    def _loss(self, step: float) -> float:
        moved = _moved(self.point, self.v, step)
        return moved.risk.findings.without_graph(lambda: float(moved.loss(self.batch)))

    def slope_is_wrong(self) -> bool:
        """Whether the loss has a slope along v, the same to both sides, that is not ⟨∇L, v⟩."""
        steps, _ = LADDERS[self.dtype]
        with torch.enable_grad():
            loss = self.point.loss(self.batch)
        here, slope = float(loss.detach()), 0.0
        if not math.isfinite(here):  # nothing can be told
            return False
        if loss.requires_grad:
            slope = float(row(torch.autograd.grad(loss, self.point.leaves, materialize_grads=True)) @ self.v)
        for h in (steps[0] * self.size, steps[1] * self.size):
            ahead = (self._loss(h) - here) / h
            if abs(ahead - slope) <= SLOPE * max(abs(slope), abs(ahead)):
                return False
            rounding = self._noise() * self.size**2 / h
            behind = (here - self._loss(-h)) / h
            far = abs((ahead + behind) / 2 - slope)
            if far <= SLOPE * max(abs(slope), abs(ahead), abs(behind)) + rounding:
                return False
            if abs(ahead - behind) > STEADY * far:  # a kink
                return False
        return True


def _moved(point: Point, v: Tensor, step: float) -> Point:
    parts = zip(point.theta.items(), point.cut(v), strict=True)
    return replace(point, theta={name: (t.detach() + step * u).requires_grad_() for (name, t), u in parts})


def _direction(point: Point, seed: int) -> tuple[Tensor, float]:
    """A random unit vector in which each tensor has its share of the weights' length, and that length."""
    source = torch.Generator().manual_seed(seed)
    v = torch.randn(point.p, generator=source, dtype=torch.float64).to(point.device, point.dtype)
    with torch.no_grad():
        norms = torch.stack(list(torch._foreach_norm(point.leaves))).double().tolist()
        sizes = [norm / math.sqrt(max(1, t.numel())) for norm, t in zip(norms, point.leaves, strict=True)]
        usual = max(sizes) if any(sizes) else 1.0
        for part, size in zip(v.split([t.numel() for t in point.leaves]), sizes, strict=True):
            part.mul_(max(size, 1e-2 * usual))
    length = float(v.norm())
    return v / length, length


def lowest_precision(point: Point, batch: Batch) -> torch.dtype:
    """The least precise type of number in which the loss is computed, by what it saves for its gradient."""
    seen = {point.dtype}

    def note(t: Tensor) -> Tensor:
        if t.is_floating_point() and t.ndim:
            seen.add(t.dtype)
        return t

    hooks: Callable[..., Any] = torch.autograd.graph.saved_tensors_hooks
    with torch.enable_grad(), hooks(note, lambda t: t):
        seen.add(point.loss(batch).dtype)
    return max((d for d in seen if d.is_floating_point), key=lambda d: torch.finfo(d).eps)


def _room(point: Point) -> bool:
    """Whether the device has float64, and memory for the copy and a few vectors."""
    needed = 8 * COPIES * point.p
    return point.device.type != "mps" and (needed <= SMALL or needed <= free_bytes(point.device) / 2)


@contextmanager
def in_double(point: Point) -> Iterator[Point]:
    """The same point with weights, buffers and the loss's own tensors in float64, inside a block."""
    risk = point.risk
    loss = copy.deepcopy(risk.loss).double() if isinstance(risk.loss, nn.Module) else risk.loss
    held: dict[str, Any] = dict(point.fixed)
    block: AbstractContextManager[None] = nullcontext()
    if isinstance(risk.predict, PureModel):
        block = risk.predict.in_double()
        held = {n: p.detach() for n, p in risk.predict.parameters.items() if n not in point.theta} | held
    theta = {n: t.detach().double().contiguous().requires_grad_() for n, t in point.theta.items()}
    fixed = {n: t.double().contiguous() if t.is_floating_point() else t for n, t in held.items()}
    with block:
        yield Point(replace(risk, loss=loss), theta, fixed, channels_last=False)


def _doubled(batch: Batch) -> Batch:
    def double(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    inputs = map_tensors(double, batch[0])
    return inputs, inputs if batch[1] is batch[0] else map_tensors(double, batch[1])
