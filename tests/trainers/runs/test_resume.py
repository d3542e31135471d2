"""Stopped anywhere, by anything, the same call goes on and ends as if it had never been stopped, bit for bit."""

import errno
import itertools
import multiprocessing
import os
import random
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from stopping import SMALL, STEPS, assert_same, signal_after, with_clock

from trainers import METHODS, fit
from trainers.runs.folder import Run
from trainers.runs.snapshots import read_snapshot

VARIANTS = {
    "m-SAM": {"method": "sam", "m": 7},
    "OBF on ASAM": {"method": "asam", "ascent": "obf", "base": "adamw"},
    "proportional radius": {"method": "gsam", "rho_schedule": "lr", "lr_schedule": "step"},
    "shrink and perturb": {"method": "randsam", "shrink_perturb": 0.001, "warmup_epochs": 1},
    "BatchNorm": {"method": "sam", "model": "resnet20", "model_options": {"width": 4}, "epochs": 2, "checkpoints": []},
    "accumulation": {"method": "sgd", "micro_batch": 5},
    "float64": {"method": "sam", "precision": "float64"},
    "moving average, best checkpoint": {"method": "sam", "average": "ema", "average_decay": 0.8, "keep_best": True},
    "mean of epochs, BatchNorm, early stopping": {
        "average": "swa", "average_from": 0.2, "early_stopping": 1, "model": "resnet20",
        "model_options": {"width": 2, "blocks": 1}, "checkpoints": [],
    },
    "balanced": {"method": "obf", "m": 7, "class_weights": "balanced", "sampler": "balanced", "train_size": 120},
    "tokens": {
        "task": "language", "dataset": "pydoc", "model": "gpt", "method": "obf", "base": "adamw", "label_noise": 0,
        "task_options": {"context": 16}, "model_options": {"width": 8, "depth": 1, "heads": 2, "dropout": 0.1},
        "lr": 0.001,
    },
    "nodes of a graph": {"task": "nodes", "dataset": "csbm", "model": "gcn", "method": "sam"},
}  # fmt: skip
NEEDS = {
    "sam_on": {"model": "vit", "model_options": {"dim": 16, "depth": 1, "heads": 2, "dropout": 0.2}, "lr": 0.02},
    "mup2": {"base_model_options": {"width": 4}},
}
CASES = {method: {"method": method, **NEEDS.get(method, {})} for method in METHODS} | VARIANTS


@pytest.mark.parametrize("name", CASES)
def test_stopped_in_the_middle_of_an_epoch_and_continued(name, tmp_path, monkeypatch):
    config = {**SMALL, **CASES[name]}
    whole = fit(config, out=tmp_path / "whole", log_steps=1)
    for step in (STEPS + 2, 2 * STEPS - 1):  # twice in the same epoch
        signal_after(monkeypatch, step)
        with pytest.raises(SystemExit) as ended:
            fit(config, out=tmp_path / "part", log_steps=1)
        assert ended.value.code == 143
        part = Run(tmp_path / "part" / whole.run_id)
        status = part.status()
        assert (status["status"], status["steps"]) == ("interrupted", step)
        assert "stopped by SIGTERM after step" in status["reason"]
        assert not part.finished
        assert list(part.steps()["step"]) == list(range(1, step + 1))
    assert_same(whole, fit(config, out=tmp_path / "part", log_steps=1))


@pytest.mark.parametrize("step", range(1, 3 * STEPS + 1))
def test_every_step_is_a_place_to_stop(step, tmp_path, monkeypatch):
    config = {**SMALL, "method": "sam"}
    whole = fit(config, out=tmp_path / "whole")
    signal_after(monkeypatch, step, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(config, out=tmp_path / "part")
    assert_same(whole, fit(config, out=tmp_path / "part"))


def test_buffers_that_checkpoints_leave_out_are_kept_too(tmp_path, monkeypatch):
    config = {**SMALL, "model": "test_resume:counting", "model_options": {}}
    whole = fit(config, out=tmp_path / "whole", trust=True)
    signal_after(monkeypatch, STEPS + 1)
    with pytest.raises(SystemExit):
        fit(config, out=tmp_path / "part", trust=True)
    assert_same(whole, fit(config, out=tmp_path / "part", trust=True))


class Counting(torch.nn.Sequential):
    """Its outputs depend on how often it was called in training, which no checkpoint holds."""

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)


