"""Loss and scores of a model on the splits of its data while it trains."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape.evaluate import evaluate
from landscape.ranks import Ranks
from landscape.risk import EmpiricalRisk
from trainers.data.splits import DataBundle, Split
from trainers.randomness import seeded
from trainers.tasks.task import Classification, Task, batch_weight, example_weights

T = TypeVar("T")

ALONE = Ranks()
CHECKED = 8  # examples
FEW, MANY = 4096, 2**22  # outputs of an example that are no matter, and those of a batch that are enough
COUNTS = " counts"  # what examples count for, among their scores
CLEAN = "clean_"  # before the name of a score against labels without noise


def batch_of(x: Tensor, entries: int = 1) -> int:
    """Examples a forward pass without gradient, for inputs like these, with so many outputs each.

    Large batches of large inputs fall out of a processor's cache, which makes a pass of a convolutional network two to
    three times slower; small inputs, and other devices, are as fast in one batch.
    """
    usual = 2048 if x.device.type != "cpu" else max(128, min(2048, 2**17 // max(1, x[:1].numel())))
    return usual if entries <= FEW else max(1, min(usual, MANY // entries))


def entries_of(task: Task, data: DataBundle) -> int:
    """Outputs of an example, where it has many: a logit for each token of the vocabulary at each place."""
    return data.classes * math.prod(data.shape) if hasattr(task, "tokens") else 1


class LiveEvaluation:
    """Evaluates a model with the weights and in the mode that it has at the time.

    Args:
        model: The model, on the device of the training data.
        task: Gives loss, scores and weights.
        train: The training data.
        data: All splits.
        ranks: The processes that share the examples.

    Attributes:
        columns: Of the history: loss and scores of the training, validation and test data.
        selecting: The column that a run is chosen by: the leading score on the validation data.
    """

    def __init__(self, model: nn.Module, task: Task, train: Split, data: DataBundle, ranks: Ranks = ALONE) -> None:
        self.task, self.noisy, self.ranks = task, bool(train.noisy.any()), ranks
        entries = entries_of(task, data)
        held_out = {"validation": data.validation, "test": data.test}
        self.risks = {"train": _risk(model, task, train, ranks, noisy=self.noisy, entries=entries)} | {
            name: _risk(model, task, split.to(train.device, workers=train.workers), ranks, entries=entries)
            for name, split in held_out.items()
            if len(split)
        }
        names = _names(model, task, train)
        self.columns = [f"train_{name}" for name in ("loss", *names, f"{CLEAN}{names[0]}")]
        self.columns += [f"{split}_{name}" for split in held_out for name in ("loss", *names)]
        self.selecting = f"validation_{names[0]}"

    def __call__(self) -> tuple[dict[str, float], Tensor | None]:
        """The columns, NaN where a split is empty; and which training examples were right, where the task tells."""
        row, scores = self._columns("train")
        first = next(iter(scores))
        row.setdefault(f"train_{CLEAN}{first}", row[f"train_{first}"])
        for split in self.risks:  # in the same order in all processes
            if split != "train":
                row |= self._columns(split)[0]
        wrong = scores[first]
        return self.nothing() | row, ~wrong if wrong.dtype == torch.bool else None

    def nothing(self) -> dict[str, float]:
        """The columns of an epoch that is not evaluated."""
        return dict.fromkeys(self.columns, math.nan)

    def _columns(self, split: str) -> tuple[dict[str, float], Mapping[str, Tensor]]:
        noisy = self.noisy and split == "train"
        risk, scores = self.risks[split], self._noisy_scores if noisy else self._scores

        def part() -> Part | None:
            if risk is None:
                return None
            found = evaluate(risk, scores=scores)
            return found.loss, math.fsum(risk.weights), found.examples

        loss, examples = _together([p for p in self.ranks.each(part) if p is not None])
        scored = {name: score for name, score in examples.items() if name != COUNTS}
        means = {f"{split}_{name}": _mean(score, examples.get(COUNTS)) for name, score in scored.items()}
        return {f"{split}_loss": loss, **means}, scored

    def _scores(self, outputs: Any, targets: Tensor) -> Mapping[str, Tensor]:
        given = self.task.scores(outputs, targets)
        return {**given, COUNTS: self.task.counts(targets)} if hasattr(self.task, "counts") else given

    def _noisy_scores(self, outputs: Any, targets: Tensor) -> Mapping[str, Tensor]:
        given, clean = (self.task.scores(outputs, y) for y in targets.unbind(1))
        return {**given, **{CLEAN + name: score for name, score in clean.items()}}


def _names(model: nn.Module, task: Task, train: Split) -> list[str]:
    """Of the task's scores, from a few examples, on which a task of one's own is checked.

    Raises:
        ValueError: If its scores or losses are not one number an example, or their mean is not the loss.
    """
    x, y = train.take(slice(CHECKED))
    mode = model.training
    with seeded(0), torch.no_grad():
        outputs = model.eval()(x)
        scores = task.scores(outputs, y)
        if not isinstance(task, Classification):
            _check(task, outputs, y, scores)
    model.train(mode)
    return list(scores)


def _check(task: Task, outputs: Any, y: Tensor, scores: Mapping[str, Any]) -> None:
    if not isinstance(scores, Mapping) or not scores:
        raise ValueError(f"`task` {task.name!r}: `scores` must give at least one score by name, got {scores!r:.100}.")
    losses = task.each(outputs, y)
    for name, values in (("each", losses), *((f"scores, {name!r},", values) for name, values in scores.items())):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != (len(y),) or values.is_complex():
            raise ValueError(
                f"`task` {task.name!r}: `{name}` must give a real number an example, of shape ({len(y)},), got {shape}."
            )
    weights = example_weights(task, y)
    weights = torch.ones(len(y), dtype=torch.float64) if weights is None else weights
    each, loss = losses.double().cpu(), float(task.loss(outputs, y))
    mean = float((weights * each).sum() / weights.sum())
    if math.isfinite(mean) and abs(mean - loss) > 1e-4 * max(abs(mean), abs(loss)) + 1e-7:
        raise ValueError(
            f"`task` {task.name!r}: `loss` is {loss:.6g} on the first {len(y)} examples, and the mean of `each` over "
            f"them {mean:.6g}: let `loss` be that mean, weighted by what `weight` says of each example if it is given."
        )


Part = tuple[float, float, Mapping[str, Tensor]]  # a process's loss, what its examples count for, and their scores


def _together(parts: Sequence[Part]) -> tuple[float, Mapping[str, Tensor]]:
    """The loss, and the scores of all examples in order, from the parts of processes."""
    if len(parts) == 1:
        return parts[0][0], parts[0][2]
    whole = math.fsum(weight for _, weight, _ in parts)
    loss = math.fsum(loss * weight for loss, weight, _ in parts) / whole
    return loss, {name: torch.cat([scores[name] for *_, scores in parts]) for name in parts[0][2]}


def _risk(
    model: nn.Module, task: Task, split: Split, ranks: Ranks = ALONE, *, noisy: bool = False, entries: int = 1
) -> EmpiricalRisk | None:
    """The risk of a model that has its own weights, whatever θ is; with `noisy`, targets are the given and the true.

    Of several processes each has a stretch of the examples; None where there are too few.
    """
    loss, weight = task.loss, batch_weight(task)
    if noisy:
        split = replace(split, y=torch.stack((split.y, split.clean), 1))
        loss, weight = _of_given(loss), weight and _of_given(weight)
    order = None
    if ranks.count > 1:
        first, last = (len(split) * r // ranks.count for r in (ranks.rank, ranks.rank + 1))
        if first == last:
            return None
        order = torch.arange(first, last, device=split.device)
    batches = split.batches(order, size=batch_of(split.take(slice(1))[0], entries))
    risk = EmpiricalRisk(lambda _, x: model(x), loss, batches, {"": torch.zeros((), device=split.device)}, weight)
    # a model that draws random numbers has a history too
    risk.trust.once(("repeatable", risk.predict, risk.loss, risk.mode), lambda: None)
    return risk


def _of_given(function: Callable[[Any, Any], T]) -> Callable[[Any, Any], T]:
    return lambda first, both: function(first, both[:, 0])


def _mean(score: Tensor, counts: Tensor | None = None) -> float:
    """The mean over examples, weighted by `counts` if given.

    Of true and false it is one minus the share of the false, as histories have always had it.
    """
    if counts is not None:
        return float((score * counts).sum() / counts.sum())
    return 1 - float((~score).float().mean()) if score.dtype == torch.bool else float(score.mean())
