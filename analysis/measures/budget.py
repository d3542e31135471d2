"""What measuring will cost, told before it begins: gradients and seconds, by measure."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.measures.checkpoints import hashes
from analysis.measures.collect import Call
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from trainers.runtime import HERE, Runtime
from trainers.sweep.parallel import single_threaded

REPEATS = 3


@dataclass(frozen=True)
class Budget:
    """What is left to be measured, and about how long it takes.

    The expected costs hold for the default options on networks like those of the default study; eigenvalues and traces
    stop when they are known well enough, which may be sooner or later. It is an orientation.

    Attributes:
        checkpoints: Checkpoints with something left to measure.
        gradients: Expected cost by measure, in gradients over the training set, over all checkpoints.
        seconds_a_gradient: As timed on the first of them; NaN where it could not be read.
    """

    checkpoints: int
    gradients: dict[str, float]
    seconds_a_gradient: float

    def seconds(self, jobs: int) -> float:
        """Expected duration with so many processes."""
        return sum(self.gradients.values()) * self.seconds_a_gradient / max(1, min(jobs, self.checkpoints))


def budget(calls: Sequence[Call], runtime: Runtime = HERE) -> Budget:
    """Add up what is not measured yet, and time a gradient on the first checkpoint that can be read.

    Args:
        calls: Checkpoints, each with its plan and seed.
        runtime: Where they will be measured.
    """
    gradients: dict[str, float] = {}
    left = 0
    pace = math.nan
    for checkpoint, wanted, seed in calls:
        kept = checkpoint.cache.load()
        todo = [key for key, known in hashes(checkpoint, wanted, seed).items() if known not in kept]
        if not todo:
            continue
        left += 1
        for key in todo:
            gradients[key] = gradients.get(key, 0.0) + MEASURES[key].gradients
        if math.isnan(pace):
            try:
                pace = single_threaded(seconds_a_gradient, checkpoint.load(seed, runtime.devices[0]))
            except (OSError, ValueError):
                continue  # it will be marked rows
    return Budget(left, gradients, pace)


def announcement(budget: Budget, jobs: int) -> str:
    """One line for those who wait."""
    total = sum(budget.gradients.values())
    text = f"{budget.checkpoints} checkpoints to measure, about {total / max(1, budget.checkpoints):.0f} gradients each"
    seconds = budget.seconds(jobs)
    if not math.isfinite(seconds):
        return text
    took = (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
    return f"{text}: some {took} on {min(jobs, budget.checkpoints)} processes"


def seconds_a_gradient(subject: Subject) -> float:
    """The shortest of a few gradients over the training set."""
    spent = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        subject.risk.value_and_gradient()
        spent.append(time.perf_counter() - begun)
    return min(spent)
