"""`landscape correlate`: measures related to generalisation."""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro

from analysis import table as tables
from analysis.cli.output import say, show_table
from analysis.style import fixed
from trainers.runs.folder import has_runs, list_runs


def correlate(
    path: tyro.conf.Positional[Path],
    *,
    targets: tuple[str, ...] | None = None,
    measures: tuple[str, ...] | None = None,
    draws: int | None = None,
    permutations: int | None = None,
    correction: Literal["max-T", "holm"] | None = None,
    level: float | None = None,
    seed: int | None = None,
    top: int = 15,
    interval: Literal["stabilised", "bca", "percentile"] = "stabilised",
    tables_only: tuple[str, ...] | None = None,
    controls: tuple[str, ...] | None = None,
    settings: Path | None = None,
    settings_key: str = "weights",
) -> int:
    """Relate measures to generalisation, with intervals, p-values and corrections.

    Args:
        path: A study's folder, or a folder of runs that was measured.
        targets: What to explain; by default test error, gaps and shifted errors.
        measures: What may explain it; by default all measures.
        draws: Bootstrap resamples of configurations; by default the study's own number, or 2000.
        permutations: Permutations for p-values; by default the study's own number, or 100,000 for up to 100
            configurations and 10,000 for more.
        correction: Of p-values for the number of measures; by default the study's own, or step-down max-T.
        level: Coverage of the intervals; by default the study's own, or 0.95.
        seed: Seed of the resampling; by default the study's own, or 0.
        top: Number of measures to print for each target.
        interval: Kind of interval: jackknife on Fisher's z scale (stabilised), or a bootstrap (bca, percentile).
        tables_only: Further tables to compute, out of families, granulated, information, sign_errors, partial,
            multilevel, selection, prediction and power; by default all.
        controls: Measures or hyper-parameters to hold fixed in partial correlations; by default the usual ones.
        settings: For weights from elsewhere: CSV or Parquet with one row per file and its hyper-parameters as columns.
        settings_key: The column of `settings` that names the file.
    """
    from analysis.study import Study, write_statistics  # statistics are slow to import

    measured = tables.read(path / "measures.parquet")
    if settings is None and not has_runs(path):
        raise ValueError(
            f"`--settings` is needed: {path} holds no runs of ours, so a table (CSV or Parquet) must say how each file "
            f"of weights was trained, a row a file, named in the column `{settings_key}`."
        )
    runs = {run.run_id: run.settings() for run in list_runs(path)} if has_runs(path) else {}
    if settings is None:
        tables.own(measured, runs, path / "measures.parquet")
    unmeasured = sorted(set(runs) - set(measured["run_id"]))
    if unmeasured:
        print(f"note: {len(unmeasured)} of {len(runs)} runs have no row in the table, such as {unmeasured[0]}: measure "
              "them with `landscape measure`.", file=sys.stderr)  # fmt: skip
    options = {
        "targets": targets,
        "measures": measures,
        "draws": draws,
        "permutations": permutations,
        "correction": correction,
        "level": level,
        "seed": seed,
        "interval": interval,
        "tables": tables_only,
        "controls": controls,
    }
    lead = None
    if settings is None and (path / "study.json").exists():
        work = Study.open(path)
        lead = work.config.statistics.lead
        correlations = work.correlate(**options)
        pairs = correlations.comparisons.groupby(["forgetting", "sharpness"], sort=False)
        lost = [rows["warnings"].iloc[0] for _, rows in pairs if not rows["n_configurations"].any()]
        if lost:
            print(f"note: {len(lost)} of {len(pairs)} pairs of `statistics.compare` have no comparison, such as one of "
                  f"which {lost[0]}.", file=sys.stderr)  # fmt: skip
    else:
        if settings is not None:
            runs |= tables.read_settings(settings, key=settings_key)
        joined = tables.join_config(measured, runs) if settings is None else tables.join_settings(measured, runs)
        given = {key: value for key, value in options.items() if value is not None}
        correlations = write_statistics(joined, path / "statistics", **given)
    for warning in correlations.warnings:
        print(f"note: {warning}", file=sys.stderr)
    if not np.isfinite(correlations.table["value"].to_numpy(dtype=float)).any():
        print("landscape: no measure has a correlation with any target; the table says why.", file=sys.stderr)
        return 1
    show_correlations(correlations.table.sort_values("target", key=lambda t: t != lead, kind="stable"), top)
    print(f"statistics: {path / 'statistics'}")
    return 0


def show_correlations(frame: pd.DataFrame, top: int) -> None:
    """Print the strongest measures for each target, and the baselines beside them."""
    kendall = frame[frame["coefficient"] == "kendall"]
    columns = ("measure", "tau_b", "interval", "p", "cells", "p", "within", "")
    for target, part in kendall.groupby("target", sort=False):
        ordered = part.sort_values("value", key=abs, ascending=False)
        baseline = ordered["role"] == "baseline"
        shown = pd.concat([ordered[~baseline].head(top), ordered[baseline]])
        rows = [_row(row) for row in shown.itertuples()]
        show_table(columns, rows, right=set(columns[1:-1]), fold=("measure",), title=f"Kendall tau_b with {target}")
        for remark, of_remark in shown[shown["warnings"] != ""].groupby("warnings", sort=False):
            say(f"note: {remark}: {', '.join(of_remark['measure'])}")
    corrections = " or ".join(sorted(set(kendall["correction"])))
    print(
        f"p: corrected for the number of measures ({corrections}); ≤: no permutation reached it;\n"
        "cells: pairs with equal hyper-parameters of training; within: mean over methods;\n"
        "⇄ turned in cells or within methods; ⚠ values carry warnings; * a baseline, not\n"
        "corrected for."
    )


def _row(row: Any) -> tuple[str, ...]:
    """What is printed of a measure."""
    marks = ("⇄" * bool(row.reversal or row.cell_reversal), "⚠" * bool(row.warned > 0))
    return (
        row.measure + " *" * (row.role == "baseline"),
        fixed(row.value),
        f"[{fixed(row.low)}, {fixed(row.high)}]",
        _chance(row.p_adjusted, row.p_floor),
        fixed(row.stratified),
        _chance(row.stratified_p_adjusted, row.stratified_p_floor),
        fixed(row.within),
        "".join(marks),
    )


def _chance(p: float, floor: float) -> str:
    """A p-value; at the smallest that the permutations can give, so much or less."""
    if not np.isfinite(p):
        return "–"
    return f"≤{floor:.0e}" if p <= floor else f"{p:.2g}"
