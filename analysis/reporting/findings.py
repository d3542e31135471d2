"""The sentences at the head of a report: what the numbers support, and no more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import Standing, corrected_p, lineup
from analysis.figures.correlations import leading, of_target
from analysis.measures.registry import sees_held_out
from analysis.measures.remarks import warning_kinds
from analysis.reporting.methods import verdicts
from analysis.reporting.tables import methods
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE
from analysis.statistics.resampling import MINIMUM
from analysis.style import counted, fixed, interval, looks, p_value

ALPHA = 0.05
LEADING = ("sharpness", "forgetting")  # families with a number at the head of the page
SHOWN_BASELINES = 6
GIVEN = ("kendall in strata", "spearman of residuals")  # older tables took every control for linear
SHOWN_REVERSALS = 5


@dataclass(frozen=True)
class Finding:
    """One finding: what it is about, and the sentences; names of measures stand in backticks."""

    topic: str
    text: str


def findings(results: StudyResults) -> list[Finding]:
    """The findings of a study, the answer to its question first.

    Rules: with fewer than 5 configurations, without an interval, or with one that contains 0, nothing is claimed. The
    answer is given by measures named without looking at the target, beside what baselines say; that the strongest of
    many measures is strong is no finding. What was not tested is said.
    """
    return [
        *_answer(results),
        *_families(results),
        *_baselines(results),
        *_reversals(results),
        *_comparisons(results),
        *_tried(results),
        *_ceiling(results),
        *_methods(results),
        *_untested(results),
        *_runs(results),
        *_doubts(results),
    ]


def key_numbers(results: StudyResults) -> list[tuple[str, str]]:
    """Up to four numbers for the head of the page, each with what it is."""
    runs = results.runs
    finished = int((runs["status"] == "finished").sum())
    configurations = results.configurations()
    out = [
        (f"{finished} of {len(runs)}", "runs finished"),
        (
            f"{configurations['configuration'].nunique()}",
            f"configurations of {counted(len(results.methods), 'method')}",
        ),
    ]
    target, named, _ = _lineup(results)
    for standing in named:
        row = standing.row
        if standing.named in LEADING and _sufficient(row):
            span = f"[{fixed(row['low'])}, {fixed(row['high'])}]"
            inside = f"; {fixed(row['stratified'])} inside cells" if np.isfinite(row["stratified"]) else ""
            meaning = f"{span}: τ_b of `{row['measure']}` with `{target}`, which stands for {standing.named}{inside}"
            out.append((fixed(row["value"]) + " ⚠" * bool(row["warned"] > 0), meaning))
    return out


def _lineup(results: StudyResults) -> tuple[str, list[Standing], list[Standing]]:
    """The leading target, the representatives of families, and the baselines."""
    target, _ = leading(results)
    standings = lineup(results, of_target(results.correlations, target))
    named = [standing for standing in standings if standing.named]
    known = [Standing(s.row, "", s.others) for s in standings if s.row["role"] == BASELINE]
    return target, named, known


def _sufficient(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether a row could carry a claim: enough configurations, and an interval."""
    ends = (row[f"{of}low"], row[f"{of}high"])
    return bool(np.isfinite(ends).all()) and row["n_configurations"] >= MINIMUM


def _excludes_zero(row: Mapping[Any, Any], of: str = "") -> bool:
    return _sufficient(row, of) and (row[f"{of}low"] > 0 or row[f"{of}high"] < 0)


def _answer(results: StudyResults) -> list[Finding]:
    topic = "Answer"
    target, named, known = _lineup(results)
    if not (named or known):
        return [
            Finding(topic, "No correlation could be computed, so nothing is said about what predicts generalisation.")
        ]
    usable = [standing for standing in named if _sufficient(standing.row)]
    if not usable:
        most = max(int(standing.row["n_configurations"]) for standing in [*named, *known])
        return [
            Finding(
                topic,
                f"At most {counted(most, 'configuration')} had a value: too few for an interval (at least {MINIMUM} "
                "are needed), so no correlation is claimed.",
            )
        ]
    clear = sorted((s for s in usable if _excludes_zero(s.row)), key=lambda s: -abs(s.row["value"]))
    if not clear:
        text = (
            f"Of {_families_of(usable)}, none is shown to order the models by `{target}`: with one measure of each, "
            "chosen without looking at the target, every interval contains 0."
        )
    else:
        first = clear[0]
        text = (
            f"With one measure of each family, chosen without looking at the target, {first.named} orders the models "
            f"by `{target}` most closely: τ_b = {_value(first.row)}"
        )
        if len(clear) > 1:
            text += ", before " + ", ".join(f"{s.named} ({fixed(s.row['value'])})" for s in clear[1:])
        vague = [standing for standing in usable if standing not in clear]
        text += f"; not shown for {_families_of(vague)}." if vague else "."
    inside = sorted(
        (s for s in usable if _excludes_zero(s.row, "stratified_")), key=lambda s: -abs(s.row["stratified"])
    )
    if inside:
        order = ", ".join(f"{s.named} {_value(s.row, 'stratified')}" for s in inside)
        text += f" With the hyper-parameters of training held fixed: {order}."
    elif any(np.isfinite(standing.row["stratified"]) for standing in usable):
        text += " With the hyper-parameters of training held fixed, no family is shown to order them."
    strongest = [s for s in known if _excludes_zero(s.row)]
    if strongest and clear:
        best = max(strongest, key=lambda s: abs(s.row["value"]))
        text += (
            f" The strongest baseline, `{best.row['measure']}`, which needs no measure, has {_value(best.row)}: "
            f"{'not less' if abs(best.row['value']) >= abs(clear[0].row['value']) else 'less'}, as far as values tell."
        )
    return [Finding(topic, text)]


