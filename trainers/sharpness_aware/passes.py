"""Forward and backward passes over the chunks of a step: the only place that calls closures.

Every pass leaves its gradient in `.grad`, in true units. The first pass over a unit's data updates running statistics,
later ones leave them alone; all passes over a chunk see the same random numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from landscape.batchnorm import frozen_statistics, tracking_modules
from landscape.params import Params, norm
from landscape.perturbation import random_direction
from trainers.sharpness_aware.arguments import check_dense, loss_from
from trainers.sharpness_aware.chunks import Closure, Unit
from trainers.sharpness_aware.objective import Objective
from trainers.sharpness_aware.precision import UNSCALED, LossScale
from trainers.sharpness_aware.ranks import Ranks
from trainers.sharpness_aware.selection import InverseSlope, LargestIncrease
from trainers.sharpness_aware.snapshot import RandomState
from trainers.sharpness_aware.weights import Weights


class Passes:
    """Calls closures, and moves gradients in and out of `.grad`.

    Args:
        model: For its running statistics.
        weights: The trainable weights.
        ranks: The processes.
        same_rng: All passes over a chunk see the same random numbers.
        scale: Loss scaling, or None.

    Attributes:
        count: Passes since it was last set to zero.
        seen: With several processes, names that had a gradient in some pass of the step.
        used: Names that have had a final gradient in some step.
        unchecked: Whether gradients are still to be looked at, for sparse ones.
    """

    def __init__(
        self, model: nn.Module, weights: Weights, ranks: Ranks, *, same_rng: bool, scale: LossScale | None
    ) -> None:
        self.weights, self.named, self.ranks = weights, weights.parameters, ranks
        self.same_rng, self.scale = same_rng, scale
        self.tracking = tracking_modules(model)
        self.iterating = [m for m in model.modules() if isinstance(m, _SpectralNorm)]
        self.count = 0
        self._checks = 0
        self.unchecked = True
        self.seen: set[str] = set()
        self.used: set[str] = set()
        self.devices = {p.device for p in self.named.values() if p.device.type == "cuda"}

    # -- gradients -------------------------------------------------------------------------------------------------

    def gradients(self) -> Params:
        """The gradients where they are."""
        return {name: p.grad for name, p in self.named.items() if p.grad is not None}

    def take(self) -> Params:
        """Take the gradients out of `.grad`: the next backward pass then cannot overwrite them."""
        grads = self.gradients()
        self.clear()
        return grads

    def give(self, grads: Params) -> None:
        """Put gradients into `.grad`; parameters without one get None."""
        for name, p in self.named.items():
            p.grad = grads.get(name)

    def clear(self) -> None:
        """Drop all gradients."""
        for p in self.named.values():
            p.grad = None

    @contextmanager
    def only(self, names: frozenset[str] | None) -> Iterator[None]:
        """Inside the block only these parameters need a gradient, which spares the others' share of the backward."""
        off = [] if names is None or self.ranks.several else [p for n, p in self.named.items() if n not in names]
        for p in off:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in off:
                p.requires_grad_(True)

    # -- passes ----------------------------------------------------------------------------------------------------

    def run(self, unit: Unit, closures: Sequence[Closure], *, once: bool = False) -> Tensor:
        """Call one closure a chunk; the mean gradient stays in `.grad`, the mean value is returned.

        `once` says that no other pass over the same data follows: the random state need not be kept.
        """
        return self._over(unit, lambda i: self._call(unit, i, closures[i], once=once))

    def losses(self, unit: Unit) -> Tensor:
        """The pass on the training loss, keeping each example's loss in `unit.losses`."""

        def one(i: int) -> Tensor:
            with self._tracked(unit):
                self._ready(unit, i)
                unit.losses[i] = held = self._backward_on(unit.descents[i], None)
            self._check(unit, i, held)
            return held.mean()

        return self._over(unit, one)

    def clean_losses(self, unit: Unit) -> None:
        """Each example's loss at the present weights, without a gradient, in `unit.losses`."""
        for i, closure in enumerate(unit.descents):
            unit.losses[i] = held = self._without_gradient(unit, i, lambda c=closure: c.losses())  # type: ignore[misc]
            self._check(unit, i, held)

    def selected(self, unit: Unit, select: LargestIncrease) -> Tensor:
        """The pass on the examples whose loss has risen most; returns the mean loss of all."""

        def one(i: int) -> Tensor:
            closure, clean = unit.descents[i], unit.losses[i]
            assert clean is not None
            perturbed = self._without_gradient(unit, i, lambda: closure.losses())  # type: ignore[attr-defined]
            with self._frozen():
                self._ready(unit, i)
                self._backward_on(closure, select(clean, perturbed, getattr(closure, "weights", None)))
            return perturbed.mean()

        return self._over(unit, one)

    def weighted(self, unit: Unit, weigh: InverseSlope) -> Tensor:
        """The pass on the loss reweighted by the examples' slopes (delta-SAM); returns the plain mean loss."""

        def one(i: int) -> Tensor:
            closure: Any = unit.descents[i]
            noisy: list[Tensor] = []
            for _ in range(weigh.draws if weigh.estimator == "difference" else 0):
                noise = random_direction(self.weights.clean(), weigh.generator)
                self.weights.displace(noise, weigh.xi)
                noisy.append(self._without_gradient(unit, i, lambda: getattr(closure, "alone", closure.losses)()))
                self.weights.restore()
            self.clear()
            self.count += 1
            with self._tracked(unit), torch.enable_grad(), self.ranks.quiet():
                self._ready(unit, i)
                losses: Tensor = closure.losses()
                here = losses.detach()
                if noisy:
                    counted = getattr(closure, "counted", None)
                    there = [n if counted is None else counted(n) for n in noisy]
                    slopes = torch.stack([(n - here).abs() for n in there]).mean(0) / weigh.xi
                else:
                    slopes = self._example_norms(losses)
                factors = weigh(slopes, getattr(closure, "weights", None))
                self._backward((factors.to(losses.dtype) * losses).sum())
            self._check(unit, i, here)
            return here.mean()

        return self._over(unit, one)

    def pair(self, unit: Unit) -> tuple[Params, Params, Tensor]:
        """The gradients of the ascent objective and of the training loss, and the loss.

        One forward pass serves both where the closure offers `loss_backward`; otherwise there are two passes.
        """
        objectives = [a or d for a, d in zip(unit.ascents, unit.descents, strict=True)]
        if not all(hasattr(o, "loss_backward") for o in objectives):
            loss = self.run(unit, unit.descents)
            first = self.take()
            self.run(unit, objectives)
            return self.take(), first, loss
        clean_parts: list[Params] = []

        def one(i: int) -> Tensor:
            objective: Any = objectives[i]
            objective.retain = True
            self._call(unit, i, objective)
            ascent = self.take()
            with torch.enable_grad(), self.ranks.quiet():
                value: Tensor = objective.loss_backward()
            self._unscale()
            clean_parts.append(self.take())
            self.give(ascent)
            return value

        loss = self._over(unit, one)
        ascent = self.take()
        clean: Params | None = None
        for share, part in zip(unit.shares, clean_parts, strict=True):
            clean = accumulated(clean, part, share, alone=len(clean_parts) == 1)
        assert clean is not None
        return ascent, clean, loss

    def forward(self, unit: Unit) -> Tensor | None:
        """A pass without gradient at the present weights, for running statistics and the logged loss.

        Plain closures cannot go forward alone: they run whole where the model has running statistics, else not at all.
        """
        if all(hasattr(c, "forward") for c in unit.descents):
            values: list[Tensor] = []
            for i, closure in enumerate(unit.descents):
                self._ready(unit, i)
                self.count += 1
                with self._tracked(unit), torch.no_grad():
                    values.append(closure.forward() * unit.shares[i])  # type: ignore[attr-defined]
            unit.tracked = True
            return sum(values[1:], values[0])
        if self.tracking:
            loss = self.run(unit, unit.descents)
            self.clear()
            return loss
        return None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside the block an earlier batch is seen again; the random state then goes on as if it had not been."""
        now = RandomState.take(self.devices)
        try:
            yield
        finally:
            now.restore()

    # -- one chunk -------------------------------------------------------------------------------------------------

    def _over(self, unit: Unit, one: Callable[[int], Tensor]) -> Tensor:
        """Evaluate chunk by chunk; leave the weighted mean gradient in `.grad` and return the weighted mean value."""
        if len(unit.descents) == 1:
            value = one(0)
            unit.tracked = True
            return value
        total: Params | None = None
        values = []
        for i, share in enumerate(unit.shares):
            values.append(one(i) * share)
            total = accumulated(total, self.take(), share)
        unit.tracked = True
        self.give(total or {})
        return sum(values[1:], values[0])

    def _call(self, unit: Unit, i: int, closure: Closure, *, once: bool = False) -> Tensor:
        if not once:
            self._ready(unit, i)
        self.count += 1
        with self._tracked(unit), torch.enable_grad(), self.ranks.quiet():
            value: Any = self._closed(closure)
        self._unscale()
        return value.detach() if type(value) is Tensor and value.ndim == 0 else loss_from(value)

    def _closed(self, closure: Closure) -> Tensor:
        try:
            return closure()
        except RuntimeError as error:
            if "unscale_() has already been called" not in str(error):
                raise
            raise ValueError(UNSCALED) from error

    def _backward_on(self, closure: Closure, index: Tensor | None) -> Tensor:
        """Backward on the mean loss of chosen examples; returns their losses."""
        self.clear()
        self.count += 1
        with torch.enable_grad(), self.ranks.quiet():
            losses: Tensor = closure.losses(index)  # type: ignore[attr-defined]
            self._backward(losses.mean())
        return losses.detach()

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scale is None else self.scale.scale(loss)).backward()
        self._unscale()

    def _unscale(self) -> None:
        if self.unchecked:
            check_dense(self.named)
            self.unchecked = False
        if self.ranks.several:
            self.seen.update(self.gradients())
        if self.scale is not None:
            self.scale.true_units([p.grad for p in self.named.values() if p.grad is not None])

    def _without_gradient(self, unit: Unit, i: int, losses: Callable[[], Tensor]) -> Tensor:
        self._ready(unit, i)
        self.count += 1
        with torch.no_grad(), self._frozen():
            return losses().detach()

    def _check(self, unit: Unit, i: int, losses: Tensor) -> None:
        """Compare a closure's losses of examples with its loss now and then: at passes 1, 2, 4, 8, and so on."""
        closure: Any = unit.descents[i]
        forward = getattr(closure, "forward", None)
        if isinstance(closure, Objective) or forward is None or not self.same_rng:
            return
        self._checks += 1
        if self._checks & (self._checks - 1):
            return
        self._ready(unit, i)
        with torch.no_grad(), self._frozen():
            loss = float(forward())
        mean, size = float(losses.mean()), float(losses.abs().mean())
        if abs(mean - loss) > 1e-3 * max(abs(loss), size):
            raise ValueError(
                f"this method weighs or chooses examples, and the mean of the closure's `losses()`, {mean:.6g}, is not "
                f"its loss, {loss:.6g}: let `losses()` give what each example adds to the loss, times their number."
            )

    def _example_norms(self, losses: Tensor) -> Tensor:
        parameters = list(self.named.values())
        norms = []
        for loss in losses:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms.append(norm({str(i): g for i, g in enumerate(grads) if g is not None}))
        return torch.stack(norms)

    def _ready(self, unit: Unit, i: int) -> None:
        """Set the random state: taken before a chunk's first pass, put back before later ones."""
        if not self.same_rng:
            return
        state = unit.states[i]
        if state is None:
            unit.states[i] = RandomState.take(self.devices)
        else:
            state.restore()

    def _tracked(self, unit: Unit) -> AbstractContextManager[None]:
        return self._frozen() if unit.tracked else nullcontext()

    def _frozen(self) -> AbstractContextManager[None]:
        """A block in which passes leave the buffers alone that a clean pass has updated."""
        return _without_iteration(self.iterating, self.tracking) if self.iterating else frozen_statistics(self.tracking)


@contextmanager
def _without_iteration(modules: Sequence[nn.Module], tracking: Sequence[nn.Module]) -> Iterator[None]:
    """Frozen statistics, and spectral normalisation with the vectors that it has: its power iteration rests."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with frozen_statistics(tracking):
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def accumulated(total: Params | None, grads: Params, weight: float, *, alone: bool = False) -> Params:
    """Total + weight · grads, into the memory of `total`; `alone` says that the weight is one and nothing follows."""
    if alone:
        return grads
    if total is None:
        return dict(zip(grads, torch._foreach_mul(list(grads.values()), weight), strict=True)) if grads else {}
    old = [name for name in grads if name in total]
    if old:
        torch._foreach_add_([total[n] for n in old], [grads[n] for n in old], alpha=weight)
    for name in grads:  # in their order: that of a set differs from run to run, and with it the rounding of sums
        if name not in total:
            total[name] = grads[name] * weight
    return total
