"""Numbers of a set of examples, with their standard errors and what is to be said of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from analysis.measures.catalogue.calibration import (
    balanced,
    balanced_error,
    calibration_error,
    mean_of,
    outside_top,
    proportion,
)
from analysis.measures.needs import no_probabilities
from analysis.table import Row
from landscape import Estimate
from trainers.tasks.task import Classification, Task, example_weights, lead

TOP, MANY = 5, 10  # the error of the five best classes is told where there are more than ten
UNEVEN = 1.5, 2  # the largest class has 1.5 times the examples of the smallest and two more: no rounding of a cut


class Value:
    """An estimate with what is to be said about it; NaN if there is something. Means know their examples' numbers."""

    def __init__(self, estimate: Estimate, note: str, each: Tensor | None = None) -> None:
        self.note = note
        self.estimate = Estimate(math.nan, math.nan, draws=estimate.draws) if note else estimate
        self.each = None if each is None else each.double()

    def __sub__(self, other: "Value") -> "Value":
        a, b = self.estimate, other.estimate
        both = Estimate(a.value - b.value, math.hypot(a.stderr, b.stderr), draws=min(a.draws, b.draws))
        return Value(both, self.note or other.note)

    def minus_paired(self, other: "Value") -> "Value":
        """The difference of means over the same examples."""
        assert self.each is not None
        assert other.each is not None
        return _of_examples(self.each - other.each, self.note or other.note)

    @staticmethod
    def mean(parts: "Sequence[Value]", paired: bool) -> "Value":
        """The mean of values on several sets; if they are not known to be paired, errors are not averaged away."""
        if len(parts) == 1:
            return parts[0]
        note = next((p.note for p in parts if p.note), "")
        each = [p.each for p in parts if p.each is not None]
        if paired and len(each) == len(parts):
            return _of_examples(torch.stack(each).mean(0), note)
        k = len(parts)
        value = math.fsum(p.estimate.value for p in parts) / k
        stderr = math.fsum(p.estimate.stderr for p in parts) / k
        return Value(Estimate(value, stderr, draws=min(p.estimate.draws for p in parts)), note)

    def row(self, measure: str, split: str, **options: Any) -> Row:
        """A row of the table."""
        e = self.estimate
        return Row(
            measure, e.value, e.stderr, draws=e.draws, split=split, options=options, converged=e.converged,
            warnings=self.note,
        )  # fmt: skip


def _of_examples(each: Tensor, note: str) -> Value:
    n = len(each)
    stderr = float(each.std(correction=0)) / math.sqrt(n)  # over n, as sqrt(e (1 - e) / n) is
    return Value(Estimate(float(each.mean()), stderr, draws=n), note, each)


@dataclass(frozen=True)
class Answers:
    """What a model says of the examples of a set.

    Attributes:
        outputs: On the CPU.
        targets: Likewise.
        among: The classes that a prediction is one of; None is all.
        paired: Whether they are the test examples, in their order.
        remark: What is to be said of every number.
    """

    outputs: Tensor
    targets: Tensor
    among: tuple[int, ...] | None = None
    paired: bool = False
    remark: str = ""

    def restricted(self) -> "Answers":
        """The same with outputs for the classes in question alone, and labels numbered as these are."""
        if self.among is None:
            return self
        chosen = torch.tensor(self.among)
        return Answers(
            self.outputs[:, chosen], torch.searchsorted(chosen, self.targets), None, self.paired, self.remark
        )


def scored(task: Task, outputs: Tensor, targets: Tensor) -> tuple[str, Value]:
    """The task's leading score on a set."""
    name, score = lead(task.scores(outputs, targets))
    if score.shape != (len(targets),) or len(outputs) != len(targets):
        raise ValueError(
            f"`splits` must hold a target for each output, got outputs of shape {tuple(outputs.shape)} for targets of "
            f"shape {tuple(targets.shape)}."
        )
    found = proportion(score) if score.dtype == torch.bool else mean_of(score.double())
    return name, Value(found, not_finite(outputs), score)


def loss(task: Task, outputs: Tensor, targets: Tensor) -> Value:
    """The task's loss on a set."""
    each, weights = task.each(outputs.double(), targets), example_weights(task, targets)
    return Value(mean_of(each, weights), not_finite(outputs), each if weights is None else None)


def further(task: Any, outputs: Tensor, targets: Tensor, bins: int, *, balance: bool) -> dict[str, Value]:
    """Top-5 error of many classes, balanced error where asked for, and calibration error; none without classes."""
    if no_probabilities(task) or not len(targets):
        return {}
    note, found = not_finite(outputs), dict[str, Value]()
    ranked = outputs if isinstance(task, Classification) else task.probabilities(outputs)
    if ranked.shape[1] > MANY:
        missed = outside_top(ranked, targets, TOP)
        found[f"top{TOP}_error"] = Value(proportion(missed), note, missed)
    if balance:
        _, first = scored(task, outputs, targets)
        assert first.each is not None
        found["balanced_error"] = Value(balanced_error(first.each, targets), note, balanced(first.each, targets))
    found["ece"] = (
        Value(Estimate(math.nan, math.nan, draws=len(targets)), note) if note else _ece(task, outputs, targets, bins)
    )
    return found


def _ece(task: Any, outputs: Tensor, targets: Tensor, bins: int) -> Value:
    top = task.probabilities(outputs).max(1)
    right = (top.indices == targets).numpy()
    return Value(calibration_error(top.values.clamp(max=1.0).numpy(), right, bins=bins), "")


GROUPS = 20  # of the jackknife


def of_set(task: Any, outputs: Tensor, targets: Tensor) -> dict[str, Value]:
    """The task's numbers of a whole set, such as R², where it has any.

    Their standard errors are of the jackknife that leaves out each of 20 groups, every 20th example, in turn, or each
    of fewer examples: √((g - 1) / g Σ (t_j - t̄)²).
    """
    if not hasattr(task, "of_set") or not len(targets):
        return {}
    note, n = not_finite(outputs), len(targets)
    whole = {name: float(value) for name, value in task.of_set(outputs, targets).items()}
    groups = torch.arange(n) % min(GROUPS, n)
    left = [task.of_set(outputs[groups != j], targets[groups != j]) for j in range(min(GROUPS, n))] if n > 1 else []
    found = {}
    for name, value in whole.items():
        each = torch.tensor([float(one[name]) for one in left], dtype=torch.float64)
        error = math.sqrt((len(each) - 1) * float(each.var(correction=0))) if len(each) > 1 else math.nan
        why = note or ("" if math.isfinite(value) else "it is not defined on these targets")
        found[name] = Value(Estimate(value, error, draws=n), why)
    return found


def uneven(task: Task, labels: Tensor) -> bool:
    """Whether there are classes that differ in number by more than a stratified cut leaves, of those with examples."""
    if no_probabilities(task) or not len(labels):
        return False
    counts = torch.bincount(labels.long())
    counts = counts[counts > 0]
    return bool(counts.max() >= UNEVEN[0] * counts.min() + UNEVEN[1])


def not_finite(outputs: Tensor) -> str:
    """How many examples have outputs that are no finite numbers; empty for none."""
    bad = int((~outputs.isfinite()).flatten(1).any(1).sum())
    return f"logits are not finite on {bad} of {len(outputs)} examples" if bad else ""
