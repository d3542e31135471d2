"""Sweeps: expansion, parts for array jobs, skipping, failures, dying processes and signals that cost no other run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainers.config import train_config
from trainers.files.lock import locked
from trainers.files.reading import read_json
from trainers.files.tree import equal, join_tensors, split_tensors
from trainers.files.writing import write_atomically, write_json
from trainers.runs.folder import Run
from trainers.runs.loop import fit
from trainers.runs.schedules import LearningRate
from trainers.sharpness_aware.radii import ConstantRadius, ProportionalRadius
from trainers.sweep.parallel import Stopped, WorkerDiedError, in_parallel, stopped_by_signals, why
from trainers.sweep.running import expand, fail, parse_shard, part, train_all, train_one

TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 1, "model_options": {"width": 4}}


def test_a_grid_is_the_product_within_each_variant_without_repetition():
    configs = expand(
        TINY, {"lr": [0.1, 0.2]}, [{"method": "sgd"}, {"method": "sam", "rho": [0.1, 0.2]}, {"method": "sgd"}]
    )
    assert [(c.method, c.lr, c.rho) for c in configs] == [
        ("sgd", 0.1, None), ("sgd", 0.2, None),
        ("sam", 0.1, 0.1), ("sam", 0.1, 0.2), ("sam", 0.2, 0.1), ("sam", 0.2, 0.2),
    ]  # fmt: skip


@pytest.mark.parametrize(("grid", "variants", "message"), [
    ({"lr": []}, [{}], "`grid` needs a list with at least one value for `lr`"),
    ({"lr": 0.1}, [{}], "`grid` needs a list with at least one value for `lr`, got 0.1"),
    ({}, [], "`methods` is empty"),
    ({"lrr": [0.1]}, [{}], r"unknown key `lrr`\. Did you mean 'lr'"),
])  # fmt: skip
def test_bad_grids(grid, variants, message):
    with pytest.raises(ValueError, match=message):
        expand(TINY, grid, variants)


def test_one_failure_does_not_stop_the_others(tmp_path):
    configs = [train_config(TINY), train_config({**TINY, "train_size": 5000}), train_config({**TINY, "seed": 1})]
    runs = list(train_all(configs, out=tmp_path, jobs=1))
    states = {r.run_id: r.status() for r in runs}
    assert [states[c.run_id]["status"] for c in configs] == ["finished", "failed", "finished"]
    assert "`train_size` must be" in states[configs[1].run_id]["reason"]
    assert len(list(train_all(configs[:1], out=tmp_path, jobs=1))) == 1  # finished before, only handed back


def results(run):
    """What must not depend on where and how often a run was started: everything but the time it took."""
    weights = load_file(list(run.checkpoints().values())[-1] / "params.safetensors")
    return run.history().drop(columns="seconds"), weights, run.correctness("presentation")


def assert_same(a, b):
    for (history, weights, correct), (history_b, weights_b, correct_b) in [(results(a), results(b))]:
        assert history.equals(history_b)
        assert weights.keys() == weights_b.keys()
        assert all(torch.equal(tensor, weights_b[name]) for name, tensor in weights.items())
        assert (correct == correct_b).all()


def test_processes_give_the_same_runs_as_one(tmp_path):
    configs = expand(TINY, {"seed": [0, 1]}, [{"method": "sam"}])
    here = {r.run_id: r for r in train_all(configs, out=tmp_path / "1", jobs=1)}
    there = {r.run_id: r for r in train_all(configs, out=tmp_path / "2", jobs=2)}
    assert here.keys() == there.keys()
    for run_id, run in here.items():
        assert_same(run, there[run_id])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"jobs": 0}, "`jobs` must be at least 1, got 0"),
    ({"executor": "threads"}, "`executor` must be 'processes', 'ray' or 'population', got 'threads'"),
    ({"address": "10.0.0.1:6379"}, "`address` is a Ray cluster's, got '10.0.0.1:6379'"),
    ({"shard": (2, 2)}, r"`shard` must be \(i, n\) with 0 <= i < n, got \(2, 2\).*--array=0-1"),
    ({"shard": (-1, 2)}, "`shard` must be"),
    ({"time_limit": "soon"}, "`time_limit`"),
])  # fmt: skip
def test_bad_arguments_are_refused_by_the_call_itself(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_all([train_config(TINY)], out=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


# -- parts for array jobs --------------------------------------------------------------------------------------------

SWEEP = expand(TINY, {"seed": list(range(4)), "lr": [0.1, 0.2]}, [{"method": "sgd"}, {"method": "sam"}])
NAMES = {id(c): c.run_id for c in SWEEP}


@settings(max_examples=8)
@given(st.permutations(SWEEP), st.integers(1, 20))
def test_parts_share_out_a_sweep_evenly_however_it_is_written(shuffled, n):
    parts = [{NAMES[id(c)] for c in part(shuffled, (i, n))} for i in range(n)]
    assert sorted(x for some in parts for x in some) == sorted(NAMES.values())  # each in exactly one
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [{NAMES[id(c)] for c in part(SWEEP, (i, n))} for i in range(n)]


def test_a_part_keeps_the_order_and_trains_only_its_own(tmp_path):
    ours = part(SWEEP, (1, 8))
    assert [c for c in SWEEP if c in ours] == ours
    runs = list(train_all([*SWEEP, *SWEEP], out=tmp_path, jobs=1, shard=(1, 8)))
    assert [r.run_id for r in runs] == [c.run_id for c in ours]
    assert {p.name for p in tmp_path.iterdir()} == {c.run_id for c in ours}


def test_parts_as_a_command_line_has_them():
    assert parse_shard("3/8") == (3, 8)
    for text in ("3", "a/b", "-1/3", "1/2/3", ""):
        with pytest.raises(ValueError, match="`shard` must be i/n, such as 0/8"):
            parse_shard(text)


# -- processes that die, signals, time -------------------------------------------------------------------------------

MODELS = """
    import math, os, signal, time
    from pathlib import Path
    import torch

    class Slow(torch.nn.Linear):
        def forward(self, x):
            time.sleep(float(Path(__file__).with_name("seconds").read_text()))
            return super().forward(x.flatten(1))

    def slow(shape, classes):
        return Slow(math.prod(shape), classes)

    def once(name, shape, classes, die):
        time.sleep(0.5)  # the others get on with their work
        marker = Path(__file__).with_name(name)
        if not marker.exists():
            marker.touch()
            die()
        return slow(shape, classes)

    def leaves(shape, classes):
        return once("leaves", shape, classes, lambda: os._exit(7))

    def killed(shape, classes):
        return once("killed", shape, classes, lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The folder of the module above, one for all tests, so that they share processes."""
    folder = tmp_path_factory.mktemp("mortal")
    (folder / "mortal.py").write_text(textwrap.dedent(MODELS))
    (folder / "seconds").write_text("0")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def slowly(module):
    """Makes a pass of `mortal:slow` take so many seconds."""
    yield lambda seconds: (module / "seconds").write_text(str(seconds))
    (module / "seconds").write_text("0")


def test_a_process_that_dies_is_one_failed_run(tmp_path, module):
    names = ["mortal:leaves", "mlp", "mortal:killed", "mlp"]
    configs = [
        train_config({**TINY, "seed": i, "model": name, "model_options": {"width": 4} if name == "mlp" else {}})
        for i, name in enumerate(names)
    ]
    out = tmp_path / "runs"
    ended = [r.run_id for r in train_all(configs, out=out, jobs=2, trust=True)]
    assert sorted(ended) == sorted(c.run_id for c in configs)
    states = [Run(out / c.run_id).status() for c in configs]
    assert [s["status"] for s in states] == ["failed", "finished", "failed", "finished"]
    assert "its process died (EXIT(7)); the same command continues it" in states[0]["reason"]
    assert "its process died (SIGKILL(-9))" in states[2]["reason"]
    kept = {c.run_id: (out / c.run_id / "history.parquet").stat().st_mtime_ns for c in configs[1::2]}
    again = {r.run_id: r.status()["status"] for r in train_all(configs, out=out, jobs=1, trust=True)}
    assert set(again.values()) == {"finished"}
    assert {i: (out / i / "history.parquet").stat().st_mtime_ns for i in kept} == kept  # not trained again
    single = next(train_all(configs[1:2], out=tmp_path / "single", jobs=1))
    assert_same(single, Run(out / configs[1].run_id))


def test_without_a_way_to_go_on_a_dead_process_is_an_error(module):
    with pytest.raises(WorkerDiedError, match=r"a process died while it worked \(EXIT\(3\)\)"):
        list(in_parallel(os._exit, [(3,)], jobs=None, isolate=True))


def test_an_error_in_a_call_ends_the_others(module):
    begun = time.monotonic()
    with pytest.raises(TypeError):
        list(in_parallel(time.sleep, [(30,), ("x",)], jobs=2))
    assert time.monotonic() - begun < 20


def test_every_process_has_one_thread(module):
    assert list(in_parallel(torch.get_num_threads, [()] * 3, jobs=2)) == [1] * 3


SLOW = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 30, "model": "mortal:slow"}

DRIVER = """
    import json
    import sys
    from trainers import train_all
    from trainers.config import train_config
    if __name__ == "__main__":
        configs = [train_config(values) for values in json.loads(sys.argv[1])]
        list(train_all(configs, out="runs", jobs=2, trust=True))
"""


@pytest.fixture(scope="module")
def whole(module):
    """Slow runs that nobody stopped."""
    configs = [train_config({**SLOW, "seed": i}) for i in range(3)]
    return {c.run_id: Run(module / "whole" / train_one(c, str(module / "whole"), {"trust": True})) for c in configs}


def check_stopped(out, whole, begun):
    """The runs that had begun are interrupted and have a snapshot; going on ends them as if nothing had been."""
    found = [Run(out / i) for i in whole if (out / i / "config.json").exists()]
    assert len(found) == begun
    for run in found:
        assert run.status()["status"] == "interrupted"
        assert (run.folder / "resume" / "state.json").exists()
    runs = list(train_all([r.config() for r in whole.values()], out=out, jobs=1, trust=True))
    assert [r.run_id for r in runs] == list(whole)
    for run in runs:
        assert_same(run, whole[run.run_id])


@pytest.mark.parametrize(("jobs", "sent", "everyone"), [
    (1, signal.SIGINT, False),
    (1, signal.SIGTERM, False),
    (2, signal.SIGINT, True),  # as Ctrl-C on a terminal, to every process
    (2, signal.SIGTERM, True),  # as SLURM's, to every process
])  # fmt: skip
def test_a_stopped_sweep_leaves_runs_that_go_on_bit_for_bit(tmp_path, slowly, whole, jobs, sent, everyone, monkeypatch):
    def stop():
        while len(list(tmp_path.glob("*/checkpoints/0/meta.json"))) < jobs:
            time.sleep(0.05)
        time.sleep(0.2)
        for process in [*(psutil.Process().children() if everyone else []), psutil.Process()]:
            process.send_signal(sent)

    slowly(0.4)  # a run lasts far longer than another process takes to begin
    if not everyone:
        monkeypatch.setattr("trainers.sweep.parallel.HEARD", 0.1)
    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt, match=r": 0 of 3 runs are done and kept; the same command") as stopped:
        list(train_all([r.config() for r in whole.values()], out=tmp_path, jobs=jobs, trust=True))
    assert stopped.value.code == 128 + sent
    slowly(0)
    check_stopped(tmp_path, whole, begun=jobs)


def test_processes_do_not_outlive_a_killed_program(module, slowly, whole):
    slowly(0.4)  # a run lasts far longer than another process takes to begin
    (module / "driver.py").write_text(textwrap.dedent(DRIVER))
    values = json.dumps([{**SLOW, "seed": i} for i in range(3)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "driver.py", values], cwd=module, env=environment, text=True, stderr=subprocess.PIPE
    ) as process:
        while len(list((module / "runs").glob("*/checkpoints/0/meta.json"))) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.kill()
        process.communicate(timeout=30)  # waits for its processes too, which have the same stderr
    slowly(0)
    check_stopped(module / "runs", whole, begun=2)


def test_a_time_limit_is_for_all_runs_together(tmp_path, slowly):
    slowly(0.02)
    configs = expand({**TINY, "epochs": 400, "model": "mortal:slow", "model_options": {}}, {"seed": [0, 1]})
    begun = time.monotonic()
    with pytest.raises(Stopped, match=r"time limit: 0 of 2 runs are done and kept") as stopped:
        list(train_all(configs, out=tmp_path / "runs", jobs=1, trust=True, time_limit=2))
    assert stopped.value.code == 75
    assert time.monotonic() - begun < 4
    assert (tmp_path / "runs" / configs[0].run_id / "resume" / "state.json").exists()


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, module):
    config = train_config(TINY)
    with locked(tmp_path / config.run_id):
        (run,) = train_all([config], out=tmp_path, jobs=2)
        assert run.status()["status"] == "interrupted"
        assert not (run.folder / "status.json").exists()
    (run,) = train_all([config], out=tmp_path, jobs=1)
    assert run.finished


def test_a_run_that_another_process_took_on_or_finished_is_not_called_failed(tmp_path):
    config = train_config(TINY)
    with locked(tmp_path / config.run_id):
        fail(config, str(tmp_path), "its process died")
    assert not (tmp_path / config.run_id / "status.json").exists()
    fail(config, str(tmp_path), "its process died")
    run = Run(tmp_path / config.run_id)
    assert run.status()["status"] == "failed"
    assert fit(config, out=tmp_path).finished
    fail(config, str(tmp_path), "its process died")
    assert run.status()["status"] == "finished"


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received() is None
            with pytest.raises(Stopped, match="stopped by SIGUSR1") as stopped:
                os.kill(os.getpid(), signal.SIGUSR1)
        assert stopped.value.code == 128 + signal.SIGUSR1
        assert received() == signal.SIGUSR1
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, hangup)


def test_a_sweep_runs_outside_the_main_thread(tmp_path, module):
    found = []
    thread = threading.Thread(target=lambda: found.extend(train_all([train_config(TINY)], out=tmp_path, jobs=2)))
    thread.start()
    thread.join()
    assert [r.finished for r in found] == [True]


@pytest.mark.parametrize(("message", "short"), [
    ("A worker ...\nThe exit codes of the workers are {SIGSEGV(-11)}\nMore", "SIGSEGV(-11)"),
    ("A task has failed to un-serialize. Please ensure that", "A task has failed to un-serialize"),
])  # fmt: skip
def test_why_a_process_died(message, short):
    assert why(RuntimeError(message)) == short


# -- the small parts below -------------------------------------------------------------------------------------------


def test_learning_rate_schedules():
    cosine = LearningRate(kind="cosine", peak=1.0, total=10, warmup=2, floor=0.1)
    assert [cosine(0), cosine(1), cosine(2)] == [0.5, 1.0, 1.0]
    assert cosine(6) == pytest.approx(0.55)
    assert cosine(10) == pytest.approx(0.1)
    step = LearningRate(kind="step", peak=1.0, total=8, milestones=(0.5, 0.75), factor=0.1)
    assert [step(3), step(4), step(6)] == pytest.approx([1.0, 0.1, 0.01])
    assert LearningRate(kind="constant", peak=0.3, total=5)(4) == 0.3
    linear = LearningRate(kind="linear", peak=1.0, total=10, warmup=2, floor=0.2)
    assert [linear(1), linear(2), linear(6), linear(10)] == pytest.approx([1.0, 1.0, 0.6, 0.2])


def test_radius_in_proportion_to_the_learning_rate():
    radius = ProportionalRadius(0.6, 0.2, lr_max=3.0, lr_min=1.0)
    assert [radius(3.0), radius(2.0), radius(1.0)] == pytest.approx([0.6, 0.4, 0.2])
    assert ProportionalRadius(0.6, 0.0, lr_max=3.0, lr_min=1.0)(0.5) == 0.0  # warm-up from below the minimum
    assert ProportionalRadius(0.6, 0.2, lr_max=3.0, lr_min=3.0)(1.0) == 0.6
    assert ConstantRadius(0.4)(9.9) == 0.4
    with pytest.raises(ValueError, match="`rho_min` must be a finite radius"):
        ProportionalRadius(0.6, -0.2, lr_max=3.0, lr_min=1.0)


def test_states_survive_the_way_through_json():
    import json

    import torch

    state = {
        "a": [torch.arange(3), (1, 2.5, float("nan"))],
        0: {"x": None, "inf": float("-inf")},
        "s": "text",
        "b": True,
    }
    skeleton, tensors = split_tensors(state)
    back = join_tensors(json.loads(json.dumps(skeleton, allow_nan=False)), tensors)
    assert back["a"][1][2] != back["a"][1][2]
    assert back[0] == {"x": None, "inf": float("-inf")}
    assert equal(back["a"][0], state["a"][0])
    assert isinstance(back["a"][1], tuple)
    with pytest.raises(TypeError, match="cannot save object"):
        split_tensors({"x": object()})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def full(aside):
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="the disk is full"):
        write_atomically(path, full)
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_runs_that_never_ended_are_interrupted(tmp_path):
    assert Run(tmp_path).status()["status"] == "interrupted"