def counting(shape, classes):
    return Counting()


# -- every file operation in turn ---------------------------------------------------------------

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.utime", "os.chmod"}
_watchers = []


def _hook(event, arguments):
    for watcher in _watchers:
        watcher(event, arguments)


sys.addaudithook(_hook)  # cannot be taken back, so it asks a list that is empty between tests


@contextmanager
def failing_from(place, folder, error, *, for_good):
    """Raise at the n-th operation that changes a file under the folder; `for_good`: at all that follow too, as if dead.

    A file that is opened to be written afresh is left empty, as it then would be.

    Yields a counter of operations.
    """
    count, breaking = [0], []

    def watch(event, arguments):
        writes = event == "open" and isinstance(arguments[1], str | None) and arguments[2] & 0o3  # not read-only
        if breaking or not (event in CHANGES or writes) or str(folder) not in str(arguments[0]):
            return
        count[0] += 1
        if count[0] == place or (for_good and place and count[0] > place):
            if count[0] == place and writes and arguments[2] & os.O_TRUNC and Path(arguments[0]).exists():
                breaking.append(True)
                os.truncate(arguments[0], 0)
                breaking.clear()
            raise error(arguments[0])

    _watchers.append(watch)
    try:
        yield count
    finally:
        _watchers.remove(watch)


class Killed(BaseException):
    pass


BRIEF = {**SMALL, "method": "sam", "train_size": 30, "epochs": 1, "checkpoints": []}  # 2 steps


def operations(tmp_path):
    with failing_from(0, tmp_path / "count", Killed, for_good=True) as count:
        whole = fit(BRIEF, out=tmp_path / "count", log_steps=1, snapshot_seconds=0.0)
    return whole, count[0]


@pytest.mark.slow
def test_a_process_that_dies_at_any_file_operation_leaves_nothing_that_is_taken_for_whole(tmp_path):
    whole, total = operations(tmp_path)
    assert total > 60
    for place in range(1, total + 1):
        out = tmp_path / str(place)
        with failing_from(place, out, Killed, for_good=True), pytest.raises(Killed):
            fit(BRIEF, out=out, log_steps=1, snapshot_seconds=0.0)
        run = Run(out / whole.run_id)
        if run.finished:  # then only tidying was left to do
            assert_same_records(whole, run)
        for step, folder in run.checkpoints().items():
            assert (folder / "params.safetensors").read_bytes() == (
                whole.checkpoint(step) / "params.safetensors"
            ).read_bytes()
        assert_same(whole, fit(BRIEF, out=out, log_steps=1))


def assert_same_records(whole, run):
    drop = ["seconds"]
    assert whole.history().drop(columns=drop).equals(run.history().drop(columns=drop))
    assert whole.steps().drop(columns=drop).equals(run.steps().drop(columns=drop))


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_is_one_clear_error_and_the_run_goes_on(tmp_path):
    whole, total = operations(tmp_path)
    told = []
    for place in range(1, total + 1, 2):
        out = tmp_path / str(place)

        def full(path):
            return OSError(errno.ENOSPC, "No space left on device")

        with failing_from(place, out, full, for_good=False):
            try:
                fit(BRIEF, out=out, log_steps=1, snapshot_seconds=0.0)
            except OSError as error:
                told.append(error)
        assert_same(whole, fit(BRIEF, out=out, log_steps=1))
    assert {error.errno for error in told} == {errno.ENOSPC}
    assert sum("the disk is full: make room, then run the same command" in str(error) for error in told) > 10


def test_the_snapshot_before_a_full_disk_stays_whole(tmp_path, monkeypatch):
    import trainers.runs.snapshots

    save = trainers.runs.snapshots.save_file
    calls = itertools.count(1)

    def full(tensors, path):  # half of a file, and then what safetensors says of a full disk
        if next(calls) == 2:
            path.write_bytes(b"half")
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path)

    monkeypatch.setattr(trainers.runs.snapshots, "save_file", full)
    with pytest.raises(OSError, match=r"the disk is full: make room.*resume/2\.0\.safetensors"):
        fit(BRIEF, out=tmp_path, snapshot_seconds=0.0)
    folder = next(tmp_path.glob("*/resume"))
    assert [p.name for p in sorted(folder.iterdir())] == ["1.0.safetensors", "state.json"]
    assert read_snapshot(folder)["step"] == 1


