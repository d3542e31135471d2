"""What the last step did."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from landscape.params import wide
from landscape.perturbation import TINY
from trainers.sharpness_aware.gates import Mode

Numbers = tuple[Tensor | float, ...]
_ROWS = ("clean", "displaced", "moved", "slopes", "final")


@dataclass
class StepRecord:
    """What the last step did, for logs.

    Losses, lengths and cosines stay on their device until one of them is asked for, so that a GPU is not waited for;
    then all numbers of the record are read at once, and `read` does so for many records.

    Attributes:
        rho: Radius of the step; 0.0 where it was plain.
        mode: "plain", "perturbed" or "reuse".
        overflow: "first pass" or "second pass" if a gradient was not finite there (with `skip_nonfinite` also a loss),
            with "(on some rank)" where only the average over ranks tells: then the step was skipped; "" otherwise, and
            always without `skip_nonfinite` and a `grad_scaler`.
        passes: Closure calls of the step.
        m: Examples that shared one perturbation on this rank, the largest number over chunks; 0 where sizes were not
            given.
        m_global: The same over the ranks that shared it.
        share: This rank's part of what the batch counts for over all ranks.
        clean: Each chunk's weight and loss at the clean weights.
        displaced: Each chunk's weight and loss at the displaced weights.
        moved: Each chunk's weight, and of each draw what its displacement's parts were multiplied by, the factor of the
            direction in it, and the parts' l2 norm.
        slopes: Each chunk's weight, ⟨g, g_p⟩, ‖g‖ and ‖g_p‖, with g and g_p the gradients at the clean and the
            displaced weights.
        final: The norm of the gradient that the base optimizer got, before clipping.
    """

    rho: float = 0.0
    mode: Mode = Mode.PLAIN
    overflow: str = ""
    passes: int = 0
    m: float = 0
    m_global: float = 0
    share: float = 1.0
    clean: list[Numbers] = field(default_factory=list, repr=False)
    displaced: list[Numbers] = field(default_factory=list, repr=False)
    moved: list[Numbers] = field(default_factory=list, repr=False)
    slopes: list[Numbers] = field(default_factory=list, repr=False)
    final: list[Numbers] = field(default_factory=list, repr=False)

    def lessen(self, share: float) -> None:
        """Multiply by `share` the weight of all chunks so far; the means then have room for one more."""
        for name in ("clean", "displaced", "moved", "slopes"):
            setattr(self, name, [(row[0] * share, *row[1:]) for row in getattr(self, name)])

    @property
    def skipped(self) -> bool:
        """Whether the step was skipped, so that nothing has moved."""
        return bool(self.overflow)

    @property
    def perturbed(self) -> bool:
        """Whether the weights were displaced."""
        return self.mode is Mode.PERTURBED

    @property
    def length(self) -> float:
        """Root mean square over chunks of the displacement's l2 length; 0.0 for a plain step."""
        total = 0.0
        for weight, *draws in self._read("moved"):
            squared, count = 0.0, len(draws) // 3
            for times, factor, size in zip(*(draws[i::3] for i in range(3)), strict=True):
                squared += (abs(times / factor) * (size * factor) if factor else 0.0) ** 2 / count
            total = math.sqrt(total**2 + weight * squared)
        return total

    @property
    def cosine(self) -> float:
        """Cosine of the gradients at the clean and at the displaced weights, the weighted mean over chunks.

        NaN where the method does not see both, or the optimizer was not made with `diagnose=True`.
        """
        rows = self._read("slopes")
        return sum(w * (product / (a * b + TINY)) for w, product, a, b in rows) if rows else math.nan

    @property
    def grad_norm(self) -> float:
        """The l2 norm of the gradient that the base optimizer got, before clipping; NaN without `diagnose=True`."""
        rows = self._read("final")
        return rows[0][0] if rows else math.nan

    @property
    def clean_loss(self) -> float:
        """Training loss at the clean weights, weighted over chunks; NaN where no pass saw it."""
        return _mean(self._read("clean"))

    @property
    def perturbed_loss(self) -> float:
        """Training loss at the displaced weights (the last point of the plan); NaN for a plain step."""
        return _mean(self._read("displaced"))

    @property
    def gap(self) -> float:
        """The surrogate gap, perturbed less clean loss; NaN where either was not seen."""
        return self.perturbed_loss - self.clean_loss

    def _read(self, name: str) -> list[tuple[float, ...]]:
        read([self])
        rows: list[tuple[float, ...]] = getattr(self, name)
        return rows


def read(records: Iterable[StepRecord]) -> None:
    """Bring the numbers of records to the host, all at one wait for each device; those that are there stay."""
    held = [(record, name) for record in records for name in _ROWS]
    waiting: dict[torch.device, dict[int, Tensor]] = {}
    for record, name in held:
        for row in getattr(record, name):
            for number in row:
                if isinstance(number, Tensor):
                    waiting.setdefault(number.device, {})[id(number)] = number
    if not waiting:
        return
    found: dict[int, float] = {}
    for tensors in waiting.values():
        numbers = torch.stack([wide(number.detach().reshape(())) for number in tensors.values()]).tolist()
        found.update(zip(tensors, numbers, strict=True))
    for record, name in held:
        rows = [tuple(found.get(id(n), n) for n in row) for row in getattr(record, name)]
        setattr(record, name, rows)


def _mean(weighted: list[tuple[float, ...]]) -> float:
    return sum(w * v for w, v in weighted) if weighted else math.nan
