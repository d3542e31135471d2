"""Forgetting metrics from a classifier's outputs before and after a change of its weights: arrays in, numbers out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.forgetting.information import Correction, output_information, selectivity

Array = np.ndarray

METRICS = ("F_cmi", "F_mi", "F_use", "selectivity", "dH", "KL", "dCE", "cw", "wc", "F_bias")
INFORMATION = ("F_cmi", "F_mi", "F_use", "selectivity", "F_bias")  # biased where a class has few examples


@dataclass(frozen=True)
class Outputs:
    """What is needed of softmax outputs on n labelled examples, in float64; leading axes are different models.

    Attributes:
        probs: p(.|x).
        log_probs: ln p(.|x).
        entropies: H(p(.|x)) in nats.
        losses: Cross-entropy, -ln p(y|x).
        correct: 1.0 where the top class is the label, 0.0 elsewhere, NaN where an output is not finite.
    """

    probs: Float[Array, "... n c"]
    log_probs: Float[Array, "... n c"]
    entropies: Float[Array, "... n"]
    losses: Float[Array, "... n"]
    correct: Float[Array, "... n"]

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Int[Array, " n"]) -> "Outputs":
        """Outputs from logits of shape (..., n, c) and labels 0 to c - 1."""
        raw = logits.detach().cpu().double()
        log_probs = raw.log_softmax(-1).numpy()
        probs = np.exp(log_probs)
        with np.errstate(invalid="ignore"):
            # exp underflows long before log does, so that 0 times a large number is the only limit met here
            entropies = -(probs * np.where(probs > 0, log_probs, 0.0)).sum(-1)
        losses = -np.take_along_axis(log_probs, np.broadcast_to(labels, log_probs.shape[:-1])[..., None], -1)[..., 0]
        finite = np.isfinite(raw.numpy()).all(-1)
        correct = np.where(finite, raw.argmax(-1).numpy() == labels, np.nan)
        return cls(probs, log_probs, np.where(finite, entropies, np.nan), losses, correct)

    def at(self, examples: Int[Array, " k"]) -> "Outputs":
        """The outputs on some of the examples."""
        return Outputs(
            self.probs[..., examples, :],
            self.log_probs[..., examples, :],
            self.entropies[..., examples],
            self.losses[..., examples],
            self.correct[..., examples],
        )

    def of(self, model: int) -> "Outputs":
        """The outputs of one model of those on the leading axis."""
        return Outputs(
            self.probs[model], self.log_probs[model], self.entropies[model], self.losses[model], self.correct[model]
        )

    @staticmethod
    def pool(parts: "list[Outputs]") -> "Outputs":
        """Join outputs on different examples into one set."""
        return Outputs(
            np.concatenate([o.probs for o in parts], -2),
            np.concatenate([o.log_probs for o in parts], -2),
            np.concatenate([o.entropies for o in parts], -1),
            np.concatenate([o.losses for o in parts], -1),
            np.concatenate([o.correct for o in parts], -1),
        )


def forgetting_metrics(
    before: Outputs,
    after: Outputs,
    labels: Int[Array, " n"],
    *,
    correction: Correction = "plug-in",
    members: Bool[Array, "... n"] | None = None,
) -> dict[str, Float[Array, "..."]]:
    """What was forgotten between two sets of outputs on the same examples; positive means forgotten.

        F_mi, F_cmi, F_use    drop of I(X;Ŷ), I(X;Ŷ|Y), I(Y;Ŷ) in nats, see `output_information`
        selectivity           F_cmi / (|F_cmi| + |F_use|); NaN where both vanish
        dH, KL, dCE           mean over examples of H(after) - H(before), KL(before to after), rise in cross-entropy
        cw, wc                fractions of the examples turned from right to wrong, from wrong to right
        F_bias                drop of ln C - H(mean output), the bias of the outputs; equals dH - F_mi

    Identical outputs give exact zeros.

    Args:
        before: Outputs of the unperturbed model.
        after: Outputs of one or, on leading axes, several perturbed models.
        labels: True classes.
        correction: For the bias of the information, the same before and after.
        members: Which examples count, broadcast against the leading axes; None means all.

    Returns:
        One array for each name in `METRICS`.

    Raises:
        ValueError: As `output_information`.

    Source:
        Our definition, after the idea of Vani et al. (2024), ICML.
    """
    first = output_information(before.probs, labels, correction=correction, members=members)
    second = first
    if after is not before:
        second = output_information(after.probs, labels, correction=correction, members=members)
    inside = np.ones(len(labels)) if members is None else np.asarray(members).astype(np.float64)

    def mean(values: Float[Array, "... n"]) -> Float[Array, "..."]:
        result: Float[Array, ...] = (values * inside).sum(-1) / inside.sum(-1)
        return result

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(before.probs > 0, before.log_probs - after.log_probs, 0.0)
        kl = mean((before.probs * ratio).sum(-1))
        f_mi, f_cmi = first.mi - second.mi, first.cmi - second.cmi
        f_use = first.useful - second.useful
        return {
            "F_cmi": f_cmi,
            "F_mi": f_mi,
            "F_use": f_use,
            "selectivity": selectivity(f_cmi, f_use),
            "dH": mean(after.entropies - before.entropies),
            "KL": kl,
            "dCE": mean(after.losses - before.losses),
            "cw": mean(before.correct * (1 - after.correct)),
            "wc": mean((1 - before.correct) * after.correct),
            "F_bias": second.marginal_entropy - first.marginal_entropy,
        }


@dataclass(frozen=True)
class Leaveout:
    """A statistic of r groups, and its r values with one group left out each.

    Attributes:
        value: The statistic of all groups.
        without: Its values without each group in turn.
    """

    value: float
    without: Float[Array, " r"]

    @property
    def stderr(self) -> float:
        """Jackknife error sqrt((r - 1)/r Σ (t_i - mean t)²), for a mean of groups sd/√r (Tukey 1958); NaN for r < 2."""
        r = len(self.without)
        if r < 2:
            return float("nan")
        return float(np.sqrt((r - 1) / r * np.sum((self.without - self.without.mean()) ** 2)))

    def __sub__(self, other: "Leaveout") -> "Leaveout":
        return Leaveout(self.value - other.value, self.without - other.without)


def averaged(values: Sequence[Mapping[str, float]]) -> dict[str, Leaveout]:
    """Means over groups of the metrics of `forgetting_metrics`; selectivity is formed from the mean F_cmi and F_use."""
    r = len(values)
    result = {}
    for name in METRICS:
        x = np.array([v[name] for v in values])
        with np.errstate(invalid="ignore"):
            result[name] = Leaveout(float(x.mean()), (x.sum() - x) / (r - 1) if r > 1 else np.full(1, np.nan))
    cmi, use = result["F_cmi"], result["F_use"]
    result["selectivity"] = Leaveout(float(selectivity(cmi.value, use.value)), selectivity(cmi.without, use.without))
    return result


def pooled(
    before: Outputs, after: Outputs, labels: Int[Array, " n"], groups: int, *, correction: Correction = "plug-in"
) -> dict[str, Leaveout]:
    """The metrics of `forgetting_metrics` on all examples, and without each of `groups` equal consecutive parts."""
    value = forgetting_metrics(before, after, labels, correction=correction)
    if groups == 1:
        return {name: Leaveout(float(v), np.full(1, np.nan)) for name, v in value.items()}
    kept = np.repeat(~np.eye(groups, dtype=bool), len(labels) // groups, axis=1)
    without = forgetting_metrics(before, after, labels, correction=correction, members=kept)
    return {name: Leaveout(float(value[name]), without[name]) for name in METRICS}
