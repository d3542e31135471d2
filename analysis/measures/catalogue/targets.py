"""What measures are to explain: error, loss, gaps between training and test, error under shift, calibration."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
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
from analysis.measures.measure import Measure, Rows
from analysis.measures.subject import Subject, no_probabilities, pair
from analysis.table import Row
from landscape import EmpiricalRisk, Estimate
from trainers.tasks.task import CLASSIFICATION, Classification, Task, example_weights, lead

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

Array = np.ndarray
Pair = tuple[Tensor, Tensor]

TARGETS = ("test_error", "gap_error", "gap_loss", "ood_error_mean", "ood_error")
CALIBRATION = ("ece", "ece_adaptive", "brier")
SCALED = ("temperature", "test_loss_scaled", *(f"{name}_scaled" for name in CALIBRATION))
# What a measure must beat; scores of tasks of one's own have the place of the error.
BASELINES = ("train_error", "train_loss", "train_clean_error", "validation_error", "validation_loss")
# All other rows: they describe the targets or the training data, and are no measures that might explain them.
DESCRIPTIONS = (
    *BASELINES, "train_loss_final", "test_loss", "ood_error_severity", "ood_error_worst", "ood_gap", *CALIBRATION,
    *SCALED,
)  # fmt: skip
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


Outputs = Callable[[Tensor], Tensor]


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
    `ood_error_severity` for each set, `ood_error` of a corruption (mean over its severities), `ood_error_mean` (mean
    over corruptions), `ood_error_worst` (the largest of all sets, biased upwards by the choice), and `ood_gap`, the
    mean minus the test error.

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

    return rows_of(outputs, splits, task, train_clean_labels=train_clean_labels, bins=bins, paired=paired)


def rows_of(
    outputs: Outputs,
    splits: Mapping[str, Any],
    task: Task,
    *,
    train_clean_labels: Tensor | None = None,
    bins: int = 15,
    paired: bool = False,
) -> list[Row]:
    """What `target_rows` gives, for a function from all inputs of a set to the outputs on them, on the CPU."""
    choices = ("train", "test", "validation", "ood")
    for name in splits:
        if name not in choices:
            raise ValueError(f"`splits` has an unknown split {name!r}; choose from {choices}.")
    rows: list[Row] = []
    values: dict[str, _Value] = {}
    logits: dict[str, tuple[Tensor, Tensor]] = {}
    why, name = no_probabilities(task), "error"
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        x, y = splits[split]
        z, y = logits[split] = outputs(x), y.cpu()
        name, values[f"{split}_score"] = _scored(task, z, y)
        values[f"{split}_loss"] = _Value(mean_of(task.each(z.double(), y), example_weights(task, y)), _not_finite(z))
        rows += [
            values[f"{split}_score"].row(f"{split}_{name}", split),
            values[f"{split}_loss"].row(f"{split}_loss", split),
        ]
        if split == "train" and train_clean_labels is not None:
            rows.append(_scored(task, z, train_clean_labels.cpu())[1].row(f"train_clean_{name}", "train"))
        if split == "test":
            rows += [] if why else _calibration_rows(task, z, y, bins)
    if "validation" in logits and "test" in logits:
        rows += [] if why else _scaled_rows(task, *logits["validation"], *logits["test"], bins)
    if why and "test" in logits:
        rows += [Row(n, math.nan, math.nan, 0, split="test", warnings=why) for n in (*CALIBRATION, *SCALED)]
    if "train" in splits and "test" in splits:
        for kind, called in (("score", name), ("loss", "loss")):
            rows.append((values[f"test_{kind}"] - values[f"train_{kind}"]).row(f"gap_{called}", "test"))
        both = overlap(splits["train"][0], splits["test"][0])
        if both:
            said = f"{both} of {len(splits['test'][0])} test examples are in the training data too"
            rows = [replace(r, warnings=_joined(r.warnings, said)) if r.split == "test" else r for r in rows]
    if splits.get("ood"):
        rows += _ood_rows(outputs, splits["ood"], task, values.get("test_score"), paired)
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


class _Value:
    """An estimate with what is to be said about it; NaN if there is something. Errors keep which examples are wrong."""

    def __init__(self, estimate: Estimate, note: str, wrong: Tensor | None = None) -> None:
        self.note = note
        self.estimate = Estimate(math.nan, math.nan, draws=estimate.draws) if note else estimate
        self.wrong = None if wrong is None else wrong.double()

    def __sub__(self, other: "_Value") -> "_Value":
        a, b = self.estimate, other.estimate
        both = Estimate(a.value - b.value, math.hypot(a.stderr, b.stderr), draws=min(a.draws, b.draws))
        return _Value(both, self.note or other.note)

    def minus_paired(self, other: "_Value") -> "_Value":
        """The difference of means over the same examples."""
        assert self.wrong is not None
        assert other.wrong is not None
        return _of_examples(self.wrong - other.wrong, self.note or other.note)

    @staticmethod
    def mean(parts: "list[_Value]", paired: bool) -> "_Value":
        """The mean of values on several sets; if they are not known to be paired, errors are not averaged away."""
        note = next((p.note for p in parts if p.note), "")
        if paired:
            return _of_examples(torch.stack([p.wrong for p in parts if p.wrong is not None]).mean(0), note)
        k = len(parts)
        value = math.fsum(p.estimate.value for p in parts) / k
        stderr = math.fsum(p.estimate.stderr for p in parts) / k
        return _Value(Estimate(value, stderr, draws=min(p.estimate.draws for p in parts)), note)

    def row(self, measure: str, split: str, **options: Any) -> Row:
        e = self.estimate
        return Row(
            measure, e.value, e.stderr, draws=e.draws, split=split, options=options, converged=e.converged,
            warnings=self.note,
        )  # fmt: skip


def _of_examples(each: Tensor, note: str) -> _Value:
    n = len(each)
    stderr = float(each.std(correction=0)) / math.sqrt(n)  # over n, as sqrt(e (1 - e) / n) is
    value = _Value(Estimate(float(each.mean()), stderr, draws=n), note)
    value.wrong = each
    return value


def _scored(task: Task, outputs: Tensor, targets: Tensor) -> tuple[str, _Value]:
    """The task's leading score on a set."""
    name, score = lead(task.scores(outputs, targets))
    if score.shape != (len(targets),) or len(outputs) != len(targets):
        raise ValueError(
            f"`splits` must hold a target for each output, got outputs of shape {tuple(outputs.shape)} for targets of "
            f"shape {tuple(targets.shape)}."
        )
    values = score.double()
    mean = float(values.mean())
    found = mean_of(values)
    if score.dtype == torch.bool:
        found = Estimate(mean, math.sqrt(mean * (1 - mean) / len(values)), draws=len(values))
    return name, _Value(found, _not_finite(outputs), values)


