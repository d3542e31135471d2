"""From a batch to the closures of one optimizer step: chunks, accumulation, precision, the reference set."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objectives import obf_loss
from landscape.ranks import Ranks
from trainers.config import TrainConfig
from trainers.data.splits import Split
from trainers.randomness import stream
from trainers.sharpness_aware.objective import AscentObjective, Objective
from trainers.tasks.losses import Loss
from trainers.tasks.task import Classification, Task, lead

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SQUARES = 128  # reference examples, one a pass, for masks from squared gradients, where `reference_size` is None


@dataclass
class Closures:
    """What `SharpnessAware.step` is called with.

    Attributes:
        descents: One closure a chunk.
        sizes: What each counts for: its examples, or what the task's weight says of them.
        ascents: Closures of the ascent objective, where it is not the loss.
    """

    descents: list[Objective]
    sizes: Sequence[float]
    ascents: list[AscentObjective] | None

    def hits(self, task: Task) -> Tensor | None:
        """Whether each example was right in the first pass, at the clean weights where the method evaluates them there.

        An example that no pass saw counts as wrong. None where the task does not tell right from wrong.
        """
        found = []
        for i, descent in enumerate(self.descents):
            first = self.ascents[i].first_logits if self.ascents else None
            logits = descent.first_logits if first is None else first
            y = descent.y
            wrong = torch.ones(len(y), dtype=torch.bool, device=y.device)
            if logits is not None:
                wrong = lead(task.scores(logits, y))[1]
                if wrong.dtype != torch.bool:
                    return None
            found.append(~wrong)
        return found[0] if len(found) == 1 else torch.cat(found)


@dataclass
class Feeder:
    """Makes closures of batches for one run.

    Args:
        config: Resolved.
        task: Gives the loss.
        model: The model to train.
        train: The training data, on the model's device.
        scaler: Loss scaling, for float16.
        ascends: Which objective perturbations ascend.
        ranks: The processes that share the reference set.
    """

    config: TrainConfig
    task: Task
    model: nn.Module
    train: Split
    scaler: torch.amp.GradScaler | None = None
    ascends: str = "loss"
    ranks: Ranks = field(default_factory=Ranks)
    loss: Loss = field(init=False)
    ascent: Loss = field(init=False)
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.loss = self.task.loss
        weight = self.task.weight_of_classes if isinstance(self.task, Classification) else None
        link = config.obf_link or "softmax"
        self.ascent = partial(obf_loss, C=config.obf_classes, gamma=config.obf_gamma, link=link, weight=weight)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def closures(self, x: Tensor, y: Tensor, chunk: int) -> Closures:
        """The closures of examples, so many a forward and backward pass."""
        extra: dict[str, Any] = {}
        if self.config.precision in HALF:
            extra["autocast"] = HALF[self.config.precision]
        if self.scaler is not None:
            extra["grad_scaler"] = self.scaler
        chunks = list(zip(x.split(chunk), y.split(chunk), strict=True))
        descents = [Objective(self.model, self.loss, *c, parameters=self.parameters, **extra) for c in chunks]
        ascents = None
        if self.ascends == "obf":
            ascents = [
                AscentObjective(self.model, self.loss, *c, parameters=self.parameters, ascent=self.ascent, **extra)
                for c in chunks
            ]
        counts = self.task.weight
        sizes = [len(targets) if counts is None else float(counts(targets)) for _, targets in chunks]
        return Closures(descents, sizes, ascents)

    def reference(self, needs: str, step: Callable[[], int]) -> Callable[[], tuple[list[Objective], list[float]]]:
        """What an optimizer that needs a reference set calls: closures over `reference_size` training examples.

        For a "gradient" they are the same examples throughout, a batch a closure; for "squares" one example a closure,
        drawn anew for each step, from the step's number alone, so that a resumed run draws what it would have drawn.
        """

        def closures() -> tuple[list[Objective], list[float]]:
            n = len(self.train)
            many = self.config.reference_size or (SQUARES if needs == "squares" else n)
            purpose = f"reference {step()}" if needs == "squares" else "reference"
            index = (
                torch.arange(n) if many >= n else torch.randperm(n, generator=stream(self.config.seed, purpose))[:many]
            )
            one = 1 if needs == "squares" else self.config.batch_size
            if len(index) < self.ranks.count:
                raise ValueError(
                    f"`reference_size` {len(index)} is below the number of processes, {self.ranks.count}: raise it."
                )
            found = self.closures(*self.train.take(index[self.ranks.rank :: self.ranks.count]), one)
            return list(found.ascents or found.descents), list(found.sizes)

        return closures


def shares(config: TrainConfig, examples: int, *, world: int = 1) -> tuple[int | None, int | None]:
    """m, the number of examples that share one perturbation: those on one process, and over all that share it.

    Args:
        config: Resolved.
        examples: Training examples.
        world: Processes that train together.

    Returns:
        Both numbers; None for a method without a perturbation.
    """
    if config.rho is None:
        return None, None
    m, group = min(config.m or config.batch_size, examples), config.group_size or 1
    if config.shared_by == "global":
        return math.ceil(m / world), m
    if config.shared_by == "group":
        return m // world, m // world * group if world > 1 else m * group
    return m, m
