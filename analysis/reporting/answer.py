"""The first sentences of a report: which family orders the models, how well, and what that adds to the baselines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import Standing
from analysis.measures.registry import expected_sign
from analysis.reporting.given import short_names
from analysis.reporting.lead import ALPHA, Lead, by_chance, difference, excludes_zero, listed, stronger, value
from analysis.results import StudyResults
from analysis.statistics.comparison import POOLED, STRATIFIED
from analysis.statistics.partial import RESIDUALS, STRATA
from analysis.statistics.prediction import ALL, HYPER, TRAINING
from analysis.statistics.resampling import MINIMUM
from analysis.style import counted, fixed, interval, p_value

SHOWN_BASELINES = 8
HELD = "With the hyper-parameters of training held fixed"
PLACES = {POOLED: "over all models", STRATIFIED: "with the hyper-parameters held fixed"}


@dataclass(frozen=True)
class Finding:
    """One finding: what it is about, and the sentences; names of measures stand in backticks."""

    topic: str
    text: str


def answer(results: StudyResults, lead: Lead) -> list[Finding]:
    """Which families order the models, pooled and stratified; how they compare; what they add to the baselines."""
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
    return [
        *_orders(results, lead),
        *_against_one_another(results, lead),
        *_baselines(results, lead),
        *_beyond(results, lead),
    ]


def _orders(results: StudyResults, lead: Lead) -> list[Finding]:
    if not lead.named:
        return [Finding("Answer", "No family of measures has a value, so only the baselines are told.")]
    inside = [standing for standing in lead.usable if np.isfinite(standing.row["stratified"])]
    numbers = f"Over all models, {_sorted_out(lead.usable, '', f'`{lead.target}` goes with')}"
    if inside:
        numbers += f" {HELD}, {_sorted_out(inside, 'stratified_', 'it goes with')}"
    by = ", ".join(f"{s.named} by `{s.row['measure']}`" for s in lead.usable)
    named = f"Each family stands here by one measure, named in the study's file or else the usual one: {by}."
    return [
        Finding("Answer", _in_words(results, lead, inside)),
        Finding("In numbers", numbers),
        Finding("Measures named", named + _others(results, lead)),
    ]


def _in_words(results: StudyResults, lead: Lead, inside: Sequence[Standing]) -> str:
    """Which families order the models, after the correction, and whether they say more than the baselines."""
    texts = [f"Over all models, {_who_orders(lead.usable, '', lead.target)}."]
    if inside:
        texts.append(f"{HELD}, {_who_orders(inside, 'stratified_', '')}.{_of_these_methods(inside)}{_of_cells(inside)}")
    better: list[str] = []
    worse: list[str] = []
    compared = False
    for standing in _by_strength(lead):
        for baseline in lead.known:
            rows, turned = _pair(results, lead.target, standing.row["measure"], baseline.row["measure"])
            compared |= bool(rows)
            for sign, found in ((1, better), (-1, worse)):
                if any(stronger(row) == (-sign if turned else sign) for row in rows.values()):
                    found.append(f"{standing.named} than `{baseline.row['measure']}`")
    if compared:
        shown = f"stronger is {listed(better)}" if better else "no family is shown to be stronger"
        texts.append(f"Where compared with a baseline, {shown}{f'; weaker is {listed(worse)}' if worse else ''}.")
    parts = []
    settings = f"{TRAINING} and {HYPER}"
    training = settings if _given_rows(results, lead, settings) else TRAINING
    for short, name in ((training, f"the {training}"), (ALL, "the training and validation baselines together")):
        if told := _given_rows(results, lead, short):
            left = [family for family, row in told if row["low"] > 0 or row["high"] < 0]
            shown = f"something is left for {listed(left)}" if left else "nothing is shown to be left for any family"
            parts.append(f"given {name}, {shown}")
    if parts:
        text = "; ".join(parts)
        texts.append(f"{text[:1].upper()}{text[1:]}.")
    return " ".join(texts)


def _who_orders(standings: Sequence[Standing], of: str, target: str) -> str:
    """Names alone: `forgetting and norm order them by ...; sharpness is not shown to`."""
    ordered = sorted(standings, key=lambda s: -abs(s.row[of.rstrip("_") or "value"]))
    found = [s for s in ordered if excludes_zero(s.row, of) and not by_chance(s.row, of)]
    clear = [f"{s.named} ({'+' if s.row[of.rstrip('_') or 'value'] > 0 else '−'})" for s in found]
    rest = [s.named for s in ordered if s not in found]
    by = f" by `{target}` (+: more of it with a larger one)" if target else ""
    parts = [f"{listed(clear)} {'orders' if len(clear) == 1 else 'order'} them{by}"] if clear else []
    if rest:
        verb = "is" if len(rest) == 1 else "are"
        parts.append(f"{listed(rest)} {verb} not shown to" + ("" if clear else f" order them{by}"))
    return "; ".join(parts)


def _of_these_methods(standings: Sequence[Standing]) -> str:
    """Which families order the models inside cells, but are not shown to for other methods like these."""
    rows = {
        s.named: s.row for s in standings if excludes_zero(s.row, "stratified_") and not by_chance(s.row, "stratified_")
    }
    alone = [family for family, row in rows.items() if row["variants_low"] <= 0 <= row["variants_high"]]
    return (
        f" For {listed(alone)} this is about these methods; over variants of methods 0 is not excluded."
        if alone
        else ""
    )


def _of_cells(standings: Sequence[Standing]) -> str:
    """Which families order the models over all pairs and not inside cells: they may tell the cells apart alone."""
    alone = [
        s.named
        for s in standings
        if excludes_zero(s.row)
        and not by_chance(s.row)
        and not (excludes_zero(s.row, "stratified_") and not by_chance(s.row, "stratified_"))
    ]
    verb = "shows" if len(alone) == 1 else "show"
    return f" What {listed(alone)} {verb} over all models may be the settings of training alone." if alone else ""


def _others(results: StudyResults, lead: Lead) -> str:
    """Families of which the named measure is not shown to order the models, but the best of all is."""
    table = results.further.get("families", pd.DataFrame(columns=["family", "target"]))
    of_family = {row["family"]: row for row in table[table["target"] == lead.target].to_dict("records")}
    told = []
    for standing in lead.usable:
        row = of_family.get(standing.named, {})
        for of, end, place in (
            ("", "", "over all models"),
            ("stratified_", "_stratified", "with the hyper-parameters held fixed"),
        ):
            name = f"strongest{end}"
            if row.get(f"best_of_k_p{end}", 1.0) < ALPHA and not excludes_zero(standing.row, of):
                against = expected_sign(str(row[name]).partition("[")[0]) * row[f"{name}_value"] < 0
                sign = ", against the sign that its theory expects for the gap" * bool(against)
                told.append(
                    f"{place}, `{row[name]}`, the strongest of {int(row['variants'])} of {standing.named}, has "
                    f"{fixed(row[f'{name}_value'])}{sign} (p, corrected for choosing it, "
                    f"{p_value(row[f'best_of_k_p{end}'])})"
                )
    return f" Others of a family may do better: {'; '.join(told)}." if told else ""


def _sorted_out(standings: Sequence[Standing], of: str, begins: str) -> str:
    """The families whose interval excludes 0 also after the correction, those by chance perhaps, and the others."""
    strength = of.rstrip("_") or "value"
    ordered = sorted(standings, key=lambda s: -abs(s.row[strength]))
    clear = [s for s in ordered if excludes_zero(s.row, of) and not by_chance(s.row, of)]
    perhaps = [s for s in ordered if excludes_zero(s.row, of) and by_chance(s.row, of)]
    vague = [s for s in ordered if not excludes_zero(s.row, of)]

    def told(some: Sequence[Standing], first: bool = False) -> str:
        tau = "τ_b = " if first else ""
        return listed([f"{s.named} ({tau if i == 0 else ''}{value(s.row, of)})" for i, s in enumerate(some)])

    parts = [f"{begins} {told(clear, True)}" if clear else f"{begins} no family: none is shown to order the models"]
    if perhaps:
        parts.append(f"only before the correction for the number of measures with {told(perhaps)}")
    if vague:
        parts.append(f"not shown for {told(vague)}, where the interval contains 0")
    return "; ".join(parts) + "."


def _against_one_another(results: StudyResults, lead: Lead) -> list[Finding]:
    """How the representatives compare, by the intervals of their differences."""
    pairs = [(a, b) for i, a in enumerate(lead.usable) for b in lead.usable[i + 1 :]]
    told = []
    for a, b in pairs:
        rows, turned = _pair(results, lead.target, a.row["measure"], b.row["measure"])
        if rows:
            first, second = (b, a) if turned else (a, b)
            told.append(_contrast(rows, first.named, second.named))
    if not told:
        return []
    rest = len(pairs) - len(told)
    more = f" {counted(rest, 'other pair')} of families {'was' if rest == 1 else 'were'} not compared." if rest else ""
    own = " This is about the measures named above; others of a family may compare otherwise."
    return [Finding("Which is stronger", " ".join(told) + own + more + _resampled(results))]


def _pair(results: StudyResults, target: str, first: str, second: str) -> tuple[dict[str, Mapping[Any, Any]], bool]:
    """The rows of a pair that was compared by where, and whether it was compared the other way round."""
    table = results.comparisons
    known = np.isfinite(table[["difference", "low", "high"]].to_numpy(dtype=float)).all(axis=1)
    table = table[known & (table["target"] == target) & (table["n_configurations"] >= MINIMUM)]
    for turned, (one, other) in enumerate(((first, second), (second, first))):
        here = table[(table["forgetting"] == one) & (table["sharpness"] == other)]
        if len(here):
            return {str(row["pairs"]): row for row in here.to_dict("records")}, bool(turned)
    return {}, False


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
    text = "No baseline is shown to order the models: every interval contains 0."
    if known:
        each = ", ".join(f"`{s.row['measure']}` {_both(s.row)}" for s in known[:SHOWN_BASELINES])
        more = f" and {len(known) - SHOWN_BASELINES} weaker ones" if len(known) > SHOWN_BASELINES else ""
        text = f"Known without any measure, τ_b with `{lead.target}`: {each}{more}."
    compared = _against_baselines(results, lead)
    if compared:
        text += f" {compared}"
    elif lead.usable:
        text += " No measure was compared with a baseline, so none is said to be better or worse than one."
    return [Finding("Baselines", text)]


def _both(row: Mapping[Any, Any]) -> str:
    inside = f", inside cells {fixed(row['stratified'])}" if np.isfinite(row["stratified"]) else ""
    return f"{value(row)}{inside}" if not inside else f"({value(row)}{inside})"


def _beyond(results: StudyResults, lead: Lead) -> list[Finding]:
    """What the representatives say that the baselines do not: partial correlations, and prediction."""
    texts = [*_given(results, lead), *_predicting(results, lead)]
    return [Finding("Beyond the baselines", " ".join(texts))] if texts else []


def _by_strength(lead: Lead) -> list[Standing]:
    return sorted(lead.usable, key=lambda standing: -abs(standing.row["value"]))


def _against_baselines(results: StudyResults, lead: Lead) -> str:
    told = []
    for standing in _by_strength(lead):
        for baseline in lead.known:
            rows, turned = _pair(results, lead.target, standing.row["measure"], baseline.row["measure"])
            if rows:
                names = (standing.named, f"`{baseline.row['measure']}`")
                told.append(_contrast(rows, *(names[::-1] if turned else names)))
    return " ".join(told)


def _given(results: StudyResults, lead: Lead) -> list[str]:
    """For which representatives something is left with the baselines held fixed together."""
    texts = []
    for short in (TRAINING, f"{TRAINING} and {HYPER}", ALL, f"{ALL} and {HYPER}"):
        rows = _given_rows(results, lead, short)
        if not rows:
            continue
        clear = [f"{name} ({_ends(row)})" for name, row in rows if row["low"] > 0 or row["high"] < 0]
        vague = [name for name, row in rows if not (row["low"] > 0 or row["high"] < 0)]
        if clear:
            more = f"; not shown for {listed(vague)}" if vague else ""
            texts.append(f"Given {_the(short)}, a rank correlation is left for {listed(clear)}{more}.")
        else:
            texts.append(f"Given {_the(short)}, nothing is shown to be left for any family.")
    return texts


def _given_rows(results: StudyResults, lead: Lead, short: str) -> list[tuple[str, dict[Any, Any]]]:
    """The families whose representative has a partial correlation given these controls, with it."""
    found = [(s.named, _partial_row(results, lead.target, s.row["measure"], short)) for s in _by_strength(lead)]
    return [(name, row) for name, row in found if row is not None]


def given(results: StudyResults, measure: str, target: str) -> str:
    """What is left of a measure's correlation given baselines together, else given the one that leaves least."""
    found = [(_the(s), row) for s in (TRAINING, ALL) if (row := _partial_row(results, target, measure, s))]
    if not found:
        rows = _partial(results, target, measure)
        rows = rows[~rows["control"].str.startswith("dCE")] if len(rows) else rows
        if rows.empty:
            return ""
        least = rows.iloc[int(rows["value"].abs().argmin())].to_dict()
        found = [(f"`{least['control']}`", least)]
    texts = []
    for name, row in found:
        clear = row["low"] > 0 or row["high"] < 0
        texts.append(f"given {name} {_ends(row)}{'' if clear else ', so nothing is shown beyond'}")
    text = "; ".join(texts)
    return f" {text[:1].upper()}{text[1:]} (rank correlation of what is left)."


