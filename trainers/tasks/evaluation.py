"""Loss and scores of a model on the splits of its data while it trains."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape.evaluate import evaluate
from landscape.risk import EmpiricalRisk
from trainers.data.splits import DataBundle, Split
from trainers.tasks.task import Task, batch_weight

T = TypeVar("T")

BATCH = 2048  # examples a forward pass
CLEAN = "clean_"  # before the name of a score against labels without noise


class LiveEvaluation:
    """Evaluates a model with the weights and in the mode that it has at the time.

    Args:
        model: The model, on the device of the training data.
        task: Gives loss, scores and weights.
        train: The training data.
        data: All splits.
    """

    def __init__(self, model: nn.Module, task: Task, train: Split, data: DataBundle) -> None:
        self.task, self.noisy = task, not torch.equal(train.y, train.clean)
        self.risks = {"train": _risk(model, task, train, noisy=self.noisy)}
        for name, split in (("validation", data.validation), ("test", data.test)):
            if len(split):
                self.risks[name] = _risk(model, task, split.to(train.x.device))

    def __call__(self, *, held_out: bool) -> tuple[dict[str, float], Tensor | None]:
        """The columns of the history, and which training examples were right, where the task tells right from wrong.

        Args:
            held_out: Evaluate validation and test too; their columns are NaN otherwise, and where a split is empty.
        """
        row, scores = self._columns("train")
        names = [name for name in scores if not name.startswith(CLEAN)]
        row.setdefault(f"train_{CLEAN}{names[0]}", row[f"train_{names[0]}"])
        for split in ("validation", "test"):
            if held_out and split in self.risks:
                row |= self._columns(split)[0]
            else:
                row |= {f"{split}_{name}": math.nan for name in ("loss", *names)}
        wrong = scores[names[0]]
        return row, ~wrong if wrong.dtype == torch.bool else None

    def _columns(self, split: str) -> tuple[dict[str, float], Mapping[str, Tensor]]:
        noisy = self.noisy and split == "train"
        found = evaluate(self.risks[split], scores=self._noisy_scores if noisy else self.task.scores)
        means = {f"{split}_{name}": _mean(score) for name, score in found.examples.items()}
        return {f"{split}_loss": found.loss, **means}, found.examples

    def _noisy_scores(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        given, clean = (self.task.scores(outputs, y) for y in targets)
        return {**given, **{CLEAN + name: score for name, score in clean.items()}}


def _risk(model: nn.Module, task: Task, split: Split, *, noisy: bool = False) -> EmpiricalRisk:
    """The risk of a model that has its own weights, whatever θ is; with `noisy`, targets are the given and the true."""
    targets: Any = split.y.split(BATCH)
    loss, weight = task.loss, batch_weight(task)
    if noisy:
        targets = zip(targets, split.clean.split(BATCH), strict=True)
        loss, weight = _of_given(loss), weight and _of_given(weight)
    batches = list(zip(split.x.split(BATCH), targets, strict=True))
    risk = EmpiricalRisk(lambda _, x: model(x), loss, batches, {"": torch.zeros((), device=split.x.device)}, weight)
    # a model that draws random numbers has a history too
    risk.trust.once(("repeatable", risk.predict, risk.loss, risk.mode), lambda: None)
    return risk


def _of_given(function: Callable[[Any, Any], T]) -> Callable[[Any, Any], T]:
    return lambda first, both: function(first, both[0])


def _mean(score: Tensor) -> float:
    """The mean over examples; of true and false one minus the share of the false, as histories have always had it."""
    return 1 - float((~score).float().mean()) if score.dtype == torch.bool else float(score.mean())