def _families_of(standings: Sequence[Standing]) -> str:
    names = [standing.named for standing in standings]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _value(row: Mapping[Any, Any], of: str = "value") -> str:
    low, high = ("low", "high") if of == "value" else (f"{of}_low", f"{of}_high")
    return interval(row[of], row[low], row[high]) + " ⚠" * bool(row["warned"] > 0)


def _families(results: StudyResults) -> list[Finding]:
    """One finding a family: its representative pooled, stratified and beyond the baselines."""
    target, named, _ = _lineup(results)
    return [
        Finding(standing.named.capitalize(), _sentence(results, standing, target))
        for standing in named
        if _sufficient(standing.row)
    ]


def _sentence(results: StudyResults, standing: Standing, target: str) -> str:
    row = standing.row
    text = f"`{row['measure']}`{' †' if sees_held_out(row['measure']) else ''}: τ_b = {_value(row)} "
    text += f"over {row['n_configurations']} configurations"
    if not _excludes_zero(row):
        text += "; the interval contains 0, so no relation over all models is claimed"
    else:
        text += f", {_survival(row)}"
        # The expected sign is about the gap; for another target the theory says nothing here.
        if target.startswith("gap") and row["expected_sign"] != 0:
            same = np.sign(row["value"]) == row["expected_sign"]
            text += f"; the sign is {'the one its theory predicts' if same else 'opposite to what its theory predicts'}"
    text += "."
    if np.isfinite(row["stratified"]):
        text += f" With the hyper-parameters of training held fixed {_value(row, 'stratified')}"
        text += f", {_survival(row, 'stratified_')}." if _excludes_zero(row, "stratified_") else ": not shown."
    text += _beyond(results, row["measure"], target)
    if row["warned"] > 0:
        kinds = f" ({row['warned_as']})" if row["warned_as"] else ""
        text += f" ⚠ {100 * row['warned']:.0f} % of its values carry a warning{kinds}."
    if sees_held_out(row["measure"]):
        text += " † It sees held-out labels, so judge it against the validation error."
    return text


def _survival(row: Mapping[Any, Any], of: str = "") -> str:
    p = corrected_p(row, of)
    if p == "–":
        return "with no p-value to correct for the number of measures"
    told = f"corrected p {p if p[0] in '<≤' else f'= {p}'}"
    chance = bool(row[f"{of}p_adjusted"] >= ALPHA)
    return told + ", so that among as many measures as were tried it may be chance" * chance


def _beyond(results: StudyResults, measure: str, target: str) -> str:
    """What is left of a measure's correlation given the baselines: jointly where that was computed, else one by one."""
    rows = results.further.get("partial", pd.DataFrame())
    if "coefficient" not in rows.columns:
        return ""
    rows = rows[(rows["measure"] == measure) & (rows["target"] == target) & rows["coefficient"].isin(GIVEN)]
    rows = rows[np.isfinite(rows[["value", "low", "high"]].to_numpy(dtype=float)).all(axis=1)]
    if rows.empty:
        return ""
    joint = rows["control"].str.count(r" \+ ")
    row = rows.iloc[int(joint.to_numpy().argmax())] if joint.max() > 0 else rows.iloc[int(rows["value"].abs().argmin())]
    given = " and ".join(f"`{name}`" for name in str(row["control"]).split(" + "))
    left = interval(row["value"], row["low"], row["high"])
    clear = row["low"] > 0 or row["high"] < 0
    shown = "it says something that this does not" if clear else "nothing is shown beyond this"
    return f" Given {given}, its rank correlation is {left}: {shown}."