def _partial(results: StudyResults, target: str, measure: str) -> pd.DataFrame:
    """Rows of a measure given controls, with intervals; older tables took every control for linear."""
    rows = results.further.get("partial", pd.DataFrame())
    if "coefficient" not in rows.columns:
        return rows.iloc[:0]
    rows = rows[(rows["measure"] == measure) & (rows["target"] == target)]
    rows = rows[rows["coefficient"].isin((STRATA, RESIDUALS))]
    known: pd.DataFrame = rows[np.isfinite(rows[["value", "low", "high"]].to_numpy(dtype=float)).all(axis=1)]
    return known


def _partial_row(results: StudyResults, target: str, measure: str, short: str) -> dict[Any, Any] | None:
    rows = _partial(results, target, measure)
    if rows.empty:
        return None
    names = short_names(results)
    rows = rows[rows["control"].map(names) == short]
    return rows.iloc[0].to_dict() if len(rows) else None


def _the(short: str) -> str:
    return short if short.startswith("all ") else f"the {short}"


def _ends(row: Mapping[Any, Any]) -> str:
    return interval(row["value"], row["low"], row["high"])


def _predicting(results: StudyResults, lead: Lead) -> list[str]:
    """What representatives add to a prediction from baselines, for methods left out."""
    table = results.further.get("prediction", pd.DataFrame())
    if "added" not in table.columns:
        return []
    texts = []
    for short in (TRAINING, ALL):
        rows = table[(table["target"] == lead.target) & (table["features"] == f"{short} + measure")]
        of_measure = {row["added"]: row for row in rows.to_dict("records") if math.isfinite(row["gain"])}
        told = [(s.named, of_measure[m]) for s in _by_strength(lead) if (m := s.row["measure"]) in of_measure]
        if told:
            without = " to ".join(sorted({fixed(row["r2"] - row["gain"]) for _, row in told}))
            more = [(name, row) for name, row in told if row["gain_low"] > 0]
            rest = [name for name, row in told if not row["gain_low"] > 0]
            parts = [f"{fixed(row['r2'])} with {name} ({_gained(row)})" for name, row in more]
            parts += [f"no gain is shown with {listed(rest) if more else 'any family'}"] if rest else []
            texts.append(f"from {_the(short)} {without}, {', '.join(parts)}")
    return [f"R² of predicting `{lead.target}` for methods left out: {'; '.join(texts)}."] if texts else []


def _gained(row: Mapping[Any, Any]) -> str:
    """The gain, and whether one baseline alone does as well as all with the measure."""
    alone = [part for part in str(row["warnings"]).split("; ") if part.startswith("no better than")]
    return "; ".join([f"gain {interval(row['gain'], row['gain_low'], row['gain_high'])}", *alone])
