"""Runs on named data from the command line: what is kept of the data, moved data, and data that have changed."""

import json
import shutil

import pytest
from data_files import write_cifar10, write_folder

from analysis.cli.program import main
from trainers import fit, list_runs
from trainers.data.sources.standard import OBJECTS

SMALL = ("--epochs", 1, "--validation-size", 10, "--batch-size", 16, "--model-options", "width", 4, "depth", 1)


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def test_a_run_on_data_that_move_and_change(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / "data" / "cifar-10-batches-py")
    assert call("train", "--dataset", "cifar10:data", *SMALL) == 0
    (run,) = list_runs(tmp_path / "runs")
    stored = run.settings()
    assert stored["dataset"] == f"cifar10:{tmp_path}/data"
    assert json.loads((run.folder / "data.json").read_text()) == {
        "dataset": stored["dataset"], "train": 40, "validation": 10, "test": 10, "shape": [3, 32, 32], "classes": 10,
        "names": list(OBJECTS), "files": 6,
        "fingerprint": stored["dataset_digest"],
    }  # fmt: skip
    (tmp_path / "data").rename(tmp_path / "there")
    measure = ("measure", run.folder, "--measures", "targets")
    capsys.readouterr()
    assert call(*measure) != 0
    assert "If the data of this run have moved, say where they are: --dataset cifar10:PATH." in _text(capsys)
    assert call(*measure, "--dataset", "cifar10:there") == 0
    assert call("train", "--dataset", "cifar10:there", *SMALL) == 0
    assert [r.run_id for r in list_runs(tmp_path / "runs")] == [run.run_id]  # the same run, which is finished
    batch = tmp_path / "there" / "cifar-10-batches-py" / "data_batch_1"
    shutil.copy(batch.with_name("data_batch_2"), batch)
    shutil.rmtree(run.folder / "measures")
    monkeypatch.setattr("analysis.measures.checkpoints._last_data", None)  # as in another process
    capsys.readouterr()
    assert call(*measure, "--dataset", "cifar10:there") != 0
    assert "has changed: its files have the fingerprint" in _text(capsys)
    (run.folder / "status.json").unlink()
    with pytest.raises(ValueError, match="has changed: its files have the fingerprint"):
        fit(run.config().moved("cifar10:there"), out=tmp_path / "runs")


def test_a_study_whose_data_change_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "images")
    (tmp_path / "study.yaml").write_text(
        "name: small\nquestion: q\nbase: {dataset: 'imagefolder:images', epochs: 1, model_options: {width: 4}}\n"
        "methods: [{method: sgd}]\ngrid: {seed: [0, 1]}\nmeasures: {targets: {}, hessian_trace: {}}\n"
    )
    assert call("study", "study.yaml", "--shard", "0/1", "--jobs", 1) == 0
    assert len(list_runs(tmp_path / "runs/small")) == 2
    shutil.copy(tmp_path / "images/train/cat/0.png", tmp_path / "images/train/dog/new.png")
    assert call("study", "study.yaml", "--shard", "0/1", "--jobs", 1) == 2
    assert "was made with other data: the files of imagefolder:images have changed since" in _text(capsys)
    assert len(list_runs(tmp_path / "runs/small")) == 2


def test_the_list_of_datasets_tells_what_paths_they_take(capsys):
    assert call("list", "datasets") == 0
    text = _text(capsys)
    for words in (
        "cifar10:PATH. CIFAR-10, 10 classes: the folder of data_batch_1",
        "npz:FILE. Arrays x_train",
        "digits",
    ):
        assert words in text


def test_only_download_fetches(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def fetch(name):
        asked.append(name)
        write_cifar10(tmp_path / "here")

    monkeypatch.setattr("analysis.cli.train.fetch", fetch)
    assert call("train", "--dataset", "cifar10:here", *SMALL) == 2
    assert "no whole CIFAR-10 (" in _text(capsys)
    assert asked == []
    assert call("train", "--dataset", "cifar10:here", *SMALL, "--download") == 0
    assert asked == ["cifar10:here"]
    assert len(list_runs(tmp_path / "runs")) == 1


def _text(capsys):
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())