def _calibration_rows(
    task: Any, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], bins: int, note: str = "", suffix: str = ""
) -> list[Row]:
    note = note or _not_finite(logits)
    options: tuple[dict[str, Any], ...] = ({"bins": bins}, {"bins": bins}, {})
    if note:
        nothing = _Value(Estimate(math.nan, math.nan, draws=len(labels)), note)
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
        _Value(e, "").row(name + suffix, "test", **o)
        for name, e, o in zip(CALIBRATION, estimates, options, strict=True)
    ]


def _scaled_rows(
    task: Task, validation: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, bins: int
) -> list[Row]:
    """The fitted temperature, and what the test says with the logits divided by it."""
    note = _not_finite(validation)
    if note or not len(labels):
        note = f"on validation, {note}" if note else "there is no validation data to fit a temperature on"
        nothing = _Value(Estimate(math.nan, math.nan, draws=len(labels)), note)
        fitted, scaled = nothing.row("temperature", "validation"), test
    else:
        temperature = fit_temperature(validation, labels)
        end = (
            "" if temperature.converged else "no minimum: the validation data are all right, or the logits say nothing"
        )
        fitted = replace(_Value(temperature, "").row("temperature", "validation"), warnings=end)
        scaled = test.double() / temperature.value
    loss = _Value(mean_of(task.each(scaled.double(), test_labels)), note or _not_finite(test))
    rows = [loss.row("test_loss_scaled", "test"), *_calibration_rows(task, scaled, test_labels, bins, note, "_scaled")]
    said = fitted.warnings if not note else ""
    return [fitted, *(replace(r, converged=fitted.converged, warnings=r.warnings or said) for r in rows)]


