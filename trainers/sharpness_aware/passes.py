"""Forward and backward passes over the chunks of a step: the only place that calls closures.

Before every pass the gradients of what the base optimizer trains are cleared, whatever the closure does. The pass
leaves its own in `.grad`, in true units, and downhill: those of what is maximised change their sign. The first pass
over a unit's data updates buffers (running statistics, counters), later ones leave nothing behind; all passes over a
chunk see the same random numbers.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from landscape.batchnorm import frozen_statistics, tracking_modules
from landscape.params import Params, norm, real
from landscape.perturbation import random_direction
from trainers.sharpness_aware.arguments import check_dense, loss_from
from trainers.sharpness_aware.buffers import Buffers, changed, normalises_as_torch
from trainers.sharpness_aware.chunks import Closure, Unit
from trainers.sharpness_aware.objective import Objective
from trainers.sharpness_aware.precision import UNSCALED, LossScale
from trainers.sharpness_aware.ranks import Replicas
from trainers.sharpness_aware.selection import InverseSlope, LargestIncrease
from trainers.sharpness_aware.snapshot import RandomState
from trainers.sharpness_aware.trained import Trained
from trainers.sharpness_aware.weights import Weights

_MARK = "_left_by_a_step"
NO_GRADIENT = (
    "the closure left no gradient on any parameter that the base optimizer trains: run forward and `loss.backward()` "
    "on the model whose weights are moved, and recompute inside the closure, since the gradient is taken at more than "
    "one point."
)
NO_GRAPH = (
    "the closure's loss does not depend on any parameter that requires a gradient: it was detached, computed without "
    "gradients or by something that has none (such as argmax), or all that it depends on is frozen."
)
_OLD_GRAPH = (
    "the closure's backward pass went through a graph that was made before the weights were moved: recompute inside "
    "the closure, forward pass and loss, since the gradient is taken at more than one point. torch says: {}"
)


class Passes:
    """Calls closures, and moves gradients in and out of `.grad`.

    Args:
        model: For its buffers.
        trained: The parameters that count.
        weights: Their weights.
        replicas: The copies of the model on all processes.
        same_rng: All passes over a chunk see the same random numbers.
        scale: Loss scaling, or None.

    Attributes:
        count: Passes since it was last set to zero.
        seen: With several processes, names that had a gradient in some pass of the step.
        used: Names that have had a final gradient in some step.
        unchecked: Whether gradients are still to be looked at, for sparse ones.
    """

    _last: "ClassVar[weakref.ref[Passes] | None]" = None  # whose step was the last, of all optimizers

    def __init__(
        self,
        model: nn.Module,
        trained: Trained,
        weights: Weights,
        replicas: Replicas,
        *,
        same_rng: bool,
        scale: LossScale | None,
    ) -> None:
        self.model, self.trained, self.weights, self.replicas = model, trained, weights, replicas
        self.named = trained.parameters
        self.same_rng, self.scale = same_rng, scale
        self.count = 0
        self._checks = 0
        self.unchecked = True
        self.seen: set[str] = set()
        self.used: set[str] = set()
        self._sparing = False  # some parameters need no gradient in this pass
        self._warned = False
        self.look()

    def look(self) -> None:
        """Find the modules again: whatever is in the model may have changed."""
        modules = list(self.model.modules())
        self.tracking = [m for m in tracking_modules(self.model) if normalises_as_torch(m)]
        self.iterating = [m for m in modules if isinstance(m, _SpectralNorm)]
        self.buffers = Buffers(modules)
        self.updates: bool | None = None  # whether a clean pass updates `buffers`; None before the first
        self.devices = {p.device for p in self.named.values() if p.device.type == "cuda"}

    # -- gradients -------------------------------------------------------------------------------------------------

    def gradients(self) -> Params:
        """The gradients where they are, complex ones as pairs of real numbers."""
        grads = {name: g for name, p in self.named.items() if (g := p.grad) is not None}
        return {name: real(g) for name, g in grads.items()} if self.trained.has_complex else grads

    def take(self) -> Params:
        """Take the gradients out of `.grad`: the next backward pass then cannot overwrite them."""
        grads = self.gradients()
        self.clear()
        return grads

    def give(self, grads: Params) -> None:
        """Put gradients into `.grad`; parameters without one get None."""
        if self.trained.has_complex:
            own = {name: self.named[name].is_complex() and not g.is_complex() for name, g in grads.items()}
            grads = {n: torch.view_as_complex(g.contiguous()) if own[n] else g for n, g in grads.items()}
        for name, p in self.named.items():
            p.grad = grads.get(name)

    def clear(self) -> None:
        """Drop all gradients of what the base optimizer holds."""
        for p in self.trained.held:
            p.grad = None

    def turn(self) -> None:
        """Change the sign of the gradients of what is maximised: from the loss's to downhill ones, and back."""
        if not self.trained.uphill:
            return
        up = [p for name in self.trained.uphill if (p := self.named[name]).grad is not None]
        if up:
            for p, g in zip(up, torch._foreach_neg([p.grad for p in up]), strict=True):  # type: ignore[misc]
                p.grad = g

    def start(self) -> None:
        """Warn once where no step has left what is in `.grad` from before this one; each pass drops it."""
        if not self._warned and not self._took_turns():
            first: Any = next((g for p in self.named.values() if (g := p.grad) is not None), None)
            if first is not None and getattr(first, _MARK, None) != first._version and self._left_over():
                self._warned = True
                warnings.warn(
                    "gradients from before the step were dropped: each pass of a step takes its own. To add up "
                    "micro-batches call `accumulate(closure)` for each and then `step()`, and leave a `backward()` "
                    "before `step(closure)` out.",
                    stacklevel=6,
                )

    def _took_turns(self) -> bool:
        """Whether the last step was one of another optimizer over other parameters, whose backward passes reach ours.

        As in adversarial training: what is there is most likely theirs.
        """
        last = Passes._last() if Passes._last is not None else None
        return last is not None and last is not self and set(last.named.values()).isdisjoint(self.named.values())

    def _left_over(self) -> bool:
        """Whether some gradient is neither zero nor left by a step."""
        grads: list[Any] = [g for p in self.named.values() if (g := p.grad) is not None]
        added = hasattr(grads[0], _MARK)  # to what a step has left
        fresh = [g.detach() for g in grads if added or not hasattr(g, _MARK)]
        return any(g.layout == torch.strided and bool(g.count_nonzero()) for g in fresh)

    def end(self) -> None:
        """Mark what the step leaves in `.grad`, where loggers look for it; a version tells if more is added."""
        Passes._last = weakref.ref(self)
        if not self._warned:
            version: int | None = None
            for p in self.named.values():
                g: Any = p.grad
                if g is not None:
                    if version is None:
                        version = g._version
                    g._left_by_a_step = version  # `_MARK`

    @contextmanager
    def only(self, names: frozenset[str] | None) -> Iterator[None]:
        """Inside the block only these parameters need a gradient, which spares the others' share of the backward."""
        off = [] if names is None or self.replicas.several else [p for n, p in self.named.items() if n not in names]
        for p in off:
            p.requires_grad_(False)
        self._sparing = bool(off)
        try:
            yield
        finally:
            self._sparing = False
            for p in off:
                p.requires_grad_(True)

    # -- passes ----------------------------------------------------------------------------------------------------

    def run(self, unit: Unit, closures: Sequence[Closure], *, once: bool = False, ascending: bool = False) -> Tensor:
        """Call one closure a chunk; the mean gradient stays in `.grad`, the mean value is returned.

        `once` says that no other pass over the same data follows: the random state need not be kept. `ascending` says
        that these are closures of an ascent objective, whose sign is its own.
        """
        return self._over(unit, lambda i: self._call(unit, i, closures[i], once=once, ascending=ascending))

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
            with self._frozen(unit):
                self._ready(unit, i)
                before, after = (clean, perturbed) if self.trained.sign > 0 else (perturbed, clean)
                self._backward_on(closure, select(before, after, getattr(closure, "weights", None)))
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
            with self._tracked(unit), torch.enable_grad(), self.replicas.quiet():
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
            self.run(unit, objectives, ascending=True)
            return self.take(), first, loss
        clean_parts: list[Params] = []

        def one(i: int) -> Tensor:
            objective: Any = objectives[i]
            objective.retain = True
            self._call(unit, i, objective, ascending=True)
            ascent = self.take()
            with torch.enable_grad(), self.replicas.quiet():
                value: Tensor = objective.loss_backward()
            self._arrived()
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

        Plain closures cannot go forward alone: they run whole where that updates buffers, else not at all.
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
        if self.tracking or (self.updates is not False and self.buffers):
            kept = self.buffers.take()
            loss = self.run(unit, unit.descents)
            self.updates = changed(kept)
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

    def _call(self, unit: Unit, i: int, closure: Closure, *, once: bool = False, ascending: bool = False) -> Tensor:
        if not once:
            self._ready(unit, i)
        self.clear()
        self.count += 1
        ours = isinstance(closure, Objective)
        try:
            if ours:
                closure.clears = False  # type: ignore[attr-defined]
            with self._tracked(unit), torch.enable_grad(), self.replicas.quiet():
                value: Any = closure()
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error) or "through the graph a second time" in str(error):
                raise ValueError(_OLD_GRAPH.format(error)) from error
            if "does not require grad and does not have a grad_fn" in str(error):
                raise ValueError(NO_GRAPH) from error
            if "unscale_() has already been called" in str(error):
                raise ValueError(UNSCALED) from error
            raise
        finally:
            if ours:
                closure.clears = True  # type: ignore[attr-defined]
        self._arrived(ascending=ascending)
        plain = type(value) is Tensor and value.ndim == 0 and value.is_floating_point()
        return value.detach() if plain else loss_from(value)

    def _backward_on(self, closure: Closure, index: Tensor | None) -> Tensor:
        """Backward on the mean loss of chosen examples; returns their losses."""
        self.clear()
        self.count += 1
        with torch.enable_grad(), self.replicas.quiet():
            losses: Tensor = closure.losses(index)  # type: ignore[attr-defined]
            self._backward(losses.mean())
        return losses.detach()

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scale is None else self.scale.scale(loss)).backward()
        self._arrived()

    def _arrived(self, *, ascending: bool = False) -> None:
        """Check that a backward pass has left gradients, and bring them into true units, downhill."""
        if self.unchecked:
            check_dense(self.named)
            self.unchecked = False
        if self.replicas.several:
            self.seen.update(name for name, p in self.named.items() if p.grad is not None)
        elif not self._sparing:
            for p in self.named.values():
                if p.grad is not None:
                    break
            else:
                raise ValueError(NO_GRADIENT)
        if self.scale is not None:
            self.scale.true_units([g for p in self.named.values() if (g := p.grad) is not None])
        if self.trained.uphill and not ascending:
            self.turn()

    def _without_gradient(self, unit: Unit, i: int, losses: Callable[[], Tensor]) -> Tensor:
        self._ready(unit, i)
        self.count += 1
        with torch.no_grad(), self._frozen(unit):
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
        with torch.no_grad(), self._frozen(unit):
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
        return self._frozen(unit) if unit.tracked else nullcontext()

    def _frozen(self, unit: Unit) -> AbstractContextManager[None]:
        """A block in which passes leave alone what a clean pass has updated."""
        criterion = getattr(unit.descents[0], "loss", None)
        own = Buffers(criterion.modules(), everything=True) if isinstance(criterion, nn.Module) else None
        if self.iterating or self.trained.others or self.buffers or own:
            return self._leaving_nothing(own)
        return frozen_statistics(self.tracking)

    @contextmanager
    def _leaving_nothing(self, own: Buffers | None) -> Iterator[None]:
        """Buffers, and gradients of what the base optimizer does not hold, are afterwards as before.

        Spectral normalisation keeps the vectors that it has: its power iteration rests.
        """
        modes = [module.training for module in self.iterating]
        grads = [(p, p.grad) for p in self.trained.others]
        try:
            for module in self.iterating:
                module.training = False
            for p, _ in grads:
                p.grad = None
            with frozen_statistics(self.tracking), self.buffers.still(), own.still() if own else nullcontext():
                yield
        finally:
            for module, mode in zip(self.iterating, modes, strict=True):
                module.training = mode
            for p, grad in grads:
                p.grad = grad


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
