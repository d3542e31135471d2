"""The comparison of training methods as a table for a reader."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.reporting.table import Table, plain
from analysis.statistics.methods import edge_of_grid
from analysis.style import fixed, p_value
from analysis.table import SEEDS
from trainers.config import TrainConfig

PERCENT = ("error",)  # what ends so is shown in percent


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
    """The rows of `compare_methods` for a reader: mean ± deviation, difference with its interval, p-values.

    Args:
        comparison: What `compare_methods` gave.
        runs: The runs that it was given, from which the settings of the chosen configurations are read.
        group: As for `compare_methods`.
        by: As for `compare_methods`.
        target: As for `compare_methods`.
        choose: As for `compare_methods`.
        level: As for `compare_methods`.
    """
    percent = any(target.endswith(word) or f"{word}_" in target for word in PERCENT)
    scale, unit = (100.0, " (%)") if percent else (1.0, "")
    digits = 2 if percent else 3
    baseline = str(comparison.loc[comparison["difference"].isna() & comparison["warnings"].eq(""), "group"].iloc[0])
    records = comparison.to_dict("records")
    shown = pd.DataFrame(
        {
            **{key: comparison[key].map(plain) for key in by},
            group: comparison["group"].map(str),
            "chosen": [_settings(runs, row, group, by) for row in records],
            f"{target}{unit}": [
                _plus_minus(row["mean"], row["deviation"], scale, digits) for row in comparison.to_dict("records")
            ],
            "seeds": comparison["seeds"].astype(str),
            f"difference to {baseline}": [_difference(row, scale, digits) for row in records],
            "p": [_p(p) for p in comparison["p"]],
            "p (Holm)": [_p(p) for p in comparison["p_holm"]],
            "p (flips)": [_p(p) for p in comparison["p_flip"]],
            "remarks": ["; ".join(filter(None, [row["warnings"], _edge(runs, row, group)])) for row in records],
        }
    )
    when = (
        "at the evaluated epoch with the lowest validation error"
        if target.endswith("_stopped")
        else ("at the end of training")
    )
    note = (
        f"Mean ± standard deviation over seeds {when}; difference paired by seed, with its "
        f"{100 * level:g} % t interval. p: paired t test, corrected by Holm over the table, and by random sign flips. "
        f"Each row is the configuration of its {group} with the lowest mean {choose.replace('_', ' ')}."
    )
    text = (*by, group, "chosen", "remarks")
    return Table("comparison_of_methods", "Comparison of training methods", note, comparison, shown, text)


def _settings(runs: pd.DataFrame, row: dict[Any, Any], group: str, by: Sequence[str]) -> str:
    """The settings of the chosen configuration that differ within its group."""
    here = runs[runs[group] == row["group"]]
    chosen = here[here["configuration"] == row["configuration"]]
    if chosen.empty:
        return "none finished"
    settings = [c for c in TrainConfig.model_fields if c in here.columns and c not in ("method", *SEEDS, group, *by)]
    varied = [c for c in settings if here[c].map(str).nunique() > 1]
    return ", ".join(f"{c}={plain(chosen[c].iloc[0])}" for c in varied) or "the only one"


def _edge(runs: pd.DataFrame, row: dict[Any, Any], group: str) -> str:
    """Says where the chosen radius is the largest or smallest of the group's: a wider grid may hold a better one."""
    return edge_of_grid(runs[runs[group] == row["group"]], row["configuration"])


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
