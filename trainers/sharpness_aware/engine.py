"""The engine: one optimizer step of any sharpness-aware method.

    gate -> radius -> for each unit of chunks: source -> mask and metric -> points -> combiner -> base optimizer

The parts decide; the engine asks them in turn, has the gradients taken (`passes`), moves the weights and puts them back
(`weights`), averages over ranks (`ranks`), and steps once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from landscape.params import Params, dot, length
from landscape.perturbation import TINY, Direction
from trainers.sharpness_aware.ascent import Means, scaled
from trainers.sharpness_aware.chunks import Closure, Unit, units_of
from trainers.sharpness_aware.combiners import Point, Seen
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.gates import Mode, Never
from trainers.sharpness_aware.hooks import ShrinkPerturb
from trainers.sharpness_aware.moment import Moment
from trainers.sharpness_aware.parallel_gradients import Pair
from trainers.sharpness_aware.passes import Passes, accumulated
from trainers.sharpness_aware.precision import LossScale, check_precision, finite, spoil
from trainers.sharpness_aware.ranks import Noise, Ranks, Sharing, bare, circle_of, zeros_where_missing
from trainers.sharpness_aware.record import StepRecord
from trainers.sharpness_aware.sharded import check_sharded
from trainers.sharpness_aware.snapshot import RandomState
from trainers.sharpness_aware.weights import Weights

Reference = Callable[[], tuple[Sequence[Closure], Sequence[int] | None]]


class SharpnessAware(Optimizer):
    """A base optimizer whose gradient is taken at perturbed weights.

    It shares `param_groups` and `state` with the base optimizer, so learning rate schedulers and clipping helpers work
    unchanged. `step` needs a closure that clears the gradients, runs forward and backward, and returns the loss.

    A closure may carry more, as `trainers.Objective` does: `forward()`, the loss without a backward pass;
    `losses(index)`, the training losses of chosen examples, with their graph; and, on an ascent closure, `clean_loss`,
    the training loss of the same pass.

    Args:
        model: The model whose weights are moved; frozen parameters are neither perturbed nor counted. Pass the
            DistributedDataParallel model itself, or give it to `wrapped_in` later: the engine averages gradients over
            ranks, once a step, and keeps DistributedDataParallel from doing so.
        base: Any torch optimizer over its parameters.
        parts: The method.
        same_rng: All passes of a step see the same random numbers (dropout masks).
        shrink: Hook that runs before each step.
        grad_clip: Largest norm of the final gradient, after unscaling and the average over ranks; None does not clip.
        sharing: Who shares a perturbation: each "chunk" has its own (m-SAM), the chunks of this rank's "batch", those
            of a "group" of ranks, or all ("global").
        group: Process group of all ranks; None is the default one.
        group_size: Ranks in a group, for sharing "group".
        grad_scaler: Of float16 training; the closures multiply the loss by its scale, `step` does everything else.
        diagnose: Fill `last.cosine` and `last.grad_norm`.
        parallel_gradients: SAMPa's two gradients on two processes, see `parallel_gradients.Pair`.
        noise: The method's random draws, with several processes.

    Attributes:
        last: What the last step did.
        reference: Returns closures over the reference data and their sizes, for methods whose `needs_reference` says
            so.

    Raises:
        ValueError: If no parameter of the model requires a gradient, or the model and the sharing do not go together.
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
        sharing: Sharing = "chunk",
        group: Any = None,
        group_size: int | None = None,
        grad_scaler: GradScaler | None = None,
        diagnose: bool = False,
        parallel_gradients: bool = False,
        noise: Noise | None = None,
    ) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups  # the same objects, so that schedulers drive the base optimizer
        self.state = base.state
        self.model = model
        self.base = base
        self.parts = parts
        self.shrink = shrink
        self.grad_clip = grad_clip
        self.grad_scaler = grad_scaler
        self.sharing = sharing
        self.diagnose = diagnose
        self.steps_taken = 0
        self.last = StepRecord()
        self.reference: Reference | None = None
        named = {name: p for name, p in bare(model).named_parameters() if p.requires_grad}
        if not named:
            raise ValueError("`model` has no parameter that requires a gradient: there is nothing to train.")
        check_precision(named, grad_scaler)
        self._base_step = _unhooked_step(base)
        self._scale = LossScale(grad_scaler) if grad_scaler is not None and grad_scaler.is_enabled() else None
        self._noise = noise
        if parallel_gradients and not (parts.plan.lagged and parts.plan.ahead):
            raise ValueError(
                "`parallel_gradients` needs two gradients that do not wait for each other: method 'sampa'."
            )
        self._pair = Pair(model, named, group) if parallel_gradients else None
        sharded = check_sharded(model, named, base, parts, sharing)
        circle = None if sharded or parallel_gradients else circle_of(sharing, group, group_size)
        self._ranks = Ranks(model, group, circle, alone=sharded or parallel_gradients)
        self._sharers = self._ranks.size if sharded else self._ranks.circle_size
        self._weights = Weights(named, model)
        self._passes = Passes(model, self._weights, self._ranks, same_rng=same_rng, scale=self._scale)
        synchronised = any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        if self._ranks.several and sharing != "global" and synchronised and not isinstance(parts.gate, Never):
            raise ValueError(
                f"SyncBatchNorm mixes activations of ranks whose weights are perturbed differently under `sharing` "
                f"{sharing!r}: use sharing='global', or BatchNorm."
            )
        self._previous: Unit | None = None
        self._kept_previous: dict[str, Any] = {}  # of a state that was loaded, until `remember`
        self._open: tuple[Moment, Mode] | None = None  # of a step that is being accumulated
        self._whole = False  # whether `evaluate` has done all of the open step's passes
        self._examples = 0.0  # accumulated so far
        self._following: Unit | None = None  # the next step's previous batch, once this step has not been skipped
        self._before: dict[str, Any] | None = None  # the parts' state before the step, where it may be skipped
        self._sums: dict[str, Params | None] = {}  # of the step: ascent gradients, points ahead, decoupled parts

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
        return self._previous is None and bool(self._kept_previous)

    def wrapped_in(self, model: DistributedDataParallel) -> None:
        """Name the DistributedDataParallel around the model, where it was made after the optimizer.

        Otherwise it averages the gradient of every pass, which makes each perturbation one of all ranks.
        """
        self._ranks.watch(model)

    # -- the step ------------------------------------------------------------------------------------------------

    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure] | None = None,
        *,
        sizes: Sequence[int] | None = None,
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
        if closure is None:
            self._end()
            return None
        loss = self.evaluate(closure, sizes=sizes, ascent=ascent)
        self._end()
        return loss

    def evaluate(
        self,
        closure: Closure | Sequence[Closure],
        *,
        sizes: Sequence[int] | None = None,
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
        if self._open is not None:
            raise ValueError("a step has been begun and got another closure: end it with `step()` first.")
        units = self._units(closure, sizes, ascent)
        if self.needs_previous and self.previous_is_lost:
            raise ValueError(
                "the state that was loaded goes on from a batch that this method evaluates again: give it back with "
                "`remember(closures, sizes=...)` before the first step."
            )
        moment = self._begin()
        try:
            mode, firsts = self._decide(units, moment)
            losses = []
            total: Params | None = None
            for unit, first in zip(units, firsts, strict=True):
                if self.last.overflow:
                    losses.append(torch.full((), math.nan))
                    break
                loss = self._evaluate(unit, moment, mode, first)
                losses.append(loss * unit.weight if len(units) > 1 else loss)
                if len(units) > 1:
                    total = accumulated(total, self._passes.take(), unit.weight)
            if total is not None:
                self._passes.give(total)
        except BaseException:
            self._passes.clear()
            self._undo(moment)
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
        if self.needs_batch:
            raise ValueError(
                "`accumulate` evaluates chunks one by one, and this method must see the whole batch first: pass all "
                "closures to `step([...])` at once."
            )
        if self._open is not None and self._whole:
            raise ValueError("`accumulate` was called after `evaluate`: end the step with `step()` first.")
        unit = self._units(closure, None if size is None else [size], ascent)[0]
        so_far: Params | None = None
        if self._open is None:
            moment = self._begin()
            self._open, self._examples, self._whole = (moment, self._decide([unit], moment)[0]), 0.0, False
        else:
            so_far = self._passes.take()
            if self._open[1] is Mode.PERTURBED:
                self._note_m(unit)
            if (size is None) != (self._examples == 0):
                raise ValueError("`size` must be given for all chunks of a step or for none.")
        moment, mode = self._open
        if size is not None:
            unit.weight = size / (self._examples + size)
            self._lessen(moment, so_far, 1 - unit.weight)
            self._examples += size
        loss = torch.full((), math.nan)
        if not self.last.overflow:
            moment.theta = self._weights.clean()
            try:
                loss = self._evaluate(unit, moment, mode, None)
            except BaseException:
                self._open = None
                self._passes.clear()
                self._undo(moment)
                raise
        self._passes.give(accumulated(so_far, self._passes.take(), unit.weight))
        return loss

    def _lessen(self, moment: Moment, so_far: Params | None, share: float) -> None:
        """Multiply by `share` all that the step's earlier chunks have left: they are weighted means so far."""
        made = self.parts.combiner.shared(moment) + self.parts.source.shared(moment)
        for held in (so_far, *self._sums.values(), *made):
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
        if self._scale is not None and self._scale.touched(self):
            raise ValueError(
                "`grad_scaler.unscale_` or `grad_scaler.step` was called on this optimizer, which does both itself: "
                "leave them and `grad_scaler.update()` out; gradients are in true units already."
            )
        (moment, mode), self._open = self._open, None
        self._finish(moment, mode, self._examples or 1.0)
        if self._following is not None and not self.last.overflow:
            self._previous = self._following
        self._following = None

    def remember(
        self,
        closure: Closure | Sequence[Closure],
        *,
        sizes: Sequence[int] | None = None,
        ascent: Closure | Sequence[Closure] | None = None,
    ) -> None:
        """Give back the previous step's batch after a resume, for methods whose `needs_previous` is true."""
        unit = self._units(closure, sizes, ascent)[0]
        kept = self._kept_previous
        unit.tracked = bool(kept.get("tracked", True))
        if len(kept.get("states", [])) == len(unit.states):
            unit.states = [RandomState(state["cpu"].cpu(), dict(state["cuda"])) for state in kept["states"]]
        self._previous = unit

    # -- the stages of a step --------------------------------------------------------------------------------------

    def _units(
        self,
        closure: Closure | Sequence[Closure],
        sizes: Sequence[int] | None,
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

    def _begin(self) -> Moment:
        lr = float(self.param_groups[0]["lr"])
        if self.shrink is not None:
            self.shrink(self.model, lr)
        rho = self.parts.radius(lr, self.steps_taken)
        self.last = StepRecord(rho=rho)
        self._passes.count = 0
        self._passes.seen.clear()
        self._sums = {}
        if self._noise is not None and self._ranks.several:
            self._noise.begin(self.steps_taken)
        self._before = self.parts.state_dict() if self._scale is not None else None
        return Moment(self.steps_taken, lr, rho, self._weights.clean(), self._weights.parameters, self.base)

    def _decide(self, units: list[Unit], moment: Moment) -> tuple[Mode, list[tuple[Params, Tensor] | None]]:
        """The mode of the step; and for each unit its clean gradient and loss, where the decision needed them."""
        parts, passes = self.parts, self._passes
        firsts: list[tuple[Params, Tensor] | None] = [None] * len(units)
        if moment.rho == 0 and parts.source.inert_at_zero:
            mode = Mode.PLAIN
        elif parts.gate.needs_gradient:
            squared = 0.0
            for i, unit in enumerate(units):
                loss = self._loss_pass(unit)
                grads = passes.take()
                self._share(unit, [grads])
                firsts[i] = (grads, loss)
                squared += unit.weight * dot(grads, grads)
            if not self._ranks.whole:
                squared = self._ranks.mean(squared, float(sum(u.examples for u in units) or 1.0))
            mode = parts.gate(moment, squared)
        else:
            mode = parts.gate(moment)
        self.last.mode = mode
        if mode is not Mode.PERTURBED:
            self.last.rho = 0.0
        else:
            for unit in units:
                self._note_m(unit)
            if parts.needs_reference == "gradient" and parts.source.wants_reference(moment.t):
                reference = self._reference_mean(squares=False)
                if self._scale is not None and not finite(reference):
                    self.last.overflow = "first pass"
                parts.source.refresh(reference)
        return mode, firsts

    def _loss_pass(self, unit: Unit) -> Tensor:
        """The pass on the training loss at the clean weights."""
        if self.parts.select is not None and self.parts.select.active and not unit.tracked:
            return self._passes.losses(unit)
        if self.parts.functional:
            for closure in unit.descents:
                closure.keep_cotangent = True  # type: ignore[attr-defined]
        return self._passes.run(unit, unit.descents)

    def _evaluate(self, unit: Unit, moment: Moment, mode: Mode, first: tuple[Params, Tensor] | None) -> Tensor:
        """Leave the unit's gradient in `.grad`; return its loss."""
        if mode is Mode.PERTURBED:
            try:
                return self._perturbed(unit, moment, first)
            finally:
                self._weights.restore()
                self.last.passes = self._passes.count
        if first is None:
            loss = self._passes.run(unit, unit.descents, once=True)
        else:
            self._passes.give(first[0])
            loss = first[1]
        self.last.passes = self._passes.count
        self.last.clean.append((unit.weight, loss))
        return loss

    def _perturbed(self, unit: Unit, moment: Moment, first: tuple[Params, Tensor] | None) -> Tensor:
        parts, record, weights = self.parts, self.last, self._weights
        source, combiner, plan = parts.source, parts.combiner, parts.plan
        previous = self._previous or unit
        start = source.start(moment)
        if start:
            weights.displace(start)
            moment.theta = weights.clean()
        if source.data == "previous":
            with self._passes.replayed():
                ascent, clean, loss = self._first(previous, moment, None)
        else:
            ascent, clean, loss = self._first(unit, moment, first)
        if start:
            weights.restore()
            moment.theta = weights.clean()
        shared_loss = self._share_first(unit, ascent, clean, loss, first)
        found = [ascent] if clean is ascent else [ascent, clean]
        if self._scale is not None and not all(finite(g) for g in found if g):
            record.overflow = "first pass"
            return torch.full((), math.nan) if loss is None else loss
        if plan.ahead and self._previous is None:
            loss = self._loss_pass(unit)  # the first step: nothing is stored, so y_0 = w
            grads = self._passes.take()
            if self._pair is not None:
                self._pair.agree(loss)
            if self._ranks.several:
                grads = zeros_where_missing(grads, weights.parameters)
                self._ranks.average(list(grads.values()), float(unit.examples or 1))
            if self._scale is not None and not finite(grads):
                record.overflow = "first pass"
                return loss
            source.observe(moment, Means(grads, ahead=grads))
        if ascent is not None:
            source.chunk(moment, ascent, unit.weight)
            if source.observes or (parts.mask is not None and parts.mask.wants_ascent(moment.t)):
                self._add("ascent", ascent, unit.weight)
        keep_points = combiner.active
        points: list[Point] = []
        own: list[Point] = []  # those that this rank has not shared yet
        perturbed_loss = torch.full((), math.nan)
        pair = self._pair
        step = Direction({}, 1.0, 0.0)
        squared = 0.0
        for draw in range(plan.draws):
            step, delta, times, length = self._displacement(moment, ascent)
            if source.steps > 1:
                inner_points = points if source.collects else None
                delta, length = self._climb(unit, moment, delta, inner_points)
                times = 1.0
                if record.overflow:
                    return torch.full((), math.nan) if loss is None else loss
            squared += length**2 / plan.draws
            for sign in plan.signs if pair is None or pair.perturbs else ():
                weights.displace(delta, sign * times)
                moment.theta = weights.clean()
                value = self._descend(unit, previous)
                if sign > 0:
                    perturbed_loss = value
                if keep_points:
                    own.append(Point(self._passes.take(), value, sign, draw))
                    points.append(own[-1])
        record.length = math.sqrt(record.length**2 + unit.weight * squared)
        ahead = None
        if plan.ahead and (pair is None or not pair.perturbs):
            weights.restore()
            weights.displace(self._where_base_goes(moment))
            loss = self._loss_pass(unit)
            ahead = self._passes.take()
        weights.restore()
        if pair is not None:
            grads, value = (own[0].gradient, perturbed_loss) if ahead is None or loss is None else (ahead, loss)
            both = pair.exchange(unit, grads, value, self._passes.devices, same_rng=self._passes.same_rng)
            points, perturbed_loss = [Point(both.perturbed, both.perturbed_loss)], both.perturbed_loss
            ahead, loss = both.ahead, both.loss
        if keep_points:
            self._share_points(unit, own, ahead)
        if ahead is not None:
            self._add("ahead", ahead, unit.weight)
        if loss is not None:
            record.clean.append((unit.weight, loss))
        record.displaced.append((unit.weight, perturbed_loss))
        if self.diagnose and clean is not None:
            upward = [point.gradient for point in points if point.sign > 0]
            self._note_cosine(clean, upward[-1] if upward else self._passes.gradients(), unit.weight)
        if keep_points:
            moment.theta = weights.clean()
            seen = Seen(moment, unit.weight, ascent, clean, shared_loss, points, step.as_params, ahead)
            self._passes.give(combiner(seen))
            if combiner.decoupled:
                self._add("decoupled", combiner.extra(seen), unit.weight)
        return perturbed_loss if loss is None else loss

    def _first(
        self, unit: Unit, moment: Moment, first: tuple[Params, Tensor] | None
    ) -> tuple[Params | None, Params | None, Tensor | None]:
        """The first pass: the gradients of the ascent objective and of the training loss, and the loss, as needed."""
        parts, passes = self.parts, self._passes
        source, combiner, mask = parts.source, parts.combiner, parts.mask
        own_objective = any(a is not None for a in unit.ascents)
        if not source.needs_gradient:
            if first is not None:  # the gate's decision has seen them
                return None, first[0] if combiner.needs_loss_gradient else None, first[1]
            if combiner.needs_loss_gradient:
                loss = self._loss_pass(unit)
                return None, passes.take(), loss
            return None, None, passes.forward(unit) if source.clean_forward else None
        names = mask.names(moment) if mask is not None else None
        spare = not (combiner.active or source.observes or self.diagnose or self.sharing in ("group", "global"))
        if names is not None and names.isdisjoint(passes.used):
            spare = False  # a loss that needs none of the gradients asked for cannot run backward
        if parts.weigh is not None and parts.needs_losses:
            loss = passes.weighted(unit, parts.weigh)
            return passes.take(), None, loss
        if not own_objective:
            if first is None:
                with passes.only(names if spare else None):
                    loss = self._loss_pass(unit)
                first = passes.take(), loss
            return first[0], first[0], first[1]
        if combiner.needs_loss_gradient and first is None:
            return passes.pair(unit)
        objectives = [a or d for a, d in zip(unit.ascents, unit.descents, strict=True)]
        with passes.only(names if spare else None):
            passes.run(unit, objectives)
        ascent = passes.take()
        if parts.select is not None and parts.select.active:
            passes.clean_losses(unit)
        if first is not None:
            return ascent, first[0], first[1]
        seen = [getattr(o, "clean_loss", None) for o in objectives]
        shared = [s * v for s, v in zip(unit.shares, seen, strict=True) if v is not None]
        return ascent, None, sum(shared[1:], shared[0]) if len(shared) == len(seen) else None

    def _descend(self, unit: Unit, previous: Unit) -> Tensor:
        """The pass at displaced weights."""
        if self.parts.plan.lagged:
            with self._passes.replayed():
                return self._passes.run(previous, previous.descents)
        if (
            self.parts.source.data == "previous"
        ):  # this batch updates running statistics at the next step's clean weights
            tracked, unit.tracked = unit.tracked, True
            loss = self._passes.run(unit, unit.descents)
            unit.tracked = tracked
            return loss
        if self.parts.functional:
            return self._passes.run(unit, [d.pull for d in unit.descents])  # type: ignore[attr-defined]
        if self.parts.select is not None and self.parts.select.active:
            return self._passes.selected(unit, self.parts.select)
        return self._passes.run(unit, unit.descents)

    def _displacement(self, moment: Moment, ascent: Params | None) -> tuple[Direction, Params, float, float]:
        """The unit direction, the displacement as tensors times a number, and its length."""
        source, mask = self.parts.source, self.parts.mask
        step = self._unit(moment, source.direction(moment, ascent))
        times = source.sign * moment.rho * step.factor * (mask.scale if mask is not None else 1.0)
        offset = source.offset(moment, ascent)
        if offset and finite(offset):
            delta = accumulated(scaled(step.parts, times), offset, 1.0)
            return step, delta, 1.0, length(delta)
        if source.steps > 1:
            return step, step.as_params(), 1.0, 0.0  # the inner steps scale it
        return step, step.parts, times, abs(times / step.factor) * step.length if step.parts else 0.0

    def _unit(self, moment: Moment, direction: Params | None) -> Direction:
        """A raw direction under mask, metric and normalisation, for radius 1."""
        mask = self.parts.mask
        if direction and mask is not None and mask.in_norm:
            direction = mask(moment, direction)
        if not direction:
            return Direction({}, 1.0, 0.0)
        step = self.parts.scaler.unit(moment.theta, direction)
        if mask is not None and not mask.in_norm:
            step = Direction(mask(moment, step.parts), step.factor, None)
        return step

    def _climb(self, unit: Unit, moment: Moment, unit_step: Params, points: list[Point] | None) -> tuple[Params, float]:
        """Further inner steps of ascent; returns the displacement and its length."""
        source = self.parts.source
        objectives = [a or d for a, d in zip(unit.ascents, unit.descents, strict=True)]
        delta = source.advance(None, unit_step, moment.rho)
        for _ in range(source.steps - 1):
            self._weights.displace(delta)
            moment.theta = self._weights.clean()
            value = self._passes.run(unit, objectives)
            grads = self._passes.take()
            value = self._share(unit, [grads], [value])[0]
            if self._scale is not None and not finite(grads):
                self.last.overflow = "second pass"
                break
            if points is not None:
                points.append(Point(grads, value))
            following = self._unit(moment, source.direction(moment, grads)).as_params()
            delta = source.advance(delta, following, moment.rho)
        return delta, length(delta)

    def _where_base_goes(self, moment: Moment) -> Params:
        """SAMPa's y - w: the step that SGD would take with the stored gradient."""
        stored: Params = self.parts.source.state_dict()["stored"]
        names = {p: n for n, p in self._weights.parameters.items()}
        delta: Params = {}
        for group in self.param_groups:
            for p in group["params"]:
                name = names.get(p, "")
                if name not in stored:
                    continue
                buffer = self.base.state[p].get("momentum_buffer") if p in self.base.state else None
                mu, fresh = group["momentum"], 1.0 if buffer is None else 1 - group["dampening"]
                # SGD's new buffer is mu buffer + fresh g; it moves along that, or along g + mu times it (Nesterov)
                new, old = (1 + mu * fresh, mu * mu) if group["nesterov"] else (fresh if mu else 1.0, mu)
                move = stored[name] * (-group["lr"] * new)
                if group["weight_decay"]:
                    move.add_(p.detach(), alpha=-group["lr"] * new * group["weight_decay"])
                if buffer is not None and mu:
                    move.add_(buffer, alpha=-group["lr"] * old)
                delta[name] = move
        return delta

    def _finish(self, moment: Moment, mode: Mode, weight: float) -> None:
        """Average over ranks, clip, step once, and let the parts take note."""
        record, parts, passes = self.last, self.parts, self._passes
        named = self._weights.parameters
        if record.overflow:
            spoil(named)
        extra = self._average(moment, mode, weight)
        if self._scale is not None and not record.overflow and not self._all_finite():
            record.overflow = "second pass" if mode is Mode.PERTURBED else "first pass"
            if self._ranks.several:
                record.overflow += " (on some rank)"
        if not record.overflow:
            moment.theta = self._weights.clean()
            if mode is Mode.REUSE:
                passes.give(parts.combiner.reuse(moment, passes.gradients()))
            if mode is Mode.PERTURBED:
                sums = self._sums
                parts.source.observe(moment, Means(passes.gradients(), sums.get("ascent"), sums.get("ahead")))
                parts.combiner.commit()
                if parts.mask is not None and parts.mask.wants_ascent(moment.t):
                    parts.mask.after_ascent(moment, sums.get("ascent") or {})
            if self.diagnose:
                grads = passes.gradients()
                record.grad_norm = length(grads)
            if self.grad_clip is not None:
                nn.utils.clip_grad_norm_(list(named.values()), self.grad_clip)
        if parts.mask is not None:
            passes.used.update(passes.gradients())
        rates = [float(group["lr"]) for group in self.param_groups]
        if not record.overflow:
            self._base_step()
        if self._scale is not None:
            self._scale.update(overflow=bool(record.overflow))
        if record.overflow:
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
            mask.refresh(moment, self._reference_mean(squares=True))

    def _all_finite(self) -> bool:
        """Whether the gradient is finite, and whatever else of the step is kept or added to the weights."""
        return all(finite(grads) for grads in (self._passes.gradients(), *self._sums.values()) if grads)

    def _undo(self, moment: Moment) -> None:
        """The parts' state as before a step that was skipped or broke off."""
        self.parts.source.forget(moment)
        self.parts.combiner.forget(moment)
        if self._before is not None:
            self.parts.load_state_dict(self._before)

    # -- several processes -----------------------------------------------------------------------------------------

    def _share(self, unit: Unit, gradients: Sequence[Params], losses: Sequence[Tensor] = ()) -> list[Tensor]:
        """Average gradients, in place, over the ranks that share a perturbation; returns the losses' averages.

        A name that none of them has stays missing, so that what the method remembers does not move it.
        """
        if self._ranks.circle is None or not (gradients or losses):
            return list(losses)
        means = [value.detach().clone() for value in losses]
        flags, named = self._flags(), self._weights.parameters
        full = [zeros_where_missing(grads, named) for grads in gradients]
        tensors = [t for grads in full for t in grads.values()] + means
        total = self._ranks.average(tensors, float(unit.examples or 1), circle=True, flags=flags)
        self._note_flags(flags)
        for grads, complete in zip(gradients, full, strict=True):
            grads.update(complete)
            for name, flag in zip(named, flags, strict=True):
                if not flag:
                    del grads[name]
        if unit.examples:
            self.last.m_global = max(self.last.m_global, round(total))
        return means

    def _share_first(
        self,
        unit: Unit,
        ascent: Params | None,
        clean: Params | None,
        loss: Tensor | None,
        decided: tuple[Params, Tensor] | None,
    ) -> Tensor | None:
        """Share what the first pass gave, less what was shared for the gate's decision; returns the shared loss."""
        combines = self.parts.combiner.active
        fresh: list[Params] = []
        for grads in (ascent, clean if combines else None):
            known = [*fresh, *([decided[0]] if decided is not None else [])]
            if grads is not None and not any(grads is other for other in known):
                fresh.append(grads)
        means = self._share(unit, fresh, [loss] if combines and loss is not None else [])
        return means[0] if means else loss

    def _share_points(self, unit: Unit, points: list[Point], ahead: Params | None) -> None:
        """Share the gradients and losses that the combiner is about to see."""
        gradients = [point.gradient for point in points] + ([ahead] if ahead is not None else [])
        for point, mean in zip(points, self._share(unit, gradients, [point.loss for point in points]), strict=True):
            point.loss = mean

    def _average(self, moment: Moment, mode: Mode, weight: float) -> Params | None:
        """The one average of gradients over ranks, with whatever else must be averaged; returns the decoupled part.

        What travels depends on the method alone, never on what this rank has seen: all ranks must send the same.
        """
        ranks, parts, passes, named = self._ranks, self.parts, self._passes, self._weights.parameters
        if not ranks.several:
            return self._sums.get("decoupled")
        perturbed = mode is Mode.PERTURBED
        grads = zeros_where_missing(passes.gradients(), named)
        if not (perturbed and ranks.whole and parts.combiner.active):  # else made from averages over all ranks already
            travelling = [grads]
            if perturbed:
                observed = parts.source.observes or (parts.mask is not None and parts.mask.wants_ascent(moment.t))
                wanted = {"decoupled": parts.combiner.decoupled, "ascent": observed, "ahead": parts.plan.ahead}
                for key in [key for key, yes in wanted.items() if yes]:
                    self._sums[key] = zeros_where_missing(self._sums.get(key) or {}, named)
                    travelling.append(self._sums[key] or {})
                for made in parts.combiner.shared(moment) + parts.source.shared(moment):
                    made.update(zeros_where_missing(made, named))
                    travelling.append({name: made[name] for name in named})
            flags = self._flags()
            ranks.average([t for held in travelling for t in held.values()], weight, flags=flags)
            self._note_flags(flags)
        passes.give({name: g for name, g in grads.items() if name in passes.seen})
        return self._sums.get("decoupled")

    def _flags(self) -> list[float]:
        """For each parameter, whether it has had a gradient in this step: those without one on all ranks keep None."""
        return [float(name in self._passes.seen) for name in self._weights.parameters]

    def _note_flags(self, flags: list[float]) -> None:
        self._passes.seen.update(n for n, flag in zip(self._weights.parameters, flags, strict=True) if flag)

    # -- small things ----------------------------------------------------------------------------------------------

    def _add(self, key: str, grads: Params, weight: float) -> None:
        self._sums[key] = accumulated(self._sums.get(key), grads, weight)

    @torch.no_grad()
    def _add_decoupled(self, extra: Params, rates: list[float]) -> None:
        names = {p: n for n, p in self._weights.parameters.items()}
        for group, lr in zip(self.param_groups, rates, strict=True):
            for p in group["params"]:
                if names.get(p) in extra:
                    p.add_(extra[names[p]], alpha=-lr)

    def _reference_mean(self, *, squares: bool) -> Params:
        """The mean gradient, or the sum of squared gradients, over the reference data at the present weights."""
        if self.reference is None:
            what = "of one example each " if squares else ""
            raise ValueError(
                f"this method needs reference data: set `optimizer.reference` to a function that returns closures "
                f"{what}over them, and their sizes."
            )
        closures, sizes = self.reference()
        counts = [1] * len(closures) if sizes is None else list(sizes)
        total: Params | None = None
        for closure, count in zip(closures, counts, strict=True):
            unit = Unit([closure], [None], [1.0], tracked=True)
            self._passes.run(unit, [closure])
            grads = self._passes.take()
            if squares:
                grads = {n: g.square() for n, g in grads.items()}
            total = accumulated(total, grads, 1.0 if squares else count / sum(counts))
        result = zeros_where_missing(total or {}, self._weights.parameters)
        if self._ranks.several:
            self._ranks.average(list(result.values()), 1.0 if squares else float(sum(counts)))
            if squares:  # a sum over the examples of all ranks
                torch._foreach_mul_(list(result.values()), float(self._ranks.size))
        return result

    def _note_m(self, unit: Unit) -> None:
        self.last.m = max(self.last.m, unit.examples)
        self.last.m_global = max(self.last.m_global, unit.examples * self._sharers)

    def _note_cosine(self, clean: Params, perturbed: Params, weight: float) -> None:
        cosine = dot(clean, perturbed) / (length(clean) * length(perturbed) + TINY)
        self.last.cosine = weight * cosine + (0.0 if math.isnan(self.last.cosine) else self.last.cosine)

    def synchronise_buffers(self) -> None:
        """Replace running statistics by their means over ranks: before an evaluation or a checkpoint."""
        self._ranks.buffers()

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's `state` and `param_groups`, and under "sharpness_aware" what the method keeps.

        Raises:
            ValueError: In the middle of an accumulated step.
        """
        if self._open is not None:
            raise ValueError("`state_dict` was called in the middle of a step: end it with `step()` first.")
        extra: dict[str, Any] = {"steps_taken": self.steps_taken, "parts": self.parts.state_dict()}
        if self.shrink is not None:
            extra["shrink_initial"] = dict(self.shrink.initial)
        if self._scale is not None:
            extra["grad_scaler"] = self._scale.state_dict()
        if self._previous is not None:
            states = [{"cpu": s.cpu, "cuda": dict(s.cuda)} for s in self._previous.states if s is not None]
            extra["previous"] = {"tracked": self._previous.tracked, "states": states}
        return {**self.base.state_dict(), "sharpness_aware": extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: If the state comes from another kind of optimizer.
        """
        if "sharpness_aware" not in state_dict:
            raise ValueError("`state_dict` is not from a sharpness-aware optimizer: it lacks 'sharpness_aware'.")
        extra = self._own(state_dict["sharpness_aware"])
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "sharpness_aware"})
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.steps_taken = int(extra["steps_taken"])
        self.parts.load_state_dict(extra["parts"])
        if self.shrink is not None:
            self.shrink.initial = dict(extra["shrink_initial"])
        self._previous, self._kept_previous = None, dict(extra.get("previous", {}))
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
        return node.detach().to(p.device, p.dtype if node.is_floating_point() else node.dtype, copy=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; parameters of the model that have come to need a gradient count from now.

        Raises:
            ValueError: In the middle of a step, or for parameters that are not the model's.
        """
        if not hasattr(self, "base"):  # torch's constructor calls this
            super().add_param_group(param_group)
            return
        if self._open is not None:
            raise ValueError("`add_param_group` was called in the middle of a step: end it with `step()` first.")
        given = param_group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        owned = {id(p): name for name, p in bare(self.model).named_parameters()}
        if any(id(p) not in owned for p in given):
            raise ValueError("`param_group` has parameters that are not the model's: only those can be perturbed.")
        self.base.add_param_group({**param_group, "params": given})
        self._weights.parameters.update({owned[id(p)]: p for p in given if p.requires_grad})

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
