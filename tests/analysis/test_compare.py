"""What came of runs, and the command that compares training methods."""

import numpy as np
import pandas as pd
import pytest
from commands import command

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
