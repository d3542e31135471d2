"""Forgetting of training examples over the course of training (Toneva et al. 2019)."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.table import Row

Array = np.ndarray
Protocol = Literal["presentation", "sweep"]
SUMMARIES = ("forgetting_events", "fraction_unforgettable", "fraction_never_learned")


@dataclass(frozen=True)
class ExampleForgetting:
    """What happened to each of n examples over its presentations, counted from 0.

    Attributes:
        events: Forgetting events: right at one presentation, wrong at the next.
        learning_events: Wrong at one presentation, right at the next.
        first_learned: First presentation with a right answer; NaN if there is none.
        last_wrong: Last presentation with a wrong answer, plus 1; 0 if never wrong. The presentations that it took to
            learn the example for good.
        presentations: How often the example was presented.
        never_learned: Wrong at every presentation.
        unforgettable: Learned at some point, and never forgotten afterwards.
    """

    events: Int[Array, " n"]
    learning_events: Int[Array, " n"]
    first_learned: Float[Array, " n"]
    last_wrong: Int[Array, " n"]
    presentations: Int[Array, " n"]
    never_learned: Bool[Array, " n"]
    unforgettable: Bool[Array, " n"]

    @property
    def sort_value(self) -> Int[Array, " n"]:
        """`events`, with the number of presentations for examples that were never learned, so that these come last."""
        value: Int[Array, " n"] = np.where(self.never_learned, self.presentations, self.events)
        return value

    @property
    def mean_events(self) -> float:
        """Forgetting events an example."""
        return float(self.events.mean())

    @property
    def fraction_unforgettable(self) -> float:
        """Share of the examples that were learned and never forgotten."""
        return float(self.unforgettable.mean())

    @property
    def fraction_never_learned(self) -> float:
        """Share of the examples that were never answered rightly."""
        return float(self.never_learned.mean())

    def rows(self, *, protocol: Protocol) -> list[Row]:
        """The three summaries as rows of the measures table; standard errors are over examples.

        Args:
            protocol: How correctness was recorded, see `example_forgetting`; the two do not give equal counts.

        Raises:
            ValueError: If `protocol` is unknown.
        """
        if protocol not in get_args(Protocol):
            raise ValueError(f"`protocol` must be one of {get_args(Protocol)}, got {protocol!r}.")
        values = dict(zip(SUMMARIES, (self.events, self.unforgettable, self.never_learned), strict=True))
        n = len(self.events)
        options = {"protocol": protocol, "presentations": int(self.presentations.max())}
        return [
            Row(
                name,
                float(x.mean()),
                stderr=float(x.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
                draws=n,
                options=options,
            )
            for name, x in values.items()
        ]


def example_forgetting(
    correct: Bool[Array, "t n"], *, presented: Bool[Array, "t n"] | None = None
) -> ExampleForgetting:
    """Count forgetting and learning events of n examples over t presentations.

    Two ways to record `correct` are in use, and do not give equal counts. "presentation": on the training minibatch,
    before the update, in training mode with augmentation. "sweep": by a full evaluation at the end of epochs, in
    evaluation mode. With noisy labels, "correct" means agreement with the label that was given for training.

    Args:
        correct: Whether example i was answered rightly at time t.
        presented: Whether example i was presented at time t at all; None means always. An example's clock counts its
            own presentations, so that a batch left out does not shift it.

    Returns:
        Counts and classes of the examples; an example without a single presentation counts as never learned.

    Raises:
        ValueError: If `correct` is not a boolean matrix with at least one row and column, or `presented` has another
            shape.

    Source:
        Toneva et al. (2019), ICLR; `last_wrong` and `sort_value` as in their code.
    """
    correct = np.asarray(correct)
    if correct.dtype != np.bool_ or correct.ndim != 2 or correct.size == 0:
        raise ValueError(
            f"`correct` must be a boolean matrix of times by examples, got {correct.dtype} of shape {correct.shape}; "
            "compare predictions with labels first."
        )
    shown = np.ones_like(correct) if presented is None else np.asarray(presented)
    if shown.dtype != np.bool_ or shown.shape != correct.shape:
        raise ValueError(
            f"`presented` must be boolean of the shape {correct.shape} of `correct`, got {shown.dtype} {shown.shape}."
        )
    clock = np.cumsum(shown, axis=0) - 1  # each example's own count of presentations, from 0
    # The answer at the previous presentation of the same example, wherever in time that was.
    times = np.where(shown, np.arange(len(correct))[:, None], -1)
    latest = np.maximum.accumulate(times, axis=0)[:-1]
    had = np.take_along_axis(correct, np.maximum(latest, 0), axis=0)
    known = shown[1:] & (latest >= 0)
    right, wrong = correct & shown, ~correct & shown
    learned = right.any(axis=0)
    first = clock[right.argmax(axis=0), np.arange(correct.shape[1])]
    events = (known & had & ~correct[1:]).sum(axis=0)
    return ExampleForgetting(
        events=events,
        learning_events=(known & ~had & correct[1:]).sum(axis=0),
        first_learned=np.where(learned, first, np.nan),
        last_wrong=np.where(wrong, clock + 1, 0).max(axis=0),
        presentations=shown.sum(axis=0),
        never_learned=~learned,
        unforgettable=learned & (events == 0),
    )
