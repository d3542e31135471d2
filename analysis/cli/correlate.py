"""`landscape correlate`: measures related to generalisation."""

import sys
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from analysis import table as tables
from analysis.cli.output import show_table
from trainers.runs import has_runs, list_runs


def correlate(
    path: tyro.conf.Positional[Path],
    *,
    targets: tuple[str, ...] | None = None,
    measures: tuple[str, ...] | None = None,
    draws: int = 2000,
    permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
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
        targets: What is to be explained; test error, gaps and shifted errors if left out.
        measures: What may explain it; all measures if left out.
        draws: Bootstrap resamples of configurations.
        permutations: Permutations for p-values.
        level: Coverage of the intervals.
        seed: Of resampling.
        top: Measures to print for each target.
        interval: Kind of the intervals of correlations: jackknife on Fisher's z scale, or of a bootstrap.
        tables_only: Further tables to make, of granulated, information, sign_errors, partial, multilevel, selection,
            prediction and power; all if left out.
        controls: Measures or hyper-parameters to hold fixed in partial correlations; the usual ones if left out.
        settings: For weights from elsewhere: CSV or Parquet with a row a file and its hyper-parameters as columns.
        settings_key: The column of `settings` that names the file.
    """
    from analysis.study import Study, present, write_statistics  # statistics are slow to import

    measured = tables.read(path / "measures.parquet")
    if settings is None and not has_runs(path):
        raise ValueError(
            f"`--settings` is needed: {path} holds no runs of ours, so a table (CSV or Parquet) must say how each file "
            f"of weights was trained, a row a file, named in the column `{settings_key}`."
        )
    runs = {run.run_id: run.settings() for run in list_runs(path)} if has_runs(path) else {}
    unmeasured = sorted(set(runs) - set(measured["run_id"]))
    if unmeasured:
        print(f"note: {len(unmeasured)} of {len(runs)} runs have no row in the table, such as {unmeasured[0]}: measure "
              "them with `landscape measure`.", file=sys.stderr)  # fmt: skip
    if settings is not None:
        runs |= tables.read_settings(settings, key=settings_key)
    joined = tables.join_config(measured, runs) if settings is None else tables.join_settings(measured, runs)
    compare: list[tuple[str, str]] = []
    if (path / "study.json").exists():
        compare = present(Study.open(path).config.statistics.compare, measured)
    found = write_statistics(
        joined,
        path / "statistics",
        targets=targets,
        measures=measures,
        draws=draws,
        permutations=permutations,
        level=level,
        seed=seed,
        compare=compare,
        interval=interval,
        tables=tables_only,
        controls=controls,
    )
    for warning in found.warnings:
        print(f"note: {warning}", file=sys.stderr)
    show_correlations(found.table, top)
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
