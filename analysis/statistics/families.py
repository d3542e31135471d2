"""Families of measures: how many variants were tried, one named beforehand, and the best of them, corrected.

Sixty variants of sharpness have a better best one than three of forgetting, whatever they measure. So beside the
strongest of a family stand how many were tried, one that was named without looking at the target, and a p-value that
knows of the choice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.statistics.comparison import CELL_MINIMUM, tau_inside
from analysis.statistics.evidence import Evidence, Rows, joined
from analysis.statistics.kendall import BLOCK, dense_ranks
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, mid_ranks
from analysis.statistics.statistic import Cell, Statistic, chance, number, whole, words
from analysis.style import FAMILIES, family, interval

# The usual measure of each family, named before any target was seen; the first that was taken stands for it.
REPRESENTATIVES: Mapping[str, Sequence[str]] = {
    "sharpness": ("top_eigenvalue", "m_sharpness", "ascent_sharpness", "hessian_trace"),
    "forgetting": (
        "F_mi[obf, iso-loss, m=64, other_train]", "F_mi[obf, iso-loss, m=64, held_out]", "F_mi", "forgetting_events",
    ),
    "complexity": ("pacbayes_mag_init", "path_norm", "inverse_margin", "l2"),
    "norm": ("distance_from_init", "gradient_norm"),
    "output bias": ("b_marg", "b_tv"),
    "baseline": ("train_error", "train_loss", "validation_error"),
}  # fmt: skip
EXACT_PAIRS = 4_950  # those of 100 configurations; with more, pairs give way to ranks
PERMUTATIONS = 1_999  # at most: of the best of many no finer p is asked
KEYS = ("value", "low", "high", "stratified", "stratified_low", "stratified_high", "p")


@dataclass(frozen=True)
class Best:
    """The strongest of several measures.

    Attributes:
        place: Its place; -1 where none has a coefficient.
        value: Its tau_b.
        p: Share of permutations whose strongest is as strong, the order found counted as one; NaN without permutations.
    """

    place: int
    value: float
    p: float


def best_of_k(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, " n"],
    *,
    cells: Int[np.ndarray, " n"] | None = None,
    permutations: int = PERMUTATIONS,
    generator: np.random.Generator | None = None,
) -> Best:
    """The measure with the largest |tau_b|, and how often chance alone makes the largest as large.

    The target is permuted, for all measures at once, over all configurations, or inside cells; each permutation tells
    the largest |tau_b| over the measures (single-step max-T: for the strongest the same as the step-down one). |tau_b|
    is taken in units of its deviation by chance: a measure of 6 configurations reaches 0.6 easily, one of 60 does not.

    Args:
        x: Measures; a configuration without a value is NaN, and then no part of that measure's coefficient.
        y: The target, finite.
        cells: For each configuration the number of its cell: pairs inside cells alone count. None for all pairs.
        permutations: How many; 0 for no p-value.
        generator: Source of the permutations; None means a fresh one from seed 0.

    Source:
        Westfall and Young (1993), Resampling-Based Multiple Testing, section 2.6.
    """
    cells = np.zeros(len(y), dtype=np.int64) if cells is None else cells
    order = orders_inside(cells, count=permutations, generator=source_of(generator))
    return _taus(x, y, cells, order).best(range(len(x)))


@dataclass(frozen=True)
class _Taus:
    """Coefficients of measures, and those of permuted targets.

    Attributes:
        tau: tau_b of each measure.
        chance: Its deviation by chance, without ties.
        null: |tau_b| in each order of the target; 0 where it has none.
    """

    tau: Float[np.ndarray, " m"]
    chance: Float[np.ndarray, " m"]
    null: Float[np.ndarray, "m b"]

    def best(self, places: Sequence[int]) -> Best:
        """The strongest of some of the measures."""
        tau, chance = self.tau[places], self.chance[places]
        if np.isnan(tau).all():
            return Best(-1, math.nan, math.nan)
        place = int(np.nanargmax(np.abs(tau) / chance))
        largest = (self.null[places] / chance[:, None].astype(np.float32)).max(axis=0)
        hits = int((largest >= (abs(tau[place]) - 1e-6) / chance[place]).sum())
        count = len(largest)
        return Best(place, float(tau[place]), (1 + hits) / (1 + count) if count else math.nan)


def orders_inside(
    cells: Int[np.ndarray, " n"], *, count: int, generator: np.random.Generator
) -> Int[np.ndarray, "b n"]:
    """Random orders of configurations that move none out of its cell."""
    base = np.argsort(cells, kind="stable")
    rank = np.unique(cells, return_inverse=True)[1]
    order = np.empty((count, len(cells)), dtype=np.int64)
    order[:, base] = np.argsort(rank + generator.random((count, len(cells))), axis=1)
    return order


def _groups(cells: Int[np.ndarray, " n"], used: Bool[np.ndarray, " n"]) -> list[Int[np.ndarray, " g"]]:
    """The configurations of each cell that has enough of them."""
    groups = [np.flatnonzero(used & (cells == c)) for c in np.unique(cells)]
    return [rows for rows in groups if len(rows) >= CELL_MINIMUM]


def _taus(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, " n"], cells: Int[np.ndarray, " n"], order: Int[np.ndarray, "b n"]
) -> _Taus:
    """Coefficients in the order found and in others.

    An order is of all configurations: a measure that lacks some sees the permuted target in those that it has.
    """
    found = _Taus(np.full(len(x), np.nan), np.ones(len(x)), np.zeros((len(x), len(order)), dtype=np.float32))
    known = np.isfinite(x)
    for pattern in np.unique(known, axis=0):
        rows, groups = np.flatnonzero((known == pattern).all(axis=1)), _groups(cells, pattern)
        if groups:
            some = np.where(pattern, x[rows], 0.0)
            found.tau[rows] = tau_inside(some, y[None], np.ones((1, len(y)), dtype=np.int64), groups)[:, 0, 0]
            found.null[rows] = _permuted(some, y, order, groups)
            sizes = np.array([len(g) for g in groups])
            variance = (sizes * (sizes - 1) * (2 * sizes + 5)).sum() / 18
            found.chance[rows] = math.sqrt(variance) / (sizes * (sizes - 1) / 2).sum()
    return found


def _permuted(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, " n"],
    order: Int[np.ndarray, "b n"],
    groups: list[Int[np.ndarray, " g"]],
) -> Float[np.ndarray, "m b"]:
    """|tau_b| of each measure in each order of the target.

    With many pairs the sum of signs gives way to its projection on ranks, 4/n Σ (R - mean)(S - mean) in each group, at
    the variance that the sum has without ties.
    """
    number = sum(len(rows) * (len(rows) - 1) // 2 for rows in groups)
    scores = _signs if number <= EXACT_PAIRS else _centred_ranks
    left = scores(x, groups)
    untied = _untied(x, groups)
    ranks = dense_ranks(y[None])[0].astype(np.float32)
    untied_y = _untied(ranks[None], groups)
    found = np.zeros((len(x), len(order)), dtype=np.float32)
    step = max(16, BLOCK // left.shape[1])
    for part in (slice(start, start + step) for start in range(0, len(order), step)):
        right = scores(ranks[order[part]], groups)
        if scores is _signs:  # of a measure with holes the ties in what is left of the target differ
            untied_y = np.abs(right).sum(axis=1, dtype=np.float64)
        scale = np.sqrt(untied[:, None] * untied_y)
        score = np.abs(left @ right.T)
        np.divide(score, scale, out=found[:, part], where=scale > 0, casting="same_kind")
    return found


def _untied(values: Float[np.ndarray, "m n"], groups: list[Int[np.ndarray, " g"]]) -> Float[np.ndarray, " m"]:
    """Pairs inside groups that differ, for each row."""
    found = np.zeros(len(values))
    for rows in groups:
        for k, row in enumerate(values[:, rows]):
            alike = np.unique(row, return_counts=True)[1]
            found[k] += (len(rows) ** 2 - (alike**2).sum()) / 2
    return found


def _signs(values: Float[np.ndarray, "m n"], groups: list[Int[np.ndarray, " g"]]) -> Float[np.ndarray, "m p"]:
    """Signs of the differences of all pairs inside groups."""
    columns = []
    for rows in groups:
        i, j = np.triu_indices(len(rows), 1)
        columns.append(np.sign(values[:, rows[i]] - values[:, rows[j]]).astype(np.float32))
    return np.concatenate(columns, axis=1)


def _centred_ranks(values: Float[np.ndarray, "m n"], groups: list[Int[np.ndarray, " g"]]) -> Float[np.ndarray, "m g"]:
    """Ranks inside groups, centred, and so scaled that their products add up to C - D but for the ties' part."""
    columns = []
    for rows in groups:
        n = len(rows)
        spread = math.sqrt(2 * n * (2 * n + 5)) / (2 * (n + 1))  # of C - D to that of its projection
        columns.append((mid_ranks(values[:, rows]) - (n + 1) / 2) * math.sqrt(4 / n * spread))
    return np.concatenate(columns, axis=1).astype(np.float32)


