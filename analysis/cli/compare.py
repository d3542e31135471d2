"""`landscape compare`: training methods against a baseline."""

from pathlib import Path

import tyro

from analysis.cli.output import say, show_table
from trainers.files.writing import write_bytes
from trainers.runtime import Runtime


def compare(
    path: tyro.conf.Positional[Path],
    *,
    baseline: str = "sgd",
    group: str = "method",
    by: tuple[str, ...] = (),
    target: str | None = None,
    choose: str | None = None,
    level: float | None = None,
    device: str = "cpu",
) -> int:
    """Compare training methods, each at the configuration chosen on validation data, paired over seeds.

    Args:
        path: A study's folder, or a folder of runs.
        baseline: The group that the others are compared with.
        group: What to compare: the method, or any other setting of the runs.
        by: Settings for whose values the comparison is made separately, such as label_noise.
        target: A score of the last epoch (test_error, test_absolute_error, train_loss, ...) or a measured variant, such
            as test_r2; by default the test score that the runs' task leads with.
        choose: The score or variant that chooses each group's configuration; by default the same on validation data.
        level: Coverage of the intervals; by default the study's own, or 0.95.
        device: Taken as by the other commands, and checked: a comparison is of tables, and computed on the CPU.
    """
    Runtime(device)
    from analysis.reporting.methods import method_comparison
    from analysis.reporting.tables import to_csv, to_markdown
    from analysis.run_outcomes import outcomes, score_of  # statistics are slow to import
    from analysis.statistics.methods import compare_methods
    from analysis.study import Study

    if level is None:
        level = Study.open(path).config.statistics.level if (path / "study.json").exists() else 0.95
    score = score_of(path)
    target, choose = target or score.on("test"), choose or score.on("validation")
    runs = outcomes(path, [target, choose])
    comparison = compare_methods(runs, baseline=baseline, group=group, by=by, target=target, choose=choose, level=level)
    shown = method_comparison(comparison, runs, group=group, by=by, target=target, choose=choose, level=level)
    write_bytes(path / "comparison.csv", to_csv(shown).encode())
    write_bytes(path / "comparison.md", to_markdown(shown).encode())
    below = ["chosen", "chosen from", "p", "p (flips)", "remarks"]  # too much for one line; the files hold it beside
    printed = shown.shown.drop(columns=below)
    columns = [str(name) for name in printed.columns]
    right = [name for name in columns if name not in shown.text]
    show_table(columns, printed.itertuples(index=False, name=None), right=right, fold=["verdict"])
    for row in shown.shown.to_dict("records"):
        name = ", ".join(str(row[key]) for key in (group, *by))
        remarks = f"; {row['remarks']}" if row["remarks"] else ""
        say(f"{name}: {row['chosen']}, chosen from {row['chosen from']}{remarks}")
    say(shown.note)
    print(f"tables: {path / 'comparison.csv'}, {path / 'comparison.md'}")
    return 0 if comparison["mean"].notna().any() else 1
