"""The report's tables: what each holds of a study."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import compared, lineup, noisy_labels, one_cell
from analysis.figures.correlations import leading, of_target
from analysis.measures.remarks import warning_kinds
from analysis.reporting.correlations import correlations
from analysis.reporting.given import short_names, spelled
from analysis.reporting.latex import escape_latex, to_latex
from analysis.reporting.methods import better
from analysis.reporting.table import (
    SHOWN_ROWS,
    Table,
    first_of,
    natural,
    plain,
    remarks,
    to_csv,
    to_markdown,
    told,
    written,
)
from analysis.results import StudyResults
from analysis.score import Score
from analysis.statistics.catalogue import STATISTICS
from analysis.statistics.correlation_rows import BASELINE
from analysis.statistics.statistic import INTERVAL, SHOWN, SIGNS, Cell, Statistic, number, span, whole, words
from analysis.style import count, fixed, interval, looks, missing, ordered, p_value
from analysis.table import SEED_COLUMNS

__all__ = ["SHOWN_ROWS", "TABLES", "Table", "escape_latex", "methods", "p_value", "to_csv", "to_latex", "to_markdown"]


def methods(results: StudyResults) -> Table:
    """Errors of the best configuration of each method, mean and deviation over its seeds."""
    chosen, rule = results.best_configurations()
    everything = results.configurations()
    look, score = looks(results.methods), results.score
    rows: list[dict[str, Any]] = []
    for label in ordered(results.methods):
        here = chosen[chosen["method"] == label]
        of_method = everything[everything["method"] == label]
        test, train = here[score.on("test")], here[score.on("train")]
        row: dict[str, Any] = {"method": label, "configuration": _where(results, here), "seeds": len(here)}
        for name, values in (
            (score.on("test"), test),
            (score.on("train"), train),
            (score.on("gap"), test - train),
        ):
            row |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std()}
        rows.append(row | {"runs": len(of_method), "diverged": int((of_method["status"] == "diverged").sum())})
    data = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "Method": [look[m][0] for m in data["method"]],
            "Chosen configuration": data["configuration"],
            f"Test {score.words}{score.unit}": _plus_minus(data, score.on("test"), score),
            f"Training {score.words}{score.unit}": _plus_minus(data, score.on("train"), score),
            f"Gap ({score.points})" if score.unit else "Gap": _plus_minus(data, score.on("gap"), score),
            "Seeds": data["seeds"].astype(str),
            "Runs": data["runs"].astype(str),
            "Diverged": data["diverged"].astype(str),
        }
    )
    given = ", which is on the noisy labels" if noisy_labels(results) else ""
    note = (
        f"Mean ± standard deviation over the finished seeds, at the end of training. For each method: {rule}. Gap: "
        f"test minus training {score.words}{given}. Runs and diverged: all of the method."
    )
    return Table("methods", "Errors by method", note, data, shown, ("Method", "Chosen configuration"))


def _where(results: StudyResults, rows: pd.DataFrame) -> str:
    """The hyper-parameters that make the rows' configuration, or how many configurations they are from."""
    if rows.empty:
        return "none finished"
    if rows["configuration"].nunique() > 1:
        return f"all {rows['configuration'].nunique()}"
    columns = [c for c in results.configuration_columns if c not in ("hp.method", "hp.ascent")]
    pairs = [(c.removeprefix("hp."), rows[c].iloc[0]) for c in columns if c in rows]
    return ", ".join(f"{k}={plain(v)}" for k, v in pairs if not missing(v)) or "the only one"


def _plus_minus(data: pd.DataFrame, name: str, score: Score) -> list[str]:
    """In the score's unit; a deviation of a single seed is unknown and not printed."""
    pairs = zip(score.factor * data[f"{name}_mean"], score.factor * data[f"{name}_sd"], strict=True)
    return [f"{fixed(m)} ± {fixed(s)}" if np.isfinite(s) else fixed(m) for m, s in pairs]


