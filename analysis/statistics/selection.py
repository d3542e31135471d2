"""The best of many: choose a variant of a measure on one half of the configurations, report it on the other.

The largest of many |tau| is too large by the choice itself. Here the half that chooses is not the half that reports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.statistics.evidence import Evidence, Rows
from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.randomness import source_of
from analysis.statistics.statistic import SHOWN, Cell, Statistic, number, whole, words
from analysis.style import fixed

MINIMUM = 10  # configurations, so that a half has five
SPLITS = 100  # of the table


@dataclass(frozen=True)
class Selection:
    """What is left of the best variant on configurations that did not choose it.

    Attributes:
        chosen: Index of the variant with the largest |tau_b| over all configurations; -1 where none has a value.
        naive: Its |tau_b|, which the choice has made too large.
        held_out: Mean over splits of tau_b on the other half, times the sign it had on the half that chose; below 0
            where the sign does not hold.
        low: 2.5 % point of that over splits: how much it depends on the split, no confidence interval.
        high: 97.5 % point.
        shares: How often each variant was chosen.
        n: Configurations in which all is finite.
        warnings: What a reader must know.
    """

    chosen: int
    naive: float
    held_out: float
    low: float
    high: float
    shares: Float[np.ndarray, " v"]
    n: int
    warnings: str = ""


def split_selection(
    x: Float[np.ndarray, "v n"],
    y: Float[np.ndarray, " n"],
    *,
    splits: int = 200,
    generator: np.random.Generator | None = None,
) -> Selection:
    """Choose among variants by |tau_b| on a random half of the configurations, report on the other half, many times.

    Args:
        x: Variants of one measure (its radii, say), a row each; configurations where any is not finite are left out.
        y: The target.
        splits: Random halves, at least 1.
        generator: Their source; None means a fresh one from seed 0.

    Raises:
        ValueError: If shapes do not agree, there is no variant, or `splits` is below 1.

    Source:
        Our definition.
    """
    if x.ndim != 2 or not len(x) or x.shape[1:] != y.shape:
        raise ValueError(f"`x` must hold a row of configurations for each variant, got {x.shape} for `y` {y.shape}.")
    if splits < 1:
        raise ValueError(f"`splits` must be at least 1, got {splits!r}.")
    generator = source_of(generator)
    used = np.isfinite(x).all(axis=0) & np.isfinite(y)
    x, y, n = x[:, used], y[used], int(used.sum())
    nan, shares = math.nan, np.zeros(len(x))
    lost = int((~used).sum())
    notes = [f"{lost} configurations that are not finite left out"] if lost else []
    if n < 2:
        return Selection(-1, nan, nan, nan, nan, shares, n, "; ".join([*notes, "fewer than 2 configurations"]))
    whole = np.abs(weighted_kendall(x, y[None], np.ones((1, n), dtype=np.int64))[:, 0, 0])
    if np.isnan(whole).all():
        return Selection(-1, nan, nan, nan, nan, shares, n, "; ".join([*notes, "constant measure or target"]))
    chosen = int(np.nanargmax(whole))
    if n < MINIMUM:
        notes.append(f"fewer than {MINIMUM} configurations: no halves")
        return Selection(chosen, float(whole[chosen]), nan, nan, nan, shares, n, "; ".join(notes))
    order = np.argsort(generator.random((splits, n)), axis=1)
    half = np.zeros((splits, n), dtype=np.int64)
    np.put_along_axis(half, order[:, : n // 2], 1, axis=1)
    tau = weighted_kendall(x, y[None], np.concatenate([half, 1 - half]))[:, 0]
    one, other = tau[:, :splits], tau[:, splits:]
    # Which half chooses must not matter: both do in turn.
    held = []
    for choose, tell in ((one, other), (other, one)):
        strength = np.where(np.isnan(choose), -1.0, np.abs(choose))
        best = strength.argmax(axis=0)
        at = np.arange(splits)
        held.append(np.where(strength[best, at] >= 0, tell[best, at] * np.sign(choose[best, at]), np.nan))
        shares += np.bincount(best, minlength=len(x)) / (2 * splits)
    told = np.concatenate(held)
    told = told[np.isfinite(told)]
    if not len(told):
        return Selection(chosen, float(whole[chosen]), nan, nan, nan, shares, n, "; ".join([*notes, "constant halves"]))
    low, high = np.percentile(told, [2.5, 97.5])
    return Selection(
        chosen, float(whole[chosen]), float(told.mean()), float(low), float(high), shares, n, "; ".join(notes)
    )


def table(evidence: Evidence) -> Rows:
    """For each measure with several variants, the best of them on configurations that did not choose it."""
    data = evidence.data
    families: dict[str, list[str]] = {}
    for name in evidence.measures:
        families.setdefault(data.measure[name], []).append(name)
    rows: Rows = []
    for (family, names), target in product(families.items(), evidence.targets):
        used = [m for m in names if m != target and data.values[m].notna().any()]
        if len(used) < 2:
            continue
        runs = data.values[[*used, target]].notna().all(axis=1).to_numpy()
        *x, y = data.average([*used, target], runs)
        generator = evidence.settings.generator(7, len(y))
        found = split_selection(np.stack(x), y, splits=SPLITS, generator=generator)
        best, share = "", math.nan
        if found.chosen >= 0:
            best, share = used[found.chosen], float(found.shares[found.chosen])
        rows.append((family, target, len(used), best, found.naive, found.held_out, found.low, found.high, share,
                     found.n, found.warnings))  # fmt: skip
    return rows


def _shown(rows: pd.DataFrame, _: Sequence[str]) -> pd.DataFrame:
    """The measures whose best variant holds best, whether they lead or not."""
    rows = rows[np.isfinite(rows["held_out"].to_numpy(dtype=float))]
    return rows.reindex(rows["held_out"].abs().sort_values(ascending=False, kind="stable").index).head(SHOWN)


STATISTIC = Statistic(
    name="selection",
    columns="measure target variants best naive held_out split_low split_high chosen_share n_configurations warnings",
    table=table,
    title="Choosing among variants",
    note=(
        "The best of a measure's variants for `{target}`, chosen on one half of the configurations and judged on the "
        "other, over random halves. The drop from the first to the second τ_b is the bias of choosing the best."
    ),
    shown={
        "Variants": whole("variants"),
        "Best": words("best"),
        "τ_b where chosen": number("naive"),
        "τ_b elsewhere": number("held_out"),
        "Chosen in": Cell(("chosen_share",), lambda share: f"{fixed(100 * share, 0)} %"),
    },
    words=("Best",),
    chosen=_shown,
)