def representative(name: str, variants: Sequence[str], chosen: Mapping[str, str]) -> tuple[str, str]:
    """The variant that stands for a family, chosen by name alone, and a remark where it is not what was asked for.

    Args:
        name: Of the family.
        variants: Those of its measures that were taken, in the order of the table.
        chosen: What a study names for its families, a variant or a measure; where it names none, `REPRESENTATIVES`.
    """
    asked = chosen.get(name)
    for wanted in (asked,) if asked else REPRESENTATIVES.get(name, ()):
        if meant := [v for v in variants if v == wanted] or [v for v in variants if v.partition("[")[0] == wanted]:
            remark = f"{wanted} has {len(meant)} variants, its first stands for it" if len(meant) > 1 else ""
            return meant[0], remark
    return "", f"the representative {asked} was not measured" if asked else "no representative: name one in the study"


def table(evidence: Evidence) -> Rows:
    """Each family on each target: its representative and its strongest, over all pairs and inside cells."""
    data, settings = evidence.data, evidence.settings
    count = min(settings.permutations, PERMUTATIONS)
    every = evidence.correlations[evidence.correlations["coefficient"] == "kendall"]
    names = list(dict.fromkeys(every["measure"]))
    kept = every.reindex(columns=["measure", "target", *KEYS, "warnings"])
    roles = every["role"].eq("baseline") if "role" in every.columns else pd.Series(False, index=every.index)
    baselines = set(every.loc[roles, "measure"])
    families: dict[str, list[str]] = {f: [] for f in (*FAMILIES, "baseline")}
    for name in names:
        families["baseline" if name in baselines else family(name)].append(name)
    rows: Rows = []
    for target in evidence.targets:
        y = data.average([target], data.values[target].notna().to_numpy())[0]
        used = np.isfinite(y)
        n = int(used.sum())
        tried = [m for m in names if m != target]
        x = _averages(evidence, tried, target)[:, used]
        taus = []
        for stream, cells in enumerate((np.zeros(n, dtype=np.int64), data.cells[used])):
            order = orders_inside(cells, count=count * (n >= MINIMUM), generator=settings.generator(8, n, stream))
            taus.append(_taus(x, y[used], cells, order))
        here = kept[kept["target"] == target].set_index("measure")
        for kind, members in families.items():
            variants = [m for m in members if m != target]
            if not variants:
                continue
            shown, remark = representative(kind, variants, settings.representatives)
            of_shown = [here.at[shown, key] if shown else math.nan for key in KEYS]
            said = str(here.loc[shown, "warnings"]) if shown else NO_CLAIM * (n < MINIMUM)
            places = [tried.index(m) for m in variants]
            best: list[object] = []
            for of_kind in taus:
                found = of_kind.best(places)
                best += [variants[found.place] if found.place >= 0 else "", found.value, found.p]
            rows.append((
                kind, target, len(variants), shown, *of_shown[:-1], *best[:3], of_shown[-1], *best[3:],
                joined(remark, said),
            ))  # fmt: skip
    return rows


