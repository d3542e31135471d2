"""Conditional mutual information: does the measure explain the target beyond any two hyper-parameters?

For every ordered pair of distinct models the signs V_x and V_y say which is larger. Within the pairs that have the same
two hyper-parameter settings S, the information between the signs, relative to the entropy of V_y, is what the measure
tells when those settings are known.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from analysis.statistics.arguments import one_of
from analysis.statistics.evidence import Evidence, Rows
from analysis.statistics.granulated import axis_kendall, mean_of
from analysis.statistics.grid import axis_pairs, joint, levels
from analysis.statistics.kendall import BLOCK, dense_ranks
from analysis.statistics.randomness import source_of
from analysis.statistics.statistic import Cell, Statistic, number, words

TIES = ("drop", "minus", "three-valued")
CELLS = ("counts", "uniform")
SHUFFLES = 10  # for the baseline

_TABLES = 1 << 20  # numbers in the tables gathered before their information is taken
Subset = tuple[str, ...]


@dataclass(frozen=True)
class Conditional:
    """One conditioning set.

    Attributes:
        information: Σ_u p(u) I(V_x; V_y | U_S = u), in nats.
        entropy: Σ_u p(u) H(V_y | U_S = u), in nats.
        ratio: Their ratio, in [0, 1]; NaN where the entropy is 0.
        fewest: Pairs in the smallest cell that has any: with few the ratio is biased upwards.
    """

    information: float
    entropy: float
    ratio: float
    fewest: int


@dataclass(frozen=True)
class InformationEvidence:
    """K, the smallest ratio over the conditioning sets.

    Attributes:
        value: K in [0, 1]; NaN where no set has entropy. K has no sign: K of -x is K of x.
        subset: The set that attains it.
        baseline: Mean ratio at that set with x shuffled inside its cells: what chance gives; NaN if not asked for.
        baseline_stderr: Its standard error over the shuffles.
        subsets: Every set.
        warnings: What a reader must know.
    """

    value: float
    subset: Subset
    baseline: float
    baseline_stderr: float
    subsets: dict[Subset, Conditional]
    warnings: str = ""


@dataclass(frozen=True)
class Rule:
    """How pairs are counted.

    Attributes:
        ties: Pairs tied in x or y are left out ("drop"), count as "not greater" ("minus"), or are a value of their own
            ("three-valued").
        self_pairs: Whether each model is paired with itself, too.
        cells: Cells weigh as their pairs ("counts") or all the same ("uniform", over those with pairs).
    """

    ties: str = "drop"
    self_pairs: bool = False
    cells: str = "counts"

    def __post_init__(self) -> None:
        one_of("ties", self.ties, TIES)
        one_of("cells", self.cells, CELLS)


PGDL = Rule(ties="minus", self_pairs=True, cells="uniform")  # as the score of the PGDL competition, |S| = 2 alone


def conditional_information(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    coordinates: Mapping[str, Sequence[Any]],
    *,
    sizes: Sequence[int] = (0, 1, 2),
    rule: Rule | None = None,
    shuffles: int = 0,
    generator: np.random.Generator | None = None,
) -> InformationEvidence:
    """K = min over sets S of at most two hyper-parameters of I(V_x; V_y | U_S)/H(V_y | U_S).

    The ratio is not monotone in S, as conditioning lowers the entropy too, so every set is visited. Sets without
    entropy are skipped.

    Args:
        x: The measure, a value a model; models where x or y is not finite are left out.
        y: The target.
        coordinates: For each hyper-parameter its value in each model.
        sizes: Sizes of the sets; (2,) with `rule=PGDL` gives the competition's score over 100 (on complete grids; there
            empty cells divide by zero, here they are left out).
        rule: How pairs are counted.
        shuffles: Shuffles of x inside the cells of the best set, for the baseline; 0 for none.
        generator: Source of the shuffles; None means a fresh one from seed 0.

    Raises:
        ValueError: If shapes differ, or a size is negative.

    Source:
        Jiang et al. (2020), ICLR, section 3.3; PGDL: Jiang et al. (2020), NeurIPS competition.
    """
    names, codes = levels(coordinates)
    if not x.shape == y.shape == codes.shape[1:]:
        raise ValueError(f"`x`, `y` and `coordinates` must agree, got {x.shape}, {y.shape} and {codes.shape[1:]}.")
    if any(s < 0 for s in sizes) or not len(sizes):
        raise ValueError(f"`sizes` must be sizes of sets >= 0, such as (0, 1, 2), got {sizes!r}.")
    generator = source_of(generator)
    rule = rule or Rule()
    used = np.isfinite(x) & np.isfinite(y)
    codes, x, y = codes[:, used], x[None, used], y[None, used]
    found: dict[Subset, Conditional] = {}
    of: dict[Subset, np.ndarray] = {}
    for some in subsets(len(names), sizes):
        key = tuple(names[k] for k in some)
        of[key] = joint(codes[list(some)])
        information, entropy, fewest = conditional_ratio(x, y, of[key], rule=rule)
        ratio = float(ratio_of(information, entropy)[0, 0])
        found[key] = Conditional(float(information[0, 0]), float(entropy[0, 0]), ratio, int(fewest[0, 0]))
    known = {k: v.ratio for k, v in found.items() if math.isfinite(v.ratio)}
    lost = int((~used).sum())
    notes = [f"{lost} models that are not finite left out"] if lost else []
    if not known:
        reason = "no pair of models differs in the target" if x.shape[1] > 1 else "fewer than 2 models"
        return InformationEvidence(math.nan, (), math.nan, math.nan, found, "; ".join([*notes, reason]))
    best = min(known, key=lambda k: known[k])
    fewest_pairs = found[best].fewest
    if fewest_pairs < FEW_PAIRS:
        notes.append(few(fewest_pairs))
    base = error = math.nan
    if shuffles:
        draws = shuffled(x[0], of[best], count=shuffles, generator=generator)
        null = ratio_of(*conditional_ratio(draws, y, of[best], rule=rule)[:2])[:, 0]
        base, error = mean_and_error(null)
    return InformationEvidence(known[best], best, base, error, found, "; ".join(notes))


FEW_PAIRS = 20


def few(pairs: int) -> str:
    """The warning for cells with few pairs."""
    return f"a cell of {pairs} pairs: biased upwards, compare with the baseline"


def subsets(axes: int, sizes: Sequence[int] = (0, 1, 2)) -> Iterator[tuple[int, ...]]:
    """All sets of the given sizes, smaller ones first."""
    for size in sorted(set(sizes)):
        yield from combinations(range(axes), size)


def ratio_of(
    information: Float[np.ndarray, "*shape"], entropy: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """information/entropy within [0, 1]; NaN where the entropy is 0."""
    ratio = np.divide(information, entropy, out=np.full(entropy.shape, np.nan), where=entropy > 1e-12)
    clipped: Float[np.ndarray, "*shape"] = np.clip(ratio, 0.0, 1.0)
    return clipped


def mean_and_error(values: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """Mean of the finite values and its standard error; NaN where there are too few."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.nan, math.nan
    return float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else math.nan


