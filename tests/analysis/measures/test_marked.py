"""Whole or marked: what is damaged, missing or another run's is rows that say so, and the rest goes on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import command
from stopping import without_checksums

from analysis.measures.cache import Cache
from analysis.measures.checkpoints import RunCheckpoint, kept_rows, measure_checkpoint
from analysis.measures.collect import collect, measure_run, sort_rows, tabulate, take, to_measure
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.surfaces.places import checkpoint_of
from trainers import Run, Runtime, fit, list_runs

TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 2, "checkpoints": [1], "batch_size": 20,
        "model_options": {"width": 4, "depth": 1}}  # fmt: skip
NORMS = plan(["norms"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs that differ in the seed, the first one measured."""
    out = tmp_path_factory.mktemp("runs")
    runs = [fit({**TINY, "seed": seed}, out=out) for seed in (0, 1)]
    measure_run(runs[0].folder, NORMS, NORMS)
    return out


@pytest.fixture
def runs(trained, tmp_path):
    """Copies that a test may spoil, in the order of seeds."""
    shutil.copytree(trained, tmp_path / "runs")
    return sorted(list_runs(tmp_path / "runs"), key=lambda run: run.settings()["seed"])


def flip(path, place=-9):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def last(run):
    return max(run.checkpoints())


@pytest.mark.parametrize("old", [False, True], ids=["", "0.1"])
def test_a_finished_run_whose_last_checkpoint_is_not_whole_is_marked(runs, old, capsys):
    one, other = runs
    step = last(one)
    (one.checkpoint(step) / "meta.json").unlink()
    if old:
        without_checksums(one.folder)
        status = {k: v for k, v in one.status().items() if k != "steps"}
        (one.folder / "status.json").write_text(json.dumps(status))
    assert command("measure", one.folder.parent, "--measures", "targets", "--jobs", 1) == 0
    rows = pd.read_parquet(one.folder.parent / "measures.parquet").set_index("run_id")
    assert rows.loc[one.run_id, "value"].isna().all()
    assert rows.loc[one.run_id, "warnings"].str.contains(f"checkpoints/{step}/meta.json is missing").all()
    assert rows.loc[other.run_id, "value"].notna().any()
    assert command("measure", one.folder) == 1  # nothing was had
    with pytest.raises(
        ValueError, match=r"its last checkpoint .* is missing .*name another by `step`, one of \[0, 2\]"
    ):
        checkpoint_of(one.folder)
    assert checkpoint_of(one.folder, step=2).step == 2
    capsys.readouterr()


def test_a_flipped_bit_in_weights_is_marked_and_the_others_are_measured(runs, capsys):
    one, other = runs
    flip(one.checkpoint(last(one)) / "params.safetensors")
    rows = pd.concat(collect(list(runs), measures=["norms"], jobs=1)).set_index("run_id")
    assert rows.loc[one.run_id, "value"].isna().all()
    assert rows.loc[one.run_id, "warnings"].str.contains("params.safetensors cannot be read").all()
    assert rows.loc[other.run_id, "value"].notna().all()
    assert command("measure", one.folder, "--measures", "norms") == 1
    assert "params.safetensors cannot be read" in capsys.readouterr().out.replace("\n", " ")
    assert command("surface", one.folder, "--points", 3, "--no-numbers") == 2
    assert "params.safetensors cannot be read" in capsys.readouterr().err


def test_flipped_bits_in_records_mark_the_measures_that_need_them(runs):
    one, _ = runs
    flip(one.folder / "examples.npz")
    rows = measure_run(one.folder, plan(["example_forgetting", "norms"])).set_index("measure")
    assert rows["warnings"].str.contains("examples.npz cannot be read").any()
    assert rows.loc["gradient_norm", "value"] > 0


def test_a_checkpoint_of_another_run_or_step_is_marked(runs):
    one, other = runs
    shutil.rmtree(one.checkpoint(2))
    shutil.copytree(other.checkpoint(2), one.checkpoint(2))
    found = measure_checkpoint(RunCheckpoint(one.folder, 2), plan(["targets"]))
    assert found["warnings"].str.contains(f"holds step 2 of run {other.run_id}, not step 2 of {one.run_id}").all()
    shutil.rmtree(other.checkpoint(4))
    shutil.copytree(other.checkpoint(2), other.checkpoint(4))
    found = measure_checkpoint(RunCheckpoint(other.folder, 4), plan(["targets"]))
    assert found["warnings"].str.contains(f"holds step 2 of run {other.run_id}, not step 4 of {other.run_id}").all()


