"""What one provider at one radius did, batch by batch, and the rows that come of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from analysis.forgetting.bootstrap import IntervalRow, Resamples, in_blocks
from analysis.forgetting.displacements import Displacements, Move
from analysis.forgetting.information import Correction, selectivity
from analysis.forgetting.leaveout import Leaveout
from analysis.forgetting.metrics import FEW, WITHIN_CLASSES, Outputs, averaged, forgetting_metrics, pooled
from analysis.table import Row

Array = np.ndarray
SPLITS = ("exposed", "other_train", "held_out")
CONTRASTS = {"held_out": "M_gap", "other_train": "M_gap_tr"}  # "exposed" minus this split: prefix of the row's name
NOT_FINITE = "the outputs are not finite"
UNDEFINED = {
    "selectivity": "nothing was forgotten",
    "F_rel": "less than 0.001 nats to forget",
    "cw_correct": "no example was right",
    "wc_wrong": "no example was wrong",
    "F_bias_prior": "outputs have a class that the labels lack",
    "F_bias_prior_count": "decisions have a class that the labels lack",
}


@dataclass(frozen=True)
class Plan:
    """What is recorded of every batch.

    Attributes:
        labels: Labels of the training data, then of the held-out data.
        n_train: Number of training examples.
        others: How many of them, the first ones, stand for those outside a batch.
        metrics: Names for the rows.
        computed: These, and what they are formed from.
        gaps: Metrics whose contrast between exposures is a row too.
        contrasts: What "exposed" is compared with.
        correction: For the bias of the information.
        pool: Whether "exposed" pools the pairs of all batches.
        resamples: For intervals; None for errors over batches alone.
    """

    labels: Int[Array, " n"]
    n_train: int
    others: int
    metrics: Sequence[str]
    computed: Sequence[str]
    gaps: Sequence[str]
    contrasts: Sequence[str]
    correction: Correction
    pool: bool
    resamples: Resamples | None

    @property
    def classes(self) -> int:
        """Number of classes that labels name."""
        return int(self.labels.max()) + 1


@dataclass
class Tally:
    """What one cell did, batch by batch."""

    rhos: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    chosen: list[Int[Array, " m"]] = field(default_factory=list)
    before: list[Outputs] = field(default_factory=list)  # outputs on each B, where they are to be pooled
    after: list[Outputs] = field(default_factory=list)
    means: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    resampled: dict[str, dict[str, Float[Array, " s"]]] = field(default_factory=dict)  # sums over batches
    missed: int = 0

    def moved(self, number: int, chosen: Int[Array, " m"], move: Move) -> None:
        """Enter a batch and how far it moved θ."""
        self.numbers.append(number)
        self.chosen.append(chosen)
        self.rhos.append(move.rho)
        self.lengths.append(move.length)


def record(
    tallies: list[Tally],
    base: Outputs,
    after: Outputs,
    sets: dict[str, Int[Array, " k"]],
    places: Int[Array, " n"],
    number: int,
    plan: Plan,
) -> None:
    """Enter outputs of one batch; `after` has one model for each tally on its leading axis, or is `base` if θ stayed.

    `sets` are positions in the outputs, and `places` says which of the plan's examples each output is of.
    """
    labels = plan.labels[places]
    for split, examples in sets.items():
        if not len(examples):
            continue
        before = base.at(examples)
        then = before if after is base else after.at(examples)
        if split == "exposed" and plan.pool:
            for i, tally in enumerate(tallies):
                tally.before.append(before)
                tally.after.append(before if after is base else then.of(i))
            continue
        metrics = forgetting_metrics(before, then, labels[examples], correction=plan.correction, metrics=plan.computed)
        for i, tally in enumerate(tallies):
            values = {name: float(v if v.ndim == 0 else v[i]) for name, v in metrics.items()}
            tally.means.setdefault(split, []).append(values)
        if plan.resamples is not None:
            members = plan.resamples.examples[:, places]
            weight = plan.resamples.batches[:, number] if plan.pool else np.ones(len(members))
            for i, tally in enumerate(tallies):
                one = before if after is base else then.of(i)
                _add_resamples(tally, split, before, one, labels[examples], members[:, examples], weight, plan)


def _add_resamples(
    tally: Tally,
    split: str,
    before: Outputs,
    after: Outputs,
    labels: Int[Array, " k"],
    members: Int[Array, "s k"],
    weight: Float[Array, " s"],
    plan: Plan,
) -> None:
    def metrics(some: Int[Array, "k n"]) -> dict[str, Float[Array, " k"]]:
        return forgetting_metrics(
            before, after, labels, correction=plan.correction, members=some, metrics=plan.computed
        )

    sums = tally.resampled.setdefault(split, {"": np.zeros(len(weight))})
    sums[""] += weight
    for name, values in in_blocks(members, plan.classes, metrics).items():
        sums[name] = sums.get(name, 0.0) + np.where(weight > 0, weight * values, 0.0)


def summarise(tally: Tally, asked: Displacements, cell: tuple[str, str], plan: Plan, *, finite: bool) -> list[Row]:
    """The rows of one cell."""
    used, tried = len(tally.numbers), len(tally.numbers) + tally.missed
    exact = asked.deterministic(cell[0])
    options = asked.options(cell) | {"correction": plan.correction}
    if plan.resamples is not None:
        options["resamples"] = plan.resamples.count
    notes = list(filter(None, [asked.shortfall(cell, tally.missed, tried)]))
    found = _Results(tally, plan)
    fewest = _fewest_of_a_class(tally.chosen, plan) if used else {}

    def few(*splits: str) -> list[str]:
        least = min(fewest[split] for split in splits) if used else FEW
        return [f"only {least} examples of a class"] if least < FEW else []

    def row(
        measure: str, split: str, given: Leaveout | None, draws: Float[Array, " s"] | None, extra: list[str]
    ) -> Row:
        value = math.nan if given is None else given.value
        if given is not None and math.isnan(value):
            of = measure.removeprefix("M_gap_tr_").removeprefix("M_gap_")
            extra = [*extra, UNDEFINED.get(of, NOT_FINITE) if finite else NOT_FINITE]
        stderr = math.nan if given is None or math.isnan(value) else 0.0 if exact else given.stderr
        common: dict[str, Any] = {"options": options, "converged": tally.missed <= tried / 5}
        common |= {"draws": used, "split": split, "warnings": "; ".join([*notes, *extra])}
        if plan.resamples is None:
            return Row(measure, value, stderr=stderr, **common)
        level = plan.resamples.level
        if draws is None:
            return IntervalRow(measure, value, stderr=math.nan, level=level, **common)
        ends = plan.resamples.interval(value, draws)
        return IntervalRow(measure, value, stderr=ends.stderr, low=ends.low, high=ends.high, level=level, **common)

    rows = []
    for split in SPLITS:
        given = found.values.get(split)
        for name in plan.metrics:
            extra = ["no training example lies outside the batch"] if given is None and used else []
            if given is not None and name in WITHIN_CLASSES:
                extra = few(split)
            rows.append(row(name, split, given[name] if given else None, found.resampled(split, name), extra))
    for other in plan.contrasts:
        for name in plan.gaps:
            gap, draws = found.contrast(name, other)
            extra = few("exposed", other) if name in WITHIN_CLASSES and gap is not None else []
            if used and gap is None:
                extra = ["no training example lies outside the batch"]
            rows.append(row(f"{CONTRASTS[other]}_{name}", "exposed", gap, draws, extra))
    for name, lengths in (("eps_norm", tally.lengths), ("eps_rho", tally.rhos)):
        known = used > 0 and finite
        mean = float(np.mean(lengths)) if known else math.nan
        spread = float(np.std(lengths, ddof=1)) / math.sqrt(used) if known and used > 1 else math.nan
        extra = [NOT_FINITE] if used and not finite else []
        note = "; ".join([*notes, *extra])
        rows.append(Row(name, mean, 0.0 if exact and known else spread, used, "exposed", options, True, note))
    return rows


class _Results:
    """Values of all splits, with what they are without each batch, and in each resample."""

    def __init__(self, tally: Tally, plan: Plan) -> None:
        self.values = {split: averaged(values) for split, values in tally.means.items()}
        self.draws: dict[str, dict[str, Float[Array, " s"]]] = {}
        if tally.after:
            examples = np.concatenate(tally.chosen)
            before = Outputs.pool(tally.before)
            still = all(length == 0 for length in tally.lengths)
            after = before if still else Outputs.pool(tally.after)
            labels, count = plan.labels[examples], len(tally.numbers)
            self.values["exposed"] = pooled(
                before, after, labels, count, correction=plan.correction, metrics=plan.computed
            )
            if plan.resamples is not None:
                drawn = plan.resamples.batches[:, tally.numbers]
                members = plan.resamples.examples[:, examples] * np.repeat(drawn, [len(c) for c in tally.chosen], 1)
                pools = Tally()
                _add_resamples(pools, "exposed", before, after, labels, members, np.ones(len(members)), plan)
                self.draws |= _means(pools.resampled)
        self.draws |= _means(tally.resampled)
        for sets in self.draws.values():
            if "selectivity" in sets:
                sets["selectivity"] = selectivity(sets["F_cmi"], sets["F_use"])

    def resampled(self, split: str, name: str) -> Float[Array, " s"] | None:
        return self.draws.get(split, {}).get(name)

    def contrast(self, name: str, other: str) -> tuple[Leaveout | None, Float[Array, " s"] | None]:
        """The metric on "exposed" minus that on the other split."""
        if "exposed" not in self.values or other not in self.values:
            return None, None
        here, there = self.resampled("exposed", name), self.resampled(other, name)
        draws = None if here is None or there is None else here - there
        return self.values["exposed"][name] - self.values[other][name], draws


def _means(sums: dict[str, dict[str, Float[Array, " s"]]]) -> dict[str, dict[str, Float[Array, " s"]]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            split: {name: total / parts[""] for name, total in parts.items() if name} for split, parts in sums.items()
        }


def _fewest_of_a_class(chosen: list[Int[Array, " m"]], plan: Plan) -> dict[str, int]:
    """The number of distinct examples of the rarest class that each set has at all."""

    def count(examples: Int[Array, " k"]) -> Int[Array, " c"]:
        return np.bincount(plan.labels[examples], minlength=plan.classes)

    train = count(np.arange(plan.others))
    outside = [train - count(c[c < plan.others]) for c in chosen]
    counts = {
        "exposed": count(np.unique(np.concatenate(chosen))),
        "other_train": np.min(outside, axis=0),
        "held_out": count(np.arange(plan.n_train, len(plan.labels))),
    }
    return {split: int(c[c > 0].min()) if c.any() else 0 for split, c in counts.items()}
