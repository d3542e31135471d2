"""How far a classifier's outputs lean towards some classes, and how sure of itself it is."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from analysis.forgetting.information import check_outputs, entropy, kl_divergence, total_variation
from analysis.forgetting.metrics import Leaveout
from analysis.table import Row

Array = np.ndarray


def output_bias(
    probs: Float[Array, "n c"], labels: Int[Array, " n"] | None = None, *, split: str = "test"
) -> list[Row]:
    """Measure the bias and confidence of outputs on n examples; higher means more biased, or surer.

    With p̄ the mean output and π the class frequencies of the labels, in nats or as fractions:

        b_marg            ln C - H(p̄) = KL(p̄ to uniform)
        b_tv              total variation between p̄ and the uniform distribution
        b_prior           KL(p̄ to π), which an unbalanced data set calls for; inf if p̄ has a class that π lacks
        b_*_count         the same with the frequencies of the top classes in place of p̄
        mean_confidence   mean of max_c p_c
        overconfidence    mean confidence minus accuracy
        mean_entropy      mean of H(p)

    Standard errors are over examples: of a mean for the last three, delete-one jackknife for the others, π held fixed.

    Args:
        probs: Output distributions, one row an example.
        labels: True classes 0 to c - 1; without them b_prior and overconfidence are left out.
        split: Name of the data, for the rows.

    Returns:
        One row a measure; NaN with a warning where an output is not finite.

    Raises:
        ValueError: If shapes do not match, a row is not a distribution, or a label is out of range.

    Source:
        Our definition.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 2:
        raise ValueError(f"`probs` must have shape (n, c), got {probs.shape}.")
    labels = None if labels is None else np.asarray(labels)
    check_outputs(probs, labels)
    n, c = probs.shape
    if labels is not None:
        _check_range(labels, c)
    warnings = (
        "" if np.isfinite(probs).all() else f"outputs of {(~np.isfinite(probs)).any(1).sum()} examples not finite"
    )

    uniform = np.full(c, 1 / c)
    distances: dict[str, Callable[[Array], Array]] = {
        "b_marg": lambda mean: np.log(c) - entropy(mean),
        "b_tv": lambda mean: total_variation(mean, uniform),
    }
    top = probs.argmax(1)
    confidence = probs.max(1)
    means = {"mean_confidence": confidence, "mean_entropy": entropy(probs)}
    if labels is not None:
        prior = np.bincount(labels, minlength=c) / n
        distances["b_prior"] = lambda mean: kl_divergence(mean, prior)
        means["overconfidence"] = confidence - (top == labels)

    def row(name: str, value: float, stderr: float) -> Row:
        if warnings:
            return Row(name, float("nan"), float("nan"), draws=n, split=split, warnings=warnings)
        return Row(name, value, stderr, draws=n, split=split)

    rows = []
    for suffix, each in (("", probs), ("_count", np.eye(c)[top])):
        total = each.sum(0)
        others = np.maximum(total - each, 0.0) / (n - 1) if n > 1 else each * np.nan
        for name, distance in distances.items():
            with np.errstate(invalid="ignore"):
                statistic = Leaveout(float(distance(total / n)), distance(others))
                rows.append(row(name + suffix, statistic.value, statistic.stderr))
    for name, x in means.items():
        rows.append(row(name, float(x.mean()), float(x.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")))
    return rows


def classwise_bias(probs: Float[Array, "n c"], labels: Int[Array, " n"]) -> Float[Array, "c c"]:
    """Mean output of each true class minus the one-hot label: entry (y, k) is p̄_y[k] - [k = y]; NaN without examples.

    Raises:
        ValueError: If shapes do not match, a row is not a distribution, or a label is out of range.
    """
    probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    check_outputs(probs, labels)
    c = probs.shape[-1]
    _check_range(labels, c)
    one_hot = np.eye(c)[labels]
    with np.errstate(invalid="ignore"):
        bias: Float[Array, "c c"] = one_hot.T @ probs / one_hot.sum(0)[:, None] - np.eye(c)
    return bias


def _check_range(labels: Int[Array, " n"], c: int) -> None:
    if not (np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0 and labels.max() < c):
        raise ValueError(
            f"`labels` must be integers from 0 to {c - 1}, one of the {c} classes of `probs`, got {labels.dtype} "
            f"from {labels.min()} to {labels.max()}."
        )