def _of_statistics(
    name: str,
    title: str,
    note: str,
    data: pd.DataFrame,
    rows: pd.DataFrame,
    cells: Mapping[str, Cell],
    flush_left: tuple[str, ...],
    results: StudyResults,
    **more: Any,
) -> Table:
    """A table whose rows carry remarks, which are told below it."""
    level = results.facts()["level"]
    headings = {heading.format(level=level): cell for heading, cell in cells.items()}
    shown, note = remarks(told(written(rows, {**headings, "Remark": words("warnings")}), flush_left), note)
    return Table(name, title, note, data, shown, tuple(c for c in (*flush_left, "Remark") if c in shown), **more)


def comparisons(results: StudyResults) -> Table:
    """Paired differences between two measures, over all pairs of configurations and over those inside cells."""
    known = set(results.comparisons["target"])
    target = next((t for t in results.targets if t in known), "")
    rows = compared(results, target)
    cells = {
        "First": words("forgetting"),
        "Second": words("sharpness"),
        **({"Pairs": words("pairs")} if "pairs" in rows else {}),
        "τ_b first": number("tau_forgetting"),
        "τ_b second": number("tau_sharpness"),
        "|τ| difference": number("difference"),
        **INTERVAL,
        **({"Over draws too": Cell(("low_draws", "high_draws"), span)} if "low_draws" in rows else {}),
        **({"Signed": Cell(("signed", "signed_low", "signed_high"), interval)} if "signed" in rows else {}),
        "n": whole("n_configurations"),
    }
    note = (
        f"Difference |τ_b(first)| − |τ_b(second)| with `{target}` on the same n configurations; positive: the first is "
        "the stronger correlate. The CSV file has the other targets. Pairs: pooled over all configurations, or "
        "stratified, inside cells of equal hyper-parameters of training. Intervals resample configurations and take "
        "both coefficients on the same sample; over draws too: configurations and draws of the data, where there are "
        f"at least four.{results.facts()['overlap']} Signed: both coefficients taken in the direction that is expected "
        "of them. Near 0 an absolute value is too large on average: where an interval of either coefficient contains "
        "0, read the signed difference."
    )
    rows, note = first_of(rows, note, "comparisons")
    title, left = "One measure against another, pair by pair", ("First", "Second", "Pairs")
    empty = "No two measures were compared."
    return _of_statistics("comparisons", title, note, results.comparisons, rows, cells, left, results, empty=empty)


def ceilings(results: StudyResults) -> Table:
    """How strong a correlation the noise between seeds allows, and what the strongest measure has."""
    rows = results.ceilings[results.ceilings["coefficient"] == "kendall"]
    cells = {
        "Target": words("target"),
        "Halves": number("split_half"),
        "Runs made again": number("spearman_brown"),
        "Oracle with noise": number("oracle_with_noise"),
        "Independent measures, at most": number("independent"),
        "Strongest measure": words("strongest"),
        "Its τ_b": number("strongest_value"),
        "Between halves": number("strongest_across"),
        "n": whole("n_configurations"),
    }
    note = (
        "How far the noise between seeds lets a τ_b with a target go, and what the strongest measure has. Halves: the "
        "target of one half of the seeds with that of the other. Runs made again: the same corrected to all seeds "
        "(Spearman–Brown). Oracle with noise: the target with itself plus noise of its own standard error. No measure "
        "whose noise is independent of the target's can be expected above the next column; a measure of the same runs "
        "shares what happened in them and can exceed it. Between halves: the strongest measure of one half of the "
        "seeds with the target of the other, to be compared with the first column."
    )
    empty = "No noise ceiling: it needs at least two seeds a configuration."
    left = ("Target", "Strongest measure")
    return _of_statistics("ceilings", "Noise ceiling", note, results.ceilings, rows, cells, left, results, empty=empty)