def shuffled(
    x: Float[np.ndarray, " n"], cell: Int[np.ndarray, " n"], *, count: int, generator: np.random.Generator
) -> Float[np.ndarray, "b n"]:
    """Permute x among the units of each cell, `count` times."""
    place = np.argsort(cell, kind="stable")
    moved = np.argsort(cell[None] + generator.random((count, len(x))), axis=1)
    out = np.empty((count, len(x)))
    out[:, place] = x[moved]
    return out


def conditional_ratio(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], code: Int[np.ndarray, " n"], *, rule: Rule
) -> tuple[Float[np.ndarray, "m t"], Float[np.ndarray, "m t"], Float[np.ndarray, "m t"]]:
    """Conditional information and entropy (nats) of every measure and target, finite, and the smallest cell's pairs.

    Args:
        x: m measures.
        y: t targets.
        code: The setting of S in each model; a cell is an ordered pair of settings.
        rule: How pairs are counted.
    """
    shape = (len(x), len(y))
    information, entropy = np.zeros(shape), np.zeros(shape)
    total, fewest = np.zeros(shape), np.full(shape, np.inf)

    def take(tables: list[np.ndarray], mirrored: list[bool]) -> None:
        counts = np.stack(tables)
        counts = np.concatenate([counts, counts[np.array(mirrored)][:, ::-1, ::-1]])  # the cell (b, a) of (a, b)
        if rule.ties == "drop":
            counts = counts[:, ::2, ::2]
        elif rule.ties == "minus":
            counts = np.stack([counts[:, 0], counts[:, 1:].sum(axis=1)], axis=1)
            counts = np.stack([counts[:, :, 0], counts[:, :, 1:].sum(axis=2)], axis=2)
        pairs = counts.sum(axis=(1, 2))
        weight = pairs if rule.cells == "counts" else (pairs > 0).astype(np.float64)
        h_x, h_y = _entropy(counts.sum(axis=2), pairs), _entropy(counts.sum(axis=1), pairs)
        both = _entropy(counts.reshape(len(counts), -1, *shape), pairs)
        np.add(information, (weight * np.maximum(h_x + h_y - both, 0.0)).sum(axis=0), out=information)
        np.add(entropy, (weight * h_y).sum(axis=0), out=entropy)
        np.add(total, weight.sum(axis=0), out=total)
        np.minimum(fewest, np.where(pairs > 0, pairs, np.inf).min(axis=0), out=fewest)

    tables: list[np.ndarray] = []
    mirrored: list[bool] = []
    for table, is_mirrored in _tables(x, y, code, self_pairs=rule.self_pairs):
        tables.append(table)
        mirrored.append(is_mirrored)
        if len(tables) * table.size > _TABLES:
            take(tables, mirrored)
            tables, mirrored = [], []
    if tables:
        take(tables, mirrored)
    total = np.maximum(total, 1.0)
    return information / total, entropy / total, np.where(np.isfinite(fewest), fewest, 0.0)


