"""What families say beyond the baselines, in sentences: partial correlations, and prediction of methods left out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.reporting.given import HYPER, short_names
from analysis.reporting.lead import Finding, Lead, by_strength, listed
from analysis.results import StudyResults
from analysis.statistics.partial import RESIDUALS, STRATA
from analysis.statistics.prediction import ALL, TRAINING
from analysis.style import fixed, interval

Row = Mapping[Any, Any]


def beyond(results: StudyResults, lead: Lead) -> list[Finding]:
    """What the representatives say that the baselines do not: partial correlations, and prediction."""
    given = _given(results, lead)
    if given:
        given.append("These intervals are not corrected for the number of families.")
    texts = [*given, *_predicting(results, lead)]
    return [Finding("Beyond the baselines", " ".join(texts))] if texts else []


def left_in_words(results: StudyResults, lead: Lead) -> str:
    """For which families something is left given the training baselines, and given all; names alone."""
    parts = []
    settings = f"{TRAINING} and {HYPER}"
    training = settings if _given_rows(results, lead, settings) else TRAINING
    for short, name in ((training, f"the {training}"), (ALL, "the training and validation baselines together")):
        if told := _given_rows(results, lead, short):
            left = [family for family, row in told if _clear(row)]
            every = len(told) == len(lead.usable) > 1
            none = "any family" if every else listed([family for family, _ in told])
            shown = f"something is left for {listed(left)}" if left else f"nothing is shown to be left for {none}"
            parts.append(f"given {name}, {shown}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _given(results: StudyResults, lead: Lead) -> list[str]:
    """For which representatives something is left with the baselines held fixed together, or else one by one."""
    sets = {s: _given_rows(results, lead, s) for s in (TRAINING, f"{TRAINING} and {HYPER}", ALL, f"{ALL} and {HYPER}")}
    texts = [_left(f"Given {_the(short)}", rows) for short, rows in sets.items() if rows]
    if texts or not (least := _least(results, lead)):
        return texts
    return [_left("Given the baseline that leaves least", least)]


def _left(given: str, rows: Sequence[tuple[str, Row]]) -> str:
    """For which families a rank correlation is left, and for which it is not shown, all with their numbers."""
    clear = [f"{name} ({_ends(row)})" for name, row in rows if _clear(row)]
    vague = [f"{name} ({_ends(row)})" for name, row in rows if not _clear(row)]
    if not clear:
        return f"{given}, nothing is shown to be left for {listed(vague)}."
    more = f"; not shown for {listed(vague)}" if vague else ""
    return f"{given}, a rank correlation is left for {listed(clear)}{more}."


def _clear(row: Row) -> bool:
    return bool(row["low"] > 0 or row["high"] < 0)


def _given_rows(results: StudyResults, lead: Lead, short: str) -> list[tuple[str, Row]]:
    """The families whose representative has a partial correlation given these controls, with it."""
    found = [(s.named, _partial_row(results, lead.target, s.row["measure"], short)) for s in by_strength(lead)]
    return [(name, row) for name, row in found if row is not None]


def _least(results: StudyResults, lead: Lead) -> list[tuple[str, Row]]:
    """For each family the partial correlation given the one baseline that leaves least of it."""
    found: list[tuple[str, Row]] = []
    for standing in by_strength(lead):
        rows = _partial(results, lead.target, standing.row["measure"])
        rows = rows[~rows["control"].str.startswith("dCE")] if len(rows) else rows
        if len(rows):
            row = rows.iloc[int(rows["value"].abs().argmin())].to_dict()
            found.append((f"{standing.named} given `{row['control']}`", row))
    return found


def _partial(results: StudyResults, target: str, measure: str) -> pd.DataFrame:
    """Rows of a measure given controls, with intervals; older tables took every control for linear."""
    rows = results.further.get("partial", pd.DataFrame())
    if "coefficient" not in rows.columns:
        return rows.iloc[:0]
    rows = rows[(rows["measure"] == measure) & (rows["target"] == target)]
    rows = rows[rows["coefficient"].isin((STRATA, RESIDUALS))]
    known: pd.DataFrame = rows[np.isfinite(rows[["value", "low", "high"]].to_numpy(dtype=float)).all(axis=1)]
    return known


def _partial_row(results: StudyResults, target: str, measure: str, short: str) -> Row | None:
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
        told = [(s.named, of_measure[m]) for s in by_strength(lead) if (m := s.row["measure"]) in of_measure]
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
