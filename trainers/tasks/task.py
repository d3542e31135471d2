"""What is learned: the loss of a batch and of each example, the scores, and what examples count for."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from trainers.data.imbalance import class_weights
from trainers.reference import call, load_reference
from trainers.tasks.classification import Classification
from trainers.tasks.losses import Loss

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.data.splits import DataBundle

CLASSIFICATION = "classification"


@runtime_checkable
class Task(Protocol):
    """What a run learns: losses, scores and weights of training and of all measures come from here.

    A task whose predictions are categorical, for whole-number labels as targets, also has `probabilities(outputs)`, of
    shape (n, classes) in float64. One that trains on another loss than it is measured by (of smoothed labels, say) has
    `plain`, the task that is measured.
    """

    @property
    def name(self) -> str:
        """Of the loss, for the rows of measures."""

    @property
    def loss(self) -> Loss:
        """Maps (outputs, targets) to the mean over what counts in a batch."""

    @property
    def each(self) -> Loss:
        """Maps (outputs, targets) to the loss of each example, of shape (n,)."""

    @property
    def scores(self) -> Callable[[Any, Any], Mapping[str, Tensor]]:
        """Maps (outputs, targets) to numbers of each example by name, of shape (n,), the smaller the better.

        The first is the one that studies lead with. True and false say whether an example is wrong.
        """

    @property
    def weight(self) -> Callable[[Any], float] | None:
        """Maps targets to what a batch counts for; None where that is its number of examples."""


def task_of(config: "TrainConfig", *, trust: bool = False, data: "DataBundle | None" = None) -> Task:
    """The task of a configuration: classification, or a user's own, `module:Class`, made without arguments.

    Args:
        config: Names it, and the loss of classification.
        trust: False refuses a user's own, for names that come out of a file.
        data: What is trained on, where there are weights of classes; without it they are left out, as they are in the
            task that is measured.

    Raises:
        ValueError: If it lacks a part of a task, or one is no function; or if weights of classes do not fit the data.
        PermissionError: If `trust` is False.
    """
    reference = config.task
    if reference == CLASSIFICATION:
        weights = config.class_weights
        given = None if weights is None or data is None else class_weights(weights, data.train.y, data.classes)
        return Classification(config.loss, config.label_smoothing, config.smoothing_convention, given)
    task = call(f"`task` {reference!r}", load_reference(reference, trust=trust))
    missing = [part for part in ("name", "loss", "each", "scores", "weight") if not hasattr(task, part)]
    if missing or not isinstance(task, Task):
        raise ValueError(f"`task` {reference!r} has no {', '.join(missing)}: see `trainers.Task`.")
    for part in ("loss", "each", "scores", "weight"):
        function = getattr(task, part)
        if not callable(function) and not (part == "weight" and function is None):
            raise ValueError(
                f"`task` {reference!r}: `{part}` must be a function, got {function!r}: see `trainers.Task`."
            )
    if not isinstance(task.name, str):
        raise ValueError(f"`task` {reference!r}: `name` must be text, got {task.name!r}.")
    return task


def measured(task: Task) -> Task:
    """The task that is measured where this one is trained."""
    plain: Task = getattr(task, "plain", task)
    return plain


def batch_weight(task: Task) -> Callable[[Any, Any], float] | None:
    """What a batch counts for, as a risk asks for it."""
    weight = task.weight
    return None if weight is None else lambda _, targets: weight(targets)


def example_weights(task: Task, targets: Any) -> Tensor | None:
    """What each example counts for, of shape (n,) in float64; None where all count alike."""
    if task.weight is None:
        return None
    return torch.tensor([float(task.weight(targets[i : i + 1])) for i in range(len(targets))], dtype=torch.float64)


def lead(scores: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """The score that studies lead with."""
    return next(iter(scores.items()))


__all__ = ["CLASSIFICATION", "Classification", "Task", "batch_weight", "example_weights", "lead", "measured", "task_of"]
