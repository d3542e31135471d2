"""The engine: one optimizer step of any sharpness-aware method.

    gate -> radius -> for each unit of chunks: source -> mask and metric -> points -> combiner -> base optimizer

The parts decide; the engine asks them in turn, has the gradients taken (`passes`), moves the weights and puts them back
(`weights`), averages over ranks (`ranks`), and steps once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from landscape.params import Params, real, wide_norm
from landscape.ranks import Ranks
from trainers.files.tree import copied
from trainers.sharpness_aware.arguments import closures_from
from trainers.sharpness_aware.ascent import Means
from trainers.sharpness_aware.chunks import Closure, Unit, units_of
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.evaluation import Evaluation, Reference
from trainers.sharpness_aware.exchange import Exchange
from trainers.sharpness_aware.gates import Mode, Never
from trainers.sharpness_aware.hooks import ShrinkPerturb
from trainers.sharpness_aware.moment import Moment
from trainers.sharpness_aware.parallel_gradients import Pair
from trainers.sharpness_aware.passes import Passes, accumulated
from trainers.sharpness_aware.precision import UNSCALED, Guard, LossScale, check_precision, spoil
from trainers.sharpness_aware.radii import group_radii
from trainers.sharpness_aware.ranks import Noise, Replicas, circle_of
from trainers.sharpness_aware.record import StepRecord
from trainers.sharpness_aware.rollback import Before
from trainers.sharpness_aware.sharded import check_sharded
from trainers.sharpness_aware.snapshot import RandomState
from trainers.sharpness_aware.spec import MethodSpec
from trainers.sharpness_aware.trained import Trained, bring_state, leave_fused
from trainers.sharpness_aware.weights import Weights


class SharpnessAware(Optimizer):
    """A base optimizer whose gradient is taken at perturbed weights.

    It shares `param_groups` and `state` with the base optimizer, so learning rate schedulers and clipping helpers work
    unchanged. `step` needs a closure that clears the gradients, runs forward and backward, and returns the loss.

    A closure may carry more, as `trainers.Objective` does: `forward()`, the loss without a backward pass;
    `losses(index)`, the training losses of chosen examples, with their graph; and, on an ascent closure, `clean_loss`,
    the training loss of the same pass.

    Args:
        model: The model whose weights are moved: those that the base optimizer trains, as its groups are at each step.
            Frozen parameters, and those of no group, are neither perturbed nor counted. Pass the
            DistributedDataParallel model itself, or give it to `wrapped_in` later: the engine averages gradients over
            ranks, once a step, and keeps DistributedDataParallel from doing so.
        base: Any torch optimizer over its parameters, or some of them, and perhaps others', such as a criterion's. Its
            groups may have `maximize`, which the perturbation follows, and a radius `rho` of their own: the direction
            is normalised over all groups together, and each group's part of it multiplied by its radius.
        parts: The method.
        spec: What the parts were made from; the engine reads how a step is taken: random numbers, clipping, scaling,
            skipping, sharing and ranks.
        noise: The method's random draws, with several processes.

    Attributes:
        last: What the last step did.

    Raises:
        ValueError: If no parameter of the model requires a gradient, or the model and the sharing do not go together.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Optimizer,
        parts: Composition,
        spec: MethodSpec,
        *,
        noise: Noise | None = None,
    ) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups  # the same objects, so that schedulers drive the base optimizer
        self.state = base.state
        self.model = model
        self.base = base
        leave_fused(base)
        self.parts = parts
        lr = float(base.param_groups[0]["lr"])
        self.shrink = ShrinkPerturb.of(model, spec.shrink_perturb, lr) if spec.shrink_perturb else None
        self.grad_clip, self.grad_scaler, self.skip_nonfinite = spec.grad_clip, spec.grad_scaler, spec.skip_nonfinite
        self._method, self.sharing, self.diagnose = spec.method, spec.sharing, spec.diagnose
        self.steps_taken = 0
        self.last = StepRecord()
        self._trained = Trained(model, base)
        named = self._trained.parameters
        parts.check_groups(self._trained)
        scaler, group, sharing = spec.grad_scaler, spec.group, spec.sharing
        check_precision(named, scaler)
        self._base_step = _unhooked_step(base)
        self._scale = LossScale(scaler, (self, base)) if scaler is not None and scaler.is_enabled() else None
        guarded = spec.skip_nonfinite or self._scale is not None
        self._guard = Guard(losses=spec.skip_nonfinite) if guarded else None
        self._noise = noise
        if spec.parallel_gradients and not (parts.plan.lagged and parts.plan.ahead):
            raise ValueError(
                "`parallel_gradients` needs two gradients that do not wait for each other: method 'sampa'."
            )
        pair = Pair(model, named, group) if spec.parallel_gradients else None
        sharded = check_sharded(model, named, base, parts, sharing)
        ranks, alone = Ranks.of(group), sharded or spec.parallel_gradients
        circle = Ranks() if alone else circle_of(sharing, ranks, spec.group_size)
        self._replicas = Replicas(model, ranks, circle, alone=alone)
        self._weights = Weights(self._trained, model)
        self._passes = Passes(
            model, self._trained, self._weights, self._replicas, same_rng=spec.same_rng, scale=self._scale
        )
        self._exchange = Exchange(parts, self._replicas, self._passes, self._weights)
        self._evaluation = Evaluation(
            parts,
            self._weights,
            self._passes,
            self._replicas,
            self._exchange,
            scale=self._scale,
            pair=pair,
            sharing=sharing,
            sharers=(ranks if sharded else circle).count,
            diagnose=spec.diagnose,
            guard=self._guard,
        )
        self._passes.unchecked = not isinstance(parts.gate, Never)  # plain optimizers may take sparse gradients
        synchronised = any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        if self._replicas.several and sharing != "global" and synchronised and not isinstance(parts.gate, Never):
            raise ValueError(
                f"SyncBatchNorm mixes activations of ranks whose weights are perturbed differently under `sharing` "
                f"{sharing!r}: use sharing='global', or BatchNorm."
            )
        self._kept_previous: dict[str, Any] = {}  # of a state that was loaded, until `remember`
        self._open: tuple[Moment, Mode] | None = None  # of a step that is being accumulated
        self._whole = False  # whether `evaluate` has done all of the open step's passes
        self._examples = 0.0  # accumulated so far
        self._following: Unit | None = None  # the next step's previous batch, once this step has not been skipped
        self._before: Before | None = None  # the start of a step that may be skipped or given up

    @property
    def reference(self) -> Reference | None:
        """Returns closures over the reference data and their sizes, for methods whose `needs_reference` says so."""
        return self._evaluation.reference

    @reference.setter
    def reference(self, reference: Reference | None) -> None:
        self._evaluation.reference = reference

    @property
    def needs_reference(self) -> str:
        """What `reference` is wanted for: "" (nothing), "gradient", or "squares" (closures of one example each)."""
        return self.parts.needs_reference

    @property
    def needs_batch(self) -> bool:
        """Whether a step must have all its closures at once, so that `accumulate` cannot be used."""
        return self.parts.gate.needs_gradient or self.needs_previous or self.sharing != "chunk"

    @property
    def needs_previous(self) -> bool:
        """Whether each step evaluates the previous step's batch again; see `remember`."""
        return self.parts.needs_previous

    @property
    def previous_is_lost(self) -> bool:
        """Whether a state was loaded whose previous batch `remember` has not given back."""
        return self._evaluation.previous is None and bool(self._kept_previous)

    def wrapped_in(self, model: DistributedDataParallel) -> None:
        """Name the DistributedDataParallel around the model, where it was made after the optimizer.

        Otherwise it averages the gradient of every pass, which makes each perturbation one of all ranks.
        """
        self._replicas.watch(model)

    # -- the step ------------------------------------------------------------------------------------------------

    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure] | None = None,
        *,
        sizes: Sequence[float] | None = None,
        ascent: Closure | Sequence[Closure] | None = None,
    ) -> Tensor | None:
        """Take one optimizer step.

        Args:
            closure: One closure, or one for each chunk of the batch (m-SAM, or accumulation). None ends a step that
                `accumulate` has begun.
            sizes: Examples in each chunk; chunks are weighted by them, equally where None. With several processes,
                ranks are weighted by their sums.
            ascent: Closures of the ascent objective (to be maximised), one for each chunk; None ascends the loss.

        Returns:
            The training loss at the clean weights, or at the perturbed ones for methods that never evaluate it there;
            this rank's own. None for a step that was accumulated.

        Raises:
            ValueError: If the lists differ in length, sizes are not positive, or the method needs `ascent`, closures
                with per-example losses, or reference data.
        """
        with torch.no_grad():  # once for the step: passes switch gradients on for themselves
            loss = None if closure is None else self._evaluate(closure, sizes, ascent)
            self._end()
        return loss

    def evaluate(
        self,
        closure: Closure | Sequence[Closure],
        *,
        sizes: Sequence[float] | None = None,
        ascent: Closure | Sequence[Closure] | None = None,
    ) -> Tensor:
        """All of a step but its end, which `step()` without a closure then is.

        For loops that clip or log in between: `.grad` holds the step's gradient, in true units, this rank's own.

        Args:
            closure: As for `step`.
            sizes: As for `step`.
            ascent: As for `step`.

        Returns:
            The training loss, as `step`.

        Raises:
            ValueError: As for `step`, or in the middle of a step.
        """
        with torch.no_grad():
            return self._evaluate(closure, sizes, ascent, revocable=True)

    def _evaluate(
        self,
        closure: Closure | Sequence[Closure],
        sizes: Sequence[float] | None,
        ascent: Closure | Sequence[Closure] | None,
        *,
        revocable: bool = False,
    ) -> Tensor:
        if self._open is not None:
            raise ValueError("a step has been begun and got another closure: end it with `step()` first.")
        units = self._units(closure, sizes, ascent)
        if self.needs_previous and self.previous_is_lost:
            raise ValueError(
                "the state that was loaded goes on from a batch that this method evaluates again: give it back with "
                "`remember(closures, sizes=...)` before the first step."
            )
        moment = self._begin(revocable=revocable)
        try:
            self._exchange.alone = len(units) == 1
            mode, firsts = self._evaluation.decide(units, moment)
            losses = []
            total: Params | None = None
            for unit, first in zip(units, firsts, strict=True):
                if self.last.overflow:
                    losses.append(self._evaluation.nothing_seen())
                    break
                loss = self._evaluation.gradient(unit, moment, mode, first)
                losses.append(loss * unit.weight if len(units) > 1 else loss)
                if len(units) > 1:
                    total = accumulated(total, self._passes.take(), unit.weight)
            if total is not None:
                self._passes.give(total)
        except BaseException:
            self._passes.clear()
            self._undo(moment, failed=True)
            raise
        self._open, self._whole, self._examples = (moment, mode), True, float(sum(u.examples for u in units))
        self._following = units[0] if self.needs_previous else None
        return losses[0] if len(losses) == 1 else torch.stack([t.reshape(()) for t in losses]).sum()

    def accumulate(self, closure: Closure, *, size: int | None = None, ascent: Closure | None = None) -> Tensor:
        """Evaluate one chunk of a step now; `step()` without a closure ends the step.

        For loops that hand out micro-batches one by one. Each chunk has its own perturbation (m-SAM with m the chunk).
        Between calls `.grad` holds the gradient so far, in true units, where clipping helpers and loggers look for it.

        Args:
            closure: As for `step`.
            size: Examples in the chunk: the step's gradient is then the weighted mean over chunks. None adds up the
                chunks' gradients, for closures that divide the loss by the number of chunks themselves.
            ascent: Closure of the ascent objective.

        Returns:
            The chunk's training loss, as `step`.

        Raises:
            ValueError: If the method's chunks cannot be evaluated one by one, or `size` is given for some only.
        """
        with torch.no_grad():
            return self._accumulate(closure, size, ascent)

    def _accumulate(self, closure: Closure, size: int | None, ascent: Closure | None) -> Tensor:
        if self.needs_batch:
            raise ValueError(
                "`accumulate` evaluates chunks one by one, and this method must see the whole batch first: pass all "
                "closures to `step([...])` at once."
            )
        if self._open is not None and self._whole:
            raise ValueError("`accumulate` was called after `evaluate`: end the step with `step()` first.")
        if not callable(closure):
            closures_from(closure, "closure")
            raise ValueError("`accumulate` takes one closure at a time: pass several to `step([...], sizes=[...])`.")
        unit = self._units(closure, None if size is None else [size], ascent)[0]
        so_far: Params | None = None
        if self._open is None:
            moment = self._begin(revocable=True)
            self._open, self._examples, self._whole = (moment, self._evaluation.decide([unit], moment)[0]), 0.0, False
        else:
            so_far = self._passes.take()
            if self._open[1] is Mode.PERTURBED:
                self._evaluation.note_m(unit)
            if (size is None) != (self._examples == 0):
                raise ValueError("`size` must be given for all chunks of a step or for none.")
        moment, mode = self._open
        if size is not None:
            unit.weight = size / (self._examples + size)
            self._lessen(moment, so_far, 1 - unit.weight)
            self._examples += size
        loss = self._evaluation.nothing_seen()
        if not self.last.overflow:
            self._weights.begin()
            moment.theta = self._weights.clean()
            try:
                loss = self._evaluation.gradient(unit, moment, mode, None)
            except BaseException:
                self._open = None
                self._passes.clear()
                self._undo(moment, failed=True)
                raise
        self._passes.give(accumulated(so_far, self._passes.take(), unit.weight))
        return loss

    def _lessen(self, moment: Moment, so_far: Params | None, share: float) -> None:
        """Multiply by `share` all that the step's earlier chunks have left: they are weighted means so far."""
        made = self.parts.combiner.shared(moment) + self.parts.source.shared(moment)
        for held in (so_far, *self._exchange.sums.values(), *made):
            if held:
                torch._foreach_mul_(list(held.values()), share)
        self.last.lessen(share)

    def _end(self) -> None:
        if self._open is None:
            raise ValueError(
                "`step` needs a closure that clears the gradients, runs forward and backward and returns the loss: the "
                "gradient is taken at more than one point. Or call `accumulate(closure)` before `step()`. A "
                "GradScaler is passed as `grad_scaler=`, and `optimizer.step(closure)` called, not `scaler.step(...)`."
            )
        if self._scale is not None and self._scale.touched():
            self.abandon()
            raise ValueError(UNSCALED)
        (moment, mode), self._open = self._open, None
        self._finish(moment, mode, self._examples or 1.0)
        if self._following is not None and not self.last.overflow:
            self._evaluation.previous = self._following
        self._following = None
        self._passes.end()

    def remember(
        self,
        closure: Closure | Sequence[Closure],
        *,
        sizes: Sequence[float] | None = None,
        ascent: Closure | Sequence[Closure] | None = None,
    ) -> None:
        """Give back the previous step's batch after a resume, for methods whose `needs_previous` is true."""
        unit = self._units(closure, sizes, ascent)[0]
        kept = self._kept_previous
        unit.tracked = bool(kept.get("tracked", True))
        if len(kept.get("states", [])) == len(unit.states):
            unit.states = [RandomState(state["cpu"].cpu(), dict(state["cuda"])) for state in kept["states"]]
        self._evaluation.previous = unit

    # -- the stages of a step --------------------------------------------------------------------------------------

    def _units(
        self,
        closure: Closure | Sequence[Closure],
        sizes: Sequence[float] | None,
        ascent: Closure | Sequence[Closure] | None,
    ) -> list[Unit]:
        parts = self.parts
        units = units_of(closure, sizes, ascent, objective=parts.ascent, together=self.sharing != "chunk")
        if len(units) > 1 and self.needs_previous:
            raise ValueError("this method evaluates whole batches again: give one closure, or sharing='batch'.")
        if ascent is not None and not parts.other_ascent:
            raise ValueError(
                "`ascent` has no meaning for this method, which does not ascend an objective's gradient: leave it out."
            )
        descents = [d for unit in units for d in unit.descents]
        if parts.needs_losses and not all(hasattr(d, "losses") for d in descents):
            raise ValueError(
                f"this method {parts.needs_losses}, and `closure` gives one number: pass a closure with "
                f"`losses(index)`, such as `trainers.Objective(model, loss, x, y)`."
            )
        if parts.functional and not all(hasattr(d, "pull") for d in descents):
            raise ValueError(
                "this method needs the logits: pass closures such as `trainers.Objective(model, loss, x, y)`."
            )
        return units

    def _begin(self, *, revocable: bool) -> Moment:
        self._look()
        if self._weights.begin():  # in another type, or elsewhere: what is kept goes along
            bring_state(self.base)
            self.parts.load_state_dict(self._own(self.parts.state_dict()))
            self._passes.look()
            self._evaluation.previous = None  # its data are not like the weights any more
        self._passes.start()
        lr = float(self.param_groups[0]["lr"])
        self._before = None
        first = self.steps_taken == 0  # which may be refused
        if revocable or first or self._guard is not None:
            whole = revocable or first or self.skip_nonfinite
            self._before = Before.of(self.parts, self.model, self.shrink, whole=whole)
        if self.shrink is not None:
            self.shrink(self.model, lr)
        rho, shares = self._radii(lr)
        self.last = StepRecord(rho=rho)
        self._evaluation.begin(self.last)
        if self._noise is not None and self._replicas.several:
            self._noise.begin(self.steps_taken)
        return Moment(self.steps_taken, lr, rho, self._weights.clean(), self._weights.parameters, self.base, shares)

    def _look(self) -> None:
        """Read groups and model anew."""
        if self.param_groups is not self.base.param_groups:  # `base.load_state_dict` makes new ones
            self.param_groups, self.state = self.base.param_groups, self.base.state
        if not self._trained.look():
            return
        self.parts.check_groups(self._trained)
        self._passes.look()
        for p in self._trained.joined:
            p.grad = None  # from passes in which it was not trained
        if self._trained.joined:
            bring_state(self.base)

    def _radii(self, lr: float) -> tuple[float, dict[str, float]]:
        """The radius of the step, and each parameter's share of it where groups have their own."""
        radius, own = self.parts.radius, self._trained.radii
        rho = radius(lr, self.steps_taken)
        if not own:
            return rho, {}
        each = dict.fromkeys(self._trained.parameters, rho) | group_radii(radius, own, lr, self.steps_taken)
        largest = max(each.values())
        if all(value == largest for value in each.values()):
            return largest, {}
        return largest, {name: value / largest for name, value in each.items()}

    def _finish(self, moment: Moment, mode: Mode, weight: float) -> None:
        """Average over ranks, clip, step once, and let the parts take note."""
        record, parts, passes = self.last, self.parts, self._passes
        named = self._weights.parameters
        late = "second pass" if mode is Mode.PERTURBED else "first pass"
        if self._guard is not None:
            late_losses = [v for _, v in record.clean + record.displaced if isinstance(v, Tensor)]
            alone = [] if self._replicas.several else self._made(moment)  # else the average of all ranks is looked at
            broken = not self._guard.passes(*alone, losses=late_losses)
            if self.skip_nonfinite and self._replicas.whole:  # gradients that all share may not travel once more
                broken = self._replicas.mean(float(broken), 1.0) > 0
            if broken:
                record.overflow = record.overflow or late
        if record.overflow:
            spoil(named)
        extra = self._exchange.average(moment, mode, weight)
        if self._guard is not None and self._replicas.several and not self._passes_for_all(moment):
            record.overflow = f"{late} (on some rank)"
        if not record.overflow:
            moment.theta = self._weights.clean()
            passes.turn()
            if mode is Mode.REUSE:
                passes.give(parts.combiner.reuse(moment, passes.gradients()))
            if mode is Mode.PERTURBED:
                sums = self._exchange.sums
                parts.source.observe(moment, Means(passes.gradients(), sums.get("ascent"), sums.get("ahead")))
                parts.combiner.commit()
                if parts.mask is not None and parts.mask.wants_ascent(moment.t):
                    parts.mask.after_ascent(moment, sums.get("ascent") or {})
            passes.turn()
            if self.diagnose:
                grads = passes.gradients()
                record.final = [(wide_norm(grads),)]
            if self.grad_clip is not None:
                nn.utils.clip_grad_norm_(list(named.values()), self.grad_clip)
        if parts.mask is not None and not record.overflow:
            passes.used.update(passes.gradients())
        rates = [float(group["lr"]) for group in self.param_groups]
        if not record.overflow:
            self._base_step()
        if self._scale is not None:
            self._scale.update(overflow=bool(record.overflow))
        if record.overflow:
            passes.clear()
            self._undo(moment)
            return
        self.steps_taken += 1
        if parts.source.keeps_final and mode is Mode.PERTURBED:
            passes.clear()  # the tensors are the source's now
        if extra:
            self._add_decoupled(extra, rates)
        mask = parts.mask
        if mask is not None and mode is Mode.PERTURBED and mask.reference and mask.wants_squares(moment.t):
            moment.theta = self._weights.clean()
            mask.refresh(moment, self._evaluation.reference_mean(squares=True))

    def _passes_for_all(self, moment: Moment) -> bool:
        """Whether the averages over ranks are finite, or the step is skipped already."""
        return bool(self.last.overflow) or self._guard is None or self._guard.passes(*self._made(moment))

    def _made(self, moment: Moment) -> list[Params | None]:
        """The gradient, and whatever else of the step is kept or added to the weights."""
        return [self._passes.gradients(), *self._exchange.sums.values(), *self.parts.combiner.shared(moment)]

    def _undo(self, moment: Moment, *, failed: bool = False) -> None:
        """All but the gradients as before a step that was skipped, given up or broke off, as far as it was kept."""
        self.parts.source.forget(moment)
        self.parts.combiner.forget(moment)
        if self._before is not None:
            self._before.put_back(self.parts, whole=failed or self.skip_nonfinite)
            self._before = None

    def abandon(self) -> None:
        """Give up the step that `evaluate` or `accumulate` has begun; without one nothing happens.

        Weights, buffers, the method's state and its own generators are as before it, and the gradients are cleared.
        Numbers that the passes drew from torch's global generators stay drawn. With several processes all must call it.
        """
        if self._open is None:
            return
        (moment, _), self._open, self._following = self._open, None, None
        self._passes.clear()
        self._undo(moment, failed=True)

    def train(self) -> None:
        """Put the base optimizer into the mode in which it steps, where it has modes, as schedule-free ones do."""
        self._switch("train")

    def eval(self) -> None:
        """Put the base optimizer into the mode whose weights are evaluated and saved, where it has modes.

        Raises:
            ValueError: In the middle of a step.
        """
        if self._open is not None:
            raise ValueError(
                "`eval` was called in the middle of a step: end it with `step()`, or give it up with `abandon()`."
            )
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        switch = getattr(self.base, mode, None)
        if callable(switch):
            switch()

    # -- small things ----------------------------------------------------------------------------------------------

    def _add_decoupled(self, extra: Params, rates: list[float]) -> None:
        names = {p: n for n, p in self._weights.parameters.items()}
        for group, lr in zip(self.param_groups, rates, strict=True):
            moved = [p for p in group["params"] if names.get(p) in extra]
            if moved:
                torch._foreach_add_([real(p) for p in moved], [extra[names[p]] for p in moved], alpha=-lr)

    def synchronise_buffers(self) -> None:
        """Replace running statistics by their means over ranks: before an evaluation or a checkpoint."""
        self._replicas.buffers()

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's `state` and `param_groups`, and under "sharpness_aware" what the method keeps.

        Raises:
            ValueError: In the middle of an accumulated step.
        """
        if self._open is not None:
            raise ValueError("`state_dict` was called in the middle of a step: end it with `step()` first.")
        extra: dict[str, Any] = {
            "method": self._method, "steps_taken": self.steps_taken, "parts": self.parts.state_dict(),
        }  # fmt: skip
        if self.shrink is not None:
            extra["shrink_initial"] = dict(self.shrink.initial)
        if self._scale is not None:
            extra["grad_scaler"] = self._scale.state_dict()
        if self._evaluation.previous is not None:
            states = [{"cpu": s.cpu, "cuda": dict(s.cuda)} for s in self._evaluation.previous.states if s is not None]
            extra["previous"] = {"tracked": self._evaluation.previous.tracked, "states": states}
        return {**self.base.state_dict(), "sharpness_aware": extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: If the state comes from another kind of optimizer, or another method.
        """
        if "sharpness_aware" not in state_dict:
            raise ValueError("`state_dict` is not from a sharpness-aware optimizer: it lacks 'sharpness_aware'.")
        extra = self._own(state_dict["sharpness_aware"])
        method = extra.get("method", self._method)  # which older states do not tell
        if method != self._method:
            raise ValueError(
                f"`state_dict` is of method {method!r}, and this optimizer's is {self._method!r}: make it with that "
                f"method, or hand the base optimizer's part alone to `optimizer.base.load_state_dict`."
            )
        before = self.parts.state_dict()
        try:
            self.parts.load_state_dict(extra["parts"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            self.parts.load_state_dict(before)
            raise ValueError("`state_dict` is from another method, or from other options of this one.") from error
        # torch's own shares the tensors
        self.base.load_state_dict(copied({k: v for k, v in state_dict.items() if k != "sharpness_aware"}))
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.steps_taken = int(extra["steps_taken"])
        if self.shrink is not None:
            self.shrink.initial = dict(extra["shrink_initial"])
        self._evaluation.previous, self._kept_previous = None, dict(extra.get("previous", {}))
        if self._scale is not None and "grad_scaler" in extra:
            self._scale.load_state_dict(extra["grad_scaler"])

    def _own(self, node: Any, name: str = "") -> Any:
        """A copy of a state: tensors of a parameter on its device and, as far as they are real numbers, in its type."""
        if isinstance(node, dict):
            return {key: self._own(value, str(key)) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(self._own(value) for value in node)
        if not isinstance(node, Tensor):
            return node
        p = self._weights.parameters.get(name)
        if p is None:
            return node.detach().clone()
        kind = real(p.detach()).dtype if node.is_floating_point() else node.dtype
        return node.detach().to(p.device, kind, copy=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its parameters count from now on.

        Raises:
            ValueError: In the middle of a step.
        """
        if not hasattr(self, "base"):  # torch's constructor calls this
            super().add_param_group(param_group)
            return
        if self._open is not None:
            raise ValueError("`add_param_group` was called in the middle of a step: end it with `step()` first.")
        self.base.add_param_group(param_group)
        self._look()
        self._passes.unchecked = True

    def __getattr__(self, name: str) -> Any:
        if name in ("first_step", "second_step", "ascent_step", "descent_step"):
            raise AttributeError(
                f"there is no `{name}`: one call takes the whole step, `optimizer.step(closure)` with a function that "
                f"clears the gradients, runs forward and backward, and returns the loss."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharpnessAware":
        raise TypeError(_NO_COPY.format("copied"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(_NO_COPY.format("pickled"))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base.zero_grad(set_to_none)


_NO_COPY = (
    "a sharpness-aware optimizer moves the weights of one model and cannot be {}: make another with `make_optimizer` "
    "over the other model, and give it this one's `state_dict()`."
)


def _unhooked_step(base: Optimizer) -> Callable[[], Any]:
    """The base optimizer's step without torch's wrapper for hooks and profiling, which our own step already has.

    Hooks may be registered, and the method replaced, at any time: each step looks again.
    """
    wrapped = getattr(type(base).step, "__wrapped__", None)

    def step() -> Any:
        hooked = base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks or "step" in base.__dict__
        return base.step() if wrapped is None or hooked else wrapped(base)

    return step