def _ood_rows(outputs: Outputs, sets: Mapping[str, Pair], task: Task, test: _Value | None, paired: bool) -> list[Row]:
    rows: list[Row] = []
    kind = "error"
    by_corruption: dict[str, list[_Value]] = {}
    values: dict[str, _Value] = {}
    for name in sets:
        corruption, colon, severity = name.partition(":")
        if not corruption or (colon and not severity.isdecimal()):
            raise ValueError(
                f"`splits['ood']` has {name!r}; name a set 'corruption:severity', like 'noise:3', or by one word."
            )
        x, y = sets[name]
        kind, value = _scored(task, outputs(x), y.cpu())
        values[name] = value
        by_corruption.setdefault(corruption, []).append(value)
        if colon:
            rows.append(value.row(f"ood_{kind}_severity", "ood", corruption=corruption, severity=int(severity)))
    sizes = {len(v.wrong) for v in [*values.values(), *([test] if test else [])] if v.wrong is not None}
    if paired and len(sizes) > 1:
        raise ValueError(f"`paired` sets must hold the same examples, got sets of {sorted(sizes)}; give paired=False.")
    means = {corruption: _Value.mean(parts, paired) for corruption, parts in by_corruption.items()}
    rows += [value.row(f"ood_{kind}", "ood", corruption=corruption) for corruption, value in means.items()]
    overall = _Value.mean(list(means.values()), paired)
    rows.append(overall.row(f"ood_{kind}_mean", "ood"))
    # a set that could not be evaluated could be the worst
    worst = max(values, key=lambda name: math.inf if values[name].note else values[name].estimate.value)
    rows.append(values[worst].row(f"ood_{kind}_worst", "ood", set=worst))
    if test is not None:
        gap = overall.minus_paired(test) if paired else overall - test
        rows.append(gap.row("ood_gap", "ood"))
    return rows


def _not_finite(logits: Tensor) -> str:
    bad = int((~logits.isfinite()).flatten(1).any(1).sum())
    return f"logits are not finite on {bad} of {len(logits)} examples" if bad else ""


def targets(subject: Subject, *, bins: int = 15) -> Rows:
    """What is to be explained: errors, losses and gaps on train, test and shifted data, and calibration.

    `train_loss_final` is the training loss in the last row of the run's history, a control: how far training went is
    another question than what it led to. Without a history it is the loss at the weights given.
    """
    data = subject.data
    ood = {name: data.ood[name] for name in data.ood}
    paired = all(torch.equal(split.index, data.test.index) for split in ood.values())
    splits = {"train": pair(data.train), "test": pair(data.test), "ood": {k: pair(split) for k, split in ood.items()}}
    if len(data.validation):
        splits["validation"] = pair(data.validation)
    rows = rows_of(subject.outputs, splits, subject.task, train_clean_labels=data.train.clean, bins=bins, paired=paired)
    return [*rows, _final_loss(subject, next(r for r in rows if r.measure == "train_loss"))]


def _final_loss(subject: Subject, here: Row) -> Row:
    if subject.run is not None and subject.config is not None:
        column = "average_train_loss" if subject.weights else "train_loss"
        ends = subject.run.history()[column].dropna()
        if len(ends):
            labelled = subject.config.task == CLASSIFICATION
            options = {"from": "history", "loss": subject.config.loss if labelled else subject.task.name}
            return Row("train_loss_final", float(ends.iloc[-1]), math.nan, len(subject.data.train), options=options)
    return replace(here, measure="train_loss_final", options={"from": "weights"})


def reliability_bins(subject: Subject, *, bins: int = 15) -> Rows:
    """Accuracy on the test set in each bin of confidence, for a reliability diagram; empty bins have no row.

    `confidence` in the options is the mean confidence in the bin, `draws` the number of its predictions.
    """
    check_count("bins", bins)
    x, y = pair(subject.data.test)
    z, y = subject.outputs(x), y.cpu()
    if note := _not_finite(z):
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
        (*TARGETS, *DESCRIPTIONS),
        "errors, losses, gaps and calibration on train, test and shifted data",
        "target",
        "worse",
        0,
        "T1 T2 T3 T5",
        "1/3 per data set",
        gradients=2.5,
    ),
}
