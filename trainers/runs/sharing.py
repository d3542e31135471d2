"""One run on several processes: what its configuration then means, and which examples of a batch are whose."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.batchnorm import tracking_modules
from landscape.ranks import Ranks
from trainers.config import TrainConfig
from trainers.data.splits import DataBundle
from trainers.models.building import build_model

IDLE = 1e-30  # what a process counts for that has no example of a batch: it takes the passes, in which methods meet


def shared_out(config: TrainConfig, processes: int, *, normalised: bool) -> TrainConfig:
    """The configuration of a run whose batches so many processes share, each with an equal part.

    It says what is computed, whoever does it: examples that share a perturbation are `m`, or a whole batch; and where
    layers normalise by the batch, those of a forward pass are `micro_batch`. So the number of processes itself is no
    part of it.

    Args:
        config: Resolved.
        processes: At least 2.
        normalised: Whether layers normalise by the statistics of the examples of a pass.

    Raises:
        ValueError: If batches, or what stays together in them, cannot be shared evenly.
    """
    part, rest = divmod(config.batch_size, processes)
    if rest:
        raise ValueError(
            f"`batch_size` {config.batch_size} cannot be shared evenly by {processes} processes: make it a multiple of "
            f"{processes}, or start another number."
        )
    changes: dict[str, Any] = {}
    if config.rho is not None and config.sharing is None:  # each process, or chunk, has a perturbation of its own
        changes["m"] = config.m or part
    elif config.sharing == "group":
        size = config.group_size or 1
        if processes % size:
            raise ValueError(f"`group_size` must divide the number of processes, {processes}, got {size}.")
        changes["micro_batch"] = part  # which says, with `group_size`, how many share a perturbation
    if normalised and "m" not in changes:
        changes["micro_batch"] = min(config.micro_batch or part, part)
    for key in ("m", "micro_batch"):
        size = changes.get(key, getattr(config, key)) or part
        if size > part or part % size:
            raise ValueError(
                f"`{key}` {size} does not divide the {part} examples that each of {processes} processes has of a "
                f"batch of {config.batch_size}: choose one that does, start fewer processes, or leave it out."
            )
    found = TrainConfig.parse(config.model_copy(update=changes).model_dump())
    assert isinstance(found, TrainConfig)
    return found.resolved()


def normalises(config: TrainConfig, data: DataBundle, *, trust: bool) -> bool:
    """Whether the configured model normalises by the statistics of the examples of a pass."""
    model = build_model(
        config.model, shape=data.shape, classes=data.classes, generator_seed=config.seed,
        options=config.model_options, graph=data.graph, trust=trust,
    )  # fmt: skip
    return bool(tracking_modules(model))


@dataclass(frozen=True)
class Deal:
    """Deals the examples of each batch out to processes, in order.

    Attributes:
        ranks: The processes.
        size: Examples of a full batch.
        chunk: Examples that stay together; None cuts anywhere.
        before: Show each process the example before its first one too, for transforms that mix neighbours.
    """

    ranks: Ranks
    size: int
    chunk: int | None = None
    before: bool = False

    @classmethod
    def of(cls, config: TrainConfig, ranks: Ranks) -> "Deal":
        """How a run's batches are dealt out."""
        together = min(config.chunk, config.batch_size // ranks.count)
        chunk = together if config.chunk < config.batch_size else None
        return cls(ranks, config.batch_size, chunk, before=config.mixes and ranks.count > 1)

    def place(self, count: int) -> tuple[int, int]:
        """Where this process's part of a batch of so many examples begins and ends."""
        one = self.chunk or 1
        pieces = math.ceil(count / one)
        first, last = (pieces * r // self.ranks.count for r in (self.ranks.rank, self.ranks.rank + 1))
        return min(first * one, count), min(last * one, count)

    def shown(self, order: Tensor) -> Tensor:
        """What this process is shown of an order of examples that begins with a batch; as many of each full batch."""
        if self.ranks.count == 1:
            return order
        return torch.cat([self._of(batch) for batch in order.split(self.size)] or [order])

    @property
    def shown_of_each(self) -> int:
        """Examples that it is shown of a full batch."""
        return self.size // self.ranks.count + self.before

    def _of(self, batch: Tensor) -> Tensor:
        start, stop = self.place(len(batch))
        if start == stop:  # it counts for nothing, see `IDLE`
            start, stop = 0, min(len(batch), self.size // self.ranks.count)
        places = torch.arange(start - self.before, stop, device=batch.device)
        return batch[places % len(batch)]
