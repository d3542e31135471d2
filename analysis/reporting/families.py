"""Families of measures in sentences: each by the measure named for it, and by how many of its variants say the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import Standing, corrected_p, noisy_labels
from analysis.measures.registry import expected_sign, marks
from analysis.reporting.lead import Finding, Lead, by_chance, excludes_zero, value
from analysis.results import StudyResults
from analysis.statistics.exchangeability import COMPLETE_CELLS, COMPLETE_METHODS, COMPLETE_VARIANTS
from analysis.style import counted, fixed, interval, p_value

SAID_OF_MARKS = {
    "held-out labels": "† It sees held-out labels, so it has to be judged against the validation error.",
    "noisy labels": "‡ It sorts examples by the noisy labels that were given, so part of it is how many were fitted.",
}
STRATIFIED = "stratified_"
MOVED = {  # by what is permuted, where that is not single configurations or those of a method
    COMPLETE_CELLS: "complete cells, and complete variants of methods,",
    COMPLETE_VARIANTS: "complete variants of methods",
    COMPLETE_METHODS: "complete methods",
}


def families(results: StudyResults, lead: Lead) -> list[Finding]:
    """Which measure stands for which family, and for each family a finding."""
    by = ", ".join(f"{s.named} by `{s.row['measure']}`" for s in lead.usable)
    named = f"Each family stands here by one measure, named in the study's file or else the usual one: {by}."
    each = [
        Finding(s.named.capitalize(), f"{_named(results, s, lead)}{_others(results, s, lead)}") for s in lead.usable
    ]
    return [Finding("Measures named", named), *each]


def _named(results: StudyResults, standing: Standing, lead: Lead) -> str:
    """The representative over all models, within methods and inside cells."""
    row = standing.row
    said = [SAID_OF_MARKS[mark] for mark in marks(row["measure"], noisy=noisy_labels(results))]
    text = f"`{row['measure']}`{''.join(f' {mark[0]}' for mark in said)}: τ_b = {value(row)} "
    text += f"over {row['n_configurations']} configurations"
    if excludes_zero(row):
        text += f", {_survival(row)}{_expected(row, lead.target)}."
    else:
        text += "; the interval contains 0, so no relation over all models is claimed."
    if np.isfinite(row["within"]) and len(lead.methods) > 1:
        known = np.isfinite([row["within_low"], row["within_high"]]).all()
        none = ", without an interval" if not known else ", not shown"
        vague = "" if excludes_zero(row, "within_") else none
        text += f" Within methods {interval(row['within'], row['within_low'], row['within_high'])}{vague}."
    if np.isfinite(row["stratified"]):
        text += f" With the hyper-parameters of training held fixed {value(row, STRATIFIED)}"
        text += f", {_survival(row, STRATIFIED)}." if excludes_zero(row, STRATIFIED) else ": not shown."
    if row["warned"] > 0:
        kinds = f" ({row['warned_as']})" if row["warned_as"] else ""
        text += f" ⚠ {100 * row['warned']:.0f} % of its values carry a warning{kinds}."
    return " ".join([text, *said])


def _expected(row: Mapping[Any, Any], target: str) -> str:
    """Whether the sign is that of its theory, which is about the gap: of another target it says nothing here."""
    if not target.startswith("gap") or row["expected_sign"] == 0:
        return ""
    same = np.sign(row["value"]) == row["expected_sign"]
    return f"; the sign is {'the one its theory predicts' if same else 'opposite to what its theory predicts'}"


def _survival(row: Mapping[Any, Any], of: str = "") -> str:
    p = corrected_p(row, of)
    if p == "–":
        return "with no p-value to correct for the number of measures"
    told = f"corrected p {p if p[0] in '<≤' else f'= {p}'}"
    if units := MOVED.get(str(row.get(f"{of}permuted"))):
        told += f" ({units} change places)"
    return told + ", so that among as many measures as were tried it may be chance" * by_chance(row, of)


def _others(results: StudyResults, standing: Standing, lead: Lead) -> str:
    """How many variants of the family survive the correction, by their signs, and the strongest of all."""
    told = []
    table = results.further.get("families", pd.DataFrame(columns=["family", "target"]))
    here = table[(table["target"] == lead.target) & (table["family"] == standing.named)]
    best = here.iloc[0].to_dict() if len(here) else {}
    for of, end, place in (
        ("", "", "over all models"),
        (STRATIFIED, "_stratified", "with the hyper-parameters held fixed"),
    ):
        tally = lead.tally(standing.named, of)
        if tally.tried > 1:
            none = "none survives" if not tally.survive else f"{tally.survive} survive{'s' * (tally.survive == 1)}"
            told.append(
                f"of {counted(tally.tried, 'variant')} of {standing.named} {place}, {none} the correction"
                f"{tally.signs()}{_strongest(best, end, of, standing, lead)}"
            )
    text = "; ".join(told)
    return f" {text[:1].upper()}{text[1:]}." if told else ""


def _strongest(best: Mapping[Any, Any], end: str, of: str, standing: Standing, lead: Lead) -> str:
    """The strongest variant of a family with the p-value that knows of the choice."""
    variant, p = str(best.get(f"strongest{end}") or ""), float(best.get(f"best_of_k_p{end}", np.nan))
    if not variant or variant == "nan" or not np.isfinite(p):
        return ""
    if variant == standing.row["measure"]:
        return f", and the strongest is the one named (p, corrected within the family, {p_value(p)})"
    found = float(best[f"strongest{end}_value"])
    rows = lead.rows[lead.rows["measure"] == variant].to_dict("records")
    told = value(rows[0], of) if rows else fixed(found)
    against = ", against the expected sign" * (expected_sign(variant.partition("[")[0]) * found < 0)
    return f", and the strongest is `{variant}` ({told}{against}; p, corrected within the family, {p_value(p)})"
