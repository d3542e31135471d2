"""What a data set is once it is split: splits, shifted copies of the test set, and the bundle of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, Shaped
from torch import Generator, Tensor


@dataclass(frozen=True)
class Split:
    """Examples, with where they come from.

    Attributes:
        x: Inputs (n, ...), float32, or int64 for tokens.
        y: Labels (n,) as given to training, int64, or other targets (n, ...).
        clean: True labels (n,), int64; other than y only where label noise hit.
        index: Position of each example in the source (n,), int64.
    """

    x: Tensor
    y: Shaped[Tensor, "n ..."]
    clean: Shaped[Tensor, "n ..."]
    index: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on another device."""
        return Split(self.x.to(device), self.y.to(device), self.clean.to(device), self.index.to(device))


@dataclass(frozen=True)
class ShiftedSplits(Mapping[str, Split]):
    """Shifted copies of the test set by name, made anew, and always the same, each time one is asked for.

    Made on demand because there are a dozen, which training does not need.
    """

    makers: Mapping[str, Callable[[], Split]]
    device: torch.device | str = "cpu"

    def __getitem__(self, key: str) -> Split:
        if key not in self.makers:
            raise KeyError(f"no shifted test set {key!r}; there are {', '.join(self.makers) or 'none'}.")
        return self.makers[key]().to(self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@dataclass(frozen=True)
class DataBundle:
    """A data set, split.

    Attributes:
        name: Its name or reference.
        train: What is trained on; the only split with label noise.
        validation: For choosing hyper-parameters; may be empty.
        test: For the gap and the test error.
        ood: Shifted copies of `test`, in its order: "noise:1" ... "contrast:3", and "spurious" where there is a patch.
        classes: Number of classes.
        shape: Shape of one input.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    ood: Mapping[str, Split]
    classes: int
    shape: tuple[int, ...]

    def to(self, device: torch.device | str) -> "DataBundle":
        """The same data on another device; shifted splits go there when they are asked for."""
        ood = self.ood
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            ood=replace(ood, device=device)
            if isinstance(ood, ShiftedSplits)
            else {key: split.to(device) for key, split in ood.items()},
        )


def stratified_order(labels: Shaped[Tensor, "n ..."], generator: Generator) -> Int[Tensor, " n"]:
    """A random permutation in which every class is spread evenly; targets that are no labels are of one class.

    The j-th of the n_c examples of a class, in random order, is put at (j + u) / n_c with u uniform in [0, 1), and all
    are sorted: a stretch of the unit interval of length t holds t · n_c of them, up to less than two.
    """
    n = len(labels)
    if labels.is_floating_point() or labels.ndim != 1:
        labels = torch.zeros(n, dtype=torch.int64)
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(n) - (counts.cumsum(0) - counts)[labels[by_class]]
    place = (rank + torch.rand(n, generator=generator, dtype=torch.float64)) / counts[labels[by_class]]
    return by_class[torch.argsort(place, stable=True)]
