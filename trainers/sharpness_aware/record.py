"""What the last step did."""

import math
from dataclasses import dataclass, field

from torch import Tensor

from trainers.sharpness_aware.gates import Mode


@dataclass
class StepRecord:
    """What the last step did, for logs. Losses become numbers when they are read, so that a GPU is not waited for.

    Attributes:
        rho: Radius of the step; 0.0 where it was plain.
        mode: "plain", "perturbed" or "reuse".
        length: Root mean square over chunks of the displacement's l2 length.
        grad_norm: l2 norm of the gradient handed to the base optimizer, before clipping; NaN unless the optimizer was
            made with `diagnose=True`.
        cosine: Cosine of the gradients at the clean and at the displaced weights, the weighted mean over chunks; NaN
            where the method does not see both, or without `diagnose=True`.
        overflow: "first pass" or "second pass" if a gradient was not finite there (with `skip_nonfinite` also a loss),
            with "(on some rank)" where only the average over ranks tells: then the step was skipped; "" otherwise, and
            always without `skip_nonfinite` and a `grad_scaler`.
        passes: Closure calls of the step.
        m: Examples that shared one perturbation on this rank, the largest number over chunks; 0 where sizes were not
            given.
        m_global: The same over the ranks that shared it.
    """

    rho: float = 0.0
    mode: Mode = Mode.PLAIN
    length: float = 0.0
    grad_norm: float = math.nan
    cosine: float = math.nan
    overflow: str = ""
    passes: int = 0
    m: float = 0
    m_global: float = 0
    clean: list[tuple[float, Tensor]] = field(default_factory=list, repr=False)
    displaced: list[tuple[float, Tensor]] = field(default_factory=list, repr=False)

    def lessen(self, share: float) -> None:
        """Multiply by `share` the weight of all chunks so far; the means then have room for one more."""
        self.clean = [(w * share, v) for w, v in self.clean]
        self.displaced = [(w * share, v) for w, v in self.displaced]
        self.length *= math.sqrt(share)
        self.cosine *= share

    @property
    def skipped(self) -> bool:
        """Whether the step was skipped, so that nothing has moved."""
        return bool(self.overflow)

    @property
    def perturbed(self) -> bool:
        """Whether the weights were displaced."""
        return self.mode is Mode.PERTURBED

    @property
    def clean_loss(self) -> float:
        """Training loss at the clean weights, weighted over chunks; NaN where no pass saw it."""
        return _mean(self.clean)

    @property
    def perturbed_loss(self) -> float:
        """Training loss at the displaced weights (the last point of the plan); NaN for a plain step."""
        return _mean(self.displaced)

    @property
    def gap(self) -> float:
        """The surrogate gap, perturbed less clean loss; NaN where either was not seen."""
        return self.perturbed_loss - self.clean_loss


def _mean(weighted: list[tuple[float, Tensor]]) -> float:
    return sum(w * float(v) for w, v in weighted) if weighted else math.nan
