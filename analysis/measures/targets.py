"""What measures are to explain: error, loss, gaps between training and test, error under shift, calibration."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.measures.measure import Measure, Rows
from analysis.measures.subject import Subject, pair
from analysis.table import Row
from landscape import Estimate

Array = np.ndarray
Binning = Literal["equal-width", "adaptive"]
Pair = tuple[Tensor, Tensor]

TARGETS = ("test_error", "gap_error", "gap_loss", "ood_error_mean", "ood_error")
CHUNK = 4096  # examples a forward pass


def error(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """Fraction e of the examples whose top class is not the label, with standard error sqrt(e (1 - e) / n).

    Raises:
        ValueError: If shapes do not match.
    """
    _check(logits, labels)
    e = float((logits.argmax(1) != labels).double().mean())
    return Estimate(e, math.sqrt(e * (1 - e) / len(labels)), draws=len(labels))


def nll(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """Mean cross-entropy -ln p(y|x) in nats, with the standard error of a mean.

    Raises:
        ValueError: If shapes do not match.
    """
    _check(logits, labels)
    return _mean(cross_entropy(logits.double(), labels.long(), reduction="none"))


def brier(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """Mean of Σ_c (p_c - [c = y])², from 0 to 2 (Brier 1950), with the standard error of a mean.

    Raises:
        ValueError: If shapes do not match.
    """
    _check(logits, labels)
    probs = logits.double().softmax(1)
    return _mean((probs - torch.nn.functional.one_hot(labels.long(), probs.shape[1])).square().sum(1))


def calibration_error(
    confidence: Float[Array, " n"], correct: Bool[Array, " n"], *, bins: int = 15, binning: Binning = "equal-width"
) -> Estimate:
    """Expected calibration error Σ_b (n_b / n) |mean confidence - accuracy in bin b|.

    Args:
        confidence: Probability of the top class, from 0 to 1.
        correct: Whether the top class was right.
        bins: Number of bins B.
        binning: "equal-width" cuts at b/B, bins closed on the right; "adaptive" cuts the sorted confidences into B
            parts as equal in number as can be.

    Returns:
        The value and its first-order standard error for fixed bins, sd of ±(confidence - correct) over √n with the
        sign of the example's bin. Not covered: the value is biased upwards where bins hold few examples.

    Raises:
        ValueError: If shapes do not match, `bins` is below 1, a confidence is outside [0, 1], or `binning` is unknown.

    Source:
        Naeini et al. (2015), AAAI; adaptive bins: Nguyen and O'Connor (2015), EMNLP.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            f"`confidence` and `correct` must be one number an example, got {confidence.shape} and {correct.shape}."
        )
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins!r}.")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError(f"`confidence` must be in [0, 1], got {confidence.min():g} to {confidence.max():g}.")
    if binning not in get_args(Binning):
        raise ValueError(f"`binning` must be one of {get_args(Binning)}, got {binning!r}.")
    n = len(confidence)
    if binning == "equal-width":
        # searchsorted from the left puts an edge into the bin that ends there, and 0 into the first
        bin_of = np.maximum(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0)
    else:
        bin_of = np.empty(n, dtype=np.int64)
        for b, part in enumerate(np.array_split(np.argsort(confidence, kind="stable"), bins)):
            bin_of[part] = b
    difference = confidence - correct
    sums = np.bincount(bin_of, weights=difference, minlength=bins)
    signed = np.sign(sums)[bin_of] * difference
    return Estimate(
        float(np.abs(sums).sum() / n), float(signed.std(ddof=1) / np.sqrt(n)) if n > 1 else math.nan, draws=n
    )


def target_rows(
    predict: Callable[[Tensor], Tensor],
    splits: Mapping[str, Any],
    *,
    train_clean_labels: Int[Tensor, " n"] | None = None,
    bins: int = 15,
) -> list[Row]:
    """Evaluate a classifier on its splits, as rows of the measures table.

    For "train", "test" and "validation": `<split>_error` and `<split>_loss`. With "train" and "test": `gap_error` and
    `gap_loss`, test minus train. With "test": `ece`, `ece_adaptive`, `brier`. With "ood": `ood_error_severity` for
    each set, `ood_error` of a corruption (mean over its severities), `ood_error_mean` (mean over corruptions), and
    `ood_gap`, that minus the test error. The standard error of such a mean is the mean of the standard errors, an upper
    bound that is met if the shifted sets are made from the same examples; that of a difference takes its two sets as
    independent.

    Args:
        predict: Maps inputs to logits of shape (n, c), in evaluation mode; called without gradient on up to 4096
            examples at a time.
        splits: Any of "train", "test", "validation", each a pair (inputs, labels), and "ood", a mapping from
            "corruption:severity" with an integer severity to such a pair. Training labels are those trained on.
        train_clean_labels: Labels of the training inputs without their noise, for `train_clean_error`.
        bins: Number of bins of the calibration errors.

    Returns:
        The rows; a value whose logits are not all finite is NaN, and says so in `warnings`.

    Raises:
        ValueError: If a split is unknown, a name of a shifted set is not "corruption:severity", or shapes do not match.
    """
    known = ("train", "test", "validation", "ood")
    for name in splits:
        if name not in known:
            raise ValueError(f"`splits` has an unknown split {name!r}; choose from {known}.")
    rows: list[Row] = []
    values: dict[str, _Value] = {}
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        x, y = splits[split]
        logits, y = _evaluate(predict, x), y.cpu()
        note = _not_finite(logits)
        values[f"{split}_error"] = _Value(error(logits, y), note)
        values[f"{split}_loss"] = _Value(nll(logits, y), note)
        rows += [values[f"{split}_{kind}"].row(f"{split}_{kind}", split) for kind in ("error", "loss")]
        if split == "train" and train_clean_labels is not None:
            clean = _Value(error(logits, train_clean_labels.cpu()), note)
            rows.append(clean.row("train_clean_error", "train"))
        if split == "test":
            rows += _calibration_rows(logits, y, note, bins)
    if "train" in splits and "test" in splits:
        for kind in ("error", "loss"):
            rows.append((values[f"test_{kind}"] - values[f"train_{kind}"]).row(f"gap_{kind}", "test"))
    if splits.get("ood"):
        rows += _ood_rows(predict, splits["ood"], values.get("test_error"))
    return rows


