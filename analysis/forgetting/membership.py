"""Membership: how well the loss tells training from held-out examples, and how much of that a perturbation undoes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Generator, Tensor

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.evaluation import Evaluation
from analysis.table import Row
from landscape import EmpiricalRisk, Estimate, displaced
from landscape.randomness import source_of

Array = np.ndarray
SPLITS = ("train", "exposed", "other_train")


@dataclass(frozen=True)
class Placements:
    """For each member the share of non-members with a larger loss, for each non-member that of members with a smaller.

    Ties count half. The mean of either is the area under the curve.
    """

    members: Float[Array, " m"]
    others: Float[Array, " k"]

    @classmethod
    def of(cls, members: Float[Array, " m"], others: Float[Array, " k"]) -> "Placements":
        """From the losses of members and non-members, in O((m + k) log(m + k))."""
        inside, outside = np.sort(members), np.sort(others)
        above = len(others) - _midrank(outside, members)
        below = _midrank(inside, others)
        return cls(above / len(others), below / len(members))

    @property
    def auc(self) -> float:
        """P(loss of a member < loss of a non-member), ties half."""
        return float(self.members.mean())


def _midrank(ordered: Float[Array, " k"], x: Float[Array, " m"]) -> Float[Array, " m"]:
    """How many of `ordered` lie below each x, ties half."""
    middle: Float[Array, " m"] = (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / 2
    return middle


def membership_auc(members: Float[Array, " m"], others: Float[Array, " k"]) -> Estimate:
    """Area under the curve of the attack that calls small losses members: 0.5 says nothing leaks, 1 everything.

    Args:
        members: Losses of examples that were trained on.
        others: Losses of examples that were not.

    Returns:
        The area with its standard error over both sets; NaN where a loss is NaN.

    Raises:
        ValueError: If one of the sets is empty.

    Source:
        Yeom et al. (2018), CSF, for the attack; DeLong et al. (1988), Biometrics 44(3), for the error.
    """
    members, others = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    for name, x in (("members", members), ("others", others)):
        if x.ndim != 1 or not len(x):
            raise ValueError(f"`{name}` must be one loss an example, and at least one, got shape {x.shape}.")
    n = len(members) + len(others)
    if np.isnan(members).any() or np.isnan(others).any():
        return Estimate(math.nan, math.nan, draws=n)
    placed = Placements.of(members, others)
    return Estimate(placed.auc, math.sqrt(_variance(placed.members) + _variance(placed.others)), draws=n)


def membership_forgetting(
    risk: EmpiricalRisk,
    held_out: tuple[Tensor, Tensor],
    asked: Displacements,
    *,
    generator: Generator | None = None,
) -> list[Row]:
    """F_mem = AUC at θ minus mean AUC at θ + ε of the membership attack by the loss; positive means forgotten.

    Members are all training examples ("train"), those of the perturbation's batch ("exposed"), or the others
    ("other_train"); non-members are held out. The standard error adds up three variances: DeLong's over members and
    over non-members, of the differences averaged over batches, and that between batches; together an upper estimate,
    since batches differ by their examples too.

    Args:
        risk: Training risk of a classifier at θ, see `perturbed_forgetting`.
        held_out: Inputs and labels that were not trained on.
        asked: Providers, radii and batches.
        generator: Source of batches and noise, as in `perturbed_forgetting`; None means a fresh one from seed 0.

    Returns:
        `membership_auc` at θ, and F_mem for each cell and set of members.

    Raises:
        ValueError: As `perturbed_forgetting`.

    Source:
        Our definition.
    """
    generator = source_of(generator)
    evaluation = Evaluation(risk, held_out, asked)
    n = evaluation.n_train
    losses = evaluation.outputs(risk.theta).losses
    base = membership_auc(losses[:n], losses[n:])
    finite = not math.isnan(base.value)
    note = "" if finite else "the losses are not finite"
    rows = [Row("membership_auc", base.value, base.stderr, draws=base.draws, split="train", warnings=note)]
    sums = {cell: {split: _Sums(n, len(losses) - n) for split in SPLITS} for cell in asked.cells}
    missed = dict.fromkeys(asked.cells, 0)
    for draw, moves in asked.along(risk, evaluation.x, evaluation.y, asked.draw(n, generator)):
        sets = evaluation.sets(draw.index)
        here = evaluation.outputs(risk.theta, draw.index).losses if evaluation.by_batch else losses
        groups = {"train": np.arange(n), "exposed": sets["exposed"], "other_train": sets["other_train"]}
        who = {"train": np.arange(n), "exposed": draw.index, "other_train": sets["other_train"]}
        held = sets["held_out"]
        before = {s: Placements.of(here[g], here[held]) for s, g in groups.items() if len(g) and finite}
        for cell, move in moves:
            if move is None:
                missed[cell] += 1
                continue
            logits = evaluation.logits(displaced(risk.theta, move.delta), draw.index)
            then = here if move.length == 0 else evaluation.read([logits], draw.index).losses[0]
            for split, was in before.items():
                sums[cell][split].add(who[split], was, Placements.of(then[groups[split]], then[held]))
    for cell in asked.cells:
        for split in SPLITS:
            total = sums[cell][split]
            used = len(total.drops)
            tried = used + missed[cell]
            notes = [note, asked.shortfall(cell, missed[cell], tried)]
            if split == "other_train" and asked.m is None and not any(notes):
                notes.append("no training example lies outside the batch")
            given = Estimate(math.nan, math.nan, draws=0) if not used else total.estimate()
            rows.append(
                Row(
                    "F_mem",
                    given.value,
                    given.stderr,
                    draws=used,
                    split=split,
                    options=asked.options(cell),
                    converged=missed[cell] <= tried / 5,
                    warnings="; ".join(filter(None, notes)),
                )
            )
    return rows


class _Sums:
    """Differences of placements, summed over batches for each example."""

    def __init__(self, members: int, others: int) -> None:
        self.members, self.seen, self.others = np.zeros(members), np.zeros(members), np.zeros(others)
        self.drops: list[float] = []

    def add(self, index: Int[Array, " k"], before: Placements, after: Placements) -> None:
        """Enter a batch."""
        self.drops.append(before.auc - after.auc)
        self.members[index] += before.members - after.members
        self.seen[index] += 1
        self.others += before.others - after.others

    def estimate(self) -> Estimate:
        """The mean drop and its error."""
        seen, r = self.seen > 0, len(self.drops)
        parts = _variance(self.members[seen] / self.seen[seen]) + _variance(self.others / r)
        return Estimate(float(np.mean(self.drops)), math.sqrt(parts + (_variance(self.drops) if r > 1 else 0)), draws=r)


def _variance(x: Float[Array, " n"] | Sequence[float]) -> float:
    """Of the mean of x."""
    return float(np.var(x, ddof=1)) / len(x) if len(x) > 1 else math.nan
