"""The search of the radius: its grid, its table against the runs' own files, and what it says of them."""

import json

import pandas as pd
import pytest
from stopping import SMALL

from analysis.cli import main
from trainers.runs.folder import Run
from trainers.sweep.radius_search import _notes, search_radius

CONFIG = {**SMALL, "method": "sam", "epochs": 10, "warmup_epochs": 5, "checkpoints": [2]}


def test_the_table_is_what_the_runs_say_and_the_runs_are_ordinary(tmp_path):
    seen = []
    found = search_radius(CONFIG, out=tmp_path, seeds=2, jobs=1, progress=lambda run: seen.append(run.folder.name))
    assert list(found.table["rho"]) == [0.0, 0.00556, 0.0167, 0.05, 0.15, 0.45]  # thirds of the default, 0.05
    assert len(seen) == 12
    for row in found.table.itertuples():
        runs = [Run(found.folder / name) for name in row.run_ids]
        configs = [run.config() for run in runs]
        assert [(c.rho, c.seed, c.epochs, c.warmup_epochs, c.checkpoints) for c in configs] == [
            (row.rho, seed, 2, 1.0, ()) for seed in (0, 1)
        ]
        errors = pd.Series([run.history()["validation_error"].iloc[-1] for run in runs])
        assert row.validation_error == pytest.approx(errors.mean())
        assert row.deviation == pytest.approx(errors.std())
    assert found.best == found.table.sort_values(["validation_error", "rho"])["rho"].iloc[0]
    assert pd.read_parquet(found.folder / "table.parquet")["rho"].equals(found.table["rho"])
    stamps = {p: p.stat().st_mtime_ns for p in found.folder.glob("*/history.parquet")}
    again = search_radius(CONFIG, out=tmp_path, seeds=2, jobs=1)
    assert again.table.equals(found.table)
    assert stamps == {p: p.stat().st_mtime_ns for p in found.folder.glob("*/history.parquet")}


def test_the_grid_is_around_the_configured_radius_or_as_given(tmp_path):
    config = {**SMALL, "method": "asam", "rho": 0.9, "epochs": 1, "checkpoints": []}
    assert list(search_radius(config, out=tmp_path, jobs=1).table["rho"]) == [0.0, 0.1, 0.3, 0.9, 2.7, 8.1]
    assert list(search_radius(config, out=tmp_path, jobs=1, radii=[0.4, 0.2]).table["rho"]) == [0.2, 0.4]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"method": "sgd"}, {}, "`method` 'sgd' has no radius to search"),
        ({"validation_size": 0}, {}, "`validation_size` must be above 0 to search a radius"),
        ({}, {"radii": [0.1]}, r"`radii` must be at least two different finite numbers >= 0, got \[0.1\]"),
        ({}, {"radii": [0.1, -1]}, "`radii` must be at least two"),
        ({}, {"radii": [0.1, float("nan")]}, "`radii` must be at least two"),
        ({}, {"share": 0}, r"`share` must be in \(0, 1\], got 0"),
        ({}, {"seeds": 0}, "`seeds` must be at least 1, got 0"),
    ],
)
def test_foolish_arguments_are_refused(config, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        search_radius({**SMALL, "method": "sam", **config}, out=tmp_path, **options)


def table(errors, *, deviation=0.0, radii=(0.0, 0.1, 0.3, 0.9)):
    return pd.DataFrame({"rho": radii, "validation_error": errors, "deviation": deviation})


NAN = float("nan")


@pytest.mark.parametrize(
    ("errors", "seeds", "deviation", "expected"),
    [
        ([0.4, 0.3, 0.2, 0.1], 1, NAN, ["0.9 is the largest of the grid: try larger", "one seed each"]),
        ([0.4, 0.3, 0.2, NAN], 1, NAN, ["every radius above the best, 0.3, diverged", "one seed each"]),
        ([0.1, 0.3, 0.2, 0.4], 1, NAN, ["no radius did better than none", "one seed each"]),
        ([0.4, 0.1, 0.2, 0.4], 1, NAN, ["0.1 is the smallest of the grid above 0", "one seed each"]),
        ([0.4, 0.3, 0.2, 0.4], 1, NAN, ["one seed each"]),
        # difference 0.1 against 2 sqrt((s² + s²) / 2) = 2 s
        ([0.4, 0.3, 0.2, 0.4], 2, 0.051, ["not told apart from it by 2 seeds (two standard errors): 0.1."]),
        ([0.4, 0.3, 0.2, 0.4], 2, 0.049, []),
        ([NAN, NAN, NAN, NAN], 2, NAN, ["no radius finished"]),
    ],
)  # fmt: skip
def test_what_a_reader_should_know_is_said(errors, seeds, deviation, expected):
    rows = table(errors, deviation=deviation)
    best = None if rows["validation_error"].isna().all() else rows["rho"][rows["validation_error"].idxmin()]
    notes = _notes(rows, best, seeds)
    assert len(notes) == len(expected)
    for note, part in zip(notes, expected, strict=True):
        assert part in note


def test_a_radius_whose_run_diverges_is_a_row_that_says_so(tmp_path):
    config = {**CONFIG, "lr": 1e9, "lr_schedule": "constant", "warmup_epochs": 0}
    found = search_radius(config, out=tmp_path, radii=[0.0, 0.1], jobs=1)
    assert found.best is None
    assert found.table["status"].str.startswith("1 diverged: ").all()
    assert found.table["validation_error"].isna().all()


def test_the_command_prints_the_table_and_the_suggestion(tmp_path, capsys):
    options = ("--train-size", 60, "--validation-size", 40, "--test-size", 20, "--epochs", 5, "--jobs", 1)
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in (
            "train", "--method", "sam", *options, "--out", tmp_path, "--rho-search", "--search-radii", 0, 0.1,
            "--search-seeds", 2,
        )])  # fmt: skip
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for part in ("validation error", "± deviation", "suggestion: --rho 0", "rho-search"):
        assert part in out
    configs = [json.loads(p.read_text()) for p in tmp_path.glob("rho-search/*/*/config.json")]
    assert sorted((c["rho"], c["seed"], c["epochs"]) for c in configs) == [
        (0, 0, 1),
        (0, 1, 1),
        (0.1, 0, 1),
        (0.1, 1, 1),
    ]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--method", "sgd", "--rho-search", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "has no radius to search" in capsys.readouterr().err
