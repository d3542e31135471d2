"""The table of correlations: one row a measure, named ones and baselines first, and its variants below it."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import corrected_p, lineup, marks
from analysis.figures.correlations import leading, of_target
from analysis.reporting.table import SHOWN_ROWS, Table, remarks, written
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE
from analysis.statistics.exchangeability import WHOLE_VARIANTS
from analysis.statistics.statistic import WITHIN, Cell, whole, words
from analysis.style import count, interval

LEAST_OTHERS = 12  # rows beside the named ones and the baselines, however many these are
SIGNS = {1: "+", -1: "−", 0: "?"}
CORRECTIONS = {"holm": "Holm", "max-T": "max-T"}


def correlations(results: StudyResults) -> Table:
    """Rank correlations of measures with every target; shown for the leading target, one row a measure."""
    target, _ = leading(results)
    rows = of_target(results.correlations, target)
    standings = lineup(results, rows)
    standings = standings[: max(SHOWN_ROWS, LEAST_OTHERS + sum(bool(s.stands_for) for s in standings))]
    records: list[dict[Any, Any]] = []
    heads: list[int] = []
    for standing in standings:
        heads.append(len(records))
        records.append({**standing.row, "stands_for": standing.stands_for, "variants": 1 + len(standing.others)})
        records += [{**row, "stands_for": "", "variants": np.nan} for row in standing.others.to_dict("records")]
    every = pd.DataFrame(records, columns=[*rows.columns, "stands_for", "variants"])
    shown, note = remarks(written(every, _cells(rows, results.facts()["level"])), _note(results, target, rows))
    for name in ("Stratified τ_b", "p (stratified)", "Warned"):
        if shown[name].isin(["", "–"]).all():
            shown = shown.drop(columns=name)
    ends = [*heads, len(records)][1:]
    return Table(
        "correlations",
        "Correlations",
        note,
        results.correlations,
        shown.iloc[heads],
        tuple(c for c in ("Measure", "Stands for", "Remark") if c in shown.columns),
        "No correlation: too few finished configurations, or nothing was measured.",
        below={k: shown.iloc[a + 1 : b] for k, (a, b) in enumerate(zip(heads, ends, strict=True)) if b > a + 1},
    )


def _cells(rows: pd.DataFrame, level: str) -> dict[str, Cell]:
    kinds = sorted({CORRECTIONS.get(str(name), str(name)) for name in rows["correction"]}) or ["Holm"]
    return {
        "Measure": Cell(("measure", "warned"), _named),
        "Stands for": words("stands_for"),
        "Variants": Cell(("variants",), lambda n: "" if pd.isna(n) else count(n)),
        f"τ_b [{level}]": Cell(("value", "low", "high"), interval),
        f"p ({', '.join(kinds)})": _p(""),
        "Stratified τ_b": Cell(("stratified", "stratified_low", "stratified_high", "cell_reversal"), _inside),
        "p (stratified)": _p("stratified_"),
        "Within methods": WITHIN["Within"],
        "Expected": Cell(("expected_sign",), lambda sign: SIGNS.get(int(sign), "?")),
        "Warned": Cell(("warned",), lambda share: f"{100 * share:.0f} %" if share > 0 else ""),
        "n": whole("n_configurations"),
        "Left out": whole("dropped"),
        "Remark": Cell(("warnings", "warned_as"), lambda *texts: "; ".join(str(t) for t in texts if t and t == t)),
    }


def _named(measure: str, warned: float) -> str:
    marked = marks({"measure": measure, "warned": warned})
    return f"{measure} {marked}" if marked else measure


def _inside(value: float, low: float, high: float, reversal: bool) -> str:
    return interval(value, low, high) + " ⇄" * bool(reversal) if np.isfinite(value) else "–"


def _p(of: str) -> Cell:
    columns = (f"{of}p", f"{of}p_adjusted", f"{of}p_floor", "correction")
    return Cell(columns, lambda *values: corrected_p(dict(zip(columns, values, strict=True)), of))


def _note(results: StudyResults, target: str, rows: pd.DataFrame) -> str:
    facts = results.facts()
    candidates = rows[(rows["role"] != BASELINE) & np.isfinite(rows["value"].to_numpy(dtype=float))]
    by_max = (candidates["correction"] == "max-T").any()
    return (
        f"Kendall's τ_b with `{target}`: first one measure of each family, chosen without looking at the target, then "
        "the baselines, which are known without any measure, then the other measures, strongest first. "
        "Each row stands for all variants of its measure. Variants: how many were tried; the page opens them, and the "
        "CSV file holds every variant and target, with Spearman and Pearson. A measure that was not named shows the "
        "variant that the study's comparisons name, or the first by name, not its strongest. "
        f"Pooled: over all pairs of configurations, each averaged over its seeds. {_capital(facts['intervals'])}. "
        f"The p-values are from {facts['permutations']}{_permuted(candidates)}, corrected "
        f"{'by step-down max-T' if by_max else 'by Holm'} over the {len(candidates)} candidates; ≤ stands before the "
        "smallest p that the permutations could give. "
        f"{_stratified(candidates)}"
        "Within methods: mean of τ_b inside each method. ⇄ marks a coefficient that is reversed against the pooled "
        "one. Expected: sign of the correlation with the gap that the measure's theory predicts. † sees held-out "
        "labels, so judge it against the validation error. ⚠ Some of its values carry a warning. Left out: "
        "configurations without a finite value."
    )


def _permuted(rows: pd.DataFrame) -> str:
    """Over what the target was permuted, in words; nothing where the table does not say."""
    inside = int((rows["permuted"] == "inside methods").sum())
    if not inside:
        return ", freely over configurations" if (rows["permuted"] == "freely").any() else ""
    where = "" if inside == len(rows) else f" for {inside} of them, freely for the others"
    return f" inside methods{where} (where both measure and target differ between methods)"


def _stratified(rows: pd.DataFrame) -> str:
    if not np.isfinite(rows["stratified"].to_numpy(dtype=float)).any():
        return ""
    together = int((rows["stratified_permuted"] == WHOLE_VARIANTS).sum())
    alike = f", for {together} of them whole variants of methods in all cells alike" if together else ""
    return (
        "Stratified: over pairs of one cell, whose hyper-parameters of training (learning rate, batch size, ...) are "
        f"equal, so that models differ in the method alone; {_span(rows['cells'])} cells of at least 3 configurations. "
        f"Its p-values permute inside cells{alike}. "
    )


def _span(counts: Any) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