def further(statistic: Statistic, results: StudyResults) -> Table:
    """Another statistic, for the leading target and the measures of the table of correlations; the CSV file has all."""
    target = leading(results)[0]
    standings = lineup(results, of_target(results.correlations, target))
    measures = [str(s.row["measure"]) for s in standings if s.row["role"] != BASELINE][:SHOWN]
    data = results.further.get(statistic.name, pd.DataFrame(columns=statistic.columns.split()))
    own_target = data[data["target"] == target]
    rows = statistic.chosen(own_target, measures)
    note = statistic.note.format(target=target)
    if statistic.name == "families" and one_cell(results.correlations, target):  # inside it is over all models again
        twice = [c for c in rows.columns if "stratified" in c]
        rows = rows.assign(**{c: "" if rows[c].dtype == object else np.nan for c in twice})
    if "measure" in rows.columns and (n := rows["measure"].nunique()) < own_target["measure"].nunique():
        note += f" Shown: {n} of the {own_target['measure'].nunique()} rows of measures in the CSV file."
    if statistic.name == "partial":
        rows = rows.assign(control=rows["control"].map(short_names(results)))
        note = f"{note} {spelled(results)}".rstrip()
    own = {"Measure": words("measure")} if "measure" in rows.columns else {}
    return _of_statistics(
        statistic.name, statistic.title, note, data, rows,
        {**own, **statistic.shown, **statistic.spread(rows)}, (*own, *statistic.words), results,
        empty="No measure has a value in this table.", optional=True,
    )  # fmt: skip


def problems(results: StudyResults) -> Table:
    """Every run that did not finish, and why."""
    rows = results.runs[results.runs["status"] != "finished"]
    shown = pd.DataFrame(
        {
            "Run": rows["run_id"].astype(str),
            "Configuration": [_where_row(results, row) for row in rows.to_dict("records")],
            "Status": rows["status"].astype(str),
            "Epochs": rows["epochs"].map(count),
            "Reason": rows["reason"].fillna("").astype(str),
        }
    )
    note = "Runs that did not finish. They have no targets and enter no correlation."
    words = ("Run", "Configuration", "Status", "Reason")
    title, empty = "Diverged and unfinished runs", "Every run finished."
    return Table("unfinished", title, note, rows, shown, words, empty, optional=True)


def _where_row(results: StudyResults, row: dict[Any, Any]) -> str:
    columns = [*results.configuration_columns, *SEED_COLUMNS]
    return (
        ", ".join(f"{c.removeprefix('hp.')}={plain(row[c])}" for c in columns if c in row and not missing(row[c]))
        or "–"
    )


def grid(results: StudyResults) -> Table:
    """What was varied and what was not."""
    columns = [c for c in results.runs.columns if c.startswith("hp.")]
    varied = [c for c in columns if results.runs[c].map(str).nunique() > 1]
    names = [*varied, *(c for c in columns if c not in varied)]
    values = [list(dict.fromkeys(plain(v) for v in results.runs[c] if not missing(v))) for c in names]
    data = pd.DataFrame(
        {
            "setting": [c.removeprefix("hp.") for c in names],
            "varied": [c in varied for c in names],
            "values": ["; ".join(sorted(v, key=natural)) for v in values],
        }
    )
    shown = pd.DataFrame(
        {"Setting": data["setting"], "Values": data["values"], "": ["varied" if v else "" for v in data["varied"]]}
    )
    return Table(
        "settings",
        "Settings",
        "Every setting of the runs, those that were varied first.",
        data,
        shown,
        tuple(shown.columns),
    )


def environment(results: StudyResults) -> Table:
    """Versions, platform and commit."""
    given = results.study.get("environment") or {}
    data = pd.DataFrame({"item": list(given), "value": [plain(v) for v in given.values()]}, dtype=object)
    shown = data.rename(columns={"item": "Item", "value": "Value"})
    note = "Recorded when the study was run."
    return Table(
        "environment", "Environment", note, data, shown, ("Item", "Value"), "The study recorded no environment."
    )