def _tables(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], code: Int[np.ndarray, " n"], *, self_pairs: bool
) -> Iterator[tuple[Float[np.ndarray, "3 3 m t"], bool]]:
    """Pairs by the signs (+, 0, -) of x and of y, for each two settings; and whether the mirrored cell is another."""
    x, y = (_narrow(dense_ranks(v)) for v in (x, y))  # only the order counts
    order = np.argsort(code, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(code[order])) + 1) if len(code) else []
    for a, first in enumerate(members):
        for second in members[a + 1 :]:
            yield _counts(x, y, first, second), True
        table = _inside(x, y, first)  # both orders of each pair, and each model with itself
        table[1, 1] -= 0 if self_pairs else len(first)
        if table.any():
            yield table, False


def _narrow(ranks: Int[np.ndarray, "v n"]) -> Int[np.ndarray, "v n"]:
    small: Int[np.ndarray, "v n"] = ranks.astype(np.int16 if ranks.max(initial=0) < 2**15 else np.int32)
    return small


def _inside(x: np.ndarray, y: np.ndarray, members: np.ndarray) -> Float[np.ndarray, "3 3 m t"]:
    """All ordered pairs of one cell: the two halves, and the pairs between them with their mirror image."""
    if len(members) <= 48:
        return _counts(x, y, members, members)
    one, other = members[: len(members) // 2], members[len(members) // 2 :]
    between = _counts(x, y, one, other)
    table: np.ndarray = _inside(x, y, one) + _inside(x, y, other) + between + between[::-1, ::-1]
    return table


def _counts(x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, "3 3 m t"]:
    m, t = len(x), len(y)
    table = np.zeros((3, 3, m, t))
    step = max(1, BLOCK // ((m + t) * len(second)))
    for s in range(0, len(first), step):
        rows = first[s : s + step]
        size = len(rows) * len(second)
        left_x, right_x = x[:, rows, None], x[:, None, second]
        left_y, right_y = y[:, rows, None], y[:, None, second]
        of_x = [f(left_x, right_x).reshape(m, size).astype(np.float32) for f in (np.greater, np.less)]
        of_y = [f(left_y, right_y).reshape(t, size).astype(np.float32) for f in (np.greater, np.less)]
        number_x, number_y = [v.sum(axis=1) for v in of_x], [v.sum(axis=1) for v in of_y]
        corner = [[u @ v.T for v in of_y] for u in of_x]
        for i, row in zip((0, 2), corner, strict=True):
            table[i, 0] += row[0]
            table[i, 2] += row[1]
            table[i, 1] += number_x[i // 2][:, None] - row[0] - row[1]
        for j in (0, 1):
            table[1, 2 * j] += number_y[j][None, :] - corner[0][j] - corner[1][j]
        above = sum(number_x)[:, None] + sum(number_y)[None, :] - sum(c for row in corner for c in row)
        table[1, 1] += size - above
    return table


def _entropy(counts: Float[np.ndarray, "c v m t"], total: Float[np.ndarray, "c m t"]) -> Float[np.ndarray, "c m t"]:
    """Entropy in nats of counts along axis 1; 0 for no counts."""
    p = counts / np.maximum(total, 1.0)[:, None]
    h: Float[np.ndarray, "c m t"] = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return h


def table(evidence: Evidence) -> Rows:
    """K with the set that attains it, its baseline, and the sign of Psi, as K has none."""
    names, codes, note = evidence.grid()
    rows: Rows = []
    chosen = list(subsets(len(names)))
    rule = Rule()
    for block in evidence.blocks():
        n, shape, some = block.n, block.shape, codes[:, block.used]
        best, fewest = np.full(shape, np.inf), np.zeros(shape)
        at, plain = np.full(shape, -1), np.full(shape, math.nan)
        for k, subset in enumerate(chosen if n > 1 else []):
            information, entropy, pairs = conditional_ratio(block.x, block.y, joint(some[list(subset)]), rule=rule)
            ratio = ratio_of(information, entropy)
            better = ratio < best  # NaN is not
            best, at, fewest = (np.where(better, new, old) for new, old in ((ratio, best), (k, at), (pairs, fewest)))
            if not subset:
                plain = ratio
        base, error = np.full(shape, math.nan), np.full(shape, math.nan)
        for k in np.unique(at[at >= 0]) if evidence.settings.permutations and n > 1 else []:
            code = joint(some[list(chosen[k])])
            for i in np.flatnonzero((at == k).any(axis=1)).tolist():
                here = np.flatnonzero(at[i] == k).tolist()
                generator = evidence.settings.generator(5, n, int(k))
                moved = shuffled(block.x[i], code, count=SHUFFLES, generator=generator)
                null = ratio_of(*conditional_ratio(moved, block.y[here], code, rule=rule)[:2])
                for c, j in enumerate(here):
                    base[i, j], error[i, j] = mean_and_error(null[:, c])
        axes = axis_pairs(names, some) if names else []
        sign = np.sign(mean_of(axis_kendall(block.x, block.y, axes), axes))
        found = at >= 0
        value = np.where(found, best, math.nan)
        sets = ["+".join(names[a] for a in subset) or "none" for subset in chosen]
        subset_names = np.array([*sets, ""], dtype=object)[at]
        rows += block.rows(
            value, subset_names, sign, plain, base, error, value - base, fewest.astype(int), len(chosen),
            remarks=(
                np.where(found & (fewest < FEW_PAIRS), np.vectorize(few, otypes=[object])(fewest.astype(int)), ""),
                np.where(found & (base >= value), "no more than chance gives", ""),
                "" if names else "no hyper-parameter varies: nothing to condition on",
                note,
            ),
        )  # fmt: skip
    return rows


STATISTIC = Statistic(
    name="information",
    columns=(
        "measure target k subset sign_of_psi unconditional baseline baseline_stderr excess fewest_pairs subsets "
        "warnings"
    ),
    table=table,
    title="Information beyond hyper-parameters",
    note=(
        "K: the information that the order by the measure carries about the order by `{target}`, given up to two "
        "hyper-parameters, for the pair that leaves least; 0 is none, 1 all (Jiang et al. 2020). By chance: the same "
        "with the measure shuffled within the conditions."
    ),
    shown={
        "K": number("k"),
        "Given": words("subset"),
        "Sign of Ψ": Cell(("sign_of_psi",), lambda s: {1: "+", -1: "−", 0: "0"}.get(s, "–")),
        "By chance": number("baseline"),
        "Above chance": number("excess"),
    },
    words=("Given",),
)
