"""The engine: one optimizer step of any sharpness-aware method, and the only place that moves a model's weights.

    gate -> radius -> for each chunk: ascent source -> scaler -> evaluation -> combiner -> base optimizer

The parts decide; the engine saves and restores weights, keeps BatchNorm statistics and random state in order, weighs
chunks, and counts passes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.batchnorm import frozen_statistics, tracking_modules
from landscape.params import Params, norm
from landscape.perturbation import AscentStep
from trainers.sharpness_aware.ascent import AscentSource, Gradient
from trainers.sharpness_aware.combiners import Combiner, TakePerturbed
from trainers.sharpness_aware.gates import Always, Gate
from trainers.sharpness_aware.hooks import ShrinkPerturb
from trainers.sharpness_aware.radii import Radius
from trainers.sharpness_aware.snapshot import RandomState

Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Composition:
    """The parts of a sharpness-aware method; `scaler` is made for radius 1, the radius multiplies it.

    Attributes:
        radius: ρ at the current learning rate.
        gate: When a step is perturbed.
        source: The raw direction.
        scaler: Metric and normalisation of the displacement.
        combiner: The gradient for the base optimizer.
        ascent: Name of the objective that the perturbation ascends: "loss" (the training loss) or "obf".
    """

    radius: Radius
    gate: Gate = field(default_factory=Always)
    source: AscentSource = field(default_factory=Gradient)
    scaler: AscentStep = field(default_factory=lambda: AscentStep(1.0))
    combiner: Combiner = field(default_factory=TakePerturbed)
    ascent: str = "loss"


@dataclass
class StepRecord:
    """What the last step did, for logs.

    Attributes:
        rho: Radius of the step; 0.0 where it was plain.
        perturbed: Whether the weights were displaced.
        clean_loss: Training loss at the clean weights, weighted over chunks; NaN where no pass saw it.
        perturbed_loss: Training loss at the displaced weights; NaN for a plain step.
        length: Root mean square over chunks of ‖δ‖₂.
        passes: Closure calls of the step.
    """

    rho: float = 0.0
    perturbed: bool = False
    clean_loss: float = math.nan
    perturbed_loss: float = math.nan
    length: float = 0.0
    passes: int = 0


class SharpnessAware(Optimizer):
    """A base optimizer whose gradient is taken at perturbed weights.

    It shares `param_groups` and `state` with the base optimizer, so learning rate schedulers and clipping helpers work
    unchanged. `step` needs a closure that clears the gradients, runs forward and backward, and returns the loss.

    A closure may carry two attributes: `forward()`, which returns the loss without a backward pass (used where a method
    needs no clean gradient), and, on an ascent closure, `clean_loss`, the training loss of the same pass.

    Args:
        model: The model whose weights are moved; frozen parameters are neither perturbed nor counted.
        base: Any torch optimizer over its parameters.
        parts: The method.
        same_rng: Both passes see the same random numbers (dropout masks).
        shrink: Hook that runs before each step.
        grad_clip: Largest norm of the final gradient; None does not clip.

    Raises:
        ValueError: If no parameter of the model requires a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Optimizer,
        parts: Composition,
        *,
        same_rng: bool = True,
        shrink: ShrinkPerturb | None = None,
        grad_clip: float | None = None,
    ) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups  # the same objects, so that schedulers drive the base optimizer
        self.state = base.state
        self.model = model
        self.base = base
        self.parts = parts
        self.same_rng = same_rng
        self.shrink = shrink
        self.grad_clip = grad_clip
        self.steps_taken = 0
        self.last = StepRecord()
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._named:
            raise ValueError("`model` has no parameter that requires a gradient: there is nothing to train.")
        self._saved: list[Tensor] | None = None
        self._devices = {p.device for p in self._named.values() if p.device.type == "cuda"}
        self._tracking = tracking_modules(model)
        self._base_step = _unhooked_step(base)

    # -- the step ------------------------------------------------------------------------------------------------

    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure],
        *,
        sizes: Sequence[int] | None = None,
        ascent: Closure | Sequence[Closure] | None = None,
    ) -> Tensor:
        """Take one optimizer step.

        Args:
            closure: One closure, or one for each chunk of the batch (m-SAM, or accumulation).
            sizes: Examples in each chunk; chunks are weighted by them, equally where None.
            ascent: Closures of the ascent objective (to be maximised), one for each chunk; None ascends the loss.

        Returns:
            The training loss at the clean weights, or at the perturbed ones for methods that never evaluate it there.

        Raises:
            ValueError: If the lists differ in length, sizes are not positive, or the method needs `ascent`.
        """
        chunks = self._chunks(closure, sizes, ascent)
        lr = float(self.param_groups[0]["lr"])
        if self.shrink is not None:
            self.shrink(self.model, lr)
        rho = self.parts.radius(lr)
        perturb = rho > 0 and self.parts.gate(self.steps_taken)
        self.last = StepRecord(rho=rho if perturb else 0.0, perturbed=perturb)
        total: Params | None = None
        losses: list[Tensor] = []
        squared = 0.0
        for descent, objective, weight in chunks:
            if perturb:
                loss, length = self._perturbed_pass(descent, objective, rho, weight)
                squared += weight * length**2
            else:
                loss = self._call(descent)
            losses.append(loss * weight if len(chunks) > 1 else loss)
            if len(chunks) > 1:
                total = _accumulate(total, self._take_gradients(), weight)
        if total is not None:
            for name, grad in total.items():
                self._named[name].grad = grad
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(list(self._named.values()), self.grad_clip)
        self._base_step()
        self.steps_taken += 1
        self.last.length = math.sqrt(squared)
        result = losses[0] if len(losses) == 1 else torch.stack([t.reshape(()) for t in losses]).sum()
        if not perturb:
            self.last.clean_loss = float(result)
        return result

    def _perturbed_pass(
        self, descent: Closure, objective: Closure | None, rho: float, weight: float
    ) -> tuple[Tensor, float]:
        """Leave the chunk's combined gradient in `.grad`; return its loss and the length of the displacement."""
        source, scaler = self.parts.source, self.parts.scaler
        rng = RandomState.take(self._devices) if self.same_rng else None
        clean: Params | None = None
        loss: Tensor | None = None
        if source.needs_gradient:
            value = self._call(objective or descent)
            loss = value if objective is None else getattr(objective, "clean_loss", None)
            clean = self._take_gradients()
        elif hasattr(descent, "forward"):
            with torch.no_grad():
                loss = descent.forward()
            self.last.passes += 1
        elif self._tracking:
            loss = self._call(descent)  # a full pass, for the running statistics at the clean weights
        theta: Params = {name: p.detach() for name, p in self._named.items()}
        with self._restored(), frozen_statistics(self._tracking):
            unit = scaler.unit(theta, source.direction(theta, clean))
            length = rho * unit.length
            if source.steps == 1:
                self._displace(unit.parts, rho * unit.factor)
            else:
                delta = source.advance(None, unit.as_params(), rho)
                self._displace(delta)
                for _ in range(source.steps - 1):
                    self._rewind(rng)
                    self._call(objective or descent)
                    inner = scaler.direction(self._clean_point(), source.direction(theta, self._take_gradients()))
                    delta = source.advance(delta, inner, rho)
                    self._displace(delta, afresh=True)
                length = float(norm(delta))
            self._rewind(rng)
            perturbed_loss = self._call(descent)
        self._note(loss, perturbed_loss, weight)
        if self.parts.combiner.active:
            combined = self.parts.combiner(clean, unit.as_params, self._take_gradients())
            for name, grad in combined.items():
                self._named[name].grad = grad
        return (perturbed_loss if loss is None else loss), length

    # -- weights, gradients, randomness ----------------------------------------------------------------------------

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Copy the weights now and put the copy back at the end, whatever happens in between."""
        weights = [p.detach() for p in self._named.values()]
        if self._saved is None or any(
            s.shape != w.shape or s.device != w.device for s, w in zip(self._saved, weights, strict=True)
        ):
            self._saved = [torch.empty_like(w) for w in weights]
        with torch.no_grad():
            torch._foreach_copy_(self._saved, weights)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, self._saved)

    def _clean_point(self) -> Params:
        assert self._saved is not None
        return dict(zip(self._named, self._saved, strict=True))

    @torch.no_grad()
    def _displace(self, delta: Params, times: float = 1.0, *, afresh: bool = False) -> None:
        if afresh and self._saved is not None:
            torch._foreach_copy_([p.detach() for p in self._named.values()], self._saved)
        if delta:
            torch._foreach_add_([self._named[name].detach() for name in delta], list(delta.values()), alpha=times)

    def _call(self, closure: Closure) -> Tensor:
        self.last.passes += 1
        with torch.enable_grad():
            value = closure()
        return value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))

    def _take_gradients(self) -> Params:
        """Take the gradients out of `.grad`: the next backward pass then cannot overwrite them."""
        grads = {name: p.grad for name, p in self._named.items() if p.grad is not None}
        for p in self._named.values():
            p.grad = None
        return grads

    def _rewind(self, rng: RandomState | None) -> None:
        if rng is not None:
            rng.restore()

    def _note(self, loss: Tensor | None, perturbed: Tensor, weight: float) -> None:
        record = self.last
        if loss is not None:
            record.clean_loss = (0.0 if math.isnan(record.clean_loss) else record.clean_loss) + weight * float(loss)
        record.perturbed_loss = (0.0 if math.isnan(record.perturbed_loss) else record.perturbed_loss) + weight * float(
            perturbed
        )

    def _chunks(
        self,
        closure: Closure | Sequence[Closure],
        sizes: Sequence[int] | None,
        ascent: Closure | Sequence[Closure] | None,
    ) -> list[tuple[Closure, Closure | None, float]]:
        descents = [closure] if callable(closure) else list(closure)
        if not descents:
            raise ValueError("`closure` is an empty list: give one closure for each chunk.")
        objectives: list[Closure | None]
        if ascent is None:
            if self.parts.ascent != "loss":
                raise ValueError(
                    f"this method ascends {self.parts.ascent!r}, not the loss: pass `ascent=`, a closure that clears "
                    f"the gradients and runs backward on that objective (for OBF, `trainers.obf_loss(model(x), y)`)."
                )
            objectives = [None] * len(descents)
        else:
            objectives = [ascent] if callable(ascent) else list(ascent)
        counts = [1] * len(descents) if sizes is None else list(sizes)
        if not len(descents) == len(objectives) == len(counts):
            raise ValueError(
                f"`closure`, `sizes` and `ascent` must have one entry a chunk, got {len(descents)}, {len(counts)} and "
                f"{len(objectives)}."
            )
        if any(c <= 0 for c in counts):
            raise ValueError(f"`sizes` must be positive, got {counts}.")
        return [(d, o, c / sum(counts)) for d, o, c in zip(descents, objectives, counts, strict=True)]

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's `state` and `param_groups`, and under "sharpness_aware" what the method keeps."""
        extra: dict[str, Any] = {"steps_taken": self.steps_taken, "source": self.parts.source.state_dict()}
        if self.shrink is not None:
            extra["shrink_initial"] = dict(self.shrink.initial)
        return {**self.base.state_dict(), "sharpness_aware": extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: If the state comes from another kind of optimizer.
        """
        if "sharpness_aware" not in state_dict:
            raise ValueError("`state_dict` is not from a sharpness-aware optimizer: it lacks 'sharpness_aware'.")
        extra = state_dict["sharpness_aware"]
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "sharpness_aware"})
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.steps_taken = int(extra["steps_taken"])
        self.parts.source.load_state_dict(extra["source"])
        if self.shrink is not None:
            self.shrink.initial = dict(extra["shrink_initial"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base.zero_grad(set_to_none)


def _unhooked_step(base: Optimizer) -> Callable[[], Any]:
    """The base optimizer's step without torch's wrapper for hooks and profiling, which our own step already has."""
    bare = getattr(type(base).step, "__wrapped__", None)
    if bare is None or base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks:
        return base.step
    return partial(bare, base)


def _accumulate(total: Params | None, grads: Params, weight: float) -> Params:
    if total is None:
        return dict(zip(grads, torch._foreach_mul(list(grads.values()), weight), strict=True)) if grads else {}
    for name, grad in grads.items():
        total[name] = total[name].add_(grad, alpha=weight) if name in total else grad * weight
    return total
