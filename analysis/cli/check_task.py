"""`landscape check-task`: the contract of a task, tried on the first examples of some data."""

from typing import Any

import tyro

from analysis.path import find_own_modules
from trainers.data.loading import load_dataset
from trainers.models.building import build_model
from trainers.randomness import seeded
from trainers.tasks.check import check_task
from trainers.tasks.registry import TASKS, learns_labels
from trainers.tasks.task import named_task, outputs_of

EXAMPLES = 16
FAILED = 1


def check(
    task: tyro.conf.Positional[str],
    *,
    dataset: str | None = None,
    model: str = "mlp",
    task_options: dict[str, bool | int | float | str] | None = None,
    model_options: dict[str, bool | int | float | str] | None = None,
    target_columns: tuple[str, ...] = (),
) -> int:
    """Try the contract of a task: each failure is one line, and the exit code 1 if there is any.

    Args:
        task: A name of `landscape list tasks`, or module:Class.
        dataset: Data with targets for it, of which the first 16 training examples are taken. Without it the class must
            have `example()`, which returns outputs and targets.
        model: The model whose outputs on them are taken, at its first weights.
        task_options: Options of the task.
        model_options: Options of the model.
        target_columns: Columns of csv:FILE that are targets.
    """
    find_own_modules(task, dataset, model)
    made = named_task(task, task_options)
    if dataset is None:
        example = getattr(made, "example", None)
        if not callable(example):
            raise ValueError(
                f"`task` {task!r} has no `example()` that returns outputs and targets to try it on: write one, or give "
                f"`--dataset` and `--model`."
            )
        outputs, targets = example()
    else:
        outputs, targets = _first(made, task, dataset, model, model_options or {}, target_columns)
    failures = check_task(made, outputs, targets, name=task)
    for line in failures:
        print(line)
    print(f"{len(failures)} failures" if failures else f"{task}: all is as a task must be")
    return FAILED if failures else 0


def _first(
    made: Any, task: str, dataset: str, model: str, options: dict[str, Any], columns: tuple[str, ...]
) -> tuple[Any, Any]:
    """Outputs and targets of the first training examples."""
    numbers = task in TASKS and TASKS[task].numbers
    data = load_dataset(
        dataset, validation_size=0, labels=learns_labels(task), numbers=numbers, columns=columns
    )  # fmt: skip
    count = outputs_of(made, data.classes)
    network = build_model(
        model, shape=data.shape, classes=count, generator_seed=0, options=options, graph=data.graph
    ).eval()
    x, y = data.train.take(slice(EXAMPLES))
    with seeded(0):
        return network(x).detach(), y
