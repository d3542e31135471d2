"""The sentences at the head of a report: what the numbers support, and no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.correlations import leading
from analysis.reporting.tables import methods
from analysis.results import StudyResults
from analysis.statistics.resampling import MINIMUM
from analysis.style import family, fixed, interval, looks, p_value

ALPHA = 0.05


@dataclass(frozen=True)
class Finding:
    """One finding: what it is about, and the sentences; names of measures stand in backticks."""

    topic: str
    text: str


def findings(results: StudyResults) -> list[Finding]:
    """The findings of a study, the answer to its question first.

    Rules: with fewer than 5 configurations, without an interval, or with one that contains 0, nothing is claimed;
    whether a correlation survives Holm's correction over all measures tried is always said; differences between methods
    are described, not tested.
    """
    return [
        *_correlations(results),
        *_comparisons(results),
        *_reversals(results),
        *_ceiling(results),
        *_methods(results),
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
        (f"{configurations['configuration'].nunique()}", f"configurations of {_many(len(results.methods), 'method')}"),
    ]
    target, rows = leading(results)
    usable = _usable(rows)
    for kind in ("sharpness", "forgetting"):
        of_kind = usable[usable["measure"].map(family) == kind]
        if len(of_kind):
            row = of_kind.iloc[0]
            span = f"[{fixed(row['low'])}, {fixed(row['high'])}]"
            out.append(
                (
                    fixed(row["value"]),
                    f"{span}: τ_b of `{row['measure']}` with `{target}`, the strongest {kind} measure",
                )
            )
    return out


def _usable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that could carry a claim: enough configurations, and an interval."""
    finite = np.isfinite(rows[["low", "high"]].to_numpy(dtype=float)).all(axis=1)
    enough = rows["n_configurations"].to_numpy(dtype=float) >= MINIMUM
    usable: pd.DataFrame = rows.loc[finite & enough]
    return usable


def _clear(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["low"] > 0) | (rows["high"] < 0)]


def _correlations(results: StudyResults) -> list[Finding]:
    target, rows = leading(results)
    topic = "Correlation"
    if rows.empty:
        return [
            Finding(topic, "No correlation could be computed, so nothing is said about what predicts generalisation.")
        ]
    usable = _usable(rows)
    if usable.empty:
        most = int(rows["n_configurations"].max())
        return [
            Finding(
                topic,
                f"At most {_many(most, 'configuration')} had a value: too few for an interval (at least {MINIMUM} are "
                "needed), so no correlation is claimed.",
            )
        ]
    clear = _clear(usable)
    survive = clear[clear["p_adjusted"] < ALPHA]
    if clear.empty:
        row = usable.iloc[0]
        head = (
            f"No measure is shown to correlate with `{target}`: all {len(usable)} intervals contain 0. The strongest, "
            f"`{row['measure']}`, has τ_b = {interval(row['value'], row['low'], row['high'])}."
        )
    else:
        head = (
            f"Of {_many(len(usable), 'measure')}, {len(clear)} "
            f"{'has an interval' if len(clear) == 1 else 'have intervals'} with `{target}` that "
            f"{'excludes' if len(clear) == 1 else 'exclude'} 0, and {len(survive) or 'none'} of these "
            f"{'survives' if len(survive) == 1 else 'survive'} Holm's correction for the number of measures."
        )
    out = [Finding(topic, head)]
    for kind in ("sharpness", "forgetting"):
        of_kind = usable[usable["measure"].map(family) == kind]
        if len(of_kind):
            out.append(Finding(f"Strongest {kind} measure", _sentence(of_kind.iloc[0].to_dict(), target)))
    return out


def _sentence(row: Mapping[Any, Any], target: str) -> str:
    r = dict(row)
    text = f"`{r['measure']}`: τ_b = {interval(r['value'], r['low'], r['high'])} "
    text += f"over {r['n_configurations']} configurations; "
    clear = r["low"] > 0 or r["high"] < 0
    if not clear:
        return text + "the interval contains 0, so no relation is claimed."
    if not np.isfinite(r["p_adjusted"]):
        text += "the interval excludes 0, but there is no p-value to correct for the number of measures"
    elif r["p_adjusted"] < ALPHA:
        text += f"it survives Holm's correction (p {_p(r['p_adjusted'])})"
    else:
        text += (
            f"it does not survive Holm's correction (p {_p(r['p_adjusted'])}); with as many measures as were tried, "
        )
        text += "it may well be chance"
    # The expected sign is about the gap; for another target the theory says nothing here.
    if target.startswith("gap") and r["expected_sign"] != 0:
        same = np.sign(r["value"]) == r["expected_sign"]
        text += (
            "; the sign is the one its theory predicts"
            if same
            else "; the sign is opposite to what its theory predicts"
        )
    return text + "."


