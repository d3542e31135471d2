"""Is one method better? The comparison of training methods as a table for a reader, and in a sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.reporting.lead import listed
from analysis.reporting.table import Table, plain
from analysis.results import StudyResults
from analysis.score import Score, direction, is_share
from analysis.statistics.methods import compare_methods, edge_of_grid
from analysis.style import counted, fixed, looks, ordered, p_value
from analysis.table import SEEDS, last_step
from trainers.config import TrainConfig

AXES = ("lr", "rho", "batch_size", "weight_decay")  # settings whose grid has edges
BASELINES = ("sgd", "adamw")  # what the report compares the methods of a study with
TITLE = "Comparison of training methods"


def method_comparison(
    comparison: pd.DataFrame,
    runs: pd.DataFrame,
    *,
    group: str = "method",
    by: Sequence[str] = (),
    target: str = "test_error",
    choose: str = "validation_error",
    level: float = 0.95,
) -> Table:
    """The rows of `compare_methods` for a reader: mean ± deviation, difference with its interval, p-values, a verdict.

    The verdict is by Holm's p of the t tests: below 1 - `level` the group is better or worse, else nothing is shown.

    Args:
        comparison: What `compare_methods` gave.
        runs: The runs that it was given, from which the settings of the chosen configurations are read.
        group: As for `compare_methods`.
        by: As for `compare_methods`.
        target: As for `compare_methods`.
        choose: As for `compare_methods`.
        level: As for `compare_methods`.
    """
    percent = is_share(target)
    scale, unit = (100.0, " (%)") if percent else (1.0, "")
    digits = 2 if percent else 3
    baseline = str(comparison.loc[comparison["difference"].isna() & comparison["warnings"].eq(""), "group"].iloc[0])
    records = comparison.to_dict("records")
    shown = pd.DataFrame(
        {
            **{key: comparison[key].map(plain) for key in by},
            group: comparison["group"].map(str),
            "chosen": [_settings(runs, row, group, by) for row in records],
            "chosen from": comparison["configurations"].astype(str),
            f"{target}{unit}": [
                _plus_minus(row["mean"], row["deviation"], scale, digits) for row in comparison.to_dict("records")
            ],
            "seeds": comparison["seeds"].astype(str),
            f"difference to {baseline}": [_difference(row, scale, digits) for row in records],
            "verdict": [_verdict(row, 1 - level, target) for row in records],
            "p": [_p(p) for p in comparison["p"]],
            "p (Holm)": [_p(p) for p in comparison["p_holm"]],
            "p (flips)": [_p(p) for p in comparison["p_flip"]],
            "remarks": ["; ".join(filter(None, [row["warnings"], *_edges(runs, row, group)])) for row in records],
        }
    )
    when = (
        f"at the evaluated epoch with the lowest {choose.replace('_', ' ')}"
        if target.endswith("_stopped")
        else ("at the end of training")
    )
    note = (
        f"Is one {group} better than {baseline}? Each row is the configuration of its {group} with the "
        f"{'lowest' if direction(choose) > 0 else 'highest'} mean "
        f"{choose.replace('_', ' ')}, paired with {baseline} over the seeds. Mean ± standard deviation over seeds "
        f"{when}; difference with its {100 * level:g} % t interval. p: paired t test, corrected by Holm over the "
        "table, and by random sign flips, which with n pairs cannot fall below 2/2^n. The verdict goes by the "
        f"corrected p at {1 - level:.2g}; that no difference is shown does not mean that there is none. Chosen from: "
        "how many configurations were tried; what is chosen from more has more of the luck of its validation data."
    )
    text = (*by, group, "chosen", "verdict", "remarks")
    return Table("comparison_of_methods", TITLE, note, comparison, shown, text)


def compared(results: StudyResults) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `compare_methods` says of a study's methods at its own level, and the runs that it was given.

    The methods are compared with plain SGD, or AdamW, or else with the first of them.

    Raises:
        ValueError: If there is nothing to compare, with the reason as a sentence.
    """
    methods = ordered(results.methods)
    if len(methods) < 2:
        raise ValueError("One method was trained, so there is none to compare it with.")
    runs = _runs(results)
    score = results.score
    if not np.isfinite(runs[score.on("validation")].to_numpy(dtype=float)).any():
        raise ValueError(
            f"Not compared: there is no validation {score.words} to choose a configuration of each method by."
        )
    baseline = next((name for name in BASELINES if name in methods), methods[0])
    target, choose = score.on("test"), score.on("validation")
    return compare_methods(runs, baseline=baseline, target=target, choose=choose, level=level_of(results)), runs


