"""The learning rate as a function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The learning rate at step t of a run of `total` steps, warm-up included.

    Warm-up rises linearly and reaches `peak` at step `warmup`. After it, with s = (t - warmup) / (total - warmup):
    "constant" stays at `peak`; "cosine" is floor + (peak - floor) (1 + cos πs) / 2; "linear" is
    floor + (peak - floor) (1 - s); "step" multiplies `peak` by `factor` at every milestone (a fraction s of the run)
    that has passed.

    Attributes:
        kind: Shape after the warm-up.
        peak: Largest learning rate.
        total: Number of steps of the run.
        warmup: Steps of linear warm-up.
        floor: Learning rate at the end of the cosine or the line.
        milestones: Fractions of the run, in (0, 1), for "step".
        factor: Multiplier at each milestone.
    """

    kind: Literal["constant", "cosine", "linear", "step"]
    peak: float
    total: int
    warmup: int = 0
    floor: float = 0.0
    milestones: Sequence[float] = (0.5, 0.75)
    factor: float = 0.1

    def __call__(self, t: int) -> float:
        """The learning rate at step t."""
        if t < self.warmup:
            return self.peak * (t + 1) / self.warmup
        s = (t - self.warmup) / max(1, self.total - self.warmup)
        if self.kind == "cosine":
            return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * min(s, 1.0))) / 2
        if self.kind == "linear":
            return self.floor + (self.peak - self.floor) * (1 - min(s, 1.0))
        if self.kind == "step":
            return self.peak * self.factor ** sum(s >= at for at in self.milestones)
        return self.peak
