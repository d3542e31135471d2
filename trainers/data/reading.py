"""Reading inputs one by one, batch after batch, here or by worker processes."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from trainers.data.augmentation import Augmentation
from trainers.data.items import ItemInputs

SHOWN = 4  # examples that a message names
Turn = tuple[int, list[int]]  # an epoch, and positions in the split


class Reader:
    """Reads the inputs of a split as they are stored, transformed one by one where that is asked for.

    The worker processes are told the epoch with each batch and keep nothing, so that they may live on from one pass to
    the next, and change no bit. One pass goes at a time: the next one ends it.

    Args:
        inputs: Of the split.
        index: Position of each example in the source, on the CPU.
        augment: Whose transform of one example is applied, of the epoch that a pass names.
        workers: Processes that read ahead; 0 reads here.
        lasting: Whether they live on between passes.
        pinned: Whether batches go into memory from which a GPU copies while it computes.
    """

    def __init__(
        self,
        inputs: Tensor | ItemInputs,
        index: Tensor,
        augment: Augmentation | None = None,
        *,
        workers: int = 0,
        lasting: bool = False,
        pinned: bool = False,
    ) -> None:
        self.stored = _Stored(inputs, index, augment)
        self.turns: list[Any] = []  # a turn stands for the indices of a batch
        self.options: dict[str, Any] = {"num_workers": workers, "persistent_workers": lasting, "pin_memory": pinned}
        self._loader: DataLoader[Tensor] | None = None

    @property
    def apart(self) -> bool:
        """Whether other processes read."""
        return bool(self.options["num_workers"])

    def read(self, parts: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """Batches of the examples at these positions, in the epoch of this number.

        Raises:
            ValueError: If an input cannot be read or transformed, naming it.
            RuntimeError: If a worker process died, naming what was being read.
        """
        turns = [(epoch, part.tolist()) for part in parts]
        batches = self._ahead(turns) if self.apart else map(self.stored.__getitems__, turns)
        for turn in turns:
            try:
                stored = next(batches)
            except ValueError as error:  # with the trace of a worker
                raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error
            except (RuntimeError, ConnectionError, EOFError) as error:
                if (died := self._died(error, turn[1])) is not None:
                    raise died from error
                raise
            yield stored

    def close(self) -> None:
        """End the workers."""
        self._loader = None

    def _ahead(self, turns: list[Turn]) -> Iterator[Tensor]:
        self.turns[:] = turns
        if self._loader is None or not self.options["persistent_workers"]:
            self._loader = DataLoader(
                self.stored,
                batch_sampler=self.turns,
                collate_fn=_as_it_is,
                generator=Generator(),  # or it would draw from the global one
                **self.options,
            )
        with _without_alarm():
            return iter(self._loader)

    def _died(self, error: Exception, positions: list[int]) -> RuntimeError | None:
        """What to raise for an error that the end of a worker has caused; None for those of the data set itself."""
        said = (str(error).strip().splitlines() or [""])[0].rstrip(". ")
        gone = isinstance(error, ConnectionError | EOFError) or said.startswith("DataLoader worker")
        if not self.apart or said.startswith("Caught ") or not gone:
            return None
        index = self.stored.index[positions].tolist()
        examples = ", ".join(map(str, index[:SHOWN])) + f" and {len(index) - SHOWN} more" * (len(index) > SHOWN)
        return RuntimeError(
            f"a worker process that reads data died ({said}) when examples {examples} of the source, or those after "
            f"them, were read: out of memory? Use fewer `workers`; with 0 the error is that of the data set itself."
        )


@contextmanager
def _without_alarm() -> Iterator[None]:
    """Undo that a loader made in the block lets the end of a worker raise an error at any place of this process.

    It would come in the middle of a step, or of putting things back. Who waits for a batch looks every five seconds.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


class _Stored(Dataset[Tensor]):
    """What is read: inputs as they are stored, transformed where that is asked for."""

    def __init__(self, inputs: Tensor | ItemInputs, index: Tensor, augment: Augmentation | None) -> None:
        self.inputs, self.index = inputs, index
        self.augment = None if augment is None or augment.transform is None else augment

    def __getitems__(self, turn: Turn) -> Tensor:
        epoch, positions = turn
        return torch.stack(
            [self.one(*place, epoch) for place in zip(positions, self.index[positions].tolist(), strict=True)]
        )

    def first(self, count: int) -> list[Tensor]:
        """The first inputs of the split as they are stored."""
        return [self.one(i, int(self.index[i]), 0) for i in range(min(count, len(self.index)))]

    def one(self, position: int, example: int, epoch: int) -> Tensor:
        """The example at a position of the split, and at one of the source."""
        stored: Tensor = self.inputs[position if isinstance(self.inputs, Tensor) else example]
        return stored if self.augment is None else self.augment.one(stored, example, epoch)


def _as_it_is(batch: Any) -> Any:
    return batch
