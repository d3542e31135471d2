"""What measures are to explain: error, loss, gaps between training and test, error under shift, calibration."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.measures.catalogue.calibration import (
    PairedDifference,
    brier,
    calibration_error,
    error,
    fit_temperature,
    mean_of,
    nll,
    paired_error_difference,
    reliability,
    squared_distance,
)
from analysis.measures.catalogue.checks import check_count
from analysis.measures.catalogue.shifts import Sets, rows_of_copies, rows_of_families
from analysis.measures.catalogue.token_targets import token_rows
from analysis.measures.catalogue.values import Answers, Value, further, loss, not_finite, of_set, scored, uneven
from analysis.measures.measure import Measure, Rows
from analysis.measures.needs import no_probabilities
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape import EmpiricalRisk, Estimate
from trainers.data.splits import Split
from trainers.tasks.registry import learns_labels
from trainers.tasks.task import Classification, Task

__all__ = [
    "DESCRIPTIONS",
    "MEASURES",
    "TARGETS",
    "PairedDifference",
    "brier",
    "calibration_error",
    "error",
    "fit_temperature",
    "nll",
    "overlap",
    "paired_error_difference",
    "target_rows",
    "targets",
]

# Of models with more than ten classes, and of test sets whose classes differ in number.
SOMETIMES = ("test_top5_error", "test_balanced_error")
TARGETS = ("test_error", "gap_error", "gap_loss", "ood_error_mean", "ood_error", *SOMETIMES)
CALIBRATION = ("ece", "ece_adaptive", "brier")
SCALED = ("temperature", "test_loss_scaled", *(f"{name}_scaled" for name in CALIBRATION))
# What a measure must beat; scores of tasks of one's own have the place of the error.
BASELINES = ("train_error", "train_loss", "train_clean_error", "validation_error", "validation_loss")
# All other rows: they describe the targets or the training data, and are no measures that might explain them.
DESCRIPTIONS = (
    *BASELINES, "train_loss_final", "test_loss", "ood_error_severity", "ood_error_worst", "ood_gap", *CALIBRATION,
    *SCALED, "train_ece", "validation_ece", "ood_loss", "ood_ece",
)  # fmt: skip
# Likewise, of those models and sets.
MORE = tuple(f"{split}_{name}" for split in ("train", "validation", "ood") for name in ("top5_error", "balanced_error"))
CHOICES = ("train", "test", "validation", "ood")
CHUNK = 4096  # examples a forward pass


def of_scores(names: Iterable[str], measures: Iterable[str]) -> list[str]:
    """Names of targets or descriptions, and the same with the scores of tasks of one's own in place of the error.

    Args:
        names: Such as `TARGETS`.
        measures: Those of a table, whose gaps tell which scores it has.
    """
    gaps = (m.partition("[")[0] for m in measures if m.startswith("gap_"))
    scores = [s for s in dict.fromkeys(gap.removeprefix("gap_") for gap in gaps) if s not in ("error", "loss")]
    return list(dict.fromkeys([*names, *(name.replace("error", s) for s in scores for name in names)]))


def target_rows(
    predict: Callable[[Tensor], Tensor],
    splits: Mapping[str, Any],
    *,
    train_clean_labels: Int[Tensor, " n"] | None = None,
    bins: int = 15,
    paired: bool = False,
    task: Task | None = None,
) -> list[Row]:
    """Evaluate a classifier on its splits, as rows of the measures table.

    For "train", "test" and "validation": `<split>_error` and `<split>_loss`. With "train" and "test": `gap_error` and
    `gap_loss`, test minus train, the two sets taken as independent. With "test": `ece`, `ece_adaptive`, `brier`; with
    "validation" besides, `temperature`, fitted there, and `test_loss_scaled`, `ece_scaled`, `ece_adaptive_scaled`,
    `brier_scaled`, with the test's logits divided by it; their standard errors take it as given. With "ood":
    `ood_error_severity` for each set, `ood_error`, `ood_loss` and `ood_ece` of a corruption (mean over its severities),
    `ood_error_mean` (mean over corruptions), `ood_error_worst` (the largest of all sets, biased upwards by the choice),
    and `ood_gap`, the mean minus the test error. "train" and "validation" have an `_ece`. Of more than ten classes
    every split has a `_top5_error` as well, and where the classes of "test" (or of a shifted set) differ in number, see
    `values.uneven`, a `_balanced_error`. What another task
    says of a whole set, such as R², is a row of each split too (`<split>_r2`).

    Standard errors of means over shifted sets and of `ood_gap` are over examples where the sets are `paired`. Where
    not, that of a mean is the mean of the standard errors, an upper bound, and that of `ood_gap` takes its two sets as
    independent.

    Args:
        predict: Maps inputs to logits of shape (n, c), in evaluation mode; called without gradient on up to 4096
            examples at a time.
        splits: Any of "train", "test", "validation", each a pair (inputs, labels), and "ood", a mapping from
            "corruption:severity" with an integer severity to such a pair. Training labels are those trained on.
        train_clean_labels: Labels of the training inputs without their noise, for `train_clean_error`.
        bins: Number of bins of the calibration errors.
        paired: Whether every shifted set holds the test examples, each shifted, in their order.
        task: What is scored; None means classification. The first score of another task has the place of the error, and
            where it has no probabilities, the rows on calibration are marked.

    Returns:
        The rows; a value whose logits are not all finite is NaN, and says so in `warnings`. Rows of the test set and of
        gaps say how many test inputs are training inputs too, bit for bit, where there are any.

    Raises:
        ValueError: If a split is unknown, a name of a shifted set is not "corruption:severity", shapes do not match, or
            sets that are `paired` differ in size.
    """
    task = Classification() if task is None else task

    def outputs(x: Tensor) -> Tensor:
        parts = [(part, part) for part in x.split(CHUNK)]
        return EmpiricalRisk(lambda _, part: predict(part), task.loss, parts, {"": torch.zeros(())}).outputs().cpu()

    def answers(x: Tensor, y: Tensor) -> Answers:
        return Answers(outputs(x), y.cpu(), paired=paired)

    for name in splits:
        if name not in CHOICES:
            raise ValueError(f"`splits` has an unknown split {name!r}; choose from {CHOICES}.")
    own = {name: partial(answers, *splits[name]) for name in ("train", "validation", "test") if name in splits}
    ood = {name: partial(answers, *pair) for name, pair in splits.get("ood", {}).items()}
    common = overlap(splits["train"][0], splits["test"][0]) if own.keys() >= {"train", "test"} else 0
    return rows_of(own, ood, {}, task, train_clean_labels=train_clean_labels, bins=bins, common=common)


def rows_of(
    own: Sets,
    ood: Sets,
    shifted: Sets,
    task: Task,
    *,
    train_clean_labels: Tensor | None = None,
    bins: int = 15,
    common: int = 0,
) -> list[Row]:
    """What `target_rows` gives.

    Args:
        own: Any of "train", "validation" and "test".
        ood: Corrupted copies of the test set.
        shifted: Shifted sets from elsewhere.
        task: What is scored.
        train_clean_labels: As for `target_rows`.
        bins: Likewise.
        common: How many test inputs are training inputs too.
    """
    rows: list[Row] = []
    values: dict[str, Value] = {}
    logits: dict[str, tuple[Tensor, Tensor]] = {}
    for split in own:
        answers = own[split]()
        logits[split] = answers.outputs, answers.targets
    why, name = no_probabilities(task), "error"
    balance = "test" in logits and uneven(task, logits["test"][1])
    for split, (z, y) in logits.items():
        name, values[f"{split}_score"] = scored(task, z, y)
        values[f"{split}_loss"] = loss(task, z, y)
        rows += [
            values[f"{split}_score"].row(f"{split}_{name}", split),
            values[f"{split}_loss"].row(f"{split}_loss", split),
        ]
        for kind, value in further(task, z, y, bins, balance=balance).items():
            if kind != "ece":
                rows.append(value.row(f"{split}_{kind}", split))
            elif split != "test":  # whose calibration has more rows, below
                rows.append(value.row(f"{split}_{kind}", split, bins=bins))
        rows += [value.row(f"{split}_{kind}", split) for kind, value in of_set(task, z, y).items()]
        if split == "train" and train_clean_labels is not None:
            rows.append(scored(task, z, train_clean_labels.cpu())[1].row(f"train_clean_{name}", "train"))
        if split == "test":
            rows += [] if why else _calibration_rows(task, z, y, bins)
    if "validation" in logits and "test" in logits:
        rows += [] if why else _scaled_rows(task, *logits["validation"], *logits["test"], bins)
    if why and "test" in logits:
        rows += [Row(n, math.nan, math.nan, 0, split="test", warnings=why) for n in (*CALIBRATION, *SCALED)]
    if "train" in own and "test" in own:
        for kind, called in (("score", name), ("loss", "loss")):
            rows.append((values[f"test_{kind}"] - values[f"train_{kind}"]).row(f"gap_{called}", "test"))
        if common:
            said = f"{common} of {len(logits['test'][1])} test examples are in the training data too"
            rows = [replace(r, warnings=_joined(r.warnings, said)) if r.split == "test" else r for r in rows]
    if ood:
        rows += rows_of_copies(ood, task, values.get("test_score"), bins)
    if shifted:
        rows += rows_of_families(shifted, task, values.get("test_score"), bins)
    return rows


def overlap(train: Tensor, test: Tensor) -> int:
    """How many test inputs are also training inputs, bit for bit, compared by 128-bit hashes of their bytes."""
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        return 0
    seen = set(_hashes(train))
    return sum(h in seen for h in _hashes(test))


def _joined(*said: str) -> str:
    return "; ".join(filter(None, said))


def _hashes(x: Tensor) -> list[bytes]:
    rows = x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def _calibration_rows(
    task: Any, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], bins: int, note: str = "", suffix: str = ""
) -> list[Row]:
    note = note or not_finite(logits)
    options: tuple[dict[str, Any], ...] = ({"bins": bins}, {"bins": bins}, {})
    if note:
        nothing = Value(Estimate(math.nan, math.nan, draws=len(labels)), note)
        return [nothing.row(name + suffix, "test", **o) for name, o in zip(CALIBRATION, options, strict=True)]
    probabilities = task.probabilities(logits)
    top = probabilities.max(1)
    confidence, correct = top.values.clamp(max=1.0).numpy(), (top.indices == labels).numpy()
    estimates = (
        calibration_error(confidence, correct, bins=bins),
        calibration_error(confidence, correct, bins=bins, binning="adaptive"),
        squared_distance(probabilities, labels),
    )
    return [
        Value(e, "").row(name + suffix, "test", **o) for name, e, o in zip(CALIBRATION, estimates, options, strict=True)
    ]


def _scaled_rows(
    task: Task, validation: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, bins: int
) -> list[Row]:
    """The fitted temperature, and what the test says with the logits divided by it."""
    note = not_finite(validation)
    if note or not len(labels):
        note = f"on validation, {note}" if note else "there is no validation data to fit a temperature on"
        nothing = Value(Estimate(math.nan, math.nan, draws=len(labels)), note)
        fitted, scaled = nothing.row("temperature", "validation"), test
    else:
        temperature = fit_temperature(validation, labels)
        end = (
            "" if temperature.converged else "no minimum: the validation data are all right, or the logits say nothing"
        )
        fitted = replace(Value(temperature, "").row("temperature", "validation"), warnings=end)
        scaled = test.double() / temperature.value
    loss = Value(mean_of(task.each(scaled.double(), test_labels)), note or not_finite(test))
    rows = [loss.row("test_loss_scaled", "test"), *_calibration_rows(task, scaled, test_labels, bins, note, "_scaled")]
    said = fitted.warnings if not note else ""
    return [fitted, *(replace(r, converged=fitted.converged, warnings=r.warnings or said) for r in rows)]


def targets(subject: Subject, *, bins: int = 15) -> Rows:
    """What is to be explained: errors, losses and gaps on train, test and shifted data, and calibration.

    `train_loss_final` is the training loss in the last row of the run's history, a control: how far training went is
    another question than what it led to. Without a history it is the loss at the weights given. Test inputs are looked
    for among the training inputs where both are in memory.
    """
    data = subject.data
    if hasattr(subject.task, "tokens"):
        rows = token_rows(subject)
        return [*rows, _final_loss(subject, next(r for r in rows if r.measure == "train_loss"))]

    def answers(split: Split) -> Answers:
        paired = torch.equal(split.index, data.test.index)
        return Answers(subject.outputs_on(split), split.y.cpu(), split.among, paired, split.note)

    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    sets = {name: lambda name=name: answers(data.ood[name]) for name in data.ood}
    stored = data.train.inputs, data.test.inputs
    rows = rows_of(
        {name: partial(answers, split) for name, split in parts.items() if len(split)},
        {name: make for name, make in sets.items() if name not in data.shifted},
        {name: sets[name] for name in data.shifted},
        subject.task,
        train_clean_labels=data.train.clean,
        bins=bins,
        common=overlap(*stored) if all(isinstance(x, Tensor) for x in stored) else 0,  # type: ignore[arg-type]
    )
    return [*rows, _final_loss(subject, next(r for r in rows if r.measure == "train_loss"))]


def _final_loss(subject: Subject, here: Row) -> Row:
    if subject.run is not None and subject.config is not None:
        column = "average_train_loss" if subject.weights else "train_loss"
        ends = subject.run.history()[column].dropna()
        if len(ends):
            labelled = learns_labels(subject.config.task)
            options = {"from": "history", "loss": subject.config.loss if labelled else subject.task.name}
            if subject.config.class_weights is not None:
                options["class_weights"] = json.dumps(subject.config.class_weights)
            return Row("train_loss_final", float(ends.iloc[-1]), math.nan, len(subject.data.train), options=options)
    return replace(here, measure="train_loss_final", options={"from": "weights"})


def reliability_bins(subject: Subject, *, bins: int = 15) -> Rows:
    """Accuracy on the test set in each bin of confidence, for a reliability diagram; empty bins have no row.

    `confidence` in the options is the mean confidence in the bin, `draws` the number of its predictions.
    """
    check_count("bins", bins)
    test = subject.data.test
    z, y = subject.outputs_on(test), test.y.cpu()
    if note := not_finite(z):
        return [Row("bin_accuracy", math.nan, math.nan, 0, split="test", warnings=note)]
    top = subject.probabilities(z).max(1)
    bands = reliability(top.values.numpy().clip(0, 1), (top.indices == y).numpy(), bins=bins)
    columns = (bands[name].tolist() for name in ("bin", "n", "confidence", "accuracy"))
    return [
        Row("bin_accuracy", right, math.sqrt(right * (1 - right) / n), n, split="test",
            options={"bin": place, "bins": bins, "confidence": sure})
        for place, n, sure, right in zip(*columns, strict=True)
    ]  # fmt: skip


MEASURES = {
    "reliability": Measure(
        reliability_bins,
        ("bin_accuracy",),
        "accuracy on the test set in each bin of confidence, for the reliability diagram",
        "target",
        "more often right",
        0,
        "T1 T2 T3 T5",
        "1/3",
        usual=False,
        gradients=0.3,
        needs=("probabilities",),
    ),
    "targets": Measure(
        targets,
        (*TARGETS, *DESCRIPTIONS, *MORE),
        "errors, losses, gaps and calibration on train, test and shifted data",
        "target",
        "worse",
        0,
        "T1 T2 T3 T5",
        "1/3 per data set",
        gradients=2.5,
        sometimes=(*SOMETIMES, *MORE),
        reads_shifted=True,
        version=2,
    ),
}