def _averages(evidence: Evidence, measures: list[str], target: str) -> Float[np.ndarray, "m c"]:
    """Of each measure over the runs in which the target is finite too; NaN where there is none."""
    found = np.full((len(measures), len(evidence.data.methods)), np.nan)
    place = {name: k for k, name in enumerate(measures)}
    for some, _, runs in evidence.data.blocks(measures, [target]):
        found[[place[name] for name in some]] = evidence.data.average(some, runs)
    return found


def _shown(rows: pd.DataFrame, _: Sequence[str]) -> pd.DataFrame:
    return rows


STATISTIC = Statistic(
    name="families",
    columns=(
        "family target variants representative value low high stratified stratified_low stratified_high strongest "
        "strongest_value best_of_k_p p_of_representative strongest_stratified strongest_stratified_value "
        "best_of_k_p_stratified warnings"
    ),
    table=table,
    title="Families of measures",
    note=(
        "For `{target}`: how many variants of a family were tried; the τ_b of the one that was named for it "
        "beforehand, over all models and inside cells of equal hyper-parameters; and the strongest of all, with the "
        "p-value of the best of so many."
    ),
    shown={
        "Family": words("family"),
        "Variants": whole("variants"),
        "Representative": words("representative"),
        "τ_b [{level}]": Cell(("value", "low", "high"), interval),
        "Inside cells": Cell(("stratified", "stratified_low", "stratified_high"), interval),
        "Strongest": words("strongest"),
        "Its τ_b": number("strongest_value"),
        "p, best of all": chance("best_of_k_p"),
        "Strongest inside": words("strongest_stratified"),
        "Its τ_b inside": number("strongest_stratified_value"),
        "p, best of all inside": chance("best_of_k_p_stratified"),
    },
    words=("Family", "Representative", "Strongest", "Strongest inside"),
    chosen=_shown,
)
