"""Forgetting over a sequence of tasks, from the accuracy on each task after each: the matrix R."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from analysis.table import Row

Array = np.ndarray


def task_forgetting(
    accuracy: Float[Array, "*s t t"],
    *,
    untrained: Float[Array, "*s t"] | None = None,
    reference: Float[Array, "*s t"] | None = None,
) -> list[Row]:
    """Summarise R, with R[i, j] the test accuracy on task j after training on tasks 0 to i, T tasks in all.

        average_accuracy    mean over j of R[T-1, j]
        average_forgetting  mean over j < T-1 of max over i < T-1 of R[i, j], minus R[T-1, j]; positive means forgotten
        backward_transfer   mean over j < T-1 of R[T-1, j] - R[j, j]; negative means forgotten
        forward_transfer    mean over j > 0 of R[j-1, j] - untrained[j]
        intransigence       mean over j of reference[j] - R[j, j]; positive means that the task was learned less well

    Args:
        accuracy: R, or one R for each seed. Entries that were not measured are NaN: those above the diagonal are needed
            for forward transfer alone, and are left out of the maximum.
        untrained: Accuracy of the model on each task before any training.
        reference: Accuracy on each task of a model trained on all tasks up to it jointly.

    Returns:
        One row each, with the standard error over seeds (NaN for one); NaN with the reason where R has one task, or
        what it needs is missing.

    Raises:
        ValueError: If shapes do not match, or R is NaN on or below its diagonal.

    Source:
        Chaudhry et al. (2018), ECCV, for average forgetting and intransigence (averaging the latter over tasks is our
        choice); Lopez-Paz and Ranzato (2017), NeurIPS, for the transfers.
    """
    r = np.asarray(accuracy, dtype=np.float64)
    if r.ndim not in (2, 3) or r.shape[-1] != r.shape[-2] or r.size == 0:
        raise ValueError(f"`accuracy` must be a matrix of tasks by tasks, or one for each seed, got shape {r.shape}.")
    r = r.reshape(-1, *r.shape[-2:])
    seeds, tasks = r.shape[:2]
    lower = np.tril(np.ones((tasks, tasks), dtype=bool))
    if not np.isfinite(r[:, lower]).all():
        raise ValueError(
            "`accuracy` must be known on and below its diagonal: each task after itself and all later ones."
        )
    after = r[:, -1]
    diagonal = np.diagonal(r, axis1=1, axis2=2)

    def of_seeds(given: Float[Array, "*s t"] | None, name: str) -> Float[Array, "s t"] | None:
        if given is None:
            return None
        values = np.asarray(given, dtype=np.float64)
        if values.shape not in ((tasks,), (seeds, tasks)):
            raise ValueError(f"`{name}` must be one accuracy a task, for all seeds or each, got shape {values.shape}.")
        return np.broadcast_to(values, (seeds, tasks))

    start, joint = of_seeds(untrained, "untrained"), of_seeds(reference, "reference")

    def row(name: str, value: Callable[[], Float[Array, " s"]], why_not: str) -> Row:
        common: dict[str, Any] = {"draws": seeds, "split": "test", "options": {"tasks": tasks}}
        x = np.full(seeds, np.nan) if why_not else value()
        if not why_not and np.isnan(x).any():
            why_not = "`accuracy` is NaN just above its diagonal"
        stderr = float(x.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else math.nan
        return Row(name, float(x.mean()), stderr, warnings=why_not, **common)

    one = "" if tasks > 1 else "there is one task only"
    return [
        row("average_accuracy", lambda: after.mean(1), ""),
        row("average_forgetting", lambda: np.mean(np.nanmax(r[:, :-1, :-1], axis=1) - after[:, :-1], axis=1), one),
        row("backward_transfer", lambda: np.mean(after[:, :-1] - diagonal[:, :-1], axis=1), one),
        row(
            "forward_transfer",
            lambda: np.mean(np.diagonal(r, 1, 1, 2) - (0 if start is None else start[:, 1:]), axis=1),
            one or ("" if start is not None else "needs `untrained`, the accuracy before training"),
        ),
        row(
            "intransigence",
            lambda: np.mean((0 if joint is None else joint) - diagonal, axis=1),
            "" if joint is not None else "needs `reference`, the accuracy of joint training",
        ),
    ]
