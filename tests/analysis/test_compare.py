"""What came of runs, and the command that compares training methods."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from commands import command

import trainers
from analysis import table
from analysis.run_outcomes import outcomes
from analysis.table import Row, to_frame
from trainers import fit
from trainers.runs.folder import Run

TINY = {"train_size": 60, "validation_size": 60, "test_size": 60, "epochs": 3, "model_options": {"width": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    for seed in (0, 1):
        fit({**TINY, "seed": seed}, out=place / "runs")
        fit({**TINY, "seed": seed, "method": "sam", "rho": 0.05}, out=place / "runs")
        fit({**TINY, "seed": seed, "method": "sam", "rho": 0.1}, out=place / "runs")
        fit({**TINY, "seed": seed, "method": "gsam", "ascent": "obf", "rho": 0.1}, out=place / "runs")
    fit({**TINY, "lr": 1e9, "lr_schedule": "constant"}, out=place / "runs")
    return place


def test_a_row_is_what_the_history_ends_with(folder):
    found = outcomes(folder)
    assert len(found) == 9
    assert sorted(found["method"].unique()) == ["gsam+OBF", "sam", "sgd"]
    for row in found[found["status"] == "finished"].to_dict("records"):
        history = Run(folder / "runs" / row["run_id"]).history()
        assert row["test_error"] == pytest.approx(history["test_error"].iloc[-1])
        best = history["validation_error"].to_numpy().argmin()
        assert row["test_error_stopped"] == pytest.approx(history["test_error"].iloc[best])
        assert row["validation_error_stopped"] <= row["validation_error"]
    diverged = found[found["status"] == "diverged"]
    assert len(diverged) == 1
    assert diverged["test_error"].isna().all()


def test_configurations_are_runs_that_differ_in_the_seed_alone(folder):
    sizes = outcomes(folder).groupby("configuration").size()
    assert sorted(sizes) == [1, 2, 2, 2, 2]


def test_what_was_measured_is_added(folder):
    with pytest.raises(FileNotFoundError, match="make it with `landscape measure"):
        outcomes(folder, ["top_eigenvalue"])
    ids = list(outcomes(folder)["run_id"])
    frames = [to_frame([Row("top_eigenvalue", float(i))], run_id=ids[i], step=9, epoch=3) for i in (0, 1)]
    table.write(pd.concat(frames), folder / "measures.parquet")
    found = outcomes(folder, ["top_eigenvalue"]).set_index("run_id")["top_eigenvalue"]
    assert list(found[ids[:2]]) == [0.0, 1.0]
    assert np.isnan(found[ids[2]])
    with pytest.raises(ValueError, match=r"`measures` has \['trace'\], which were not taken"):
        outcomes(folder, ["trace"])


def test_the_command_prints_and_writes_the_comparison(folder, capsys):
    assert command("compare", folder) == 0
    said = capsys.readouterr().out
    assert "gsam+OBF" in said
    assert "paired t test" in said
    assert "rho=" in (folder / "comparison.md").read_text()
    raw = pd.read_csv(folder / "comparison.csv").set_index("group")
    assert raw.loc["sam", "configurations"] == 2
    assert raw.loc["sgd", "seeds"] == 2
    assert command("compare", folder, "--baseline", "adam") == 2
    assert "`baseline` 'adam' is no method of these runs" in capsys.readouterr().err
    assert command("compare", folder, "--by", "label_nois") == 2
    assert "lacks the columns ['label_nois']" in capsys.readouterr().err


def test_other_tasks_are_compared_by_their_own_score(tmp_path, capsys):
    tiny = {"task": "regression", "dataset": "diabetes", "train_size": 60, "epochs": 2, "model_options": {"width": 4}}
    for seed in (0, 1):
        for method in ({"method": "sgd"}, {"method": "sam", "rho": 0.05}, {"method": "sam", "rho": 0.1}):
            fit({**tiny, **method, "seed": seed, "lr": 0.05}, out=tmp_path / "runs")
    found = outcomes(tmp_path)
    histories = {run_id: Run(tmp_path / "runs" / run_id).history() for run_id in found["run_id"]}
    for row in found.to_dict("records"):
        history = histories[row["run_id"]]
        assert row["test_squared_error"] == history["test_squared_error"].iloc[-1]
        assert row["validation_squared_error_stopped"] == history["validation_squared_error"].min()
    assert command("compare", tmp_path) == 0
    assert "of its method with the lowest mean validation squared error" in capsys.readouterr().out
    raw = pd.read_csv(tmp_path / "comparison.csv").set_index("group")
    sgd = found[found["method"] == "sgd"]["test_squared_error"]
    assert raw.loc["sgd", "mean"] == pytest.approx(sgd.mean())

    larger = {run_id: (0.9 if m == "sam" and rho == 0.1 else 0.1) for run_id, m, rho in
              zip(found["run_id"], found["method"], found["rho"], strict=True)}  # fmt: skip
    frames = [
        to_frame([Row("test_r2", v + 0.001 * k**2), Row("validation_r2", v)], run_id=run_id, step=9, epoch=2)
        for k, (run_id, v) in enumerate(larger.items())
    ]
    table.write(pd.concat(frames), tmp_path / "measures.parquet")
    assert command("compare", tmp_path, "--target", "test_r2", "--choose", "validation_r2", "--level", "0.9") == 0
    said = capsys.readouterr().out
    assert "with the highest mean validation r2" in said
    assert re.search(r"sam: rho=0.1, chosen from 2", said)
    table_of = (tmp_path / "comparison.md").read_text()
    assert re.search(r"\| sam .* \| better \|", table_of), table_of  # by 0.8; an error of as much would be worse

    fit({**TINY, "seed": 0}, out=tmp_path / "runs")
    assert command("compare", tmp_path) == 2
    assert "several tasks, with the scores error, squared_error: give runs of one task" in capsys.readouterr().err


def test_weights_from_elsewhere_are_measured_by_their_own_task(tmp_path, capsys):
    tiny = {"dataset": "diabetes", "train_size": 60, "epochs": 2, "model_options": {"width": 4}}
    run = fit({"task": "regression", **tiny, "lr": 0.05}, out=tmp_path)
    weights = torch.nn.Module.state_dict(trainers.load_checkpoint(run.checkpoint(max(run.checkpoints())))[0])
    torch.save(weights, tmp_path / "mine.pt")
    given = ("--model", "mlp", "--model-options", "width", "4", "--dataset", "diabetes", "--train-size", "60",
             "--measures", "targets", "hessian_trace", "--validation-size", "88")  # fmt: skip
    assert command("measure", tmp_path / "mine.pt", *given) == 2  # numbers are no labels
    assert "numbers are for `task` 'regression'" in capsys.readouterr().err
    assert command("measure", tmp_path / "mine.pt", *given, "--task", "regression") == 0
    assert command("measure", run.folder, "--measures", "targets", "hessian_trace") == 0
    here, there = (
        table.read(path).set_index(["measure", "split"])["value"]
        for path in (tmp_path / "mine.measures.parquet", run.folder / "measures.parquet")
    )
    for name in ("test_squared_error", "gap_squared_error", "test_r2", "hessian_trace"):
        assert here.xs(name).tolist() == there.xs(name).tolist(), name
    drawn = ("surface", tmp_path / "mine.pt", *given[:9], "--task", "regression", "--points", "3", "--axes", "random",
             "--splits", "test", "--jobs", "1", "--no-numbers", "--out", tmp_path / "drawn")  # fmt: skip
    assert command(*drawn) == 0