@pytest.mark.parametrize("old", [False, True], ids=["", "0.1"])
def test_kept_rows_of_another_run_do_not_count_even_where_the_weights_are_the_same(runs, old):
    one, other = runs
    for step in one.checkpoints():
        weights = "params.safetensors"
        shutil.copyfile(one.checkpoint(step) / weights, other.checkpoint(step) / weights)
    shutil.copytree(one.folder / "measures", other.folder / "measures")
    if old:
        without_checksums(one.folder)
        without_checksums(other.folder)
    assert kept_rows(RunCheckpoint(one.folder, 4), NORMS, 0) is not None
    assert kept_rows(RunCheckpoint(other.folder, 4), NORMS, 0) is None


@pytest.mark.parametrize("name", ["4.json", "4.parquet"])
@pytest.mark.parametrize("place", [5, 0.4, 0.7, -9])
def test_a_flipped_bit_in_what_is_kept_is_measured_again(runs, name, place):
    one = RunCheckpoint(runs[0].folder, 4)
    expected = kept_rows(one, NORMS, 0)
    path = runs[0].folder / "measures" / name
    flip(path, place if isinstance(place, int) else int(place * path.stat().st_size))
    assert kept_rows(one, NORMS, 0) is None
    pd.testing.assert_frame_equal(measure_checkpoint(one, NORMS), expected)
    assert kept_rows(one, NORMS, 0) is not None


def test_rows_of_weights_that_were_replaced_meanwhile_are_not_kept_for_the_new_ones(tmp_path):
    weights = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(1)}, weights)
    cache = Cache(tmp_path / "measures", "w.pt", weights)
    before = cache.stamp()
    torch.save({"a": torch.ones(1)}, weights)
    cache.store({"norms:1": pd.DataFrame()}, before)
    assert cache.load() == {}
    assert not (tmp_path / "measures" / "w.pt.json").exists()


def test_a_run_that_ends_while_others_are_measured_is_in_the_table(runs, tmp_path):
    place = Path(runs[0].folder.parent)
    hidden = tmp_path / "hidden"
    runs[1].folder.rename(hidden)
    asked = []

    def measured(calls):
        asked.append(len(calls))
        yield from take(calls, Runtime(jobs=1))
        if hidden.exists():  # another process trains it, and is done now
            hidden.rename(place / hidden.name)

    found = tabulate(place / "table.parquet", lambda: to_measure(list_runs(place), NORMS), measured)
    assert asked == [1, 2]
    assert set(found["run_id"]) == {run.run_id for run in map(Run, (runs[0].folder, place / "hidden"))}
    pd.testing.assert_frame_equal(sort_rows(pd.read_parquet(place / "table.parquet")), found)


def test_a_measure_that_finds_no_memory_is_marked_and_taken_again_later(runs, monkeypatch):
    other = runs[1]
    wanted, place = plan(["norms", "targets"]), RunCheckpoint(other.folder, last(other))

    def short(subject):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")

    with monkeypatch.context() as patched:
        patched.setitem(MEASURES, "norms", replace(MEASURES["norms"], function=short))
        first = measure_checkpoint(place, wanted)
    bad = first[first["measure"].isin(MEASURES["norms"].rows)]
    assert bad["value"].isna().all()
    assert (
        bad["warnings"].str.startswith("MemoryError: out of memory on cpu with 1024 examples a pass: 2 GiB more").all()
    )
    assert bad["warnings"].str.endswith("at most 512 may fit (`--batch-size`)").all()
    assert first[~first["measure"].isin(bad["measure"])]["value"].notna().all()
    again = measure_checkpoint(place, wanted)
    assert again["value"].notna().all()
    with monkeypatch.context() as patched:
        patched.setattr("analysis.measures.checkpoints._data", lambda *_: short(None))
        bad = measure_checkpoint(place, NORMS, seed=1)
        assert bad["warnings"].str.startswith("MemoryError: out of memory on cpu: 2 GiB more was asked for").all()
        with pytest.raises(MemoryError, match="out of memory on cpu"):
            measure_checkpoint(place, NORMS, seed=1, strict=True)