def _comparisons(results: StudyResults) -> list[Finding]:
    topic = "Forgetting against sharpness"
    rows = results.comparisons[np.isfinite(results.comparisons["difference"].to_numpy(dtype=float))]
    order = [t for t in results.targets if t in set(rows["target"])] or list(rows["target"].unique())
    if not order:
        return [Finding(topic, "Not compared: there is no pair of a forgetting and a sharpness measure to compare.")]
    usable = _usable(rows[rows["target"] == order[0]])
    if usable.empty:
        return [
            Finding(
                topic, "There are too few configurations for an interval, so neither is called the stronger correlate."
            )
        ]
    clear = _clear(usable)
    row = usable.iloc[usable["difference"].abs().argmax()]
    example = (
        f"The largest difference: `{row['forgetting']}` (|τ_b| {fixed(abs(row['tau_forgetting']))}) against "
        f"`{row['sharpness']}` ({fixed(abs(row['tau_sharpness']))}), "
        f"{interval(row['difference'], row['low'], row['high'])} over {row['n_configurations']} configurations."
    )
    if clear.empty:
        head = f"Neither is shown to be the stronger correlate of `{order[0]}`: "
        head += "the interval of the paired difference contains 0 "
        head += "in the one pair compared." if len(usable) == 1 else f"in all {len(usable)} pairs compared."
    else:
        more, less = int((clear["difference"] > 0).sum()), int((clear["difference"] < 0).sum())
        head = (
            f"Of {_many(len(usable), 'pair')} compared on `{order[0]}`, forgetting is the stronger correlate in "
            f"{more}, sharpness in {less}; in {len(usable) - more - less} the interval of the difference contains 0. "
            "The intervals are not corrected for the number of pairs."
        )
    return [Finding(topic, f"{head} {example}")]


def _reversals(results: StudyResults) -> list[Finding]:
    target, rows = leading(results)
    clear = _clear(_usable(rows))
    turned = clear[clear["reversal"].astype(bool)]
    if clear.empty:
        return []
    if turned.empty:
        return [Finding("Within methods", "No measure whose pooled interval excludes 0 changes sign within methods.")]
    names = ", ".join(f"`{m}`" for m in turned["measure"].head(5)) + (", …" if len(turned) > 5 else "")
    text = (
        f"{_many(len(turned), 'measure')} of the {len(clear)} clear ones "
        f"{'changes' if len(turned) == 1 else 'change'} sign within methods ({names}): the pooled correlation "
        f"with `{target}` then reflects differences between methods, not between models of one method."
    )
    return [Finding("Within methods", text)]


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
            f"Because of the noise between seeds, no measure can reach a |τ_b| with `{target}` above about {size}.",
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
        text += ". Whether the methods differ was not tested"
    return [Finding("Methods", text + ".")]


def _runs(results: StudyResults) -> list[Finding]:
    counts = results.runs["status"].value_counts()
    total = len(results.runs)
    finished = int(counts.get("finished", 0))
    if total and finished == total:
        return [Finding("Runs", f"All {_many(total, 'run')} finished.")]
    rest = ", ".join(f"{n} {status}" for status, n in counts.items() if status != "finished")
    return [Finding("Runs", f"{finished} of {_many(total, 'run')} finished; {rest}. Correlations leave these out.")]


def _doubts(results: StudyResults) -> list[Finding]:
    rows = results.measures
    if rows.empty:
        return [Finding("Measurements", "Nothing was measured.")]
    warned = int((rows["warnings"].fillna("") != "").sum())
    loose = int((~rows["converged"].astype(bool)).sum())
    broken = int((~np.isfinite(rows["value"].to_numpy(dtype=float))).sum())
    if not (warned or loose or broken):
        return []
    text = f"Of {len(rows)} numbers, {loose} did not converge, {warned} carry a warning and {broken} are not finite."
    return [Finding("Measurements", text)]


def _p(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
