"""Whole or refused: one flipped bit, a file cut short or another run's is found, named, and said what to do about."""

import json
import os
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from stopping import SMALL, signal_after, without_checksums

from trainers import Run, fit, load_checkpoint, read_weights, save_checkpoint
from trainers.files.kept import Kept
from trainers.files.tree import equal
from trainers.files.writing import aside_of, sweep, write_json
from trainers.runs.checkpoint import model_state
from trainers.runs.snapshots import read_snapshot


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fit(SMALL, out=tmp_path_factory.mktemp("runs"), log_steps=1)


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The `resume` folder of a run in the middle."""
    signal_after(monkeypatch, 5)
    with pytest.raises(SystemExit):
        fit(SMALL, out=tmp_path / "part")
    return next((tmp_path / "part").iterdir()) / "resume"


def flip(path, place, bit=4):
    """Turn one bit of a file, `place` from 0 to 1 through it."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


PLACES = (0.0, 0.3, 0.62, 0.9, 1.0)


def test_what_a_checkpoint_says_of_itself_is_what_was_written(run):
    """A flipped bit may leave valid JSON: another epoch, say, by which every row that is measured would be wrong."""
    meta = run.checkpoint(max(run.checkpoints())) / "meta.json"
    text = meta.read_text()
    other = re.sub(r'"epoch": (\d)', lambda found: f'"epoch": {int(found[1]) ^ 1}', text)
    assert other != text
    meta.write_text(other)
    with pytest.raises(ValueError, match=r"meta.json cannot be read .*checksum.* train it again"):
        load_checkpoint(meta.parent)


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_in_weights_is_found_by_all_who_read_them(run, place):
    folder = run.checkpoint(max(run.checkpoints()))
    flip(folder / "params.safetensors", place)
    for read in (load_checkpoint, lambda f: read_weights(f / "params.safetensors")):
        with pytest.raises(ValueError, match=r"params.safetensors cannot be read .*checksum.* train it again"):
            read(folder)


READERS = {
    "examples.npz": lambda run: run.correctness("sweep"),
    "history.parquet": Run.history,
    "steps.parquet": Run.steps,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_in_a_record_is_found(run, name, place):
    flip(run.folder / name, place)
    with pytest.raises(ValueError, match=rf"{name} cannot be read .*checksum.* train it again"):
        READERS[name](run)


@pytest.mark.parametrize("name", READERS)
def test_a_record_that_is_cut_short_missing_or_another_runs_is_found(run, name, tmp_path):
    path = run.folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        READERS[name](run)
    other = fit({**SMALL, "seed": 1}, out=tmp_path / "other", log_steps=1)
    shutil.copyfile(other.folder / name, path)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        READERS[name](run)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        READERS[name](run)


@pytest.mark.parametrize("name", READERS)
def test_what_version_0_1_wrote_has_no_checksums_and_is_read(run, name):
    expected = READERS[name](run)
    without_checksums(run.folder)
    found = READERS[name](run)
    assert found.equals(expected) if isinstance(found, pd.DataFrame) else np.array_equal(found, expected)
    model, meta = load_checkpoint(run.checkpoint(max(run.checkpoints())))
    assert "sha256" not in meta
    assert model_state(model)
    path = run.folder / name  # nothing to compare with, but cut short is seen
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=name):
        READERS[name](run)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["tensors", "state.json"])
def test_a_flipped_bit_in_a_snapshot_is_found_before_the_run_goes_on(stopped, name, place, tmp_path):
    path = next(stopped.glob("*.safetensors")) if name == "tensors" else stopped / name
    flip(path, place, bit=0)
    with pytest.raises(ValueError, match=rf"{path.name} .*delete .*resume and run the same command again"):
        fit(SMALL, out=tmp_path / "part")


def test_a_number_changed_in_a_snapshot_is_found(stopped):
    path = stopped / "state.json"
    text = path.read_text()
    assert '"step": 5' in text
    path.write_text(text.replace('"step": 5', '"step": 4'))
    with pytest.raises(ValueError, match=r"state.json cannot be read .*checksum"):
        read_snapshot(stopped)


def test_a_snapshot_of_version_0_1_goes_on(stopped, tmp_path, finished):
    without_checksums(stopped.parent)
    values = json.loads((stopped / "state.json").read_text())
    assert sorted(values) == ["schema", "state", "tensors"]
    again = fit(SMALL, out=tmp_path / "part")
    for step, folder in finished.checkpoints().items():
        assert equal(*(read_weights(f / "params.safetensors") for f in (folder, again.checkpoint(step))))


