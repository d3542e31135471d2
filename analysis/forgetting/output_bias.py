"""How far a classifier's outputs lean towards some classes, and how sure of itself it is."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.forgetting.information import check_outputs, entropy, kl_divergence, total_variation
from analysis.forgetting.leaveout import Leaveout
from analysis.table import Row

Array = np.ndarray

BIASES = (
    "b_marg", "b_tv", "b_prior", "b_marg_count", "b_tv_count", "b_prior_count",
    "classwise_bias", "mean_confidence", "overconfidence", "mean_entropy", "ece",
)  # fmt: skip
ECE_BINS = 15


def bias_values(
    probs: Float[Array, "... n c"],
    labels: Int[Array, " n"],
    names: Sequence[str] = BIASES,
    *,
    members: Bool[Array, "... n"] | Int[Array, "... n"] | None = None,
) -> dict[str, Float[Array, "..."]]:
    """The biases of several models, or several resamples of the examples, at once; higher means more biased, or surer.

        b_*, mean_*, overconfidence    see `output_bias`; π is that of the examples that count
        classwise_bias                 mean over the classes y with examples of the total variation between their mean
                                       output p̄_y and the one-hot label, which is 1 - p̄_y[y]
        ece                            expected calibration error, 15 bins of equal width, closed on the right

    Args:
        probs: Output distributions; leading axes are independent models.
        labels: True classes 0 to c - 1.
        names: Which ones, of `BIASES`.
        members: Which examples count, or how often, broadcast against the leading axes; None means each once.

    Returns:
        One array for each name; NaN where an output that counts is not finite.

    Raises:
        ValueError: If a name is unknown.

    Source:
        Our definition; ece: Naeini et al. (2015), AAAI.
    """
    unknown = set(names) - set(BIASES)
    if unknown:
        raise ValueError(f"`names` has {sorted(unknown)}; choose from {', '.join(BIASES)}.")
    n, c = probs.shape[-2:]
    inside = np.ones(n) if members is None else np.asarray(members).astype(np.float64)
    total = inside.sum(-1)
    one_hot = np.eye(c)[labels]
    confidence = probs.max(-1)
    found: dict[str, Float[Array, ...]] = {}

    def mean(values: Float[Array, "... n"]) -> Float[Array, "..."]:
        result: Float[Array, ...] = (values * inside).sum(-1) / total
        return result

    def weighted(rows: Float[Array, "... n c"]) -> Float[Array, "... c"]:
        result: Float[Array, ...] = (inside[..., None, :] @ rows)[..., 0, :] / total[..., None]
        return result

    with np.errstate(divide="ignore", invalid="ignore"):
        prior = weighted(one_hot)
        top = probs.argmax(-1)
        decided = np.where(np.isfinite(confidence)[..., None], np.eye(c)[top], np.nan)
        for suffix, rows in (("", probs), ("_count", decided)):
            if any(name in names for name in (f"b_marg{suffix}", f"b_tv{suffix}", f"b_prior{suffix}")):
                middle = weighted(rows)
                found[f"b_marg{suffix}"] = np.log(c) - entropy(middle)
                found[f"b_tv{suffix}"] = total_variation(middle, np.full(c, 1 / c))
                found[f"b_prior{suffix}"] = kl_divergence(middle, prior)
        right = np.where(np.isfinite(confidence), top == labels, np.nan)
        if "classwise_bias" in names:
            counts = inside @ one_hot  # (..., c)
            missing = (inside * (1 - probs[..., np.arange(n), labels])) @ one_hot
            share = np.where(counts > 0, missing / counts, 0.0)
            found["classwise_bias"] = share.sum(-1) / (counts > 0).sum(-1)
        if "mean_entropy" in names:
            found["mean_entropy"] = mean(entropy(probs))
        if "ece" in names:
            edges = np.linspace(0, 1, ECE_BINS + 1)
            bins = np.maximum(np.searchsorted(edges, np.minimum(confidence, 1.0), side="left") - 1, 0)
            off = (confidence - right) * inside
            parts = [np.abs(np.where(bins == b, off, 0.0).sum(-1)) for b in range(ECE_BINS)]
            found["ece"] = np.where(np.isfinite(off.sum(-1)), np.sum(parts, axis=0) / total, np.nan)
        found["mean_confidence"] = mean(confidence)
        found["overconfidence"] = mean(confidence - right)
    return {name: found[name] for name in names}


def output_bias(
    probs: Float[Array, "n c"], labels: Int[Array, " n"] | None = None, *, split: str = "test"
) -> list[Row]:
    """Measure the bias and confidence of outputs on n examples; higher means more biased, or surer.

    With p̄ the mean output and π the class frequencies of the labels, in nats or as fractions:

        b_marg            ln C - H(p̄) = KL(p̄ to uniform)
        b_tv              total variation between p̄ and the uniform distribution
        b_prior           KL(p̄ to π), which an unbalanced data set calls for; inf if p̄ has a class that π lacks
        b_*_count         the same with the frequencies of the top classes in place of p̄
        classwise_bias    mean over classes y of the total variation between the mean output of class y and the one-hot
                          label, which is 1 - p̄_y[y]
        mean_confidence   mean of max_c p_c
        overconfidence    mean confidence minus accuracy
        mean_entropy      mean of H(p)

    Standard errors are over examples: of a mean for the last three, of a mean within each class for classwise_bias
    (needs two examples of each), delete-one jackknife for the others, π held fixed.

    Args:
        probs: Output distributions, one row an example.
        labels: True classes 0 to c - 1; without them b_prior, classwise_bias and overconfidence are left out.
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
    if labels is not None:
        per_class = [1 - probs[labels == y, y] for y in np.unique(labels)]
        each_error = [x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan for x in per_class]
        middle = float(np.mean([x.mean() for x in per_class]))
        rows.append(row("classwise_bias", middle, float(np.linalg.norm(each_error)) / len(per_class)))
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