# -- processes that are killed ---------------------------------------------------------------


def go_on(config, out):
    fit(config, out=out, log_steps=1, snapshot_seconds=0.0)


def test_processes_killed_at_random_moments_end_with_the_run_of_one_that_lived(tmp_path):
    config = {**SMALL, "method": "gsam", "epochs": 9, "checkpoints": list(range(1, 9, 2))}
    whole = fit(config, out=tmp_path / "whole", log_steps=1)  # first, since first calls are slow
    draw, kills, code = random.Random(5), 0, None
    while code is None:
        process = multiprocessing.get_context("fork").Process(target=go_on, args=(config, tmp_path / "killed"))
        process.start()
        process.join(draw.uniform(0, 0.15 + 0.02 * kills))  # longer and longer, so that a slow machine gets to the end
        if (code := process.exitcode) is None:
            process.kill()
            process.join()
            kills += 1
        assert kills < 200, "never done"
    assert code == 0
    assert kills >= 2
    assert_same(whole, Run(tmp_path / "killed" / whole.run_id))


# -- snapshots that cannot be used ---------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    signal_after(monkeypatch, 5)
    with pytest.raises(SystemExit):
        fit(SMALL, out=tmp_path / "part")
    return next((tmp_path / "part").iterdir())


def test_a_damaged_snapshot_is_named_with_the_way_out(stopped, tmp_path):
    path = next((stopped / "resume").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cannot be read .*delete .*resume and run the same command again"):
        fit(SMALL, out=tmp_path / "part")
    (stopped / "resume" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state.json is not whole JSON"):
        fit(SMALL, out=tmp_path / "part")


def test_a_snapshot_of_another_version_starts_the_run_again_and_says_so(stopped, tmp_path, caplog):
    path = stopped / "resume" / "state.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    again = fit(SMALL, out=tmp_path / "part")
    assert "another version of landscape: this run starts again" in caplog.text
    assert_same(fit(SMALL, out=tmp_path / "whole"), again)


def test_the_log_of_steps_may_be_switched_on_later(stopped, tmp_path):
    run = fit(SMALL, out=tmp_path / "part", log_steps=2)
    assert list(run.steps()["step"]) == [6, 8, 10, 12]


def test_what_is_left_of_a_dead_finish_is_swept_away(tmp_path):
    run = fit(SMALL, out=tmp_path)
    for name in ("resume/1.0.safetensors", "steps/1.parquet", ".status.json.abc", "checkpoints/12/.meta.json.x1"):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_text("x")
    assert_same(fit(SMALL, out=tmp_path), run)


def test_sweeps_of_a_version_that_made_one_every_epoch_are_taken_over(tmp_path, monkeypatch):
    """A run that such a version began, with a sweep an epoch in its snapshot, and that is continued."""
    config = {**SMALL, "epochs": 5, "evaluate_every": 2}
    fit(config, out=tmp_path, stop=lambda epoch: epoch == 3)

    def with_all(folder):
        state = read_snapshot(folder)
        assert len(state["correct"]["sweep"]) == 1
        return {**state, "correct": {**state["correct"], "sweep": state["correct"]["presentation"]}}

    monkeypatch.setattr("trainers.runs.training.read_snapshot", with_all)
    run = fit(config, out=tmp_path)
    assert len(run.correctness("presentation")) == 5
    assert len(run.correctness("sweep")) == 3  # after epochs 2, 4 and 5
    assert (run.correctness("sweep", until=3) == run.correctness("presentation")[1:2]).all()


@pytest.mark.parametrize(("cost", "expected"), [(0.01, [6, 12, 18, 24]), (0.5, [10, 20]), (2.0, [])])
def test_a_twentieth_of_the_time_goes_into_snapshots(cost, expected, tmp_path, monkeypatch):
    written = []
    with_clock(monkeypatch, step=1.0, snapshot=cost, written=written)
    fit({**SMALL, "epochs": 6}, out=tmp_path, snapshot_seconds=5.5)
    assert written == expected  # neither sooner than asked, nor than 19 times what one takes