def level_of(results: StudyResults) -> float:
    """Coverage of the intervals of a study, as `facts` tells it."""
    return float(results.facts()["level"].removesuffix(" %")) / 100


def better(results: StudyResults) -> Table:
    """Which of a study's methods is better, as the report shows it; the CSV file holds the numbers."""
    try:
        comparison, runs = compared(results)
    except ValueError as nothing:
        return Table("comparison_of_methods", TITLE, "", pd.DataFrame(), pd.DataFrame(), empty=str(nothing))
    score = results.score
    target, choose = score.on("test"), score.on("validation")
    table = method_comparison(comparison, runs, target=target, choose=choose, level=level_of(results))
    names = {label: look[0] for label, look in looks(results.methods).items()}
    baseline = comparison["group"].iloc[0]
    shown = table.shown.assign(method=table.shown["method"].map(names))
    shown = shown.rename(columns={f"difference to {baseline}": f"difference to {names[baseline]}"})
    shown = shown.rename(columns={f"{target}{score.unit}": f"Test {score.words}{score.unit}"}).rename(columns=_capital)
    note = table.note.replace(f" {baseline}", f" {names[baseline]}")
    return replace(table, note=note, shown=shown, text=("Method", "Chosen", "Verdict", "Remarks"))


def _capital(heading: str) -> str:
    return heading if heading.partition(" ")[0] == "p" else heading[:1].upper() + heading[1:]


def verdicts(results: StudyResults) -> str:
    """Whether the methods differ, in a sentence; empty where it was not tested."""
    try:
        comparison, runs = compared(results)
    except ValueError:
        return ""
    look, alpha, score = looks(results.methods), 1 - level_of(results), results.score
    names = {label: shown[0] for label, shown in look.items()}
    records = comparison.to_dict("records")
    baseline, others = names[records[0]["group"]], records[1:]
    if not any(np.isfinite(row["p"]) for row in others):
        return f"Whether any method differs from {baseline} was not tested: it needs two seeds of each."
    found = {
        word: [row for row in others if _verdict(row, alpha, score.on("test")) == word]
        for word in ("better", "worse", "not shown to differ")
    }
    parts = []
    for word, rows in found.items():
        if rows:
            each = ", ".join(f"{names[row['group']]} ({_points(row, score)})" for row in rows)
            parts.append(f"{word}: {each}")
    tried = sorted({int(row["configurations"]) for row in records})
    searched = f"{tried[0]}" if len(tried) == 1 else f"{tried[0]} to {tried[-1]}"
    pairs = max(int(row["pairs"]) for row in others)
    return (
        f"Against {baseline}, in {score.points} of test {score.words} over {counted(pairs, 'pair')} of seeds, after "
        f"Holm's correction: "
        f"{'; '.join(parts)}.{_too_few(pairs, alpha)}{_overlapping(results, runs, others, names)} Each was chosen from "
        f"{searched} configurations by validation {score.words}.{_at_edges(runs, records, names)}"
    )


def _too_few(pairs: int, alpha: float) -> str:
    """That the verdicts rest on the t test alone, where sign flips could not reach its level."""
    return (
        f" These are t tests: {pairs} pairs are too few for sign flips to confirm one." if 2 / 2**pairs > alpha else ""
    )


def _points(row: Mapping[Any, Any], score: Score) -> str:
    digits = 1 if score.unit else 3
    middle, low, high = (fixed(score.factor * row[key], digits) for key in ("difference", "low", "high"))
    return f"{middle} [{low}, {high}]"


def _runs(results: StudyResults) -> pd.DataFrame:
    """One row a run for `compare_methods`: settings by their names, errors at the end, NaN where it did not finish."""
    errors = results.final().set_index("run_id")[[results.score.on("validation"), results.score.on("test")]]
    units = results.configurations().set_index("run_id")
    settings = results.runs.set_index("run_id").filter(like="hp.").rename(columns=lambda c: c.removeprefix("hp."))
    settings = settings.drop(columns=["method", *errors.columns], errors="ignore")
    if not set(SEEDS) & set(settings.columns):
        settings["seed"] = units.groupby("configuration").cumcount()
    return settings.join(units).join(errors).reset_index()


def _verdict(row: Mapping[Any, Any], alpha: float, target: str) -> str:
    if not np.isfinite(row["difference"]) and not row["warnings"]:
        return "baseline"
    if not np.isfinite(row["p_holm"]):
        return "not tested"
    if row["p_holm"] >= alpha:
        return "not shown to differ"
    return "better" if direction(target) * row["difference"] < 0 else "worse"


