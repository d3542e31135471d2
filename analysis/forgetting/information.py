"""Information in a classifier's outputs, and distances between two sets of outputs: probabilities in, nats out.

A network's output on input x is a distribution p(.|x) over classes. With the input drawn from a set of n examples, the
predicted class Ŷ depends on the input X alone, and the information that it carries splits in two: what the true label
Y explains (useful) and what it does not (superfluous, exposed by the particular input).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import entr, rel_entr

Array = np.ndarray
Correction = Literal["plug-in", "first-order", "jackknife"]


@dataclass(frozen=True)
class Information:
    """Information in outputs, in nats; each array has the leading axes of the probabilities it was made from.

    Attributes:
        mi: I(X;Ŷ) = H(p̄) - mean H(p(.|x)).
        cmi: I(X;Ŷ|Y) = Σ_y π_y [H(p̄_y) - mean over class y of H(p(.|x))].
        useful: I(Y;Ŷ) = mi - cmi.
        mean_entropy: mean H(p(.|x)).
    """

    mi: Float[Array, "..."]
    cmi: Float[Array, "..."]
    useful: Float[Array, "..."]
    mean_entropy: Float[Array, "..."]

    @property
    def marginal_entropy(self) -> Float[Array, "..."]:
        """H(p̄), with the same correction as `mi`."""
        h: Float[Array, ...] = self.mi + self.mean_entropy
        return h


def output_information(
    probs: Float[Array, "... n c"],
    labels: Int[Array, " n"],
    *,
    correction: Correction = "plug-in",
    members: Bool[Array, "... n"] | Int[Array, "... n"] | None = None,
) -> Information:
    """Estimate I(X;Ŷ), I(X;Ŷ|Y) and I(Y;Ŷ) from n outputs and their labels.

    With n_y examples of class y, π_y = n_y / n, p̄_y the mean output of class y and p̄ that of all, "plug-in" puts these
    means into the definitions of `Information`. The entropy is concave, so that H of a mean of n outputs is too small,
    by about (1/2n) Σ_c Var(p_c) / p̄_c. "first-order" adds that term, with the unbiased variance, to H(p̄_y) within each
    class and to H(p̄) overall. "jackknife" replaces H by n H - (n - 1) mean_i H(mean without i) in the same places; it
    is better for few examples a class, and slower. A class of one example cannot be corrected and is left as it is: it
    adds nothing to I(X;Ŷ|Y) whatever the model.

    Args:
        probs: Output distributions; leading axes are independent sets of outputs on the same examples.
        labels: True classes, any integers; only which examples share one matters.
        correction: What is done about the bias.
        members: Which examples belong to the set, or how often each counts (as in a resample), broadcast against the
            leading axes; None means each once. A set without an example gives NaN.

    Returns:
        The information. For "plug-in", mi = useful + cmi to rounding error by definition of all three; the corrected
        `useful` is defined as mi - cmi.

    Raises:
        ValueError: If shapes do not match, a row is not a distribution, or `correction` is unknown. Rows that are not
            finite are let through and give NaN.

    Source:
        Our definition. The bias is that of Miller (1955) and the jackknife that of Quenouille (1956), both carried
        over from counts to means of distributions.
    """
    probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    check_outputs(probs, labels)
    if correction not in get_args(Correction):
        raise ValueError(f"`correction` must be one of {get_args(Correction)}, got {correction!r}.")
    classes, codes = np.unique(labels, return_inverse=True)
    one_hot = (np.arange(len(classes))[:, None] == codes).astype(np.float64)  # (g, n)
    if members is None:
        inside = np.ones(len(labels))
    else:
        inside = np.asarray(members).astype(np.float64)
        if inside.shape[-1:] != labels.shape:
            raise ValueError(f"`members` must have {len(labels)} entries on its last axis, got shape {inside.shape}.")
    in_class = one_hot * inside[..., None, :]  # (..., g, n)

    sums = in_class @ probs  # (..., g, c)
    counts = in_class.sum(-1)  # (..., g)
    n = counts.sum(-1)
    entropies = entr(probs).sum(-1)  # (..., n)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_entropy = (entropies * inside).sum(-1) / n
        within = np.where(counts > 0, entr(sums / counts[..., None]).sum(-1), 0.0)
        overall = entr(sums.sum(-2) / n[..., None]).sum(-1)
        if correction == "first-order":
            squares = in_class @ probs**2
            within = within + _missing_entropy(sums, squares, counts)
            overall = overall + _missing_entropy(sums.sum(-2), squares.sum(-2), n)
        elif correction == "jackknife":
            own_sum, own_count = sums[..., codes, :], counts[..., codes]
            left = _entropy_without_one(own_sum, probs, own_count)
            mean_left = (in_class @ left[..., None])[..., 0] / counts
            within = np.where(counts > 1, counts * within - (counts - 1) * mean_left, within)
            left = _entropy_without_one(sums.sum(-2)[..., None, :], probs, n[..., None]) * inside
            overall = np.where(n > 1, n * overall - (n - 1) * left.sum(-1) / n, overall)
        between = (counts * within).sum(-1) / n  # Σ_y π_y H(p̄_y)
    cmi, mi = between - mean_entropy, overall - mean_entropy
    useful = overall - between if correction == "plug-in" else mi - cmi
    return Information(mi=mi, cmi=cmi, useful=useful, mean_entropy=mean_entropy)


def decision_information(
    top: Int[Array, "... n"],
    labels: Int[Array, " n"],
    *,
    classes: int,
    correction: Correction = "plug-in",
    members: Bool[Array, "... n"] | Int[Array, "... n"] | None = None,
) -> Information:
    """The information of `output_information` for hard decisions: the top class in place of the distribution.

    A decision is certain given the input, so that I(X;Ŷ) = H(Ŷ) and I(X;Ŷ|Y) = H(Ŷ|Y). Any correction other than
    "plug-in" adds Miller and Madow's (K - 1) / (2 n) to each entropy, with K the number of classes that were decided
    for and n the number of examples.

    Args:
        top: Decisions, 0 to classes - 1; leading axes are independent sets of decisions on the same examples.
        labels: True classes.
        classes: Number of classes that there are.
        correction: What is done about the bias.
        members: As in `output_information`.

    Raises:
        ValueError: As `output_information`.

    Source:
        Miller (1955) for the correction.
    """
    one_hot = np.eye(classes)[np.asarray(top)]
    plain = output_information(one_hot, labels, members=members)
    if correction not in get_args(Correction):
        raise ValueError(f"`correction` must be one of {get_args(Correction)}, got {correction!r}.")
    if correction == "plug-in":
        return plain
    groups, codes = np.unique(labels, return_inverse=True)
    inside = np.ones(len(labels)) if members is None else np.asarray(members).astype(np.float64)
    sums = ((np.arange(len(groups))[:, None] == codes) * inside[..., None, :]) @ one_hot  # (..., g, c)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = sums.sum((-1, -2))
        kinds = (sums.sum(-2) > 0).sum(-1)
        # within each class the term is weighted by n_y / n, so that the classes' terms add up to counts over 2 n
        filled = ((sums > 0).sum(-1) - (sums.sum(-1) > 0)).sum(-1)
        mi, cmi = plain.mi + (kinds - 1) / (2 * n), plain.cmi + filled / (2 * n)
    return Information(mi=mi, cmi=cmi, useful=mi - cmi, mean_entropy=plain.mean_entropy)


def _missing_entropy(
    sums: Float[Array, "... c"], squares: Float[Array, "... c"], n: Float[Array, "..."]
) -> Float[Array, "..."]:
    """(1/2n) Σ_c Var(p_c) / p̄_c with the unbiased variance; 0 where n < 2."""
    n = n[..., None]
    mean = sums / n
    variance = np.maximum(squares - n * mean**2, 0.0) / (n - 1)
    terms = np.where(mean > 0, variance / mean, 0.0)
    missing: Float[Array, ...] = np.where(n[..., 0] > 1, terms.sum(-1) / (2 * n[..., 0]), 0.0)
    return missing


def _entropy_without_one(
    sums: Float[Array, "... n c"], probs: Float[Array, "... n c"], n: Float[Array, "... n"]
) -> Float[Array, "... n"]:
    """H of the mean output of a set of size n without each of its members in turn; 0 where nothing is left."""
    rest = np.maximum(sums - probs, 0.0) / (n[..., None] - 1)  # rounding may leave -1e-17, whose entropy is -inf
    left: Float[Array, ...] = np.where(n > 1, entr(rest).sum(-1), 0.0)
    return left


def entropy(probs: Float[Array, "... c"]) -> Float[Array, "..."]:
    """H(p) = -Σ_c p_c ln p_c in nats, with 0 ln 0 = 0."""
    h: Float[Array, ...] = entr(np.asarray(probs, dtype=np.float64)).sum(-1)
    return h


def kl_divergence(p: Float[Array, "... c"], q: Float[Array, "... c"]) -> Float[Array, "..."]:
    """KL(p to q) = Σ_c p_c ln(p_c / q_c) in nats; inf where q lacks a class that p has. Swap them for the reverse."""
    kl: Float[Array, ...] = rel_entr(np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)).sum(-1)
    return kl


def total_variation(p: Float[Array, "... c"], q: Float[Array, "... c"]) -> Float[Array, "..."]:
    """TV(p, q) = ½ Σ_c |p_c - q_c|, from 0 to 1."""
    tv: Float[Array, ...] = np.abs(np.asarray(p, dtype=np.float64) - np.asarray(q, dtype=np.float64)).sum(-1) / 2
    return tv


def selectivity(f_cmi: Float[Array, "..."] | float, f_use: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """F_cmi / (|F_cmi| + |F_use|), from -1 to 1: how much of what was forgotten is superfluous.

    NaN where both are below 1e-12 in magnitude. Our definition.
    """
    cmi, use = np.asarray(f_cmi, dtype=np.float64), np.asarray(f_use, dtype=np.float64)
    none = (np.abs(cmi) < 1e-12) & (np.abs(use) < 1e-12)
    share: Float[Array, ...] = np.where(none, np.nan, cmi / np.where(none, 1.0, np.abs(cmi) + np.abs(use)))
    return share


def check_outputs(probs: Float[Array, "... n c"], labels: Int[Array, " n"] | None) -> None:
    """Raise a ValueError unless `probs` holds distributions, one row an example, and `labels` fits; NaN is let through.

    Raises:
        ValueError: If shapes do not match, or a finite row is not a distribution.
    """
    if probs.ndim < 2 or 0 in probs.shape[-2:]:
        raise ValueError(f"`probs` must have shape (..., n, c) with n, c >= 1, got {probs.shape}.")
    if labels is not None and labels.shape != probs.shape[-2:-1]:
        raise ValueError(
            f"`labels` must be one class for each of the {probs.shape[-2]} examples of `probs`, got {labels.shape}."
        )
    off = np.abs(probs.sum(-1) - 1)
    if (off > 1e-3).any() or (probs < 0).any():
        worst = float(probs.min()) if (probs < 0).any() else float(np.nanmax(off))
        raise ValueError(
            f"`probs` must hold distributions: no entry below 0, rows that sum to 1; it is off by {worst:.3g}. "
            "Pass logits through a softmax first (sigmoid outputs: divide each row by its sum)."
        )