class _Value:
    """An estimate with what is to be said about it; NaN if there is something."""

    def __init__(self, estimate: Estimate, note: str) -> None:
        self.note = note
        self.estimate = Estimate(math.nan, math.nan, draws=estimate.draws) if note else estimate

    def __sub__(self, other: "_Value") -> "_Value":
        a, b = self.estimate, other.estimate
        both = Estimate(a.value - b.value, math.hypot(a.stderr, b.stderr), draws=min(a.draws, b.draws))
        return _Value(both, self.note or other.note)

    @staticmethod
    def mean(parts: "list[_Value]") -> "_Value":
        """The mean of values on sets that may share their examples: errors are not averaged away."""
        k = len(parts)
        value = math.fsum(p.estimate.value for p in parts) / k
        stderr = math.fsum(p.estimate.stderr for p in parts) / k
        return _Value(
            Estimate(value, stderr, draws=min(p.estimate.draws for p in parts)),
            next((p.note for p in parts if p.note), ""),
        )

    def row(self, measure: str, split: str, **options: Any) -> Row:
        e = self.estimate
        return Row(measure, e.value, e.stderr, draws=e.draws, split=split, options=options, warnings=self.note)


def _calibration_rows(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], note: str, bins: int) -> list[Row]:
    if note:
        nothing = _Value(Estimate(math.nan, math.nan, draws=len(labels)), note)
        return [
            *(nothing.row(name, "test", bins=bins) for name in ("ece", "ece_adaptive")),
            nothing.row("brier", "test"),
        ]
    top = logits.double().softmax(1).max(1)
    confidence, correct = top.values.clamp(max=1.0).numpy(), (top.indices == labels).numpy()
    equal = calibration_error(confidence, correct, bins=bins)
    adaptive = calibration_error(confidence, correct, bins=bins, binning="adaptive")
    return [
        _Value(equal, "").row("ece", "test", bins=bins),
        _Value(adaptive, "").row("ece_adaptive", "test", bins=bins),
        _Value(brier(logits, labels), "").row("brier", "test"),
    ]


def _ood_rows(predict: Callable[[Tensor], Tensor], sets: Mapping[str, Pair], test: _Value | None) -> list[Row]:
    rows: list[Row] = []
    by_corruption: dict[str, list[_Value]] = {}
    for name, (x, y) in sets.items():
        corruption, _, severity = name.partition(":")
        if not corruption or not severity.isdecimal():
            raise ValueError(f"`splits['ood']` has {name!r}; name a set 'corruption:severity', like 'noise:3'.")
        logits = _evaluate(predict, x)
        value = _Value(error(logits, y.cpu()), _not_finite(logits))
        by_corruption.setdefault(corruption, []).append(value)
        rows.append(value.row("ood_error_severity", "ood", corruption=corruption, severity=int(severity)))
    means = {corruption: _Value.mean(parts) for corruption, parts in by_corruption.items()}
    rows += [value.row("ood_error", "ood", corruption=corruption) for corruption, value in means.items()]
    overall = _Value.mean(list(means.values()))
    rows.append(overall.row("ood_error_mean", "ood"))
    if test is not None:
        rows.append((overall - test).row("ood_gap", "ood"))
    return rows


def _evaluate(predict: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([predict(part).cpu() for part in x.split(CHUNK)])


def _not_finite(logits: Tensor) -> str:
    bad = int((~logits.isfinite()).any(1).sum())
    return f"logits are not finite on {bad} of {len(logits)} examples" if bad else ""


def _mean(values: Float[Tensor, " n"]) -> Estimate:
    n = len(values)
    stderr = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(values.mean()), stderr, draws=n)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"`logits` must have shape (n, c) and `labels` (n,) with n >= 1, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )


def targets(subject: Subject) -> Rows:
    """What is to be explained: errors, losses and gaps on train, test and shifted data, and calibration."""
    data = subject.data
    ood = {name: pair(split) for name, split in data.ood.items()}

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([subject.risk.on((part, part)).outputs() for part in x.split(1024)])

    splits = {"train": pair(data.train), "test": pair(data.test), "ood": ood}
    return target_rows(predict, splits, train_clean_labels=data.train.clean)


MEASURES = {
    "targets": Measure(
        targets,
        TARGETS,
        "errors, losses, gaps and calibration on train, test and shifted data",
        "target",
        "worse",
        0,
        "T1 T2 T3 T5",
        "1/3 per data set",
    ),
}