def _settings(runs: pd.DataFrame, row: dict[Any, Any], group: str, by: Sequence[str]) -> str:
    """The settings of the chosen configuration that differ within its group."""
    here = runs[runs[group] == row["group"]]
    chosen = here[here["configuration"] == row["configuration"]]
    if chosen.empty:
        return "none finished"
    settings = [c for c in TrainConfig.model_fields if c in here.columns and c not in ("method", *SEEDS, group, *by)]
    varied = [c for c in settings if here[c].map(str).nunique() > 1]
    return ", ".join(f"{c}={plain(chosen[c].iloc[0])}" for c in varied) or "the only one"


def _edges(runs: pd.DataFrame, row: Mapping[Any, Any], group: str) -> list[str]:
    """The settings of a chosen configuration that are the largest or smallest of its group: a wider grid may do better.

    As `edge_of_grid` says it: "lr is the smallest of its grid".
    """
    of_group = runs[runs[group] == row["group"]]
    return [said for axis in AXES if (said := edge_of_grid(of_group, row["configuration"], axis))]


def _at_edges(runs: pd.DataFrame, records: Sequence[Mapping[Any, Any]], names: Mapping[str, str]) -> str:
    """Which methods were chosen at an edge of their grid of a setting, in a sentence; empty where none was."""
    found: dict[str, list[str]] = {}
    for row in records:
        for said in _edges(runs, row, "method"):
            found.setdefault(said.replace(" is the ", " (the ").replace(" of its grid", ")"), []).append(row["group"])
    parts = [
        f"`{edge.partition(' ')[0]}`{edge.partition(' ')[1]}{edge.partition(' ')[2]} for "
        f"{'all methods' if len(labels) == len(records) > 1 else listed([names[label] for label in labels])}"
        for edge, labels in found.items()
    ]
    if not parts:
        return ""
    return f" Chosen at an edge of the grid, so that a wider one may hold a better value: {'; '.join(parts)}."


def _overlapping(
    results: StudyResults, runs: pd.DataFrame, records: Sequence[Mapping[Any, Any]], names: Mapping[str, str]
) -> str:
    """What is left of the intervals where the seeds are overlapping splits of the same data, in a sentence.

    The variance of a mean over n splits is then (1/n + test/training examples) times that of a difference, not 1/n.

    Source:
        Nadeau and Bengio (2003), Machine Learning 52.
    """
    shares = _test_over_train(results)
    if results.draws_of_data < 2 or runs.groupby("configuration")["data_seed"].nunique().max() < 2:
        return ""
    said = " The seeds are overlapping splits of the same examples: for new data these intervals are too short"
    if not np.isfinite(shares):
        return f"{said} (Nadeau and Bengio 2003)."
    wider = {row["group"]: math.sqrt(1 + row["pairs"] * shares) for row in records if np.isfinite(row["low"])}
    kept = [
        names[row["group"]]
        for row in records
        if row["group"] in wider and abs(row["difference"]) > wider[row["group"]] * (row["high"] - row["low"]) / 2
    ]
    factors = sorted({fixed(factor, 1) for factor in wider.values()})
    left = f"exclude 0 for {listed(kept)}" if kept else "exclude 0 for none"
    return (
        f"{said}; with the variance of Nadeau and Bengio (2003) they are {listed(factors)} times as wide, and {left}."
    )


def _test_over_train(results: StudyResults) -> float:
    """How many test examples there are for a training example, as the measures counted them; NaN where they did not."""
    rows = last_step(results.measures)
    columns = [results.score.on("test"), results.score.on("train")]
    counts = [pd.to_numeric(rows.loc[rows["measure"] == m, "draws"]).max() for m in columns]
    return float(counts[0] / counts[1]) if all(n > 0 for n in counts) else math.nan


def _plus_minus(mean: float, deviation: float, scale: float, digits: int) -> str:
    if not np.isfinite(mean):
        return "–"
    text = fixed(scale * mean, digits)
    return f"{text} ± {fixed(scale * deviation, digits)}" if np.isfinite(deviation) else text


def _difference(row: dict[Any, Any], scale: float, digits: int) -> str:
    if not np.isfinite(row["difference"]):
        return "–"
    low, high = (fixed(scale * row[key], digits) for key in ("low", "high"))
    middle = fixed(scale * row["difference"], digits)
    return f"{middle} [{low}, {high}]" if np.isfinite(row["low"]) else middle


def _p(p: float) -> str:
    return p_value(p) if np.isfinite(p) else "–"
