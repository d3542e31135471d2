"""What a perturbation makes a classifier forget of a shortcut, against the feature that is meant to be learned."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Generator, Tensor

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.evaluation import on_inputs, training_pairs
from analysis.forgetting.information import Correction, output_information, selectivity
from analysis.forgetting.leaveout import Leaveout
from analysis.table import Row
from landscape import EmpiricalRisk, Params, displaced
from landscape.randomness import source_of
from trainers.tasks.task import Classification

Array = np.ndarray
GROUPS = 20  # of examples, left out one at a time for the standard error
VALUES = ("spurious_information", "real_information", "shortcut_followed", "truth_followed")
DROPS = ("F_spurious", "F_real", "F_shortcut", "F_truth", "F_reliance", "F_without", "spurious_selectivity")


@dataclass(frozen=True)
class SpuriousData:
    """One set of inputs on which the class and the spurious feature vary independently, and what it was made from.

    Attributes:
        shuffled: Inputs whose spurious feature has a value drawn independently of the class.
        y: True classes 0 to c - 1.
        s: The class that the spurious feature names on `shuffled`.
        kept: The same examples with the spurious feature as in training, where it agrees with y, or None.
        removed: The same examples without the feature, or None.
    """

    shuffled: Tensor
    y: Int[Tensor, " n"]
    s: Int[Tensor, " n"]
    kept: Tensor | None = None
    removed: Tensor | None = None

    def __post_init__(self) -> None:
        given = {"y": self.y, "s": self.s, "kept": self.kept, "removed": self.removed}
        for name, t in given.items():
            if t is not None and len(t) != len(self.shuffled):
                raise ValueError(f"`{name}` must have one entry for each of {len(self.shuffled)} inputs, got {len(t)}.")
        if not bool((self.s != self.y).any()):
            raise ValueError(
                "`s` never differs from `y`: shuffle the spurious feature, so that both vary by themselves."
            )


def spurious_forgetting(
    risk: EmpiricalRisk,
    data: SpuriousData,
    asked: Displacements,
    *,
    correction: Correction = "first-order",
    generator: Generator | None = None,
) -> list[Row]:
    """What is forgotten of the spurious feature S, and what of the true class Y, where both vary independently.

    At θ, on the shuffled inputs, with Ŷ drawn from the outputs:

        spurious_information   I(S;Ŷ) in nats
        real_information       I(Y;Ŷ)
        shortcut_followed      mean probability of the class that S names, where S ≠ Y
        truth_followed         mean probability of the true class there

    And how much each falls from θ to θ + ε (positive means forgotten): F_spurious, F_real, F_shortcut, F_truth. Beside
    them F_reliance, the fall of accuracy(kept) - accuracy(shuffled); F_without, the fall of accuracy(removed); and
    spurious_selectivity = F_spurious / (|F_spurious| + |F_real|), from the means over batches: 1 where the shortcut
    alone is forgotten, 0 where the class alone is.

    Args:
        risk: Training risk at θ, which makes the perturbations.
        data: The inputs.
        asked: Providers, radii and batches.
        correction: For the bias of the information, see `output_information`.
        generator: Source of batches and noise; the batches are those of `perturbed_forgetting`. None means a fresh one
            from seed 0.

    Returns:
        Rows on "ood". The standard error adds up the variance over examples, by leaving out one of 20 groups of them at
        a time, and that between batches.

    Raises:
        ValueError: As `perturbed_forgetting`, or if a label is out of range.

    Source:
        Our definition.
    """
    generator = source_of(generator)
    x, y = training_pairs(risk)
    labels, codes = data.y.cpu().numpy(), data.s.cpu().numpy()
    groups = min(GROUPS, len(labels))
    members = np.ones((groups + 1, len(labels)), dtype=bool)  # all, then without each group
    members[1:] = np.arange(len(labels)) % groups != np.arange(groups)[:, None]

    def at(theta: Params) -> dict[str, Float[Array, " g"]]:
        sets = {"shuffled": data.shuffled, "kept": data.kept, "removed": data.removed}
        probs = {
            name: Classification().probabilities(asked.outputs_of(on_inputs(risk, t, asked.batch_size), theta)).cpu()
            for name, t in sets.items()
            if t is not None
        }
        return _values({name: p.numpy() for name, p in probs.items()}, labels, codes, members, correction)

    before = at(risk.theta)
    finite = all(np.isfinite(before[name][0]) for name in VALUES)
    rows = [
        _row(name, [Leaveout(float(before[name][0]), before[name][1:])], {}, True, "" if finite else NOT_FINITE)
        for name in VALUES
    ]
    drops: dict[tuple[str, str], list[dict[str, Float[Array, " g"]]]] = {cell: [] for cell in asked.cells}
    missed = dict.fromkeys(asked.cells, 0)
    for _, moves in asked.along(risk, x, y, asked.draw(len(x), generator)):
        for cell, move in moves:
            if move is None:
                missed[cell] += 1
                continue
            after = before if move.length == 0 else at(displaced(risk.theta, move.delta))
            drops[cell].append({name: before[name] - after[name] for name in before})
    for cell in asked.cells:
        each, tried = drops[cell], len(drops[cell]) + missed[cell]
        note = asked.shortfall(cell, missed[cell], tried) or ("" if finite else NOT_FINITE)
        options = asked.options(cell) | {"correction": correction}
        fine = missed[cell] <= tried / 5
        for name, source in zip(DROPS, (*VALUES, "reliance", "without"), strict=False):
            lacks = "" if source in before else f"needs inputs with the spurious feature {LACKING[source]}"
            found = [Leaveout(float(d[source][0]), d[source][1:]) for d in each] if source in before else []
            rows.append(_row(name, found, options, fine, note or lacks))
        share = [_share(each, b) for b in [None, *(range(len(each)) if len(each) > 1 else ())]] if each else []
        rows.append(_share_row(share, len(each), options, fine, note))
    return rows


NOT_FINITE = "the outputs are not finite"
LACKING = {"reliance": "kept", "without": "removed"}


def _values(
    probs: dict[str, Float[Array, "n c"]],
    y: Int[Array, " n"],
    s: Int[Array, " n"],
    members: Array,
    correction: Correction,
) -> dict[str, Float[Array, " g"]]:
    shuffled = probs["shuffled"]
    if not (min(y.min(), s.min()) >= 0 and max(y.max(), s.max()) < shuffled.shape[1]):
        raise ValueError(f"`y` and `s` must be classes from 0 to {shuffled.shape[1] - 1}.")
    here = np.arange(len(y))
    apart = members & (s != y)

    def mean(x: Float[Array, " n"], which: Array) -> Float[Array, " g"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Float[Array, " g"] = (which @ x) / which.sum(-1)
        return result

    def accuracy(p: Float[Array, "n c"]) -> Float[Array, " g"]:
        return mean((p.argmax(1) == y).astype(np.float64), members)

    found = {
        "spurious_information": output_information(shuffled, s, correction=correction, members=members).useful,
        "real_information": output_information(shuffled, y, correction=correction, members=members).useful,
        "shortcut_followed": mean(shuffled[here, s], apart),
        "truth_followed": mean(shuffled[here, y], apart),
    }
    if "kept" in probs:
        found["reliance"] = accuracy(probs["kept"]) - accuracy(shuffled)
    if "removed" in probs:
        found["without"] = accuracy(probs["removed"])
    return found


def _row(name: str, found: list[Leaveout], options: dict[str, object], converged: bool, note: str) -> Row:
    """The mean over batches, whose error adds up that over examples and that between batches."""
    common = {"split": "ood", "options": options, "converged": converged, "warnings": note}
    if not found:
        return Row(name, math.nan, math.nan, 0, **common)  # type: ignore[arg-type]
    values = np.array([f.value for f in found])
    examples = Leaveout(float(values.mean()), np.mean([f.without for f in found], axis=0)).stderr
    between = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Row(name, float(values.mean()), math.hypot(examples, between), len(values), **common)  # type: ignore[arg-type]


def _share(each: list[dict[str, Float[Array, " g"]]], without: int | None) -> Float[Array, " g"]:
    """Selectivity of all groups of examples, from the mean over batches, or those but one."""
    kept = [d for b, d in enumerate(each) if b != without]
    spurious = np.mean([d["spurious_information"] for d in kept], axis=0)
    share: Float[Array, " g"] = selectivity(spurious, np.mean([d["real_information"] for d in kept], axis=0))
    return share


def _share_row(
    shares: list[Float[Array, " g"]], draws: int, options: dict[str, object], converged: bool, note: str
) -> Row:
    name = DROPS[-1]
    if not shares:
        return Row(name, math.nan, math.nan, 0, "ood", options, converged, note)
    value = float(shares[0][0])
    examples = Leaveout(value, shares[0][1:]).stderr
    between = Leaveout(value, np.array([s[0] for s in shares[1:]])).stderr if len(shares) > 1 else 0.0
    if math.isnan(value):
        note = note or "nothing was forgotten"
    return Row(name, value, math.hypot(examples, between), draws, "ood", options, converged, note)
