"""`landscape study --dry-run`: runs, time, disk and what is missing, with nothing written."""

import re
import time

import pytest
import yaml
from commands import command as run

from analysis.forecast import Kind, forecast
from analysis.progress import quiet
from analysis.study import Study, read_study
from trainers.config import train_config
from trainers.runtime import Runtime

STUDY = {
    "name": "tiny", "question": "?",
    "base": {"dataset": "digits", "train_size": 200, "validation_size": 50, "epochs": 15, "model": "mlp",
             "model_options": {"width": 16}, "batch_size": 20, "checkpoints": [6]},
    "grid": {"lr": [0.05, 0.1], "seed": [0, 1]},
    "methods": [{"method": "sgd"}, {"method": "sam", "rho": 0.05}],
    "measures": {"targets": None, "hessian_trace": None},
    "trajectory": {"measures": {"hessian_trace": None}, "where": {"seed": 0}},
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def test_a_run_takes_its_steps_and_evaluations_and_leaves_its_checkpoints():
    kind = Kind(step=0.5, steps=10, evaluation=2.0, measuring=(7.0, 3.0), checkpoint=1000, examples=80)
    config = train_config({"epochs": 6, "evaluate_every": 2, "checkpoints": [0, 3], "keep_best": True})
    assert kind.training(config) == 6 * (10 * 0.5 + 2.0 / 2)
    assert kind.size(config) == 1000 * (3 + 1) + 2 * 80 * 6 / 8  # epochs 0, 3 and 6, and the best; two bits an epoch


def test_what_is_told_is_what_happens(file, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # this machine does other work too
    study = Study(read_study(file), tmp_path / "out", runtime=Runtime(jobs=1))
    told = forecast(study)
    assert (told.runs, told.left) == (8, 8)
    assert not study.folder.exists()
    study.prepare()
    begun = time.process_time()
    runs = study.train(quiet)
    assert 0.33 < told.training / (time.process_time() - begun) < 3
    written = sum(
        p.stat().st_size for run in runs for p in run.folder.rglob("*") if "checkpoints" in p.parts and p.is_file()
    )
    assert 0.9 < (told.size - 8 * 2 * 200 * 15 / 8) / written < 1.1
    done = forecast(study)
    assert (done.left, done.training, done.measuring, done.size) == (0, 0.0, 0.0, 0.0)


def test_measuring_counts_the_checkpoints_on_the_way_of_the_runs_that_are_asked_for(file, tmp_path, monkeypatch):
    study = Study(read_study(file), tmp_path / "out")
    monkeypatch.setattr("analysis.forecast._timed", lambda *_: Kind(0.0, 1, 0.0, (5.0, 100.0), 0, 0))
    assert forecast(study).measuring == 8 * 5.0 + 4 * 100.0  # seed 0 alone


def test_the_command_prints_it_and_trains_nothing(file, tmp_path, capsys):
    assert run("study", file, "--dry-run", "--jobs", 2, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "runs: 8, of which 8 are left to train"
    assert re.match(r"time: about \d+ s on 2 processes \(training \d+ s, measuring \d+ s\)", said[1])
    assert re.match(r"disk: about \d+ MB of \d+ GB free, in ", said[2])
    assert said[3] == "missing: nothing"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "cifar10:nowhere"}, "nowhere"),
        ({"model": "mine:net"}, "--trust"),
        ({"model": "resnet2"}, "Did you mean"),
    ],
    ids=["data", "trust", "name"],
)
def test_what_is_missing_is_one_line(change, said, file, tmp_path, capsys):
    file.write_text(yaml.safe_dump({**STUDY, "base": {**STUDY["base"], "model_options": {}, **change}}))
    assert run("study", file, "--dry-run", "--out", tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1
