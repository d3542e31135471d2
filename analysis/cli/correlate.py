"""`landscape correlate`: measures related to generalisation."""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tyro

from analysis import table as tables
from analysis.cli.output import show_table
from trainers.runs.folder import has_runs, list_runs


def correlate(
    path: tyro.conf.Positional[Path],
    *,
    targets: tuple[str, ...] | None = None,
    measures: tuple[str, ...] | None = None,
    draws: int | None = None,
    permutations: int | None = None,
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
        permutations: Permutations for p-values; by default the study's own number, or 9999.
        level: Coverage of the intervals; by default the study's own, or 0.95.
        seed: Seed of the resampling; by default the study's own, or 0.
        top: Number of measures to print for each target.
        interval: Kind of interval: jackknife on Fisher's z scale (stabilised), or a bootstrap (bca, percentile).
        tables_only: Further tables to compute, out of granulated, information, sign_errors, partial, multilevel,
            selection, prediction and power; by default all.
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
    """Print the strongest measures for each target."""
    kendall = frame[frame["coefficient"] == "kendall"]
    for target, part in kendall.groupby("target", sort=False):
        rows = [
            (
                row.measure,
                f"{row.value:+.3f}",
                f"[{row.low:+.3f}, {row.high:+.3f}]",
                f"{row.p_holm:.3g}",
                f"{row.within:+.3f}",
                "; ".join(t for t in ("sign reverses within methods" * bool(row.reversal), str(row.warnings)) if t),
            )
            for row in part.sort_values("value", key=abs, ascending=False).head(top).itertuples()
        ]
        columns = ("measure", "tau_b", "interval", "p (Holm)", "within methods", "note")
        show_table(columns, rows, title=f"Kendall tau_b with {target}")