def _baselines(results: StudyResults) -> list[Finding]:
    target, _, known = _lineup(results)
    rows = [standing.row for standing in known if _sufficient(standing.row)]
    if not rows:
        return []
    each = ", ".join(f"`{row['measure']}` {_value(row)}" for row in rows[:SHOWN_BASELINES])
    more = f" and {len(rows) - SHOWN_BASELINES} weaker ones" if len(rows) > SHOWN_BASELINES else ""
    return [Finding("Baselines", f"Known without any measure, τ_b with `{target}`: {each}{more}.")]


def _tried(results: StudyResults) -> list[Finding]:
    """How many measures were tried, and how many of them are left after the correction."""
    target, rows = leading(results)
    usable = _usable(rows)
    if usable.empty:
        return []
    clear = _clear(usable)
    survive = int((clear["p_adjusted"] < ALPHA).sum())
    name = "Holm's" if (usable["correction"] == "holm").all() else "the max-T"
    text = (
        f"Of {counted(len(usable), 'variant')} of measures, {len(clear)} "
        f"{'has an interval' if len(clear) == 1 else 'have intervals'} with `{target}` that "
        f"{'excludes' if len(clear) == 1 else 'exclude'} 0, and {survive or 'none'} of these "
        f"{'survives' if survive == 1 else 'survive'} {name} correction for the number of measures."
    )
    families = results.further.get("families", pd.DataFrame(columns=["target"]))
    for row in families[families["target"] == target].to_dict("records"):
        if row["family"] in LEADING and np.isfinite(row["best_of_k_p"]):
            text += (
                f" The strongest of {counted(int(row['variants']), 'variant')} of {row['family']} is "
                f"`{row['strongest']}` ({fixed(row['strongest_value'])}; p, corrected for choosing it, "
                f"{p_value(row['best_of_k_p'])})."
            )
    return [Finding("Tried", text)]


