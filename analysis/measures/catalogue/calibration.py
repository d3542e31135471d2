"""Scores of a classifier's outputs against labels: error, loss, calibration, and the temperature that mends it."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy.optimize import brentq
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import cross_entropy

from landscape import Estimate
from landscape.scores import mean_and_stderr

Array = np.ndarray
Binning = Literal["equal-width", "adaptive"]
COLDEST, HOTTEST = 1e-3, 1e3  # temperatures between which the fitted one is sought


def error(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """Fraction e of the examples whose top class is not the label, with standard error sqrt(e (1 - e) / n).

    Raises:
        ValueError: If shapes do not match.
    """
    _check(logits, labels)
    return proportion(logits.argmax(1) != labels)


def top_error(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], k: int = 5) -> Estimate:
    """Fraction of the examples whose label is not among the k largest logits; of equal ones the first counts as larger.

    Raises:
        ValueError: If shapes do not match.
    """
    return proportion(outside_top(logits, labels, k))


def outside_top(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """Whether each label is outside the k largest logits.

    Raises:
        ValueError: If shapes do not match.
    """
    _check(logits, labels)
    y = labels.long()[:, None]
    own, place = logits.gather(1, y), torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (place < y))
    outside: Tensor = before.sum(1) >= k
    return outside


def balanced_error(wrong: Bool[Tensor, " n"], labels: Int[Tensor, " n"]) -> Estimate:
    """The mean of the errors e_c of single classes, over the K classes that have examples.

    The standard error, for the numbers n_c of examples as they are, is √(Σ_c e_c (1 - e_c) / n_c) / K. As 1 minus
    scikit-learn's `balanced_accuracy_score`; Brodersen et al. (2010), ICPR. `draws` is K² / Σ_c 1 / n_c, rounded: the
    examples of a plain mean of which Hoeffding's inequality says as much.

    Raises:
        ValueError: If shapes do not match.
    """
    if labels.shape != wrong.shape or not len(labels):
        raise ValueError(f"`wrong` and `labels` must be one an example, got {wrong.shape} and {labels.shape}.")
    counts = torch.bincount(labels.long())
    there = counts > 0
    errors = torch.bincount(labels.long(), weights=wrong.double())[there] / counts[there]
    stderr = math.sqrt(float((errors * (1 - errors) / counts[there]).sum())) / len(errors)
    draws = round(len(errors) ** 2 / float((1 / counts[there]).sum()))
    return Estimate(float(errors.mean()), stderr, draws=draws)


def balanced(values: Shaped[Tensor, " n"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The values times n / (K n_c), so that their mean is that of the means of the K classes."""
    counts = torch.bincount(labels.long())
    return values.double() * (len(labels) / (int((counts > 0).sum()) * counts.double()))[labels.long()]


def proportion(wrong: Bool[Tensor, " n"]) -> Estimate:
    """The share e of what is true, with standard error sqrt(e (1 - e) / n)."""
    e = float(wrong.double().mean())
    return Estimate(e, math.sqrt(e * (1 - e) / len(wrong)), draws=len(wrong))


