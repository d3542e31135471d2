"""Who explains a target: measures named in advance, baselines, and all others, one row a measure.

A correlations table holds hundreds of variants. A reader is shown first what was chosen without looking at the target
(one representative of each family), then what is known without any measure (baselines), then the other measures, each
by one variant that was not chosen by its strength either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures import registry
from analysis.results import StudyResults
from analysis.statistics.comparison import STRATIFIED
from analysis.statistics.correlation_rows import BASELINE, completed
from analysis.statistics.families import representative
from analysis.statistics.resampling import MINIMUM
from analysis.style import FAMILIES, family, fixed, p_value

SIZE_OF_ROUNDING = 1 + 1e-9
MARKS = {"held-out labels": "†", "noisy labels": "‡"}  # of `analysis.measures.registry.marks`


def family_of(row: Mapping[Any, Any]) -> str:
    """The family that a row is shown with; baselines are one of their own."""
    return BASELINE if row["role"] == BASELINE else family(row["measure"])


def marks(row: Mapping[Any, Any], *, noisy: bool) -> str:
    """† where held-out labels were seen, ‡ where noisy labels were taken as given, ⚠ where values carry a warning."""
    seen = "".join(MARKS[mark] for mark in registry.marks(row["measure"], noisy=noisy))
    return seen + "⚠" * bool(row["warned"] > 0)


def noisy_labels(results: StudyResults) -> bool:
    """Whether any run was trained on labels that were made noisy."""
    noise = pd.to_numeric(results.runs.get("hp.label_noise", pd.Series(dtype=float)), errors="coerce")
    return bool((noise > 0).any())


def corrected_p(row: Mapping[Any, Any], of: str = "") -> str:
    """The corrected p-value of a row for a reader; "≤" before the smallest that its permutations could give.

    Args:
        row: Of a completed table.
        of: "" for the pooled coefficient, "stratified_" for that inside cells.
    """
    p, floor = float(row[f"{of}p_adjusted"]), float(row[f"{of}p_floor"])
    if not math.isfinite(p):
        return "–"
    lowest = float(row[f"{of}p"]) if row["correction"] == "holm" else p  # Holm multiplies the floor
    if not lowest <= floor * SIZE_OF_ROUNDING:
        return p_value(p)
    digits = max(3, -math.floor(math.log10(p)))
    text = fixed(math.ceil(p * 10**digits * (2 - SIZE_OF_ROUNDING)) / 10**digits, digits)
    return f"≤ {text[:5]}{text[5:].rstrip('0')}" if p < 1 else "1"


def one_cell(correlations: pd.DataFrame, target: str) -> bool:
    """Whether all models of a target are in one cell: they share the hyper-parameters of training."""
    rows = completed(correlations[correlations["target"] == target])
    rows = rows[np.isfinite(rows["stratified"].to_numpy(dtype=float))]
    return len(rows) > 0 and bool(((rows["cells"] == 1) & (rows["cells_dropped"] == 0)).all())


def compared(results: StudyResults, target: str) -> pd.DataFrame:
    """Comparisons of pairs of measures on a target; those inside cells only where there is more than one."""
    rows = results.comparisons[results.comparisons["target"] == target]
    if one_cell(results.correlations, target):
        rows = rows[rows["pairs"] != STRATIFIED]
    return rows


@dataclass(frozen=True)
class Standing:
    """One row for a reader, and the variants of its measure that stand behind it.

    Attributes:
        row: The row of the variant shown.
        named: The family that it was named to represent; empty for others.
        others: Rows of the other variants, strongest first.
    """

    row: dict[Any, Any]
    named: str
    others: list[dict[Any, Any]]

    @property
    def stands_for(self) -> str:
        """What a table says of it: its family where it was named for it, "baseline", or nothing."""
        return self.named or (BASELINE if self.row["role"] == BASELINE else "")


def representatives(results: StudyResults, rows: pd.DataFrame) -> dict[str, str]:
    """For each family with a candidate among some rows of one target the variant that represents it.

    It is chosen without the target: by the table `families`, else by the study, else the usual one.
    """
    candidates = rows.loc[rows["role"] != BASELINE, "measure"].tolist()
    table = results.further.get("families", pd.DataFrame(columns=["family", "target", "representative"]))
    here = table[table["target"].isin(set(rows["target"]))]
    chosen = {**named(results), **dict(zip(here["family"], here["representative"], strict=True))}
    found = {}
    for kind in (k for k in FAMILIES if k not in ("other", BASELINE)):
        wanted = chosen.get(kind, "")
        of_family = [m for m in candidates if family(m) == kind]
        variant = wanted if wanted in candidates else representative(kind, of_family, {})[0]
        if variant:
            found[kind] = variant
    return found


def named(results: StudyResults) -> dict[str, str]:
    """The representatives of families that the study itself names."""
    statistics = (results.study.get("study") or {}).get("statistics") or {}
    return dict(statistics.get("representatives") or {})


def lineup(results: StudyResults, rows: pd.DataFrame) -> list[Standing]:
    """Rows of one target and coefficient as a reader sees them.

    First the representatives of the families, in fixed order; then the baselines, then the other measures, each by the
    variant that the study's comparisons name or the first by name, both strongest first; those on fewer than 5
    configurations come last.
    """
    rows = strength_first(completed(rows))
    pairs = ((results.study.get("study") or {}).get("statistics") or {}).get("compare") or ()
    compared = {name for pair in pairs for name in pair}
    chosen = representatives(results, rows.sort_values("measure", kind="stable"))
    groups: dict[str, list[dict[Any, Any]]] = {}
    for row in rows.to_dict("records"):
        groups.setdefault(row["measure"].partition("[")[0], []).append(row)
    out, taken = [], set()
    for kind, measure in chosen.items():
        group = groups[measure.partition("[")[0]]
        taken.add(measure.partition("[")[0])
        out.append(_standing(group, measure, kind))
    rest = []
    for name, group in groups.items():
        if name in taken:
            continue
        first = min((row["measure"] for row in group), key=lambda m: (m not in compared, m))
        rest.append(_standing(group, first, ""))
    few = [s.row["n_configurations"] < MINIMUM for s in rest]
    keys = [(s.row["role"] != BASELINE, f, -abs(s.row["value"])) for s, f in zip(rest, few, strict=True)]
    return out + [rest[i] for i in sorted(range(len(rest)), key=keys.__getitem__)]


def _standing(group: list[dict[Any, Any]], measure: str, kind: str) -> Standing:
    at = next(i for i, row in enumerate(group) if row["measure"] == measure)
    return Standing(group[at], kind, [*group[:at], *group[at + 1 :]])


def strength_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a finite value, by absolute value; those on fewer than 5 configurations after all others."""
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    few = rows["n_configurations"] < MINIMUM  # two configurations always agree, or always disagree
    order = rows.assign(few=few, strength=rows["value"].abs()).sort_values(
        ["few", "strength", "measure"], ascending=[True, False, True]
    )
    kept: pd.DataFrame = order.drop(columns=["few", "strength"])
    return kept