def _untested(results: StudyResults) -> list[Finding]:
    """What the study does not say, so that nobody reads it into the numbers."""
    _, named, known = _lineup(results)
    parts = ["whether changing a measure changes generalisation (nothing here intervenes on one)"]
    for name, what in (("dataset", "data"), ("model", "models")):
        column = f"hp.{name}"
        if column in results.runs and results.runs[column].nunique() == 1:
            parts.append(f"other {what} than `{results.runs[column].iloc[0]}`")
    if named and not known:
        parts.append("measures against baselines such as the validation error (none was correlated)")
    if named and not any(np.isfinite(standing.row["stratified"]) for standing in named):
        parts.append("models of equal learning rate, batch size and the like (no cell of at least 3 configurations)")
    draws = results.comparisons.get("low_draws", pd.Series(dtype=float)).to_numpy(dtype=float)
    if not np.isfinite(draws).any():
        parts.append("other draws of the data (that needs at least four)")
    return [Finding("Not tested", "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + ".")]


def _usable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that could carry a claim: enough configurations, and an interval."""
    finite = np.isfinite(rows[["low", "high"]].to_numpy(dtype=float)).all(axis=1)
    enough = rows["n_configurations"].to_numpy(dtype=float) >= MINIMUM
    usable: pd.DataFrame = rows.loc[finite & enough]
    return usable


def _clear(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["low"] > 0) | (rows["high"] < 0)]


def _comparisons(results: StudyResults) -> list[Finding]:
    topic = "One measure against another"
    rows = results.comparisons[np.isfinite(results.comparisons["difference"].to_numpy(dtype=float))]
    order = [t for t in results.targets if t in set(rows["target"])] or list(rows["target"].unique())
    if not order:
        return [Finding(topic, "Not compared: the study names no pair of measures, or none of them was measured.")]
    here = rows[rows["target"] == order[0]]
    if _usable(here).empty:
        return [
            Finding(
                topic, "There are too few configurations for an interval, so neither is called the stronger correlate."
            )
        ]
    pairs = here["pairs"] if "pairs" in here.columns else pd.Series("pooled", index=here.index)
    texts = []
    for kind, words in (
        ("pooled", "Over all models"),
        ("stratified", "With the hyper-parameters of training held fixed"),
    ):
        if len(usable := _usable(here[pairs == kind])):
            texts.append(_pairs(usable, words, order[0]))
    return [Finding(topic, " ".join([*texts, "The intervals are not corrected for the number of pairs."]))]


def _pairs(usable: pd.DataFrame, words: str, target: str) -> str:
    clear = _clear(usable)
    first, second = int((clear["difference"] > 0).sum()), int((clear["difference"] < 0).sum())
    row = usable.iloc[0]
    example = (
        f"`{row['forgetting']}` (|τ_b| {fixed(abs(row['tau_forgetting']))}) against "
        f"`{row['sharpness']}` ({fixed(abs(row['tau_sharpness']))}): "
        f"{interval(row['difference'], row['low'], row['high'])}"
    )
    return (
        f"{words}, of {counted(len(usable), 'pair')} that the study named, the first is the stronger correlate of "
        f"`{target}` in {first}, the second in {second}, and in {len(usable) - first - second} the interval of the "
        f"difference contains 0; the first pair named is {example}."
    )


def _reversals(results: StudyResults) -> list[Finding]:
    """What turns round within methods, or with the hyper-parameters held fixed; also where nothing is clear pooled."""
    target, rows = leading(results)
    usable = _usable(rows)
    if usable.empty:
        return []
    named = {standing.row["measure"] for standing in _lineup(results)[1]}
    texts = []
    clear = _clear(usable)
    for turned, where, why in (
        (clear[clear["reversal"].astype(bool)], "within methods", "differences between methods"),
        (usable[usable["cell_reversal"].astype(bool)], "inside cells of equal hyper-parameters of training",
         "learning rate, batch size and the like"),
    ):  # fmt: skip
        if turned.empty:
            continue
        first = sorted(turned["measure"], key=lambda m: m not in named)[:SHOWN_REVERSALS]
        names = ", ".join(f"`{m}`" for m in first) + (", …" if len(turned) > SHOWN_REVERSALS else "")
        texts.append(
            f"{counted(len(turned), 'variant')} {'is' if len(turned) == 1 else 'are'} reversed {where} ({names}): "
            f"the pooled correlation with `{target}` then reflects {why}."
        )
    if not texts:
        texts = ["No measure whose pooled interval excludes 0 changes sign within methods"]
        texts[0] += ", and none inside cells." if np.isfinite(usable["stratified"]).any() else "."
    return [Finding("What reverses", " ".join(texts))]


def _ceiling(results: StudyResults) -> list[Finding]:
    target, rows = leading(results)
    if rows.empty:
        return []
    here = results.ceilings[(results.ceilings["target"] == target) & (results.ceilings["coefficient"] == "kendall")]
    values = here[["spearman_brown", "oracle_with_noise"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return [Finding("Noise ceiling", "Unknown: it needs at least two seeds of a configuration.")]
    low, high = fixed(values.min()), fixed(values.max())
    size = low if low == high else f"{low} to {high}"
    return [
        Finding(
            "Noise ceiling",
            "Because of the noise between seeds, no measure of other runs can be expected to reach a |τ_b| with "
            f"`{target}` above about {size}; one taken on the same runs shares their noise, and can.",
        )
    ]


def _methods(results: StudyResults) -> list[Finding]:
    data = methods(results).data
    data = data[np.isfinite(data["test_error_mean"].to_numpy(dtype=float))].sort_values("test_error_mean")
    if data.empty:
        return [Finding("Methods", "No run finished with a test error.")]
    look = looks(results.methods)

    def shown(row: dict[str, float | str]) -> str:
        sd = float(row["test_error_sd"])
        spread = f" ± {fixed(100 * sd)}" if np.isfinite(sd) else ""
        return f"{look[str(row['method'])][0]} {fixed(100 * float(row['test_error_mean']))}{spread} %"

    rows = data.to_dict("records")
    text = f"Lowest test error: {shown(rows[0])}"
    if len(rows) > 1:
        text += f"; next {shown(rows[1])}" + (f"; highest {shown(rows[-1])}" if len(rows) > 2 else "")
    return [Finding("Methods", f"{text}. {verdicts(results)}".rstrip())]


def _runs(results: StudyResults) -> list[Finding]:
    counts = results.runs["status"].value_counts()
    total = len(results.runs)
    finished = int(counts.get("finished", 0))
    if total and finished == total:
        return [Finding("Runs", f"All {counted(total, 'run')} finished.")]
    rest = ", ".join(f"{n} {status}" for status, n in counts.items() if status != "finished")
    return [Finding("Runs", f"{finished} of {counted(total, 'run')} finished; {rest}. Correlations leave these out.")]


def _doubts(results: StudyResults) -> list[Finding]:
    rows = results.measures
    if rows.empty:
        return [Finding("Measurements", "Nothing was measured.")]
    warned = int((rows["warnings"].fillna("") != "").sum())
    loose = int((~rows["converged"].astype(bool)).sum())
    broken = int((~np.isfinite(rows["value"].to_numpy(dtype=float))).sum())
    if not (warned or loose or broken):
        return []
    text = f"Of {len(rows):,} numbers, {loose:,} did not converge, {warned:,} carry a warning and "
    text += f"{broken:,} are not finite."
    if warned:
        kinds = warning_kinds(rows)
        most = kinds.iloc[0]
        text += f" The warnings are of {counted(len(kinds), 'kind')}; "
        text += f"the most frequent: “{most['kind']}” ({most['values']:,})."
    return [Finding("Measurements", text)]