def measures(results: StudyResults) -> Table:
    """What was measured: the entries of the registry, what they say and what they cost."""
    data = results.entries()
    shown = pd.DataFrame(
        {
            "Measure": data["measure"].astype(str),
            "Family": data["family"].astype(str),
            "Larger means": data["higher_means"].astype(str).str.replace("_", " "),
            "Expected": data["sign"].map(lambda s: SIGNS.get(int(s), "?")),
            "Unchanged by": data["invariant"].astype(str).replace("", "–"),
            "Cost (gradients)": data["gradients"].map("{:g}".format),
            "Rows": data["rows"].astype(str),
        }
    )
    note = (
        "Expected: sign of the correlation with the gap that the measure's own theory predicts, ? if it predicts none. "
        "Unchanged by: T1 rescaling of ReLU layers, T2 scale of weights before a normalisation, T3 shift of the "
        "outputs, T4 scale of the last layer, T5 order of hidden units. Cost: expected, in gradients over the training "
        "data, with the default options on networks like those of the default study. Rows: the names under which it "
        "stands in the tables."
    )
    words = tuple(shown.columns.drop("Expected"))
    return Table("measures", "What was measured", note, data, shown, words, "No measure of the registry was taken.")


def warnings(results: StudyResults) -> Table:
    """Which warnings the measured numbers carry, and how many carry each."""
    data = warning_kinds(results.measures)
    shown = pd.DataFrame(
        {
            "Warning": data["kind"],
            "Measures": data["measures"].map(count),
            "Values": data["values"].map("{:,}".format),
            "Of them missing": data["missing"].map("{:,}".format),
            "Share": data["share"].map(lambda share: f"{100 * share:.1f} %"),
            "For example": data["example"],
        }
    )
    note = (
        f"Warnings that the {len(results.measures):,} measured numbers carry, by kind; one value may carry several. "
        "A warned value is used like any other: ⚠ in the tables and figures of correlations says where. Missing: "
        "there is no finite number."
    )
    shown, note = first_of(shown, note, "kinds")
    return Table(
        "warnings",
        "Warnings by kind",
        note,
        data,
        shown,
        ("Warning", "For example"),
        "No measured number carries a warning.",
        optional=True,
    )


def measured(results: StudyResults) -> Table:
    """How many numbers were measured, and how many of them carry a doubt."""
    rows = results.measures
    counts = rows.groupby("measure", sort=True).agg(
        rows=("value", "size"),
        not_finite=("value", lambda v: int((~np.isfinite(v.to_numpy(dtype=float))).sum())),
        not_converged=("converged", lambda c: int((~c.astype(bool)).sum())),
        with_warning=("warnings", lambda w: int((w.fillna("") != "").sum())),
    )
    data = counts.reset_index()
    shown = data.astype(str).set_axis(["Measure", "Rows", "Not finite", "Not converged", "With a warning"], axis=1)
    note = "Measures with rows that are not finite, did not converge, or carry a warning. The CSV file counts all."
    shown, note = first_of(shown[(counts.drop(columns="rows").sum(axis=1) > 0).to_numpy()], note, "such measures")
    title, empty = "Measurements with a doubt", "No measured number carries a doubt."
    return Table("doubts", title, note, data, shown, ("Measure",), empty, optional=True)


TABLES: dict[str, Callable[[StudyResults], Table]] = {
    "methods": methods,
    "comparison_of_methods": better,
    "correlations": correlations,
    "comparisons": comparisons,
    "ceilings": ceilings,
    "unfinished": problems,
    "settings": grid,
    "measures": measures,
    "warnings": warnings,
    "doubts": measured,
    "environment": environment,
    **{name: partial(further, statistic) for name, statistic in STATISTICS.items()},
}
