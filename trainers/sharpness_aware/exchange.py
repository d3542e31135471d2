"""What the ranks tell each other in a step: gradients of shared perturbations, and the one average at its end."""

from collections.abc import Sequence

from torch import Tensor

from landscape.params import Params
from trainers.sharpness_aware.chunks import Unit
from trainers.sharpness_aware.combiners import Point
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.gates import Mode
from trainers.sharpness_aware.moment import Moment
from trainers.sharpness_aware.passes import NO_GRADIENT, Passes
from trainers.sharpness_aware.ranks import Replicas, zeros_where_missing
from trainers.sharpness_aware.record import StepRecord
from trainers.sharpness_aware.weights import Weights


class Exchange:
    """Averages over ranks; with one process it does nothing.

    Args:
        parts: The method.
        replicas: The copies of the model on all processes.
        passes: Who has had a gradient.
        weights: The weights.

    Attributes:
        record: Of the step.
        sums: Gradients that the step adds up over its chunks: "ascent", "ahead", "decoupled".
        alone: Whether the step has one chunk, so that a sum is its one gradient, without a copy.
    """

    def __init__(self, parts: Composition, replicas: Replicas, passes: Passes, weights: Weights) -> None:
        self.parts, self.replicas, self.passes, self.weights = parts, replicas, passes, weights
        self.record = StepRecord()
        self.sums: dict[str, Params | None] = {}
        self.alone = False

    def begin(self, record: StepRecord) -> None:
        """Start a step."""
        self.record, self.sums, self.alone = record, {}, False

    def share(self, unit: Unit, gradients: Sequence[Params], losses: Sequence[Tensor] = ()) -> list[Tensor]:
        """Average gradients, in place, over the ranks that share a perturbation; returns the losses' averages.

        A name that none of them has stays missing, so that what the method remembers does not move it.
        """
        if self.replicas.circle.count == 1 or not (gradients or losses):
            return list(losses)
        means = [value.detach().clone() for value in losses]
        flags, theta = self._flags(), self.weights.clean()
        full = [zeros_where_missing(grads, theta) for grads in gradients]
        tensors = [t for grads in full for t in grads.values()] + means
        weight = float(unit.examples or 1)
        total = self.replicas.average(tensors, weight, circle=True, flags=flags)
        if self.replicas.whole:
            self.record.share = weight / total
        self._note_flags(flags)
        for grads, complete in zip(gradients, full, strict=True):
            grads.update(complete)
            for name, flag in zip(theta, flags, strict=True):
                if not flag:
                    del grads[name]
        if unit.examples:
            self.record.m_global = max(self.record.m_global, round(total))
        return means

    def share_first(
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
        means = self.share(unit, fresh, [loss] if combines and loss is not None else [])
        return means[0] if means else loss

    def share_points(self, unit: Unit, points: list[Point], ahead: Params | None) -> None:
        """Share the gradients and losses that the combiner is about to see."""
        gradients = [point.gradient for point in points] + ([ahead] if ahead is not None else [])
        for point, mean in zip(points, self.share(unit, gradients, [point.loss for point in points]), strict=True):
            point.loss = mean

    def average(self, moment: Moment, mode: Mode, weight: float) -> Params | None:
        """The one average of gradients over ranks, with whatever else must be averaged; returns the decoupled part.

        What travels depends on the method alone, never on what this rank has seen: all ranks must send the same.
        """
        replicas, parts, passes, theta = self.replicas, self.parts, self.passes, self.weights.clean()
        if not replicas.several:
            return self.sums.get("decoupled")
        perturbed = mode is Mode.PERTURBED
        grads = zeros_where_missing(passes.gradients(), theta)
        if not (perturbed and replicas.whole and parts.combiner.active):  # else averages of all already
            travelling = [grads]
            if perturbed:
                observed = parts.source.observes or (parts.mask is not None and parts.mask.wants_ascent(moment.t))
                wanted = {"decoupled": parts.combiner.decoupled, "ascent": observed, "ahead": parts.plan.ahead}
                for key in [key for key, yes in wanted.items() if yes]:
                    self.sums[key] = zeros_where_missing(self.sums.get(key) or {}, theta)
                    travelling.append(self.sums[key] or {})
                for made in parts.combiner.shared(moment) + parts.source.shared(moment):
                    made.update(zeros_where_missing(made, theta))
                    travelling.append({name: made[name] for name in theta})
            flags = self._flags()
            total = replicas.average([t for held in travelling for t in held.values()], weight, flags=flags)
            self.record.share = weight / total
            self._note_flags(flags)
        if not passes.seen:
            raise ValueError(NO_GRADIENT)
        passes.give({name: g for name, g in grads.items() if name in passes.seen})
        return self.sums.get("decoupled")

    def _flags(self) -> list[float]:
        """For each parameter, whether it has had a gradient in this step: those without one on all ranks keep None."""
        return [float(name in self.passes.seen) for name in self.weights.parameters]

    def _note_flags(self, flags: list[float]) -> None:
        self.passes.seen.update(n for n, flag in zip(self.weights.parameters, flags, strict=True) if flag)