def nll(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """Mean cross-entropy -ln p(y|x) in nats, with the standard error of a mean.

    Raises:
        ValueError: If shapes do not match.
    """
    _check(logits, labels)
    return mean_of(cross_entropy(logits.double(), labels.long(), reduction="none"))


def brier(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """Mean of Σ_c (p_c - [c = y])², from 0 to 2 (Brier 1950), with the standard error of a mean.

    Raises:
        ValueError: If shapes do not match.
    """
    _check(logits, labels)
    return squared_distance(logits.double().softmax(1), labels)


def squared_distance(probabilities: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """The Brier score of probabilities."""
    return mean_of((probabilities - torch.nn.functional.one_hot(labels.long(), probabilities.shape[1])).square().sum(1))


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
    confidence, correct, bin_of = _binned(confidence, correct, bins, binning)
    n = len(confidence)
    difference = confidence - correct
    sums = np.bincount(bin_of, weights=difference, minlength=bins)
    signed = np.sign(sums)[bin_of] * difference
    return Estimate(
        float(np.abs(sums).sum() / n), float(signed.std(ddof=1) / np.sqrt(n)) if n > 1 else math.nan, draws=n
    )


def _binned(
    confidence: Array, correct: Array, bins: int, binning: Binning
) -> tuple[Float[Array, " n"], Float[Array, " n"], Int[Array, " n"]]:
    """Both as numbers, checked, and the bin of each example."""
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
    if binning == "equal-width":
        # searchsorted from the left puts an edge into the bin that ends there, and 0 into the first
        bin_of = np.maximum(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0)
    else:
        bin_of = np.empty(len(confidence), dtype=np.int64)
        for b, part in enumerate(np.array_split(np.argsort(confidence, kind="stable"), bins)):
            bin_of[part] = b
    return confidence, correct, bin_of


def reliability(
    confidence: Float[Array, " n"], correct: Bool[Array, " n"], *, bins: int = 15, binning: Binning = "equal-width"
) -> pd.DataFrame:
    """The bins of a calibration error, for a reliability diagram.

    Args:
        confidence: Probability of the top class, from 0 to 1.
        correct: Whether the top class was right.
        bins: Number of bins.
        binning: See `calibration_error`.

    Returns:
        One row a bin that holds an example: bin (from 0), n, confidence and accuracy (means over the bin). The
        calibration error is Σ n |confidence - accuracy| / Σ n.

    Raises:
        ValueError: As `calibration_error`.

    Source:
        DeGroot and Fienberg (1983), The Statistician 32.
    """
    confidence, right, bin_of = _binned(confidence, correct, bins, binning)
    frame = pd.DataFrame({"bin": bin_of, "n": 1, "confidence": confidence, "accuracy": right})
    bands: pd.DataFrame = frame.groupby("bin").agg(
        n=("n", "sum"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    return bands.reset_index()


def fit_temperature(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Estimate:
    """The temperature T > 0 that minimises the cross-entropy of softmax(logits / T).

    The cross-entropy is convex in β = 1/T, so its derivative E[z̄ - z_y], with z̄ the mean logit under the softmax, has
    at most one root, found by bracketing.

    Args:
        logits: On examples that were used neither to train nor for the test.
        labels: Of these examples.

    Returns:
        T with the standard error of an M-estimate, from the spread of the derivative over examples. Not converged, with
        T at the end of [0.001, 1000] and an unknown error, where there is no minimum between: if every example is right
        (T → 0), or the logits say less than nothing (T → ∞).

    Raises:
        ValueError: If shapes do not match, or a logit is not finite.

    Source:
        Guo et al. (2017), ICML.
    """
    _check(logits, labels)
    z = logits.double()
    if not bool(z.isfinite().all()):
        raise ValueError("`logits` must be finite to fit a temperature.")
    z = z - z.max(1, keepdim=True).values
    own = z.gather(1, labels.long()[:, None])[:, 0]

    def slopes(beta: float) -> Tensor:
        return ((beta * z).softmax(1) * z).sum(1) - own

    def slope(beta: float) -> float:
        return float(slopes(beta).mean())

    n, low, high = len(labels), 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0 or slope(high) <= 0:
        edge = HOTTEST if slope(low) >= 0 else COLDEST
        return Estimate(edge, math.nan, n, converged=False, method="temperature")
    beta = float(brentq(slope, low, high, xtol=1e-12, rtol=1e-10))
    p = (beta * z).softmax(1)
    curvature = float(((p * z.square()).sum(1) - (p * z).sum(1).square()).mean())
    spread = float(slopes(beta).std()) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(1 / beta, spread / curvature / beta**2, n, method="temperature")


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two models' errors on the same examples.

    Attributes:
        value: Error of a minus error of b.
        stderr: √(s - value²)/√n, s the share of examples that exactly one of them has right; over n, not n - 1.
        only_a: Examples that a alone has right.
        only_b: Examples that b alone has right.
        n: Number of examples.
        p_value: Of McNemar's test, exact: two-sided, binomial over the examples on which they differ.
    """

    value: float
    stderr: float
    only_a: int
    only_b: int
    n: int
    p_value: float


def paired_error_difference(correct_a: Bool[Array, " n"], correct_b: Bool[Array, " n"]) -> PairedDifference:
    """Compare the errors of two models on one test set, example by example.

    The standard error is that of a mean of paired differences: where two models err on the same examples it is far
    below √2 times that of one error.

    Args:
        correct_a: Whether model a has each example right.
        correct_b: The same for model b, in the same order.

    Raises:
        ValueError: If shapes do not match, there is no example, or an entry is neither true nor false.

    Source:
        McNemar (1947), Psychometrika 12(2); exact version: the binomial test.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"`correct_a` and `correct_b` must be one truth value an example, got {a.shape} and {b.shape}."
        )
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("`correct_a` and `correct_b` must hold truth values (or 0 and 1); give answers == labels.")
    a, b = a.astype(bool), b.astype(bool)
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((~a & b).sum())
    value, differ = (only_b - only_a) / n, (only_a + only_b) / n
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if differ else 1.0
    return PairedDifference(value, math.sqrt((differ - value**2) / n), only_a, only_b, n, p_value)


def mean_of(values: Float[Tensor, " n"], weights: Float[Tensor, " n"] | None = None) -> Estimate:
    """The mean over examples with its standard error; with weights see `landscape.scores.mean_and_stderr`."""
    n = len(values)
    if weights is not None:
        mean, error = mean_and_stderr(values[:, None], weights[:, None])
        return Estimate(float(mean), float(error), draws=int((weights > 0).sum()))
    stderr = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(values.mean()), stderr, draws=n)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"`logits` must have shape (n, c) and `labels` (n,) with n >= 1, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
