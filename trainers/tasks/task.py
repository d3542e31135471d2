"""What is learned: the loss of a batch and of each example, the scores, and what examples count for."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from trainers.data.imbalance import class_weights
from trainers.options import checked
from trainers.reference import call, load_reference
from trainers.tasks.classification import Classification
from trainers.tasks.losses import Loss
from trainers.tasks.nodes import Nodes
from trainers.tasks.registry import CLASSIFICATION, TASKS, learns_labels

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.data.splits import DataBundle


@runtime_checkable
class Task(Protocol):
    """What a run learns: losses, scores and weights of training and of all measures come from here.

    Further parts are optional, and what needs one says so where it is left out:

        probabilities(outputs)       where predictions are categorical, for whole-number labels as targets: of shape
                                     (n, classes), in float64
        divergence(before, after)    KL(before ‖ after) of the distributions that two outputs of each example stand for,
                                     of shape (n, entries), in nats; `distribution` names them
        of_set(outputs, targets)     numbers of a whole set by name that are no means over its examples, such as R²
        decides                      False where an example is neither right nor wrong; without it the first score tells
        plain                        the task that is measured, where another loss (of smoothed labels, say) is trained
        outputs(entries)             outputs of a model for targets of so many entries; without it as many
        check_targets(y, where)      raises a ValueError for targets that the task cannot learn
        counts(targets)              what each example counts for in means, (n,); their sum is `weight` of them all
        tokens(outputs, targets)     where an example has many predictions: logits (k, classes) and labels (k,) of all
        of_loss(loss, bytes)         numbers by name that follow from the mean loss alone, such as the perplexity
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
    """The task of a configuration.

    Args:
        config: Names it, with its options and the loss of classification.
        trust: False refuses a user's own, for names that come out of a file.
        data: What is trained on, where there are weights of classes; without it they are left out, as they are in the
            task that is measured.

    Raises:
        ValueError: If it lacks a part of a task, or one is no function; or if weights of classes do not fit the data.
        PermissionError: If `trust` is False.
    """
    reference = config.task
    if learns_labels(reference):
        weights = config.class_weights
        given = None if weights is None or data is None else class_weights(weights, data.train.y, data.classes)
        made = TASKS[reference].make
        task: Task = made(config.loss, config.label_smoothing, config.smoothing_convention, given)
        return task
    return named_task(reference, config.task_options, trust=trust)


def named_task(name: str, options: Mapping[str, Any] | None = None, *, trust: bool = True) -> Task:
    """A task by name, with the options of its class: of `TASKS`, or a user's own, `module:Class`.

    Raises:
        ValueError: If it is unknown or lacks a part of a task, or an option does not fit.
        PermissionError: If it is a user's own and `trust` is False.
    """
    if name in TASKS:
        task: Task = TASKS[name].make(**checked(TASKS[name].make, options or {}, owner=f"task {name!r}"))
        return task
    made = call(f"`task` {name!r}", load_reference(name, trust=trust), **(options or {}))
    return as_task(made, name)


def as_task(task: Any, reference: str) -> Task:
    """What a user's class made, once it has the parts of a task.

    Raises:
        ValueError: If it lacks one, or one is of another kind.
    """
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


def outputs_of(task: Task, entries: int) -> int:
    """How many outputs a model has for targets of so many entries, or labels of so many classes."""
    count: Callable[[int], int] = getattr(task, "outputs", lambda entries: entries)
    return count(entries)


def check_targets(task: Task, data: "DataBundle") -> None:
    """Check that the targets of data are those of a task that says which it learns, and that nodes go to their task.

    Raises:
        ValueError: If not.
    """
    if isinstance(task, Nodes) and data.graph is None:
        raise ValueError(
            f"`task` 'nodes' learns labels of the nodes of a graph, and `dataset` {data.name!r} has none: take karate, "
            f"csbm or a function that returns a graph (docs/graphs.md)."
        )
    if type(task) is Classification and data.graph is not None:
        raise ValueError(f"`dataset` {data.name!r}: the examples are nodes of a graph: take `task` 'nodes'.")
    check: Callable[[Tensor, str], None] | None = getattr(task, "check_targets", None)
    for part in ("train", "validation", "test") if check is not None else ():
        split = getattr(data, part)
        if check is not None and len(split):
            check(split.y, f"{data.name!r}, {part}")


def batch_weight(task: Task) -> Callable[[Any, Any], float] | None:
    """What a batch counts for, as a risk asks for it."""
    weight = task.weight
    return None if weight is None else lambda _, targets: weight(targets)


def example_weights(task: Task, targets: Any) -> Tensor | None:
    """What each example counts for, of shape (n,) in float64; None where all count alike."""
    if task.weight is None:
        return None
    if hasattr(task, "counts"):
        each: Tensor = task.counts(targets)
        return each
    return torch.tensor([float(task.weight(targets[i : i + 1])) for i in range(len(targets))], dtype=torch.float64)


def lead(scores: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """The score that studies lead with."""
    return next(iter(scores.items()))


__all__ = [
    "CLASSIFICATION", "Classification", "Task", "as_task", "batch_weight", "check_targets", "example_weights", "lead",
    "measured", "named_task", "outputs_of", "task_of",
]  # fmt: skip
