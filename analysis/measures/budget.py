"""What measuring will cost, told before it begins: seconds by measure, from passes timed on one batch."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from analysis.measures.checkpoints import Checkpoint, keys_of
from analysis.measures.collect import Call
from analysis.measures.costs import Kind, Sizes, work_of
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject, kept_bytes, operator_of
from analysis.measures.taking import examples_of
from landscape import AscentStep, EmpiricalRisk, GaussNewton, Hessian, ascent_sharpness
from landscape.sharpness import gradient_moments
from trainers.runtime import HERE, Runtime
from trainers.sweep.parallel import single_threaded

REPEATS, ENOUGH = 3, 1.0  # a pass is timed so often, or until so many seconds are spent
KINDS = 8  # of models and data that are timed; more are taken to be like the last of these
BLOCK = 16  # examples in a block
READING = 4e-6  # seconds that metrics of an example's outputs take, with ten classes


@dataclass(frozen=True)
class Budget:
    """What is left to be measured, and about how long it takes.

    Attributes:
        checkpoints: Checkpoints with something left to measure.
        seconds: Expected seconds on one core by measure, over all checkpoints; NaN where none could be read.
    """

    checkpoints: int
    seconds: dict[str, float]

    def duration(self, jobs: int) -> float:
        """Expected seconds with so many processes."""
        return math.fsum(self.seconds.values()) / max(1, min(jobs, self.checkpoints))


def budget(calls: Sequence[Call], runtime: Runtime = HERE) -> Budget:
    """Add up what is not measured yet, with the pace of the first checkpoint of each kind of model and data.

    Args:
        calls: Checkpoints, each with its plan and seed.
        runtime: Where they will be measured.
    """
    seconds: dict[str, float] = {}
    paces: dict[str, Pace] = {}
    left = 0
    for checkpoint, wanted, seed in calls:
        kept = checkpoint.cache.load()
        todo = {key: wanted[key] for key, known in keys_of(checkpoint, wanted, seed).items() if known not in kept}
        if not todo:
            continue
        left += 1
        pace = _pace(paces, checkpoint, seed, runtime)
        spent = dict.fromkeys(todo, math.nan) if pace is None else single_threaded(pace.seconds, todo)
        for key, took in spent.items():
            seconds[key] = seconds.get(key, 0.0) + took
    return Budget(left, seconds)


def announcement(budget: Budget, jobs: int) -> str:
    """One line for those who wait."""
    text = f"{budget.checkpoints} checkpoints to measure"
    seconds = budget.duration(jobs)
    return f"{text}, some {shown(seconds)} on {min(jobs, budget.checkpoints)} processes" if seconds >= 0 else text


def shown(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Pace:
    """What passes take on one batch of a checkpoint's data, timed when they are first asked for."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.known: dict[Kind, float] = {}

    def seconds(self, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Expected seconds of each measure; what they share is in the first that needs it."""
        paid: set[str] = set()
        found = {}
        for key, options in chosen.items():
            entry = MEASURES[key]
            subject = replace(self.subject, examples=examples_of(entry, options, self.subject))
            work = [w for w in work_of(key, entry, Sizes.of(subject), options) if not (w.once and w.once in paid)]
            paid |= {w.once for w in work}
            found[key] = math.fsum(w.examples * self.each(w.kind) for w in work)
        return found

    def each(self, kind: Kind) -> float:
        """Seconds an example; NaN where the model or the data do not allow such a pass."""
        if kind not in self.known:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.known[kind] = self._timed(kind)
            except Exception:  # the measures that need it will be marked rows, and take no time
                self.known[kind] = 0.0
        return self.known[kind]

    def _timed(self, kind: Kind) -> float:
        if kind == "reading":
            return READING
        risk = next_batch(self.subject)
        if kind in ("single", "blocks"):  # they cost more, and as much for each
            risk = risk.in_parts(8 * BLOCK).on(next(iter(risk.in_parts(8 * BLOCK).batches)))
        return timed(self._pass(kind, risk)) / risk.n

    def _pass(self, kind: Kind, risk: EmpiricalRisk) -> Callable[[], Any]:
        if kind == "forward":
            return risk.value
        if kind == "gradient":
            return risk.value_and_gradient
        if kind == "single":
            return lambda: gradient_moments(risk)
        if kind == "blocks":
            size = min(BLOCK, risk.n)
            return lambda: ascent_sharpness(risk, AscentStep(0.05), size)
        # the path that the whole sample takes: kept where its graph fits
        room = kept_bytes(risk.device) * risk.n // max(risk.n, self.subject.drawn or self.subject.n)
        whole = self.subject.batch_size is not None
        operator: Hessian | GaussNewton = (
            operator_of(Hessian, risk, room, whole=whole)
            if kind == "product"
            else operator_of(GaussNewton, risk, room, whole=whole)
        )
        vector = torch.ones(operator.shape[0], dtype=operator.dtype, device=operator.device)
        return lambda: operator @ vector


def next_batch(subject: Subject) -> EmpiricalRisk:
    """The risk on the first batch of the sample."""
    return subject.risk.on(next(iter(subject.risk.batches)))


def timed(function: Callable[[], Any]) -> float:
    """The shortest of a few calls, in seconds."""
    spent: list[float] = []
    while len(spent) < REPEATS and math.fsum(spent) < ENOUGH:
        begun = time.perf_counter()
        function()
        spent.append(time.perf_counter() - begun)
    return min(spent)


def _pace(paces: dict[str, Pace], checkpoint: Checkpoint, seed: int, runtime: Runtime) -> Pace | None:
    """The pace of a kind of checkpoint; None where it cannot be read, and will be marked rows."""
    kind = checkpoint.kind
    if kind not in paces:
        if len(paces) >= KINDS:
            return next(reversed(paces.values()))
        try:
            paces[kind] = Pace(checkpoint.load(seed, runtime.devices[0]))
        except (OSError, ValueError):
            return next(reversed(paces.values()), None)
    return paces[kind]
