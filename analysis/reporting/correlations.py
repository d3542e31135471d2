"""The table of correlations: one row a measure, named ones and baselines first, and its variants below it."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import corrected_p, lineup, marks, noisy_labels
from analysis.figures.correlations import leading, of_target
from analysis.reporting.lead import listed
from analysis.reporting.table import NOTHING, SHOWN_ROWS, Table, remarks, written
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE
from analysis.statistics.exchangeability import (
    COMPLETE_CELLS,
    COMPLETE_METHODS,
    COMPLETE_VARIANTS,
    FREELY,
    INSIDE_METHODS,
    POOLED,
)
from analysis.statistics.statistic import SIGNS, WITHIN, Cell, whole, words
from analysis.style import count, counted, from_to, interval

MOVED = {  # over what the target is permuted, in words
    FREELY: "freely over configurations",
    INSIDE_METHODS: "inside methods (where both measure and target differ between methods)",
    COMPLETE_CELLS: "by complete cells and methods (where both differ between cells of equal hyper-parameters)",
}
LEAST_OTHERS = 12  # rows beside the named ones and the baselines, however many these are
CORRECTIONS = {"holm": "Holm", "max-T": "max-T"}


def correlations(results: StudyResults) -> Table:
    """Rank correlations of measures with every target; shown for the leading target, one row a measure."""
    target, _ = leading(results)
    rows = of_target(results.correlations, target)
    standings = lineup(results, rows)
    every_measure = len(standings)
    standings = standings[: max(SHOWN_ROWS, LEAST_OTHERS + sum(bool(s.stands_for) for s in standings))]
    left = every_measure - len(standings)
    records: list[dict[Any, Any]] = []
    heads: list[int] = []
    for standing in standings:
        heads.append(len(records))
        records.append({**standing.row, "stands_for": standing.stands_for, "variants": 1 + len(standing.others)})
        records += [{**row, "stands_for": "", "variants": np.nan} for row in standing.others]
    every = pd.DataFrame(records, columns=[*rows.columns, "stands_for", "variants"])
    cells = _cells(rows, results.facts()["level"], noisy=noisy_labels(results))
    note = _note(results, target, rows)
    if left:
        note += f" {counted(left, 'weaker measure')} {'is' if left == 1 else 'are'} in the CSV file alone."
    shown, note = remarks(written(every, cells), note)
    for name in ("Stratified τ_b", "p (stratified)", "Warned", "Left out"):
        if shown[name].isin([*NOTHING, "0"]).all():
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


def _cells(rows: pd.DataFrame, level: str, *, noisy: bool) -> dict[str, Cell]:
    kinds = sorted({CORRECTIONS.get(str(name), str(name)) for name in rows["correction"]}) or ["Holm"]
    return {
        "Measure": Cell(("measure", "warned"), partial(_named, noisy=noisy)),
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


def _named(measure: str, warned: float, *, noisy: bool) -> str:
    marked = marks({"measure": measure, "warned": warned}, noisy=noisy)
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
    noisy = (
        "‡ Sorts examples by the noisy labels that were given, so part of it is how many of them were fitted. "
        if noisy_labels(results)
        else ""
    )
    return (
        f"Kendall's τ_b with `{target}`: first one measure of each family, which the study's file names or else the "
        "usual one, then the baselines, which are known without any measure, then the other measures, strongest first. "
        "Each row stands for all variants of its measure. Variants: how many were tried; the page opens them, and the "
        "CSV file holds every variant and target, with Spearman and Pearson. A measure that was not named shows the "
        "variant that the study's comparisons name, or the first by name, not its strongest. "
        "Pooled: over all pairs of configurations like these, each averaged over its seeds; the statement is about "
        f"such configurations, with these methods and settings mixed as they are here. {_capital(facts['intervals'])}"
        f"{_by_method(candidates)}. "
        f"The p-values are from {facts['permutations']}{_permuted(candidates)}, corrected "
        f"{'by step-down max-T' if by_max else 'by Holm'} over the {len(candidates)} candidates; ≤ stands before the "
        "smallest p that the permutations could give. "
        f"{_stratified(candidates, facts['resampled'])}"
        "Within methods: mean of τ_b inside each method. ⇄ marks a coefficient that is reversed against the pooled "
        "one, or, inside cells, differs from it by more than twice the error of the difference. "
        "Expected: sign of the correlation with the gap that the measure's theory predicts. † sees held-out "
        f"labels, so judge it against the validation error. {noisy}⚠ Some of its values carry a warning. Left out: "
        "configurations without a finite value."
    )


def _permuted(rows: pd.DataFrame) -> str:
    """Over what the target was permuted, in words; nothing where the table does not say."""
    counts = {way: int((rows["permuted"] == way).sum()) for way in POOLED}
    known = {MOVED[way]: number for way, number in counts.items() if number}
    told = list(known) if len(known) == 1 else [f"{way} for {number}" for way, number in known.items()]
    return f", {listed(told)}" if told else ""


def _by_method(rows: pd.DataFrame) -> str:
    """For which rows the unit of an interval is a method."""
    told = [
        f"{number} of {len(rows)} rows leave out {what} at a time"
        for way, what in (
            (INSIDE_METHODS, "a method"),
            (COMPLETE_CELLS, "a cell of equal hyper-parameters, or a method,"),
        )
        if (number := int((rows["permuted"] == way).sum()))
    ]
    return f"; {listed(told)}" if told else ""


def _stratified(rows: pd.DataFrame, resampled: str) -> str:
    rows = rows[np.isfinite(rows["stratified"].to_numpy(dtype=float))]
    if rows.empty:
        return ""
    return (
        "Stratified: over pairs of one cell, whose hyper-parameters of training (learning rate, batch size, ...) are "
        f"equal, so that models differ in the method and its settings alone; {from_to(rows['cells'])} cells of at "
        f"least 3 configurations; the statement is about models trained alike. Its {resampled}, inside cells; its "
        f"p-values permute the target inside cells, and are corrected over the same candidates{_whole(rows)}. "
    )


def _whole(rows: pd.DataFrame) -> str:
    """For which rows methods, or variants of methods, change places in all cells alike."""
    told = [
        f"{number} of {len(rows)} rows {way}"
        for way in (COMPLETE_VARIANTS, COMPLETE_METHODS)
        if (number := int((rows["stratified_permuted"] == way).sum()))
    ]
    if not told:
        return ""
    return (
        f". Where variants of methods, or methods, differ alike in all cells in both, these change places and are left "
        f"out, in all cells together ({listed(told)}): the statement is about others like them"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
