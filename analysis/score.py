"""The score that a study leads with: the error of labels, or what its task has in that place."""

from collections.abc import Iterable
from dataclasses import dataclass

from trainers.runs.folder import ERROR, leading_score

SHARES = ("error", "accuracy")  # of examples, between 0 and 1, unless it is said what kind of error:
AMOUNTS = ("squared", "absolute", "relative", "standard")

LARGER = ("r2", "average_precision", "accuracy")  # numbers of whole sets that are the better the larger


def is_share(name: str) -> bool:
    """Whether a score or metric, such as test_error, is a share of examples, which is shown in percent."""
    said = name.replace("_", " ").split()
    return any(word in SHARES and said[max(0, i - 1)] not in AMOUNTS for i, word in enumerate(said))


def direction(name: str) -> int:
    """1 for what is the better the smaller it is, as errors and losses are; -1 for R², precision and accuracy."""
    return -1 if name.partition("[")[0].endswith(LARGER) else 1


@dataclass(frozen=True)
class Score:
    """A score of one number an example, the smaller the better.

    Attributes:
        name: As in the columns of the history and the rows of measures, after the name of the split.
    """

    name: str = ERROR

    @classmethod
    def of_history(cls, columns: Iterable[str]) -> "Score":
        """The leading one of a history's columns."""
        return cls(leading_score(columns))

    def on(self, split: str) -> str:
        """Its column for a split, such as test_error."""
        return f"{split}_{self.name}"

    @property
    def words(self) -> str:
        """For a sentence."""
        return self.name.replace("_", " ")

    @property
    def factor(self) -> float:
        """What values are multiplied by to be shown."""
        return 100.0 if is_share(self.name) else 1.0

    @property
    def unit(self) -> str:
        """Behind a heading."""
        return " (%)" if is_share(self.name) else ""

    @property
    def points(self) -> str:
        """What differences are told in."""
        return "points" if is_share(self.name) else "units"
