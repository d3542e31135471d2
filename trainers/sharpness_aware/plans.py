"""At which points around the clean weights a chunk's gradient is taken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Points of evaluation.

    Attributes:
        draws: Directions drawn from the source, each with points of its own.
        antithetic: Evaluate w - eps besides w + eps.
        lagged: Take the gradients at w + eps on the previous step's batch.
        ahead: Take one more gradient, on this batch, where the base optimizer would go with the gradient it stored:
            SAMPa's y.
    """

    draws: int = 1
    antithetic: bool = False
    lagged: bool = False
    ahead: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"`draws` must be at least 1, got {self.draws}.")

    @property
    def signs(self) -> tuple[float, ...]:
        """Multiples of the displacement at which the gradient is taken."""
        return (1.0, -1.0) if self.antithetic else (1.0,)
