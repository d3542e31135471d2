"""Measuring many checkpoints: what is kept and when it is forgotten, what is marked, and what it will cost."""

import math
import os
import shutil
from dataclasses import replace

import pandas as pd
import psutil
import pytest
import torch
from commands import command
from stopping import without_checksums

from analysis.measures.budget import announcement, budget
from analysis.measures.checkpoints import RunCheckpoint, WeightsFile, kept_rows, measure_checkpoint
from analysis.measures.collect import sort_rows, take, to_measure
from analysis.measures.measure import Measure
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.table import Row
from trainers import Runtime, build_model, fit, list_runs
from trainers.runs.checkpoint import PARAMS

TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 2, "model_options": {"width": 4}}
DATA = {"name": "digits", "train_size": 40, "validation_size": 20, "test_size": 20}
CHOSEN = plan(["norms", "targets"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(TINY, out=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may spoil."""
    (folder,) = [tmp_path / trained.run_id]
    shutil.copytree(trained.folder, folder)
    return list_runs(folder)[0]


def last(run):
    return RunCheckpoint(run.folder, max(run.checkpoints()))


def weights(seed, width=4):
    return build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=seed, options={"width": width}).state_dict()


# -- what is kept ----------------------------------------------------------------------------------------------------


def refuse(*_, **__):
    raise AssertionError("measured again")


def test_what_is_kept_is_known_by_the_content_of_the_weights(run, monkeypatch):
    checkpoint = last(run)
    first = measure_checkpoint(checkpoint, CHOSEN)
    assert kept_rows(checkpoint, CHOSEN, 0) is not None
    path = run.checkpoint(checkpoint.step) / PARAMS
    os.utime(path, ns=(1, 1))  # touched, not changed
    with monkeypatch.context() as patch:
        for key in CHOSEN:
            patch.setitem(MEASURES, key, replace(MEASURES[key], function=refuse))
        pd.testing.assert_frame_equal(measure_checkpoint(checkpoint, CHOSEN), first)
    shutil.copyfile(run.checkpoint(0) / PARAMS, path)  # other weights under the same name
    without_checksums(path.parent)
    assert kept_rows(checkpoint, CHOSEN, 0) is None
    again = measure_checkpoint(checkpoint, CHOSEN).set_index("measure")
    assert again.loc["distance_from_init", "value"] == 0 < first.set_index("measure").loc["distance_from_init", "value"]


@pytest.mark.parametrize("change", ["options", "seed", "version"])
def test_what_decides_a_number_decides_whether_it_is_kept(run, monkeypatch, change):
    checkpoint, chosen, seed = last(run), plan({"average_sharpness": {"draws": 2}}), 0
    first = measure_checkpoint(checkpoint, chosen)
    if change == "options":
        chosen = plan({"average_sharpness": {"draws": 3}})
    elif change == "seed":
        seed = 1
    else:
        entry = MEASURES["average_sharpness"]
        monkeypatch.setitem(MEASURES, "average_sharpness", replace(entry, version=entry.version + 1))
    assert kept_rows(checkpoint, chosen, seed) is None
    second = measure_checkpoint(checkpoint, chosen, seed)
    assert (second["value"].iloc[0] == first["value"].iloc[0]) == (change == "version")
    assert kept_rows(checkpoint, chosen, seed) is not None


def test_weights_from_elsewhere_are_known_by_their_data_too(tmp_path):
    torch.save(weights(0), tmp_path / "a.pt")
    file = WeightsFile(tmp_path / "a.pt", "mlp", {"width": 4}, DATA)
    measure_checkpoint(file, CHOSEN)
    assert kept_rows(file, CHOSEN, 0) is not None
    assert kept_rows(replace(file, data={**DATA, "label_noise": 0.3}), CHOSEN, 0) is None
    assert kept_rows(replace(file, model_options={"width": 4, "depth": 2}), CHOSEN, 0) is None


# -- many, in parallel -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Weights from elsewhere: three that fit, one of another size, one cut short."""
    place = tmp_path / "theirs"
    place.mkdir()
    for seed in range(3):
        torch.save(weights(seed), place / f"net{seed}.pt")
    torch.save(weights(3, width=5), place / "other.pt")
    (place / "short.pt").write_bytes((place / "net0.pt").read_bytes()[:300])
    return place


def test_a_folder_of_weights_is_a_table_and_a_bad_file_is_marked_rows(folder, capsys):
    arguments = ["--model", "mlp", "--model-options", "width", 4, "--train-size", 40, "--measures", "norms"]
    assert command("measure", folder) == 2
    assert "`--model` is needed" in capsys.readouterr().err
    assert command("measure", folder, *arguments, "--jobs", 2) == 0
    said = capsys.readouterr()
    assert "5 checkpoints to measure" in said.err
    table = pd.read_parquet(folder / "measures.parquet").set_index(["run_id", "measure"])
    assert set(table.index.get_level_values(0)) == {"net0", "net1", "net2", "other", "short"}
    assert all(math.isfinite(table.loc[(f"net{i}", "gradient_norm"), "value"]) for i in range(3))
    assert "has shape" in table.loc[("other", "gradient_norm"), "warnings"]
    assert math.isnan(table.loc[("other", "gradient_norm"), "value"])
    assert math.isnan(table.loc[("short", "gradient_norm"), "value"])
    assert table.loc[("short", "gradient_norm"), "warnings"]


def test_a_folder_with_neither_runs_nor_weights_says_so(tmp_path, capsys):
    assert command("measure", tmp_path, "--model", "mlp") == 2
    assert "holds no run and no file of weights" in capsys.readouterr().err


def test_processes_give_the_same_table_as_one(folder, monkeypatch):
    monkeypatch.setattr("trainers.runtime.device_of", lambda name: name)  # a CPU with a number stands for a device
    calls = [(WeightsFile(folder / f"net{i}.pt", "mlp", {"width": 4}, DATA), CHOSEN, 0) for i in range(3)]
    apart = sort_rows(pd.concat(take(calls, Runtime(jobs=2)), ignore_index=True))
    for runtime in (Runtime(jobs=1), Runtime("cpu:0,1")):
        shutil.rmtree(folder / "measures")
        pd.testing.assert_frame_equal(sort_rows(pd.concat(take(calls, runtime), ignore_index=True)), apart)


def test_a_checkpoint_is_wholly_on_the_device_where_it_is_measured(run, folder):
    for checkpoint in (last(run), WeightsFile(folder / "net0.pt", "mlp", {"width": 4}, DATA)):
        subject = checkpoint.load(0, "meta")
        shifted = subject.data.ood[next(iter(subject.data.ood))]
        kept = [subject.initial or {}, subject.initial_buffers or {}, subject.model.state_dict()]
        tensors = [t for named in kept for t in named.values()]
        tensors += [part for split in (subject.data.train, subject.data.test, shifted) for part in (split.x, split.y)]
        assert {t.device.type for t in tensors} == {"meta"}
        assert checkpoint.load(0).risk.device.type == "cpu"


def test_every_checkpoint_of_a_run_can_be_measured(run, capsys):
    assert command("measure", run.folder, "--measures", "norms", "--all-checkpoints", "--jobs", 1) == 0
    capsys.readouterr()
    table = pd.read_parquet(run.folder / "measures.parquet")
    assert set(table["step"]) == set(run.checkpoints()) - {0}


def test_what_a_table_holds_of_other_measures_of_runs_stays(run, tmp_path, capsys):
    folder = tmp_path / "runs"
    shutil.copytree(run.folder, folder / run.run_id, ignore=shutil.ignore_patterns("measures*"))
    assert command("measure", folder, "--measures", "norms", "--jobs", 1) == 0
    first = pd.read_parquet(folder / "measures.parquet")
    some = ["--measures", "ascent_sharpness", "--set", "ascent_sharpness.rho=[0.03]", "--jobs", 1]
    assert command("measure", folder, *some) == 0
    both = pd.read_parquet(folder / "measures.parquet")
    norms = both[both["measure"].isin(first["measure"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(norms, first)
    assert len(both) > len(first)
    assert command("measure", folder, *some) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "measures.parquet"), both)
    capsys.readouterr()
    assert command("measure", folder, "--ema", "--jobs", 1) == 2
    assert "the run has no average of weights: train with `average`" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "measures.parquet"), both)


@pytest.mark.parametrize(("options", "message"), [
    ({"jobs": 0}, "`jobs` must be at least 1, got 0"),
    ({"executor": "threads"}, "`executor` must be 'processes', 'ray' or 'population', got 'threads'"),
])  # fmt: skip
def test_foolish_arguments(run, options, message):
    with pytest.raises(ValueError, match=message):
        list(take([(last(run), CHOSEN, 0)], Runtime(**options)))


def test_a_process_that_dies_is_marked_rows(folder, tmp_path, monkeypatch):
    (tmp_path / "fatal.py").write_text("import os\n\ndef net(shape, classes):\n    os.kill(os.getpid(), 9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    good = [(WeightsFile(folder / f"net{i}.pt", "mlp", {"width": 4}, DATA), CHOSEN, 0) for i in range(2)]
    bad = (WeightsFile(folder / "net2.pt", "fatal:net", {}, DATA), CHOSEN, 0)
    table = pd.concat(take([good[0], bad, good[1]], Runtime(jobs=2)), ignore_index=True)
    died = table["run_id"] == "net2"
    assert table.loc[died, "warnings"].str.contains("its process died").all()
    assert table.loc[died, "value"].isna().all()
    assert set(table.loc[~died & table["value"].notna(), "run_id"]) == {"net0", "net1"}


# -- the cost --------------------------------------------------------------------------------------------------------


def test_the_cost_is_told_beforehand(run, monkeypatch, capsys):
    entry = Measure(lambda _: [Row("a", 1.0)], ("a",), "a", "norm", "", 0, "", "7", gradients=7.0)
    monkeypatch.setitem(MEASURES, "a", entry)
    calls, marked = to_measure([run], plan(["a", "norms"]))
    assert not marked
    found = budget(calls)
    assert found.checkpoints == 1
    assert set(found.seconds) == {"a", "norms"}
    assert found.seconds["a"] == pytest.approx(7 * found.seconds["norms"])  # which is one gradient
    assert 0 < found.duration(1) == sum(found.seconds.values()) < 8
    assert "1 checkpoints to measure" in announcement(found, 2)
    assert command("measure", run.folder, "--measures", "a", "norms", "--cost") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("seconds", "norms", "total"))
    assert not (run.folder / "measures").exists()  # nothing was measured
    list(take(calls))
    assert budget(calls).checkpoints == 0


def test_memory_stays_flat_over_many_checkpoints(tmp_path):
    for i in range(60):
        torch.save(weights(i, width=32), tmp_path / f"{i:03}.pt")
    calls = [(WeightsFile(tmp_path / f"{i:03}.pt", "mlp", {"width": 32}, DATA), CHOSEN, 0) for i in range(60)]
    process = psutil.Process()
    seen = [process.memory_info().rss for _ in take(calls, Runtime(jobs=1))]
    assert max(seen[30:]) - max(seen[:30]) < 8 * 2**20
