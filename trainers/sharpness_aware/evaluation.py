"""The passes of a step, in the order that its method asks for: from the clean weights to the combined gradient."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.params import Params, dot, wide_inner, wide_norm
from landscape.perturbation import TINY, Direction, without_gaps
from trainers.sharpness_aware.ascent import Means, scaled
from trainers.sharpness_aware.chunks import Closure, Unit
from trainers.sharpness_aware.combiners import Point, Seen
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.exchange import Exchange
from trainers.sharpness_aware.gates import Mode
from trainers.sharpness_aware.moment import Moment
from trainers.sharpness_aware.parallel_gradients import Pair
from trainers.sharpness_aware.passes import Passes, accumulated
from trainers.sharpness_aware.precision import Guard, LossScale
from trainers.sharpness_aware.ranks import Replicas, Sharing, zeros_where_missing
from trainers.sharpness_aware.record import StepRecord
from trainers.sharpness_aware.weights import Weights

Reference = Callable[[], tuple[Sequence[Closure], Sequence[float] | None]]

_NOT_SEEN = torch.full((), math.nan)
_NOTHING = nullcontext()


@dataclass(frozen=True)
class Displacement:
    """Where a chunk's weights go: `times` times the parts.

    Attributes:
        step: The direction for radius 1.
        parts: Tensors.
        times: What they are multiplied by.
        size: The parts' l2 norm.
        factor: The direction's own factor in `times`.
    """

    step: Direction
    parts: Params
    times: Tensor | float
    size: Tensor | float
    factor: Tensor | float = 1.0

    @property
    def length(self) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """What `StepRecord` makes the l2 length of."""
        return self.times, self.factor, self.size


class Evaluation:
    """Takes a step's gradients: asks the parts in turn, displaces the weights, and puts them back.

    Args:
        parts: The method.
        weights: The weights.
        passes: Calls the closures.
        replicas: The copies of the model on all processes.
        exchange: Averages over them.
        scale: Loss scaling, or None.
        pair: SAMPa's two processes, or None.
        sharing: Who shares a perturbation.
        sharers: Ranks that share one.
        diagnose: Note the cosine of clean and perturbed gradient.
        guard: Says which gradients and losses end a step; None lets all pass.

    Attributes:
        record: Of the step.
        previous: The previous step's batch, for methods that evaluate it again.
        responds: Whether a closure has been seen to depend on the weights that are moved.
        reference: The reference data, for methods that need them.
    """

    def __init__(
        self,
        parts: Composition,
        weights: Weights,
        passes: Passes,
        replicas: Replicas,
        exchange: Exchange,
        *,
        scale: LossScale | None,
        pair: Pair | None,
        sharing: Sharing,
        sharers: int,
        diagnose: bool,
        guard: Guard | None = None,
    ) -> None:
        self.parts, self.weights, self.passes, self.replicas, self.exchange = parts, weights, passes, replicas, exchange
        self.scale, self.pair, self.sharing, self.sharers, self.diagnose = scale, pair, sharing, sharers, diagnose
        self.guard = guard
        self.record = StepRecord()
        self.previous: Unit | None = None
        self.responds = False
        self.reference: Reference | None = None

    def begin(self, record: StepRecord) -> None:
        """Start a step."""
        self.record = record
        self.exchange.begin(record)
        self.passes.count = 0
        self.passes.seen.clear()

    def decide(self, units: list[Unit], moment: Moment) -> tuple[Mode, list[tuple[Params, Tensor] | None]]:
        """The mode of the step; and for each unit its clean gradient and loss, where the decision needed them."""
        parts, passes = self.parts, self.passes
        firsts: list[tuple[Params, Tensor] | None] = [None] * len(units)
        if moment.rho == 0 and parts.source.inert_at_zero:
            mode = Mode.PLAIN
        elif parts.gate.needs_gradient:
            parts_of_it: list[Tensor] = []
            for i, unit in enumerate(units):
                loss = self._loss_pass(unit)
                grads = passes.take()
                self.exchange.share(unit, [grads])
                firsts[i] = (grads, loss)
                parts_of_it.append(unit.weight * wide_inner(grads, grads))
            squared = float(sum(parts_of_it[1:], parts_of_it[0]))
            if not self.replicas.whole:
                squared = self.replicas.mean(squared, float(sum(u.examples for u in units) or 1.0))
            mode = parts.gate(moment, squared)
        else:
            mode = parts.gate(moment)
        self.record.mode = mode
        if mode is not Mode.PERTURBED:
            self.record.rho = 0.0
        else:
            for unit in units:
                self.note_m(unit)
            if parts.needs_reference == "gradient" and parts.source.wants_reference(moment.t):
                reference = self.reference_mean(squares=False)
                self._guard("first pass", reference)
                parts.source.refresh(reference)
        return mode, firsts

    def gradient(self, unit: Unit, moment: Moment, mode: Mode, first: tuple[Params, Tensor] | None) -> Tensor:
        """Leave the unit's gradient in `.grad`; return its loss."""
        if mode is Mode.PERTURBED:
            try:
                loss = self._perturbed(unit, moment, first)
                self.passes.turn()
                return loss
            finally:
                self.weights.restore()
                self.record.passes = self.passes.count
        if first is None:
            loss = self.passes.run(unit, unit.descents, once=True)
        else:
            self.passes.give(first[0])
            loss = first[1]
        self.passes.turn()
        self.record.passes = self.passes.count
        self.record.clean.append((unit.weight, loss))
        return loss

    def _perturbed(self, unit: Unit, moment: Moment, first: tuple[Params, Tensor] | None) -> Tensor:
        parts, record, weights = self.parts, self.record, self.weights
        source, combiner, plan = parts.source, parts.combiner, parts.plan
        up = self.passes.trained.sign
        previous = self.previous or unit
        start = source.start(moment)
        if start:
            weights.displace(start)
            moment.theta = weights.clean()
        if source.data == "previous":
            with self.passes.replayed():
                ascent, clean, loss = self._first(previous, moment, None)
        else:
            ascent, clean, loss = self._first(unit, moment, first)
        if start:
            weights.restore()
            moment.theta = weights.clean()
        shared_loss = self.exchange.share_first(unit, ascent, clean, loss, first)
        if self._guard("first pass", ascent, None if clean is ascent else clean, loss=loss):
            return self.nothing_seen() if loss is None else loss
        if plan.ahead and self.previous is None:
            loss = self._loss_pass(unit)  # the first step: nothing is stored, so y_0 = w
            grads = self.passes.take()
            if self.pair is not None:
                self.pair.agree(loss)
            if self.replicas.several:
                grads = zeros_where_missing(grads, weights.clean())
                self.replicas.average(list(grads.values()), float(unit.examples or 1))
            if self._guard("first pass", grads, loss=loss):
                return loss
            source.observe(moment, Means(grads, ahead=grads))
        if ascent is not None:
            source.chunk(moment, ascent, unit.weight)
            if source.observes or (parts.mask is not None and parts.mask.wants_ascent(moment.t)):
                self._add("ascent", ascent, unit.weight)
        keep_points = combiner.active
        points: list[Point] = []
        own: list[Point] = []  # those that this rank has not shared yet
        perturbed_loss = _NOT_SEEN
        pair = self.pair
        moved = Displacement(Direction({}, 1.0), {}, 0.0, 0.0)
        lengths: list[Tensor | float] = []
        for draw in range(plan.draws):
            moved = self._displacement(unit, moment, ascent)
            if source.steps > 1:
                inner_points = points if source.collects else None
                moved = self._climb(unit, moment, moved, inner_points)
                if record.overflow:
                    return self.nothing_seen() if loss is None else loss
            lengths += moved.length
            for side in plan.signs if pair is None or pair.perturbs else ():
                weights.displace(moved.parts, moved.times if side > 0 else -moved.times)
                moment.theta = weights.clean()
                with _NOTHING if self.responds else self._watched():
                    value = self._descend(unit, previous)
                if side > 0:
                    perturbed_loss = value
                if keep_points:
                    own.append(Point(self.passes.take(), value if up > 0 else -value, side, draw))
                    points.append(own[-1])
        if not self.responds:
            gradients = points[-1].gradient if points else self.passes.gradients()
            self._check_response(clean, loss, gradients, perturbed_loss, moved)
        record.moved.append((unit.weight, *lengths))
        ahead = None
        if plan.ahead and (pair is None or not pair.perturbs):
            weights.restore()
            weights.displace(self._where_base_goes(moment))
            loss = self._loss_pass(unit)
            ahead = self.passes.take()
        weights.restore()
        if pair is not None:
            grads, value = (own[0].gradient, perturbed_loss) if ahead is None or loss is None else (ahead, loss)
            both = pair.exchange(unit, grads, value, self.passes.devices, same_rng=self.passes.same_rng)
            points, perturbed_loss = [Point(both.perturbed, both.perturbed_loss)], both.perturbed_loss
            ahead, loss = both.ahead, both.loss
        if keep_points:
            self.exchange.share_points(unit, own, ahead)
        if ahead is not None:
            self._add("ahead", ahead, unit.weight)
        if loss is not None:
            record.clean.append((unit.weight, loss))
        record.displaced.append((unit.weight, perturbed_loss))
        if self.diagnose and clean is not None:
            upward = [point.gradient for point in points if point.sign > 0]
            self._note_cosine(clean, upward[-1] if upward else self.passes.gradients(), unit.weight)
        if keep_points:
            moment.theta = weights.clean()
            here = shared_loss if up > 0 or shared_loss is None else -shared_loss
            seen = Seen(moment, unit.weight, ascent, clean, here, points, moved.step.as_params, ahead)
            self.passes.give(combiner(seen))
            if combiner.decoupled:
                self._add("decoupled", combiner.extra(seen), unit.weight)
        return perturbed_loss if loss is None else loss

    def _first(
        self, unit: Unit, moment: Moment, first: tuple[Params, Tensor] | None
    ) -> tuple[Params | None, Params | None, Tensor | None]:
        """The first pass: the gradients of the ascent objective and of the training loss, and the loss, as needed."""
        parts, passes = self.parts, self.passes
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
            passes.run(unit, objectives, ascending=True)
        ascent = passes.take()
        if parts.select is not None and parts.select.active:
            passes.clean_losses(unit)
        if first is not None:
            return ascent, first[0], first[1]
        seen = [getattr(o, "clean_loss", None) for o in objectives]
        shared = [s * v for s, v in zip(unit.shares, seen, strict=True) if v is not None]
        return ascent, None, sum(shared[1:], shared[0]) if len(shared) == len(seen) else None

    def _loss_pass(self, unit: Unit) -> Tensor:
        """The pass on the training loss at the clean weights."""
        if self.parts.select is not None and self.parts.select.active and not unit.tracked:
            return self.passes.losses(unit)
        if self.parts.functional:
            for closure in unit.descents:
                closure.keep_cotangent = True  # type: ignore[attr-defined]
        return self.passes.run(unit, unit.descents)

    def _descend(self, unit: Unit, previous: Unit) -> Tensor:
        """The pass at displaced weights."""
        if self.parts.plan.lagged:
            with self.passes.replayed():
                return self.passes.run(previous, previous.descents)
        if self.parts.source.data == "previous":  # this batch updates running statistics in the next step, when clean
            tracked, unit.tracked = unit.tracked, True
            loss = self.passes.run(unit, unit.descents)
            unit.tracked = tracked
            return loss
        if self.parts.functional:
            return self.passes.run(unit, [d.pull for d in unit.descents])  # type: ignore[attr-defined]
        if self.parts.select is not None and self.parts.select.active:
            return self.passes.selected(unit, self.parts.select)
        return self.passes.run(unit, unit.descents)

    def _displacement(self, unit: Unit, moment: Moment, ascent: Params | None) -> "Displacement":
        source, mask = self.parts.source, self.parts.mask
        step = self._unit(moment, source.direction(moment, ascent))
        if moment.shares and source.steps == 1:
            step = Direction(moment.by_group(step.parts), step.factor)
        if self.guard is None and (ascent is not None or source.data == "reference"):
            step = self._passable(step, unit)
        times = step.factor * (source.sign * moment.rho)
        if mask is not None and mask.scale != 1.0:
            times = times * mask.scale
        offset = source.offset(moment, ascent)
        if offset:
            delta = accumulated(scaled(step.parts, times), offset, 1.0)
            without_gaps(delta)
            size = wide_norm(delta)
            return Displacement(step, delta, torch.isfinite(size).to(size.dtype), size)
        if source.steps > 1:
            return Displacement(step, step.as_params(), 1.0, 0.0)  # the inner steps scale it
        return Displacement(step, step.parts, times, step.size if step.parts else 0.0, step.factor)

    def _passable(self, step: Direction, unit: Unit) -> Direction:
        """A direction of finite entries: the factor of one that is not finite is 0, which alone would leave NaN.

        Where the loss's own gradient is not finite, the pass at the weights, which are then left in place, says so.
        """
        seen_again = self.parts.combiner.active or self.parts.source.observes or self.diagnose
        if seen_again and any(a is not None for a in unit.ascents):  # another objective's gradient stays as it is
            step = Direction({name: t.clone() for name, t in step.parts.items()}, step.factor, step.known_size)
        without_gaps(step.parts)
        return step

    def _unit(self, moment: Moment, direction: Params | None) -> Direction:
        """A raw direction under mask, metric and normalisation, for radius 1."""
        mask = self.parts.mask
        if direction and not direction.keys() <= moment.theta.keys():  # kept of what is trained no more
            direction = {name: t for name, t in direction.items() if name in moment.theta}
        if direction and mask is not None and mask.in_norm:
            direction = mask(moment, direction)
        if not direction:
            return Direction({}, 1.0)
        step = self.parts.scaler.unit(moment.theta, direction)
        if mask is not None and not mask.in_norm:
            step = Direction(mask(moment, step.parts), step.factor)
        return step

    def _climb(self, unit: Unit, moment: Moment, first: "Displacement", points: list[Point] | None) -> "Displacement":
        """Further inner steps of ascent."""
        source = self.parts.source
        objectives = [a or d for a, d in zip(unit.ascents, unit.descents, strict=True)]
        ascending = unit.ascents[0] is not None
        delta = source.advance(None, first.parts, moment.rho)
        for _ in range(source.steps - 1):
            self.weights.displace(moment.by_group(delta))
            moment.theta = self.weights.clean()
            value = self.passes.run(unit, objectives, ascending=ascending)
            grads = self.passes.take()
            value = self.exchange.share(unit, [grads], [value])[0]
            if self._guard("second pass", grads):
                break
            if points is not None:
                points.append(Point(grads, value if ascending or self.passes.trained.sign > 0 else -value))
            following = self._unit(moment, source.direction(moment, grads)).as_params()
            delta = source.advance(delta, following, moment.rho)
        delta = moment.by_group(delta)
        return Displacement(first.step, delta, 1.0, wide_norm(delta))

    def _where_base_goes(self, moment: Moment) -> Params:
        """SAMPa's y - w: the step that SGD would take with the stored gradient."""
        assert moment.base is not None
        stored: Params = self.parts.source.state_dict()["stored"]
        names = {p: n for n, p in self.weights.parameters.items()}
        theta, buffers = self.weights.clean(), moment.kept("momentum_buffer")
        delta: Params = {}
        for group in moment.base.param_groups:
            known = [name for p in group["params"] if (name := names.get(p, "")) in stored]
            mu = group["momentum"]
            for chosen, fresh in (
                ([n for n in known if n not in buffers], 1.0),
                ([n for n in known if n in buffers], 1 - group["dampening"]),
            ):
                if not chosen:
                    continue
                # SGD's new buffer is mu buffer + fresh g; it moves along that, or along g + mu times it (Nesterov)
                new, old = (1 + mu * fresh, mu * mu) if group["nesterov"] else (fresh if mu else 1.0, mu)
                moves = torch._foreach_mul([stored[n] for n in chosen], -group["lr"] * new)
                if group["weight_decay"]:
                    decay = -group["lr"] * new * group["weight_decay"]
                    torch._foreach_add_(moves, [theta[n] for n in chosen], alpha=decay)
                if mu and chosen[0] in buffers:
                    torch._foreach_add_(moves, [buffers[n] for n in chosen], alpha=-group["lr"] * old)
                delta.update(zip(chosen, moves, strict=True))
        return delta

    def reference_mean(self, *, squares: bool) -> Params:
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
            self.passes.run(unit, [closure], ascending=self.parts.ascent != "loss")
            grads = self.passes.take()
            if squares:
                grads = {n: g.square() for n, g in grads.items()}
            total = accumulated(total, grads, 1.0 if squares else count / sum(counts))
        result = zeros_where_missing(total or {}, self.weights.clean())
        if self.replicas.several:
            self.replicas.average(list(result.values()), 1.0 if squares else float(sum(counts)))
            if squares:  # a sum over the examples of all ranks
                torch._foreach_mul_(list(result.values()), float(self.replicas.ranks.count))
        return result

    def _guard(self, when: str, *grads: Params | None, loss: Tensor | None = None) -> bool:
        """Whether the step ends here, because something is not finite; the record then says so."""
        if self.guard is None:
            return False
        # gradients are shared by those who share a perturbation, losses may be a rank's own: `_finish` looks at these
        own = loss is not None and self.replicas.circle.count == 1
        if self.guard.passes(*grads, losses=[loss] if own and loss is not None else []):
            return False
        self.record.overflow = when
        return True

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A block in which a call of the model counts as a sign that the closure computes afresh."""

        def note(*_: object) -> None:
            self.responds = True

        handle = self.passes.model.register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def _check_response(
        self,
        clean: Params | None,
        loss: Tensor | None,
        perturbed: Params,
        perturbed_loss: Tensor,
        moved: "Displacement",
    ) -> None:
        """Refuse a closure that gives at displaced weights, bit for bit, what it gave at the clean ones.

        It does so where its graph was made outside, or where its loss comes from other weights. So it may for a step
        too short for the precision, which is told by the slope: such a step tells nothing.

        Raises:
            ValueError: If the loss should have changed, and neither it nor the gradient did.
        """
        if clean is None or loss is None or not moved.parts or self.parts.functional or self.parts.needs_previous:
            return
        same = all(torch.equal(g, perturbed[n]) for n, g in clean.items() if n in perturbed)
        if not same or not torch.equal(loss, perturbed_loss):
            self.responds = True
        elif abs(float(moved.times) * dot(moved.parts, clean)) > 1000 * torch.finfo(loss.dtype).eps * (
            abs(float(loss)) + TINY
        ):
            raise ValueError(
                "the closure gave the same loss and gradient after the weights were moved: recompute inside the "
                "closure, forward pass and loss, from the model whose weights are moved."
            )

    def nothing_seen(self) -> Tensor:
        """NaN in place of a loss, on the device of the weights."""
        return torch.full((), math.nan, device=next(iter(self.weights.parameters.values())).device)

    def note_m(self, unit: Unit) -> None:
        self.record.m = max(self.record.m, unit.examples)
        self.record.m_global = max(self.record.m_global, unit.examples * self.sharers)

    def _note_cosine(self, clean: Params, perturbed: Params, weight: float) -> None:
        product = wide_inner(clean, perturbed)
        self.record.slopes.append((weight, product, wide_norm(clean), wide_norm(perturbed)))

    def _add(self, key: str, grads: Params, weight: float) -> None:
        alone = self.exchange.alone and key not in self.exchange.sums
        self.exchange.sums[key] = accumulated(self.exchange.sums.get(key), grads, weight, alone=alone)
