"""The tasks by name: a literal registry. A new task is one class in a file of its own, and one entry here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainers.data.sources.text import TextReading
from trainers.tasks.classification import Classification
from trainers.tasks.language import Language
from trainers.tasks.multilabel import Multilabel
from trainers.tasks.nodes import Nodes
from trainers.tasks.regression import Regression

CLASSIFICATION = "classification"
NODES = "nodes"
LANGUAGE = "language"


@dataclass(frozen=True)
class TaskEntry:
    """A task that is built in.

    Attributes:
        make: Called with its options, which are its keyword-only parameters; returns a `Task`.
        help: One line on what is learned.
        targets: One line on the targets that data must have.
        numbers: Whether targets are numbers, which data that are standardised have standardised too.
        settings: Settings of a run that need labels, and have a meaning here all the same.
        labels: Whether it learns labels as `Classification` does, with all settings that need them.
        nodes: Whether examples are the nodes of a graph.
        later: Options that came after the first runs of the task: at their defaults they are left out of a resolved
            configuration, so that those runs keep their names.
    """

    make: Callable[..., Any]
    help: str
    targets: str
    numbers: bool = False
    settings: tuple[str, ...] = ()
    labels: bool = False
    nodes: bool = False
    later: tuple[str, ...] = ()

    def resolved(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Checked options as a resolved configuration holds them."""
        usual = self.make()
        return {k: v for k, v in options.items() if k not in self.later or v != getattr(usual, k)}


TASKS: dict[str, TaskEntry] = {
    CLASSIFICATION: TaskEntry(
        Classification,
        "One label of each example, by cross-entropy; settings loss, label_smoothing, class_weights.",
        "whole numbers from 0, (n,)",
        labels=True,
    ),
    NODES: TaskEntry(
        Nodes,
        "One label of each node of a graph; settings as for classification.",
        "whole numbers from 0, (nodes,)",
        labels=True,
        nodes=True,
    ),
    "regression": TaskEntry(
        Regression,
        "One or several numbers; options loss_name (squared, absolute, huber, gaussian), delta, variance.",
        "floating-point numbers, (n,) or (n, k)",
        numbers=True,
        settings=("label_noise",),
    ),
    "multilabel": TaskEntry(
        Multilabel,
        "Which of several labels apply, each by its own binary cross-entropy; option pos_weight.",
        "0 or 1 of each label, (n, k)",
        settings=("label_noise",),
        later=("pos_weight",),
    ),
    LANGUAGE: TaskEntry(
        Language,
        "The next token of a text, or hidden ones; options context, tokenizer, packing (packed, padded), objective "
        "(next, masked).",
        "whole numbers, (n, tokens)",
        settings=("ascent",),
    ),
}


def targets_of(task: str) -> dict[str, bool]:
    """What a task by name asks of `load_dataset`: whether targets must be labels, and whether others are numbers."""
    return {"labels": learns_labels(task), "numbers": task in TASKS and TASKS[task].numbers}


def text_of(task: str, options: Mapping[str, Any]) -> TextReading | None:
    """How a task by name, with options, has text become sequences; None for tasks of other data."""
    return TextReading(**options) if task == LANGUAGE else None


def learns_labels(task: str) -> bool:
    """Whether a task by name learns labels as `Classification` does."""
    return task in TASKS and TASKS[task].labels
