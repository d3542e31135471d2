"""The best epoch of a run by its validation error, and when there is no point in going on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Best:
    """The evaluation with the smallest validation score so far; of equals the earliest.

    Attributes:
        epoch: After which it was.
        step: Steps taken until then.
        score: Its validation score.
        waited: Evaluations since then.
    """

    epoch: int
    step: int
    score: float
    waited: int

    def as_dict(self, column: str) -> dict[str, Any]:
        """As the status of a run holds it."""
        return {"epoch": self.epoch, "step": self.step, column: self.score}


def best_of(history: Sequence[Mapping[str, Any]], column: str) -> Best | None:
    """The best evaluation of a history by a column, such as validation_error; None before the first.

    It is a function of the history alone, so that a resumed run decides as it would have decided.

    Args:
        history: One row an epoch, with `epoch` and `step`; NaN where it was not evaluated.
        column: Smaller is better.
    """
    evaluated = [row for row in history if not math.isnan(row[column])]
    if not evaluated:
        return None
    place = min(range(len(evaluated)), key=lambda i: evaluated[i][column])
    row = evaluated[place]
    return Best(row["epoch"], row["step"], row[column], len(evaluated) - 1 - place)
