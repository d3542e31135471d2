"""The sentences at the head of a report: what the numbers support, and no more."""

import numpy as np
import pandas as pd

from analysis.candidates import compared
from analysis.measures.remarks import warning_kinds
from analysis.reporting.answer import answer
from analysis.reporting.lead import Finding, Lead, difference, listed, stronger, sufficient
from analysis.reporting.methods import verdicts
from analysis.reporting.tables import methods
from analysis.results import StudyResults
from analysis.statistics.comparison import POOLED, STRATIFIED
from analysis.statistics.resampling import MINIMUM
from analysis.statistics.units import goes_with_model
from analysis.style import counted, fixed, from_to, looks

LEADING = ("sharpness", "forgetting")  # families with a number at the head of the page
SHOWN_REVERSALS = 5
SHOWN_KINDS = 3


def findings(results: StudyResults) -> list[Finding]:
    """The findings of a study, the answer to its question first.

    Rules: with fewer than 5 configurations, without an interval, or with one that contains 0, nothing is claimed, and
    none is called stronger than another but by the interval of their difference. The answer is given by measures named
    without looking at the target, beside what baselines say; that the strongest of many measures is strong is no
    finding. What was not tested is said.
    """
    lead = Lead.of(results)
    return [
        *_other_lead(results, lead),
        *answer(results, lead),
        *_reversals(lead),
        *_comparisons(results, lead),
        *_tried(lead),
        *_ceiling(results, lead),
        *_methods(results),
        *_scope(results, lead),
        *_runs(results),
        *_doubts(results),
    ]


def _other_lead(results: StudyResults, lead: Lead) -> list[Finding]:
    """Says that the target which the study leads with has no correlation, where that is so."""
    wanted = ((results.study.get("study") or {}).get("statistics") or {}).get("lead")
    if not wanted or not lead.target or lead.target == wanted:
        return []
    text = f"The study leads with `{wanted}`, which has no correlation (not measured, or constant)"
    return [Finding("Another target", f"{text}; what follows is about `{lead.target}`.")]


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
    lead = Lead.of(results)
    for standing in lead.named:
        row = standing.row
        if standing.named in LEADING and sufficient(row):
            span = f"[{fixed(row['low'])}, {fixed(row['high'])}]"
            inside = f"; {fixed(row['stratified'])} inside cells" if np.isfinite(row["stratified"]) else ""
            meaning = (
                f"{span}: τ_b of `{row['measure']}` with `{lead.target}`, which stands for {standing.named}{inside}"
            )
            out.append((fixed(row["value"]) + " ⚠" * bool(row["warned"] > 0), meaning))
    return out


def _tried(lead: Lead) -> list[Finding]:
    """How many measures were tried, and how many of them are left after the correction, by their signs."""
    usable = _usable(lead.rows)
    if usable.empty:
        return []
    clear = _clear(usable)
    tally = lead.tally()
    name = "Holm's" if (usable["correction"] == "holm").all() else "the max-T"
    if clear.empty:
        text = (
            f"None of {counted(len(lead.rows), 'variant')} of measures has an interval with `{lead.target}` without 0."
        )
        return [Finding("Tried", text)]
    text = (
        f"Of {counted(len(lead.rows), 'variant')} of measures, {len(clear)} "
        f"{'has an interval' if len(clear) == 1 else 'have intervals'} with `{lead.target}` that "
        f"{'excludes' if len(clear) == 1 else 'exclude'} 0, and {tally.survive or 'none'} of these "
        f"{'survives' if tally.survive == 1 else 'survive'} {name} correction for the number of "
        f"measures{tally.signs()}."
    )
    return [Finding("Tried", text)]


def _scope(results: StudyResults, lead: Lead) -> list[Finding]:
    """Over which models the statements are made, and what the study does not say, so that nobody reads it into it."""
    texts = [_models(results, lead)] if lead.usable else []
    parts = ["whether changing a measure changes generalisation (nothing here intervenes on one)"]
    for name, what in (("dataset", "data"), ("model", "models")):
        column = f"hp.{name}"
        if column in results.runs and results.runs[column].nunique() == 1:
            parts.append(f"other {what} than `{results.runs[column].iloc[0]}`")
    if lead.named and not lead.known:
        parts.append("measures against baselines such as the validation error (none was correlated)")
    if lead.one_cell:
        parts.append("other learning rates, batch sizes and the like (all models share theirs)")
    elif lead.named and not any(np.isfinite(standing.row["stratified"]) for standing in lead.named):
        parts.append("models of equal learning rate, batch size and the like (no cell of at least 3 configurations)")
    draws = results.comparisons["low_draws"].to_numpy(dtype=float)
    if not np.isfinite(draws).any():
        parts.append("other draws of the data (that needs at least four)")
    texts.append(f"Not tested: {'; '.join(parts)}.")
    return [Finding("Scope", " ".join(texts))]


