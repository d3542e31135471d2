"""Forgetting metrics from a classifier's outputs before and after a change of its weights: arrays in, numbers out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import rel_entr
from torch import Tensor

from analysis.forgetting.information import (
    Correction,
    Information,
    decision_information,
    output_information,
    selectivity,
)
from analysis.forgetting.leaveout import Leaveout
from analysis.forgetting.output_bias import bias_values

Array = np.ndarray
Members = Bool[Array, "... n"] | Int[Array, "... n"]

METRICS = ("F_cmi", "F_mi", "F_use", "selectivity", "dH", "KL", "dCE", "cw", "wc", "F_bias")
DISTANCES = ("F_rel", "KL_r", "JS", "TV", "ww", "cw_correct", "wc_wrong", "F_cmi_hard", "F_mi_hard", "F_use_hard")
BIAS_OF = {  # metric: the bias whose drop it is; that of b_marg is F_bias
    "F_bias_tv": "b_tv",
    "F_bias_prior": "b_prior",
    "F_bias_count": "b_marg_count",
    "F_bias_tv_count": "b_tv_count",
    "F_bias_prior_count": "b_prior_count",
    "F_classwise": "classwise_bias",
    "F_confidence": "mean_confidence",
    "F_overconfidence": "overconfidence",
    "F_ece": "ece",
}
BIAS_METRICS = tuple(BIAS_OF)
ALL_METRICS = METRICS + DISTANCES + BIAS_METRICS

# Biased where a class has few examples; those of all examples together, such as F_mi, are not.
WITHIN_CLASSES = ("F_cmi", "F_use", "selectivity", "F_rel", "F_cmi_hard", "F_use_hard")
# Examples of a class, below which they carry a warning: from here on, what the correction leaves of the bias differs
# between models by less than a quarter as much as the measures themselves do (docs/forgetting.md).
FEW = 20
FLOOR = 1e-3  # nats of information before, below which F_rel says nothing


@dataclass(frozen=True)
class Outputs:
    """What is needed of softmax outputs on n labelled examples, in float64; leading axes are different models.

    Attributes:
        probs: p(.|x).
        log_probs: ln p(.|x).
        entropies: H(p(.|x)) in nats.
        losses: Cross-entropy, -ln p(y|x).
        correct: 1.0 where the top class is the label, 0.0 elsewhere, NaN where an output is not finite.
        top: The top class.
    """

    probs: Float[Array, "... n c"]
    log_probs: Float[Array, "... n c"]
    entropies: Float[Array, "... n"]
    losses: Float[Array, "... n"]
    correct: Float[Array, "... n"]
    top: Int[Array, "... n"]

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
        finite = torch.isfinite(raw).all(-1).numpy()
        top = raw.argmax(-1).numpy()
        correct = np.where(finite, top == labels, np.nan)
        return cls(probs, log_probs, np.where(finite, entropies, np.nan), losses, correct, top)

    def at(self, examples: Int[Array, " k"]) -> "Outputs":
        """The outputs on some of the examples."""
        return self._map(lambda axes, t: t[(..., examples, *[slice(None)] * (axes - 1))])

    def of(self, model: int) -> "Outputs":
        """The outputs of one model of those on the leading axis."""
        return self._map(lambda _, t: t[model])

    @staticmethod
    def pool(parts: "list[Outputs]") -> "Outputs":
        """Join outputs on different examples into one set."""
        return parts[0]._map(lambda axes, *t: np.concatenate(t, -axes), *parts[1:])

    def _map(self, f: Callable[..., Array], *others: "Outputs") -> "Outputs":
        """Each array made anew by f(its axes from the examples on, the array here, and those of others)."""
        names = [field.name for field in fields(self)]
        axes = [2 if name in ("probs", "log_probs") else 1 for name in names]
        columns = ([getattr(o, name) for o in (self, *others)] for name in names)
        return Outputs(*(f(k, *arrays) for k, arrays in zip(axes, columns, strict=True)))


def forgetting_metrics(
    before: Outputs,
    after: Outputs,
    labels: Int[Array, " n"],
    *,
    correction: Correction = "plug-in",
    members: Members | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Float[Array, "..."]]:
    """What was forgotten between two sets of outputs on the same examples; positive means forgotten.

        F_mi, F_cmi, F_use    drop of I(X;Ŷ), I(X;Ŷ|Y), I(Y;Ŷ) in nats, see `output_information`
        F_*_hard              the same of the decisions alone, see `decision_information`
        selectivity           F_cmi / (|F_cmi| + |F_use|); NaN where both vanish
        F_rel                 1 - I(X;Ŷ|Y) after / before; NaN where that before is below 0.001 nats
        dH, dCE               mean over examples of the rise in entropy and in cross-entropy
        KL, KL_r, JS, TV      mean over examples of KL(before to after), KL(after to before), Jensen-Shannon divergence
                              and total variation
        cw, wc, ww            fractions of the examples turned from right to wrong, from wrong to right, and from one
                              wrong class to another
        cw_correct, wc_wrong  the first two as shares of the examples that were right, and wrong, before
        F_bias                drop of ln C - H(mean output), the bias of the outputs; equals dH - F_mi
        `BIAS_OF`             drop of the other biases of the outputs, see `bias_values`: positive where the bias is
                              reduced; the correction does not touch them

    Identical outputs give exact zeros.

    Args:
        before: Outputs of the unperturbed model.
        after: Outputs of one or, on leading axes, several perturbed models.
        labels: True classes.
        correction: For the bias of the information, the same before and after.
        members: Which examples count, or how often, broadcast against the leading axes; None means each once.
        metrics: Names in `ALL_METRICS`.

    Returns:
        One array for each name in `metrics`.

    Raises:
        ValueError: As `output_information`, or if a name is unknown.

    Source:
        Our definition, after the idea of Vani et al. (2024), ICML.
    """
    wanted = set(metrics)
    if not wanted <= set(ALL_METRICS):
        raise ValueError(f"`metrics` has {sorted(wanted - set(ALL_METRICS))}; choose from {', '.join(ALL_METRICS)}.")
    inside = np.ones(len(labels)) if members is None else np.asarray(members).astype(np.float64)
    total = inside.sum(-1)

    def mean(values: Float[Array, "... n"]) -> Float[Array, "..."]:
        result: Float[Array, ...] = (values * inside).sum(-1) / total
        return result

    found: dict[str, Float[Array, ...]] = {}
    p, q = before.probs, after.probs
    with np.errstate(divide="ignore", invalid="ignore"):
        if wanted & {"F_cmi", "F_mi", "F_use", "selectivity", "F_rel", "F_bias"}:

            def information(o: Outputs) -> Information:
                return output_information(o.probs, labels, correction=correction, members=members)

            first = information(before)
            second = first if after is before else information(after)
            found |= _drops(first, second)
            found["selectivity"] = selectivity(found["F_cmi"], found["F_use"])
            found["F_rel"] = np.where(first.cmi >= FLOOR, found["F_cmi"] / first.cmi, np.nan)
            found["F_bias"] = second.marginal_entropy - first.marginal_entropy
        if wanted & {"F_cmi_hard", "F_mi_hard", "F_use_hard"}:

            def decided(o: Outputs) -> Information:
                classes = o.probs.shape[-1]
                return decision_information(o.top, labels, classes=classes, correction=correction, members=members)

            known = np.isfinite(mean(before.correct) + mean(after.correct))
            drops = _drops(decided(before), decided(after))
            found |= {f"{name}_hard": np.where(known, drop, np.nan) for name, drop in drops.items()}
        if "KL" in wanted:
            ratio = np.where(p > 0, before.log_probs - after.log_probs, 0.0)
            found["KL"] = mean((p * ratio).sum(-1))
        if "KL_r" in wanted:
            ratio = np.where(q > 0, after.log_probs - before.log_probs, 0.0)
            found["KL_r"] = mean((q * ratio).sum(-1))
        if "JS" in wanted:
            middle = (p + q) / 2
            found["JS"] = mean((rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / 2)
        if "TV" in wanted:
            found["TV"] = mean(np.abs(p - q).sum(-1) / 2)
        found["dH"] = mean(after.entropies - before.entropies)
        found["dCE"] = mean(after.losses - before.losses)
        right, then = before.correct, after.correct
        found["cw"], found["wc"] = mean(right * (1 - then)), mean((1 - right) * then)
        if wanted & {"ww", "cw_correct", "wc_wrong"}:
            found["ww"] = mean((1 - right) * (1 - then) * (before.top != after.top))
            found["cw_correct"] = found["cw"] / mean(right)
            found["wc_wrong"] = found["wc"] / mean(1 - right)
        biases = {name: BIAS_OF[name] for name in BIAS_OF if name in wanted}
        if biases:
            was = bias_values(p, labels, tuple(biases.values()), members=members)
            now = was if after is before else bias_values(q, labels, tuple(biases.values()), members=members)
            found |= {name: was[bias] - now[bias] for name, bias in biases.items()}
    return {name: found[name] for name in metrics}


def _drops(first: Information, second: Information) -> dict[str, Float[Array, "..."]]:
    return {"F_cmi": first.cmi - second.cmi, "F_mi": first.mi - second.mi, "F_use": first.useful - second.useful}


def averaged(values: Sequence[Mapping[str, float]]) -> dict[str, Leaveout]:
    """Means over groups of the metrics of `forgetting_metrics`; selectivity is formed from the mean F_cmi and F_use."""
    r = len(values)
    result = {}
    for name in values[0]:
        x = np.array([v[name] for v in values])
        with np.errstate(invalid="ignore"):
            result[name] = Leaveout(float(x.mean()), (x.sum() - x) / (r - 1) if r > 1 else np.full(1, np.nan))
    if "selectivity" in result:
        cmi, use = result["F_cmi"], result["F_use"]
        share = selectivity(cmi.without, use.without)
        result["selectivity"] = Leaveout(float(selectivity(cmi.value, use.value)), share)
    return result


def pooled(
    before: Outputs,
    after: Outputs,
    labels: Int[Array, " n"],
    groups: int,
    *,
    correction: Correction = "plug-in",
    metrics: Sequence[str] = METRICS,
) -> dict[str, Leaveout]:
    """The metrics of `forgetting_metrics` on all examples, and without each of `groups` equal consecutive parts."""
    value = forgetting_metrics(before, after, labels, correction=correction, metrics=metrics)
    if groups == 1:
        return {name: Leaveout(float(v), np.full(1, np.nan)) for name, v in value.items()}
    kept = np.repeat(~np.eye(groups, dtype=bool), len(labels) // groups, axis=1)
    without = forgetting_metrics(before, after, labels, correction=correction, members=kept, metrics=metrics)
    return {name: Leaveout(float(value[name]), without[name]) for name in metrics}
