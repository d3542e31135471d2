"""What a data set is once it is split: splits, shifted copies of the test set, and the bundle of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Generator, Tensor

from landscape.batches import Batch, Batches, LoadedBatches
from landscape.checks.arguments import require_whole
from landscape.memory import require
from trainers.data.augmentation import Augmentation
from trainers.data.items import ItemInputs, Pixels
from trainers.data.reading import Reader

if TYPE_CHECKING:
    from trainers.data.graphs import Graph
    from trainers.data.sources.text import TextReading

BATCH = 1024  # examples, where the caller does not say


@dataclass(frozen=True)
class Split:
    """Examples, with where they come from.

    Attributes:
        inputs: Inputs as they are stored: a tensor (n, ...) in memory, float32, int64 for tokens or uint8 for images;
            or what reads them one by one, by their position in the source.
        y: Labels (n,) as given to training, int64, or other targets (n, ...).
        clean: True labels (n,), int64; other than y only where label noise hit.
        index: Position of each example in the source (n,), int64.
        pixels: How uint8 becomes floating point, at use; None for other inputs.
        dtype: Of floating-point inputs at use; None means as they are stored, float32 for pixels.
        side: Side to which images are resized at use (bilinear, antialiased); None means as they are stored.
        workers: Processes that read ahead where inputs are read or augmented one by one; they change no bit.
        among: The classes that a prediction is one of, in order, for a shifted set of fewer classes than the run's;
            None is all.
        note: What is to be said of numbers that are taken on it.
    """

    inputs: Tensor | ItemInputs
    y: Shaped[Tensor, "n ..."]
    clean: Shaped[Tensor, "n ..."]
    index: Int[Tensor, " n"]
    pixels: Pixels | None = None
    dtype: torch.dtype | None = None
    side: int | None = None
    workers: int = 0
    among: tuple[int, ...] | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def noisy(self) -> Bool[Tensor, " n"]:
        """Which examples have another target than the true one."""
        missing = (self.y != self.y) & (self.clean != self.clean)
        other = (self.y != self.clean) & ~missing
        return other.flatten(1).any(1) if other.ndim > 1 else other

    @property
    def device(self) -> torch.device:
        """Where inputs are used and labels lie."""
        return self.y.device

    @property
    def x(self) -> Tensor:
        """All inputs as the model takes them; unless they are stored so, they are made anew each time.

        Raises:
            MemoryError: If they are read one by one, and do not fit.
        """
        if isinstance(self.inputs, Tensor):
            return self._used(self.inputs)
        require(
            self.inputs.bytes_each * len(self),
            "cpu",
            what="All inputs of a split, which are read one by one,",
            instead="go through its `batches`",
        )
        x: Tensor = self.take(slice(None))[0]
        return x

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of one input, before it is resized."""
        return tuple(self.inputs.shape[1:]) if isinstance(self.inputs, Tensor) else self.inputs.shape

    def take(self, positions: Int[Tensor, " k"] | slice) -> Batch:
        """The examples at these positions, as a pair (inputs, labels)."""
        if isinstance(self.inputs, Tensor):
            return self._used(self._held(positions)), self.y[positions]
        index = self.index[positions].tolist()
        some = index or self.index[:1].tolist()  # one shows the shape where none is taken
        stored = torch.stack([self.inputs[i] for i in some])[: len(index)]
        return self._used(stored), self.y[positions]

    def batches(
        self,
        order: Int[Tensor, " k"] | None = None,
        size: int = BATCH,
        *,
        augment: Augmentation | None = None,
        reader: Reader | None = None,
    ) -> Batches:
        """The examples in batches, pairs (inputs, labels) on the split's device, to be gone through again and again.

        Inputs in memory are cut, or taken in the order given; others, and those augmented one by one, are read by
        `workers` processes. No batch is kept.

        Args:
            order: Positions, in turn; None means all, as they are.
            size: Examples in a batch; the last may have fewer.
            augment: Transforms each example; None shows it as it is stored.
            reader: One of this split's, with this transform, whose workers live on; None takes one for each pass.

        Raises:
            ValueError: If the size is below 1.
        """
        require_whole(size, "size")
        if size < 1:
            raise ValueError(f"`size` must be at least 1 example a batch, got {size!r}.")
        count = len(self) if order is None else len(order)
        starts = range(0, count, size)
        sizes = [min(size, count - i) for i in starts]
        if not isinstance(self.inputs, Tensor) or (augment is not None and augment.transform is not None):
            turn = torch.arange(count) if order is None else order
            reader = reader or self.reader(augment)
            read = partial(self._read, turn.split(size) if count else (), reader, augment)
            draws = None if reader.apart else ()  # from states of other processes, which start anew
            return LoadedBatches(read, sizes=sizes, bytes=self._bytes(count), generators=draws)
        parts = [slice(i, i + n) if order is None else order[i : i + n] for i, n in zip(starts, sizes, strict=True)]
        if order is None and self.pixels is None and self.dtype is None and augment is None:
            return [self.take(part) for part in parts]
        shown = self.take if augment is None else partial(self._augmented, augment)
        return LoadedBatches(partial(map, shown, parts), sizes=sizes, bytes=self._bytes(count), generators=None)

    def reader(self, augment: Augmentation | None = None, *, lasting: bool = False) -> Reader:
        """What reads the inputs one by one; `lasting` lets its workers live on between passes."""
        apart = self.workers > 0 and (not isinstance(self.inputs, Tensor) or self.inputs.device.type == "cpu")
        return Reader(
            self.inputs, self.index.cpu(), augment, workers=self.workers if apart else 0, lasting=lasting and apart,
            pinned=apart and self.device.type == "cuda",
        )  # fmt: skip

    def some(self, positions: Int[Tensor, " k"]) -> "Split":
        """The examples at these positions, as a split."""
        inputs = self._held(positions) if isinstance(self.inputs, Tensor) else self.inputs
        y, clean, index = (t[positions] for t in (self.y, self.clean, self.index))
        return replace(self, inputs=inputs, y=y, clean=clean, index=index)

    def to(self, device: torch.device | str, *, workers: int | None = None, resident: bool = True) -> "Split":
        """The same examples used on another device, or read by so many processes.

        Without `resident` inputs in memory stay where they are, for transforms of one example at a time.
        """
        y, clean, index = (t.to(device) for t in (self.y, self.clean, self.index))
        inputs = self.inputs.to(device) if isinstance(self.inputs, Tensor) and resident else self.inputs
        workers = self.workers if workers is None else workers
        return replace(self, inputs=inputs, y=y, clean=clean, index=index, workers=workers)

    def double(self) -> "Split":
        """The same examples with inputs in float64; tokens stay what they are."""
        if isinstance(self.inputs, Tensor) and self.pixels is None:
            return replace(self, inputs=self.inputs.double()) if self.inputs.is_floating_point() else self
        return replace(self, dtype=torch.float64)

    def _used(self, stored: Tensor) -> Tensor:
        x = stored.to(self.device)
        if self.pixels is not None:
            x = self.pixels(x, self.dtype or torch.float32)
        elif self.dtype is not None and x.is_floating_point():
            x = x.to(self.dtype)
        if self.side is None:
            return x
        if not len(x):  # which torch does not resize
            return x.new_empty(0, x.shape[1], self.side, self.side)
        return F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)

    def _held(self, positions: Int[Tensor, " k"] | slice) -> Tensor:
        assert isinstance(self.inputs, Tensor)
        return self.inputs[positions if isinstance(positions, slice) else positions.to(self.inputs.device)]

    def _augmented(self, augment: Augmentation, positions: Int[Tensor, " k"] | slice) -> Batch:
        stored = augment.whole(self._held(positions).to(self.device), self.index[positions])
        return self._used(stored), self.y[positions]

    def _read(self, parts: Sequence[Tensor], reader: Reader, augment: Augmentation | None) -> Iterator[Batch]:
        epoch = 0 if augment is None else augment.epoch
        for stored, positions in zip(reader.read(parts, epoch), parts, strict=True):
            here = stored.to(self.device, non_blocking=True)
            shown = here if augment is None else augment.whole(here, self.index[positions])
            yield self._used(shown), self.y[positions]

    def _bytes(self, count: int) -> int:
        each = self.inputs[:1].nbytes if isinstance(self.inputs, Tensor) else self.inputs.bytes_each
        if self.side is not None:
            each = each * self.side**2 // math.prod(self.stored_shape[1:])
        return count * each * (4 if self.pixels is not None else 1)


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
        ood: Shifted copies of `test`, in its order: "noise:1" ... "contrast:3", and "spurious" where there is a patch;
            and those that `trainers.data.shifted` adds.
        classes: Number of classes.
        shape: Shape of one input.
        names: Of the classes, in order; empty where they are not known.
        shifted: Which of `ood` come from elsewhere.
        official_test: Positions of the official test set in the source, of which `test` may be a part; None for none.
        fill: What a stored input has where nothing is, for augmentation; None where that is not known.
        origin: What is noted about the data in a run's folder.
        selected: The source's labels of these classes, where they are not all of its classes; empty for all.
        graph: Whose nodes the examples are, for the model; None for other data.
        text: How text became sequences; None for other data.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    ood: Mapping[str, Split]
    classes: int
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()
    official_test: range | None = None
    fill: float | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    selected: tuple[int, ...] = ()
    graph: "Graph | None" = None
    text: "TextReading | None" = None

    def described(self) -> dict[str, Any]:
        """What is known about the data, in types that JSON knows."""
        sizes = {part: len(getattr(self, part)) for part in ("train", "validation", "test")}
        shape, names = list(self.shape), list(self.names) or None
        return {"dataset": self.name, **sizes, "shape": shape, "classes": self.classes, "names": names, **self.origin}

    def to(self, device: torch.device | str, *, workers: int | None = None) -> "DataBundle":
        """The same data on another device; shifted splits go there when they are asked for."""
        ood = self.ood
        return replace(
            self,
            train=self.train.to(device, workers=workers),
            validation=self.validation.to(device, workers=workers),
            test=self.test.to(device, workers=workers),
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
    labels = labels.unique(return_inverse=True)[1]  # whole numbers of one's own may be negative, or far apart
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(n) - (counts.cumsum(0) - counts)[labels[by_class]]
    place = (rank + torch.rand(n, generator=generator, dtype=torch.float64)) / counts[labels[by_class]]
    return by_class[torch.argsort(place, stable=True)]