def _models(results: StudyResults, lead: Lead) -> str:
    """The models that a correlation is over, in words."""
    configurations = results.configurations().query("status == 'finished'")
    n = max(int(standing.row["n_configurations"]) for standing in lead.usable)
    told = ("hp.method", "hp.ascent", *goes_with_model(results.runs))
    varied = [c.removeprefix("hp.") for c in results.configuration_columns if c not in told]
    settings = [*["method"] * (len(results.methods) > 1), *(f"`{name}`" for name in varied)]
    differ = f", which differ in {listed(settings)}" if settings else ""
    seeds = configurations.groupby("configuration").size()
    each = f", each averaged over its {from_to(seeds)} seeds" if seeds.max() > 1 else ""
    draws = results.draws_of_data
    each += f" ({draws} random splits of the same data)" if draws > 1 and seeds.max() > 1 else ""
    return (
        f"The correlations are over pairs of configurations like these {n}{differ}{each}; another choice of "
        "methods or settings is another population, and may have another correlation."
    )


def _usable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that could carry a claim: enough configurations, and an interval."""
    finite = np.isfinite(rows[["low", "high"]].to_numpy(dtype=float)).all(axis=1)
    enough = rows["n_configurations"].to_numpy(dtype=float) >= MINIMUM
    usable: pd.DataFrame = rows.loc[finite & enough]
    return usable


def _clear(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["low"] > 0) | (rows["high"] < 0)]


def _comparisons(results: StudyResults, lead: Lead) -> list[Finding]:
    """The pairs that the study named, but for those that the answer has told."""
    every = results.comparisons[np.isfinite(results.comparisons["difference"].to_numpy(dtype=float))]
    order = [t for t in results.targets if t in set(every["target"])] or list(every["target"].unique())
    if not order:
        text = "Not compared: the study names no pair of measures, or none of them was measured."
        return [Finding("Pairs that were named", text)]
    rows = compared(results, order[0])
    here = _usable(rows[np.isfinite(rows["difference"].to_numpy(dtype=float))])
    if here.empty:
        text = "There are too few configurations for an interval, so neither is called the stronger correlate."
        return [Finding("Pairs that were named", text)]
    told = {s.row["measure"] for s in (*lead.usable, *lead.known)} if order[0] == lead.target else set()
    rest = here[~(here["forgetting"].isin(told) & here["sharpness"].isin(told))]
    if rest.empty:
        return []
    texts = [
        _pairs(some, words, order[0])
        for kind, words in ((POOLED, "Over all models"), (STRATIFIED, "With the hyper-parameters held fixed"))
        if len(some := rest[rest["pairs"] == kind])
    ]
    topic = "Other pairs that were named" if len(rest) < len(here) else "Pairs that were named"
    return [Finding(topic, " ".join([*texts, "The intervals are not corrected for the number of pairs."]))]


def _pairs(rows: pd.DataFrame, words: str, target: str) -> str:
    """Which pairs are decided, and how many are not."""
    decided = []
    for row in rows.to_dict("records"):
        if sign := stronger(row):
            first, second = (row["forgetting"], row["sharpness"])[::sign]
            decided.append(f"`{first}` is stronger than `{second}` by {difference(row, sign)}")
    rest = len(rows) - len(decided)
    return (
        f"{words}, of {counted(len(rows), 'pair')} as correlates of `{target}`: "
        f"{listed(decided) if decided else 'none is decided'}; in {rest} the interval of the difference of |τ_b| "
        "contains 0."
    )


def _reversals(lead: Lead) -> list[Finding]:
    """What turns round within methods, or with the hyper-parameters held fixed; also where nothing is clear pooled."""
    target, usable = lead.target, _usable(lead.rows)
    if usable.empty:
        return []
    named = {standing.row["measure"] for standing in lead.named}
    clear = _clear(usable)
    inside = (usable["stratified_low"] > 0) | (usable["stratified_high"] < 0)
    opposite = usable["value"] * usable["stratified"] < 0
    texts = []
    for turned, where, why in (
        (clear[clear["reversal"].astype(bool)], "have the opposite sign within methods", "differences between methods"),
        (usable[inside & opposite], "have the opposite sign inside cells of equal hyper-parameters of training, "
         "with an interval there that excludes 0", "learning rate, batch size and the like"),
    ):  # fmt: skip
        if len(turned):
            first = sorted(turned["measure"], key=lambda m: m not in named)[:SHOWN_REVERSALS]
            names = ", ".join(f"`{m}`" for m in first) + (", …" if len(turned) > SHOWN_REVERSALS else "")
            texts.append(
                f"{len(turned)} of {counted(len(lead.rows), 'variant')} {where} ({names}): their pooled correlation "
                f"with `{target}` mixes in {why}."
            )
    other = "other" if texts else "variant"
    if not texts:
        places = ["within methods"] * (len(lead.methods) > 1)
        places += ["inside cells"] * bool(np.isfinite(usable["stratified"]).any())
        if not places:
            return []
        texts = [f"No measure whose interval excludes 0 changes sign {' or '.join(places)}."]
    marked = usable[usable["cell_reversal"].astype(bool) & ~(inside & opposite)]
    if len(marked):
        texts.append(
            f"⇄ marks {counted(len(marked), other)} whose coefficient inside cells differs from the pooled one by "
            "more than twice the error of the difference, or in sign with an interval that contains 0."
        )
    return [Finding("What reverses", " ".join(texts))]


def _ceiling(results: StudyResults, lead: Lead) -> list[Finding]:
    if lead.rows.empty:
        return []
    table = results.ceilings
    here = table[(table["target"] == lead.target) & (table["coefficient"] == "kendall")].to_dict("records")
    row = here[0] if here else {}
    if not np.isfinite(row.get("spearman_brown", np.nan)):
        return [Finding("Noise ceiling", "Unknown: it needs at least two seeds of a configuration.")]
    again = fixed(row["spearman_brown"])
    text = (
        f"The target of the same configurations, trained again, would agree with `{lead.target}` to a τ_b of {again}."
    )
    if np.isfinite(row["independent"]):
        text += (
            f" A measure whose noise is independent of the target's can be expected to reach at most "
            f"{fixed(row['independent'])}; one of the same runs shares their noise, and can exceed that."
        )
    if row["strongest"] and np.isfinite(row["strongest_across"]):
        text += (
            f" The strongest, `{row['strongest']}`, has {fixed(row['strongest_value'])} on the same runs, and "
            f"{fixed(row['strongest_across'])} between halves of the seeds, where the target itself has "
            f"{fixed(row['split_half'])}."
        )
    return [Finding("Noise ceiling", text)]


def _methods(results: StudyResults) -> list[Finding]:
    data, score = methods(results).data, results.score
    mean = f"{score.on('test')}_mean"
    data = data[np.isfinite(data[mean].to_numpy(dtype=float))].sort_values(mean)
    if data.empty:
        finished = bool((results.runs["status"] == "finished").any())
        why = f"The runs have no test {score.words}, by which methods are compared" if finished else "No run finished"
        return [Finding("Methods", f"{why}.")]
    look = looks(results.methods)

    def shown(row: dict[str, float | str]) -> str:
        sd = float(row[f"{score.on('test')}_sd"])
        spread = f" ± {fixed(score.factor * sd)}" if np.isfinite(sd) else ""
        return (
            f"{look[str(row['method'])][0]} {fixed(score.factor * float(row[mean]))}{spread}{' %' * bool(score.unit)}"
        )

    rows = data.to_dict("records")
    text = f"{'Lowest test' if len(rows) > 1 else 'Test'} {score.words}: {shown(rows[0])}"
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
    if warned or loose:
        kinds = warning_kinds(rows)
        each = listed([f"{row['kind']} ({row['values']:,})" for row in kinds.head(SHOWN_KINDS).to_dict("records")])
        more = f"; {counted(len(kinds) - SHOWN_KINDS, 'more kind')} in the table" if len(kinds) > SHOWN_KINDS else ""
        text += f" By kind: {each}{more}."
    return [Finding("Measurements", text)]
