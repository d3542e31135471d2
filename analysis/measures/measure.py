"""What a measure is: a function from a checkpoint to rows of the table, and what is known of it beforehand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from analysis.measures.needs import Need
from analysis.table import Row

Rows = list[Row]
Family = Literal["sharpness", "complexity", "forgetting", "norm", "bias", "baseline", "diagnostic", "target"]


@dataclass(frozen=True)
class Measure:
    """An entry of the registry.

    Attributes:
        function: Takes a `Subject` and its options, returns rows.
        rows: Names of the measures its rows carry.
        help: One line.
        family: What kind of quantity its rows are, but for those that a file of the catalogue files elsewhere.
        higher_means: What a larger value says.
        sign: Expected sign of correlation with the generalisation gap; 0 where theory has none.
        invariant: Transformations T1 to T5 under which it does not change.
        cost: In gradients over the training data.
        gradients: Expected cost of the default options on networks like the default study's, in gradients.
        needs: What the task and the data must have; where they lack it, the rows are marked with that reason.
        sometimes: Rows that not every model has.
        reads_shifted: Whether its numbers depend on shifted sets from elsewhere.
        sampled: Whether it goes through the training examples again and again, and so through a draw where they are
            many; it then has the option `examples` (see `plan`). What takes one pass goes through all.
        of_no_example: Its rows that no training example enters.
        shared: Whether processes of `torchrun` take it together, each on its part of the training examples, from sums
            of values, gradients and products; another is taken by one of them, whole.
        source: A digest of the file of a measure of one's own; what was kept of another is measured again.
        version: Raise it when the measure comes to mean another number: what was kept is then measured again.
        usual: Whether it is taken where no measures are named; False for those that cost more, or say less, than the
            others.
    """

    function: Callable[..., Rows]
    rows: tuple[str, ...]
    help: str
    family: Family
    higher_means: str
    sign: int
    invariant: str
    cost: str
    usual: bool = True
    gradients: float = 0.0
    needs: tuple[Need, ...] = ()
    sometimes: tuple[str, ...] = ()
    reads_shifted: bool = False
    sampled: bool = False
    of_no_example: tuple[str, ...] = ()
    shared: bool = False
    version: int = 1
    source: str = ""
