"""The first sentences of a report: which family ranks the models, how well, and what that adds to the baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.candidates import Standing
from analysis.reporting.beyond import beyond, left_in_words
from analysis.reporting.families import families
from analysis.reporting.lead import (
    Finding,
    Lead,
    by_strength,
    difference,
    excludes_zero,
    listed,
    pair,
    stronger,
    sufficient,
    survives,
    value,
)
from analysis.results import StudyResults
from analysis.statistics.comparison import POOLED, STRATIFIED
from analysis.statistics.resampling import MINIMUM
from analysis.style import counted, fixed

SHOWN_BASELINES = 8
HELD = "With the hyper-parameters of training held fixed"
PLACES = {POOLED: "over all models", STRATIFIED: "with the hyper-parameters held fixed"}


def answer(results: StudyResults, lead: Lead) -> list[Finding]:
    """Which families rank the models, over all pairs and inside cells; how they compare; what they add to baselines."""
    if not (lead.named or lead.known):
        text = "No correlation could be computed, so nothing is said about what predicts generalisation."
        return [Finding("Answer", text)]
    if lead.named and not lead.usable:
        most = max(int(standing.row["n_configurations"]) for standing in [*lead.named, *lead.known])
        text = (
            f"At most {counted(most, 'configuration')} had a value: too few for an interval (at least {MINIMUM} are "
            "needed), so no correlation is claimed."
        )
        return [Finding("Answer", text)]
    if not lead.named:
        words = [Finding("Answer", "No family of measures has a value, so only the baselines are told.")]
    else:
        words = [Finding("Answer", _in_words(results, lead)), *families(results, lead)]
    return [*words, *_against_one_another(results, lead), *_baselines(results, lead), *beyond(results, lead)]


def _in_words(results: StudyResults, lead: Lead) -> str:
    """Which families rank the models, after the correction, and whether they say more than the baselines."""
    texts = [f"Over all models, {_who_ranks(lead.usable, '', lead.target)}."]
    if inside := [s for s in lead.usable if sufficient(s.row, "stratified_")]:
        texts.append(f"{HELD}, {_who_ranks(inside, 'stratified_', '')}.{_of_cells(inside)}")
    elif lead.one_cell:
        texts.append("All models share the hyper-parameters of training, so there are none to hold fixed.")
    texts += [_within(lead), _of_variants(lead), _against_all_baselines(results, lead), left_in_words(results, lead)]
    return " ".join(filter(None, texts))


def _who_ranks(standings: Sequence[Standing], of: str, target: str) -> str:
    """Names alone: `forgetting and norm rank them by ...; sharpness is not shown to`."""
    ordered = sorted(standings, key=lambda s: -abs(s.row[of.rstrip("_") or "value"]))
    found = [s for s in ordered if survives(s.row, of)]
    clear = [_signed(s, of.rstrip("_") or "value") for s in found]
    rest = [s.named for s in ordered if s not in found]
    by = f" by `{target}` (+: more of it with a larger one)" if target else ""
    parts = [f"{listed(clear)} {'ranks' if len(clear) == 1 else 'rank'} them{by}"] if clear else []
    if rest:
        verb = "is" if len(rest) == 1 else "are"
        parts.append(f"{listed(rest)} {verb} not shown to" + ("" if clear else f" rank them{by}"))
    return "; ".join(parts)


def _signed(standing: Standing, column: str) -> str:
    return f"{standing.named} ({'+' if standing.row[column] > 0 else '−'})"


def _of_cells(standings: Sequence[Standing]) -> str:
    """Which families rank the models over all pairs and not inside cells: they may tell the cells apart alone."""
    alone = [s.named for s in standings if survives(s.row) and not survives(s.row, "stratified_")]
    verb = "shows" if len(alone) == 1 else "show"
    return f" What {listed(alone)} {verb} over all models may be the settings of training alone." if alone else ""


def _within(lead: Lead) -> str:
    """Which families have a correlation inside each method, by their intervals, and whose sign is another one there."""
    known = [s for s in lead.usable if np.isfinite([s.row["within_low"], s.row["within_high"]]).all()]
    if not known or len(lead.methods) < 2:
        return ""
    clear = sorted((s for s in known if excludes_zero(s.row, "within_")), key=lambda s: -abs(s.row["within"]))
    if not clear:
        return "Within methods, no family is shown to rank them."
    rest = [s.named for s in known if s not in clear]
    vague = f"; {listed(rest)} {'is' if len(rest) == 1 else 'are'} not shown to" if rest else ""
    text = (
        f"Within methods, {listed([_signed(s, 'within') for s in clear])} {'ranks' if len(clear) == 1 else 'rank'} "
        f"them{vague}; these intervals are not corrected for the number of measures."
    )
    inside = [s for s in clear if excludes_zero(s.row, "stratified_")]
    turned = [s.named for s in inside if s.row["stratified"] * s.row["within"] < 0]
    if turned:
        text += (
            f" {listed(turned).capitalize()} {'has' if len(turned) == 1 else 'have'} the opposite sign with the "
            "hyper-parameters held fixed: between settings of training one way, between methods the other."
        )
    return text


def _of_variants(lead: Lead) -> str:
    """Of families whose named measure is not shown to rank the models: how many of their variants are, and how."""
    places = []
    for of, place in (("", "over all models"), ("stratified_", "with the hyper-parameters held fixed")):
        told = [
            f"{tally.survive} of {counted(tally.tried, 'variant')} of {standing.named}{tally.opposed()}"
            for standing in lead.usable
            if sufficient(standing.row, of) and not survives(standing.row, of)
            if (tally := lead.tally(standing.named, of)).survive
        ]
        if told:
            places.append(f"{place} {listed(told)}")
    if not places:
        return ""
    return (
        f"This is about one measure of each family; of those not shown others survive the correction: "
        f"{'; '.join(places)}. Against: opposite to the sign that theory expects for the gap."
    )


def _against_all_baselines(results: StudyResults, lead: Lead) -> str:
    better: list[str] = []
    worse: list[str] = []
    compared = False
    for standing in by_strength(lead):
        for baseline in lead.known:
            rows, turned = pair(results, lead, standing.row["measure"], baseline.row["measure"])
            compared |= bool(rows)
            for sign, found in ((1, better), (-1, worse)):
                if any(stronger(row) == (-sign if turned else sign) for row in rows.values()):
                    found.append(f"{standing.named} than `{baseline.row['measure']}`")
    if not compared:
        return ""
    shown = f"stronger is {listed(better)}" if better else "no family is shown to be stronger"
    return f"Where compared with a baseline, {shown}{f'; weaker is {listed(worse)}' if worse else ''}."


def _against_one_another(results: StudyResults, lead: Lead) -> list[Finding]:
    """How the representatives compare, by the intervals of their differences."""
    pairs = [(a, b) for i, a in enumerate(lead.usable) for b in lead.usable[i + 1 :]]
    told = []
    for a, b in pairs:
        rows, turned = pair(results, lead, a.row["measure"], b.row["measure"])
        if rows:
            first, second = (b, a) if turned else (a, b)
            told.append(_contrast(rows, first.named, second.named))
    if not told:
        return []
    rest = len(pairs) - len(told)
    more = f" {counted(rest, 'other pair')} of families {'was' if rest == 1 else 'were'} not compared." if rest else ""
    own = " This is about the measures named above; others of a family may compare otherwise."
    return [Finding("Which is stronger", " ".join(told) + own + more + _resampled(results))]


def _contrast(rows: Mapping[str, Mapping[Any, Any]], first: str, second: str) -> str:
    """`Forgetting against sharpness: over all models forgetting is the stronger, by 0.5 [0.2, 0.8]; ...`."""
    parts = []
    for kind, place in PLACES.items():
        if kind in rows:
            row, sign = rows[kind], stronger(rows[kind])
            which = first if sign > 0 else second
            parts.append(
                f"{place} {which} is the stronger, by {difference(row, sign)}"
                if sign
                else f"{place} neither is shown to be the stronger ({difference(row)})"
            )
    return f"{first[:1].upper()}{first[1:]} against {second}: {'; '.join(parts)}."


def _resampled(results: StudyResults) -> str:
    drawn = np.isfinite(results.comparisons["low_draws"].to_numpy(dtype=float)).any()
    what = "configurations and draws of the data" if drawn else "configurations"
    return f" In brackets: differences of |τ_b|; intervals resample {what}, not corrected for the number of pairs."


def _baselines(results: StudyResults, lead: Lead) -> list[Finding]:
    """What is known without any measure, and the comparisons of representatives with it."""
    if not lead.known:
        return []
    known = [s for s in lead.known if excludes_zero(s.row)]
    text = "No baseline is shown to rank the models: every interval contains 0."
    if known:
        each = ", ".join(f"`{s.row['measure']}` {_both(s.row)}" for s in known[:SHOWN_BASELINES])
        more = f" and {len(known) - SHOWN_BASELINES} weaker ones" if len(known) > SHOWN_BASELINES else ""
        rest = [f"`{s.row['measure']}`" for s in lead.known if s not in known]
        vague = f"; not shown for {listed(rest)}" if rest else ""
        text = f"Known without any measure, τ_b with `{lead.target}`: {each}{more}{vague}."
    compared = _against_baselines(results, lead)
    if compared:
        text += f" {compared}"
    elif lead.usable:
        text += " No measure was compared with a baseline, so none is said to be better or worse than one."
    return [Finding("Baselines", text)]


def _both(row: Mapping[Any, Any]) -> str:
    inside = f", inside cells {fixed(row['stratified'])}" if np.isfinite(row["stratified"]) else ""
    return f"{value(row)}{inside}" if not inside else f"({value(row)}{inside})"


def _against_baselines(results: StudyResults, lead: Lead) -> str:
    told = []
    for standing in by_strength(lead):
        for baseline in lead.known:
            rows, turned = pair(results, lead, standing.row["measure"], baseline.row["measure"])
            if rows:
                names = (standing.named, f"`{baseline.row['measure']}`")
                told.append(_contrast(rows, *(names[::-1] if turned else names)))
    return " ".join(told)
