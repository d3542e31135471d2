"""All examples of a data set, before they are split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Shaped
from torch import Tensor

from trainers.data.items import ItemInputs, Pixels

if TYPE_CHECKING:
    from trainers.data.graphs import Graph
    from trainers.data.sources.text import TextReading


@dataclass(frozen=True)
class Shades:
    """The values that images or signals have.

    Attributes:
        low: The smallest: dark.
        high: The largest: lit.
        fill: That of the background.
        scale: Standard deviation.
    """

    low: float
    high: float
    fill: float
    scale: float = 1.0

    @classmethod
    def of(cls, x: Tensor) -> "Shades":
        """Those of some inputs."""
        return cls(float(x.min()), float(x.max()), float(x.min()), float(x.std()) or 1.0)


@dataclass(frozen=True)
class Source:
    """All examples of a data set, in an order that never changes.

    Attributes:
        inputs: A tensor (n, ...), float32, int64 for tokens or uint8 for images; or what reads them one by one.
        y: True labels (n,), int64, in [0, classes); or other targets (n, ...) of a user's own task.
        classes: Number of classes, or of entries of a target.
        validation_start: Index of the first example of a validation set of the data's own, which lies between training
            and test examples; None where there is none.
        test_start: Index of the first example of an official test set, which ends the data; None where there is none.
        test_size: Size of the test set by default; None means all of the official one.
        images: Whether inputs are images or signals, which corruptions and patches can be applied to.
        shades: Their values at use; None for those of the test set, where the others are not in memory.
        pixels: How uint8 becomes floating point.
        side: Side to which images are resized at use; None means as they are stored.
        names: Of the classes, in order; empty where they are not known.
        origin: What is noted about the data in a run's folder, such as their fingerprint.
        standardise: Whether inputs, and targets that are numbers, are brought to mean 0 and deviation 1 by the mean and
            deviation of the training examples.
        graph: Whose nodes the examples are, for the model; None for other data.
        registers: Inputs and targets of further test sets of the data's own, by name, such as another kind of text.
        text: How text became sequences; None for other data.
        shared: Whether the inputs belong to others too; those of a single owner are put in the order of the splits in
            place, so that they are never in memory twice.
    """

    inputs: Tensor | ItemInputs
    y: Shaped[Tensor, "n ..."]
    classes: int
    validation_start: int | None = None
    test_start: int | None = None
    test_size: int | None = None
    images: bool = True
    shades: Shades | None = None
    pixels: Pixels | None = None
    side: int | None = None
    names: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = True
    standardise: bool = False
    graph: "Graph | None" = None
    registers: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    text: "TextReading | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, as it is used."""
        stored = tuple(self.inputs.shape[1:]) if isinstance(self.inputs, Tensor) else self.inputs.shape
        return stored if self.side is None else (stored[0], self.side, self.side)


TEST_SHARE = 5  # a fifth of data without a test set of their own is the test set, unless a size is given


def bounds(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Where validation and test begin, for examples in the order of the parts train, validation and test.

    Args:
        sizes: Examples of each part that there is; train at least.
    """
    train, validation, test = (sizes.get(part, 0) for part in ("train", "validation", "test"))
    return {
        "validation_start": train if validation else None,
        "test_start": train + validation if test else None,
        "test_size": None if test else max(1, train // TEST_SHARE),
    }


def held_out(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The same parts, in order, with a validation set as the test set where there is no other.

    So papers on ImageNet report it; what chooses hyper-parameters is then cut out of the training examples.
    """
    known = {part: parts[part] for part in ("train", "validation", "test") if part in parts}
    if "validation" in known and "test" not in known:
        known["test"] = known.pop("validation")
    return known