def test_weights_written_again_with_the_meta_that_was_read_have_their_own_checksum(run):
    folder = run.checkpoint(max(run.checkpoints()))
    model, meta = load_checkpoint(folder)
    with torch.no_grad():
        next(model.parameters()).zero_()
    save_checkpoint(folder, model, meta)
    assert equal(model_state(load_checkpoint(folder)[0]), model_state(model))


def test_a_finished_run_without_its_last_checkpoint_says_so(run):
    assert run.missing() == ""
    last = max(run.checkpoints())
    (run.checkpoint(last) / "meta.json").unlink()
    assert f"its last checkpoint {run.checkpoint(last)}" in run.missing()
    without_checksums(run.folder)
    status = run.status()
    del status["steps"]  # version 0.1 did not say
    write_json(run.folder / "status.json", status)
    assert f"checkpoints/{last}/meta.json is missing" in run.missing()
    shutil.rmtree(run.checkpoint(last))
    assert f"checkpoints/{last}/meta.json is missing" in run.missing()  # the history knows
    write_json(run.folder / "status.json", {**status, "status": "interrupted"})
    assert run.missing() == ""


# -- what is kept in parts ---------------------------------------------------------------------------


def kept(folder):
    return Kept(folder / "x.json", ".txt", way_out="delete it")


def text(path):
    return path.read_text()


def put(folder, content, **known):
    return kept(folder).write(known, lambda aside: aside.write_text(content))


def test_what_is_kept_is_read_back_and_what_was_before_is_gone(tmp_path):
    assert kept(tmp_path).read(text) is None
    for content in ("one", "two", "three"):
        place = put(tmp_path, content, n=len(content))
        index, found = kept(tmp_path).read(text)
        assert (index["n"], found) == (len(content), content)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["x.json", place.name])


def test_names_that_begin_alike_are_left_alone(tmp_path):
    (tmp_path / "x.y.txt").write_text("")
    (tmp_path / "x.1.txt.1.txt").write_text("")
    put(tmp_path, "one")
    put(tmp_path, "two")
    assert {"x.y.txt", "x.1.txt.1.txt"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("file", ["x.json", "x.txt"])
@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_in_what_is_kept_is_found(tmp_path, file, place):
    put(tmp_path, "a few words", n=12345)
    flip(tmp_path / file, place, bit=0)
    with pytest.raises(ValueError, match=rf"{file} .*: delete it"):
        kept(tmp_path).read(text)


@pytest.mark.parametrize("operation", ["rename", "link", "remove"])
@pytest.mark.parametrize("place", range(3))
def test_a_writer_that_dies_leaves_what_was_there_or_what_came(tmp_path, monkeypatch, operation, place):
    put(tmp_path, "before")
    count = iter(range(100))
    names = {"rename": ("replace",), "link": ("link",), "remove": ("unlink", "remove")}[operation]
    with monkeypatch.context() as patch:
        for name in names:
            real = getattr(os, name)

            def dies(*arguments, real=real, **more):
                if next(count) >= place:
                    raise KeyboardInterrupt
                return real(*arguments, **more)

            patch.setattr(os, name, dies)
        try:
            with kept(tmp_path).locked():
                put(tmp_path, "after")
        except KeyboardInterrupt:
            pass
    assert kept(tmp_path).read(text)[1] in ("before", "after")


def test_who_reads_while_another_writes_reads_again(tmp_path):
    put(tmp_path, "before")
    read = []

    def slowly(path):
        read.append(path.name)
        if len(read) == 1:
            put(tmp_path, "after")
            put(tmp_path, "later")
        return path.read_text()

    assert kept(tmp_path).read(slowly)[1] == "later"
    assert len(read) == 2


# -- files aside -------------------------------------------------------------------------------------


def test_files_aside_of_the_dead_are_swept_by_the_next_write_and_those_of_the_living_stay(tmp_path):
    living = aside_of(tmp_path / "table.parquet")
    machine, process, _ = living.name.rpartition(".")[2].split("-")
    assert int(process) == os.getpid()
    dead = tmp_path / f".other.npz.{machine}-{2**22 + 1}-0123abcd"
    far, silent = (tmp_path / f".far.npz.00000000-1-{n}" for n in ("0123abcd", "0123abce"))
    theirs = [tmp_path / name for name in (".gitignore", ".notes.settings", ".a.00000000-1", "x.00000000-1-0123abcd")]
    for path in (living, dead, far, silent, *theirs):
        path.write_text("")
    os.utime(silent, (0, time.time() - 700))
    write_json(tmp_path / "anything.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([living, far, *theirs, tmp_path / "anything.json"])
    sweep(tmp_path)
    assert living.exists()
