"""What measures ask of a task and of the data, and why a task cannot give it."""

from collections.abc import Iterable
from typing import Literal

from trainers.tasks.task import Task

Need = Literal["probabilities", "predictions", "decisions", "divergence", "cross-entropy", "images"]

ASKED: dict[Need, str] = {
    "probabilities": "probabilities of classes",
    "predictions": "probabilities of classes",
    "decisions": "one decision an example that is right or wrong",
    "divergence": "predictions that are distributions",
    "cross-entropy": "the plain cross-entropy of one label",
    "images": "images or signals",
}


def lacking(task: Task, needs: Iterable[Need]) -> str:
    """Why a measure that needs these cannot be taken for a task, whatever the data; empty where it may be."""
    for need in needs:
        if not _has(task, need):
            return f"needs {ASKED[need]}, which the task with loss {task.name!r} has not"
    return ""


def no_probabilities(task: Task) -> str:
    """Why a task cannot tell how likely classes are; empty where it can."""
    return lacking(task, ("probabilities",))


def _has(task: Task, need: Need) -> bool:
    if need == "decisions":  # of a task of one's own, only its scores tell
        return bool(getattr(task, "decides", True))
    if need == "predictions":
        return hasattr(task, "probabilities") or hasattr(task, "tokens")
    if need == "divergence":
        return hasattr(task, "divergence") or _has(task, "predictions")
    if need == "cross-entropy":
        return task.name == "cross_entropy"
    return need == "images" or hasattr(task, need)
