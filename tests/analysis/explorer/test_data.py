"""What the page is given, and the file that holds it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from commands import command
from synthetic import make

from analysis.cli.train import Configuration
from analysis.explorer.commands import train_again
from analysis.explorer.data import page_data
from analysis.explorer.page import explorer, write_beside
from analysis.reporting.pages import report
from trainers.config import train_config


def test_every_value_is_that_of_the_table_bit_for_bit(results, data):
    wide = {m["id"]: m["values"] for m in data["measures"]}
    last = results.measures.sort_values("step").drop_duplicates(["run_id", "measure"], keep="last")
    rows = last[last["measure"].isin(["test_error", "parameter_norm"])].set_index(["run_id", "measure"])["value"]
    for name in ("test_error", "parameter_norm"):
        wanted = [rows.get((run, name)) for run in data["runs"]["id"]]
        assert wide[name] == wanted
        assert None in wanted  # runs that diverged are there, without values
    assert len({len(values) for values in wide.values()}) == 1


def test_settings_remarks_and_histories_stand_beside_their_runs(results, data):
    settings = {s["id"]: s["values"] for s in data["settings"]}
    assert list(settings) == ["hp.rho", "hp.lr", "hp.seed"]
    place = data["runs"]["id"].index("asam-r0.5-l0.1-s1")
    assert [settings[s][place] for s in settings] == [0.5, 0.1, 1.0]
    assert data["methods"][data["runs"]["method"][place]]["name"] == "ASAM"
    norm = next(m for m in data["measures"] if m["id"] == "parameter_norm")
    assert place in norm["remarks"]["two tied parameters"]
    assert norm["kind"] == "baseline"
    epochs = data["history"]["runs"][place][data["history"]["columns"].index("epoch")]
    assert epochs == list(range(1, 21))
    assert data["start"] == {"x": "top_eigenvalue", "y": "gap_error"}
    assert data["runs"]["configuration"][data["runs"]["id"].index("asam-r2-l0.1-s0")] == -1  # it diverged
    loose = next(m for m in data["measures"] if m["id"].startswith("average_sharpness"))
    assert place in loose["remarks"]["did not converge"]


SETTINGS = [
    {"method": "sam", "rho": 0.05, "lr": 0.05, "seed": 3},
    {"method": "asam", "rho": 2.0, "model": "cnn", "model_options": {"width": 8}, "augment": ["crop", "flip"]},
    {"method": "sgd", "nesterov": True, "same_rng": False, "checkpoints": [2, 5], "epochs": 7, "train_size": 100},
    {"method": "gsam", "rho": 0.1, "rho_schedule": "lr", "lr_milestones": [0.25, 0.75], "weight_decay": 5e-6},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s["method"])
def test_the_command_trains_the_same_run(settings):
    config = train_config({"seed": 0, **settings})
    stored = {f"hp.{k}": v for k, v in config.model_dump(mode="json").items()}
    row = {k.removeprefix("hp."): float(v) if type(v) is int else v for k, v in stored.items()}  # as a table has them
    line = train_again(row, "a b/runs")
    assert line.startswith("landscape train ")
    assert line.endswith(" --out 'a b/runs'")
    words = line.removesuffix(" --out 'a b/runs'").split()[2:]
    given = tyro.cli(Configuration, args=words)
    assert train_config(vars(given)).run_id == config.run_id


def test_runs_from_elsewhere_have_no_command():
    assert train_again({"method": "sam", "width_of_theirs": 3}, "runs") == ""


def test_equal_results_give_equal_pages(results):
    page = explorer([results]).text
    assert page == explorer([results]).text
    own = re.sub(r'id="packed-\w+">[^<]*', "", page)
    assert len(own) < 100_000
    assert not re.search(r"""(src|href)="(?!#|data:|\$\{|report)""", own)
    assert "default-src 'none'" in own


def test_bad_input(results, tmp_path):
    with pytest.raises(ValueError, match="must be different ones"):
        results.explore(results)
    empty = make(all_diverged=True, folder=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"empty has no measured run: .* before `landscape measure"):
        empty.explore()
    with pytest.raises(ValueError, match="`explore_with` goes with the whole report"):
        report(results, out=tmp_path, figures=["forest"], explore_with="other")
    with pytest.raises(FileNotFoundError, match="landscape study"):
        write_beside(results, tmp_path, tmp_path / "none")
    (tmp_path / "explorer.html").write_text("old")
    assert write_beside(empty, tmp_path, None) == ""
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_hands_the_other_study_over(monkeypatch, capsys, tmp_path):
    told = {}
    monkeypatch.setattr("analysis.reporting.pages.report", lambda path, **options: told.update(options) or path)
    assert command("report", tmp_path, "--explore-with", "runs/b") == 0
    assert told["explore_with"] == Path("runs/b")
    assert "report: " in capsys.readouterr().out


def test_a_measure_that_only_one_study_has_is_missing_in_the_other(results):
    other = make(seed=3)
    fewer = replace(other, folder=other.folder / "b", measures=other.measures.query("measure != 'top_eigenvalue'"))
    data = page_data([results, fewer])
    n = len(results.runs)
    values = next(m["values"] for m in data["measures"] if m["id"] == "top_eigenvalue")
    assert any(v is not None for v in values[:n])
    assert set(values[n:]) == {None}
    assert data["start"]["x"] != "top_eigenvalue"
    numbers = np.array(data["runs"]["configuration"])
    assert not set(numbers[:n]) - {-1} & set(numbers[n:])
