"""What asks a run to stop: signals, the time limit, and another process in the same folder."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from stopping import SMALL, STEPS, assert_same, signal_after, with_clock

from analysis.cli import main
from trainers import fit
from trainers.files.lock import SILENCE, BusyError, locked
from trainers.runs.folder import Run
from trainers.runs.signals import STOPPING, Deadline, StopSignals, seconds_of

FORK = multiprocessing.get_context("fork")  # nothing is imported again


def handlers():
    return {name: signal.getsignal(getattr(signal, name)) for name in STOPPING}


@pytest.mark.parametrize(
    ("name", "error", "code"),
    [
        ("SIGINT", KeyboardInterrupt, None),
        ("SIGTERM", SystemExit, 143),
        ("SIGHUP", SystemExit, 129),
        ("SIGUSR1", SystemExit, 138),
    ],
)
def test_the_first_signal_waits_and_then_ends_the_program_as_it_asked(name, error, code):
    before = handlers()
    with StopSignals() as asked:
        assert handlers() != before
        signal.raise_signal(getattr(signal, name))
        assert asked.received == name
    assert handlers() == before
    with pytest.raises(error) as ended:
        asked.leave(Path("run"))
    assert code is None or ended.value.code == code


def test_without_a_signal_nothing_happens():
    with StopSignals() as asked:
        pass
    asked.leave(Path("run"))


def test_a_second_signal_stops_at_once():
    before = handlers()

    def asked_twice():
        with StopSignals():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
            pytest.fail("the second signal did not stop this")

    with pytest.raises(KeyboardInterrupt):
        asked_twice()
    assert handlers() == before


def asked_twice_to_end():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # or that of a library used before in this process, such as Ray's
    with StopSignals():
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(30)


def test_a_second_sigterm_kills_the_process():
    process = FORK.Process(target=asked_twice_to_end)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


def test_ignored_signals_stay_ignored(monkeypatch):
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked.received
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_other_threads_leave_the_handlers_alone_and_still_train(tmp_path):
    before, found = handlers(), []

    def work():
        with StopSignals():
            found.append(handlers())
        found.append(fit(SMALL, out=tmp_path).status()["status"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, "finished"]


def test_handlers_are_put_back_after_an_error(tmp_path):
    before = handlers()
    with pytest.raises(PermissionError):
        fit({**SMALL, "model": "torch.nn:Flatten", "model_options": {}}, out=tmp_path)
    assert handlers() == before


def test_a_caller_may_keep_its_own_handlers(tmp_path, monkeypatch):
    seen = []
    earlier = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        signal_after(monkeypatch, 2)
        assert fit(SMALL, out=tmp_path, signals=False).finished
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert seen == [1]


def test_a_signal_during_the_last_step_lets_nothing_be_lost(tmp_path, monkeypatch):
    whole = fit(SMALL, out=tmp_path / "whole")
    signal_after(monkeypatch, 3 * STEPS)
    with pytest.raises(SystemExit):
        fit(SMALL, out=tmp_path / "part")
    assert_same(whole, fit(SMALL, out=tmp_path / "part"))


# -- the command line ---------------------------------------------------------------------------------------------

OPTIONS = ("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 3, "--batch-size", 16)


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in ("train", *OPTIONS, *arguments)])
    return ended.value.code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_the_command_stops_with_the_code_that_shells_expect_and_goes_on(number, code, tmp_path, monkeypatch, capsys):
    signal_after(monkeypatch, STEPS + 1, number)
    assert command("--out", tmp_path) == code
    text = "".join(capsys.readouterr())
    assert ("stopped by SIG" in text) == (number != signal.SIGINT)
    assert "the same command" in text
    assert command("--out", tmp_path) == 0
    assert "finished after 3 epochs" in capsys.readouterr().out


def test_a_signal_in_the_first_epoch_has_no_errors_to_print(tmp_path, monkeypatch, capsys):
    signal_after(monkeypatch, 1)
    assert command("--out", tmp_path) == 143
    assert "interrupted after 0 epochs (stopped by SIGTERM after step 1 of 12" in capsys.readouterr().out


def test_a_worker_process_of_a_sweep_leaves_a_snapshot(tmp_path):
    """The signal goes to the whole group, as from a terminal or SLURM; the worker is joblib's, as in a sweep."""
    code = (
        "import sys\nfrom joblib.externals.loky import get_reusable_executor\n"
        "def go(out):\n"
        "    from trainers import fit\n"
        "    return fit({'train_size': 60, 'epochs': 100000, 'model_options': {'width': 8}}, out=out)\n"
        "get_reusable_executor(max_workers=1).submit(go, sys.argv[1]).result()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    try:
        while not list(tmp_path.glob("*/checkpoints/0/meta.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        while not list(tmp_path.glob("*/status.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    status = Run(next(tmp_path.iterdir())).status()
    assert status["status"] == "interrupted"
    assert "stopped by SIGTERM after step" in status["reason"]


# -- the time limit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(90, 90), (" 45", 45), ("1.5", 1.5), ("00:01:30", 90), ("2:00:00", 7200), ("1-02:00:00", 26 * 3600)],
)
def test_limits_are_read_as_slurm_writes_them(limit, seconds):
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize("limit", [0, -1, "0.0", "00:00:00", "1:90:00", "soon", "", float("nan"), float("inf"), "1:2"])
def test_other_limits_are_refused(limit):
    with pytest.raises(ValueError, match=r"`time_limit` must be seconds above 0, HH:MM:SS or D-HH:MM:SS, got"):
        seconds_of(limit)


def test_a_deadline_leaves_a_fifth_to_spare(monkeypatch):
    monkeypatch.setattr("trainers.runs.signals.time.monotonic", lambda: 16.0)
    deadline = Deadline("00:00:10", begun=10.0)
    assert deadline.allows(3.3)
    assert not deadline.allows(3.4)
    assert Deadline(None, begun=0.0).allows(1e9)


@pytest.mark.parametrize("limit", [4.0, 7.5, 11.0, 20.0])
@pytest.mark.parametrize("costs", [{"snapshot": 0.5}, {"snapshot": 0.5, "epoch_end": 1.2}])
def test_a_time_limit_is_kept_with_the_snapshot_inside_and_calls_add_up(limit, costs, tmp_path, monkeypatch):
    whole = fit(SMALL, out=tmp_path / "whole")
    now = with_clock(monkeypatch, step=1.0, **costs)
    for _ in range(20):
        begun = now[0]
        run = fit(SMALL, out=tmp_path / "part", time_limit=limit)
        assert now[0] - begun < limit
        if run.finished:
            break
        assert f"the time limit of {limit:g} s was near" in run.status()["reason"]
    assert_same(whole, run)


def test_the_command_says_that_time_was_up(tmp_path, monkeypatch, capsys):
    with_clock(monkeypatch, step=1.0)
    assert command("--out", tmp_path, "--time-limit", "00:00:07") == 75
    assert "interrupted after 1 epochs (the time limit of 7 s was near" in capsys.readouterr().out
    assert command("--out", tmp_path) == 0
    assert command("--out", tmp_path, "--time-limit", "soon") == 2
    assert "`time_limit` must be seconds" in capsys.readouterr().err


# -- one process a folder -----------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_with_who_uses_it(tmp_path):
    run = fit(SMALL, out=tmp_path, stop=lambda epoch: epoch == 1)
    with locked(run.folder):
        with pytest.raises(BusyError, match=rf"is in use by process {os.getpid()} on .*: wait for it or stop it"):
            fit(SMALL, out=tmp_path)
        assert run.status()["status"] == "interrupted"  # untouched by the refused call
    assert fit(SMALL, out=tmp_path).finished


def hold(folder, held):
    with locked(folder):
        held.set()
        time.sleep(60)


def test_two_processes_at_once_and_a_holder_that_is_killed(tmp_path):
    folder = Run(tmp_path / fit(SMALL, out=tmp_path, stop=lambda epoch: epoch == 1).run_id).folder
    held = FORK.Event()
    holder = FORK.Process(target=hold, args=(folder, held))
    holder.start()
    try:
        assert held.wait(60)
        with pytest.raises(BusyError, match=f"process {holder.pid} on"):
            fit(SMALL, out=tmp_path)
        (folder / "lock.json").write_text("")  # the system's lock holds without its content
        with pytest.raises(BusyError, match="is in use by another process"):
            fit(SMALL, out=tmp_path)
    finally:
        holder.kill()
        holder.join()
    assert (folder / "lock.json").exists()  # it had no time to clean up
    assert fit(SMALL, out=tmp_path).finished


def held_by(tmp_path, **holder):
    (tmp_path / "lock.json").write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "started": 0.0} | holder))


def test_a_holder_on_another_machine_counts_as_dead_after_ten_silent_minutes(tmp_path):
    held_by(tmp_path, host="elsewhere", pid=7)
    with pytest.raises(BusyError, match="process 7 on elsewhere"), locked(tmp_path):
        pass
    os.utime(tmp_path / "lock.json", (0, time.time() - SILENCE - 5))
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock.json").exists()


def test_a_beat_is_a_sign_of_life(tmp_path):
    with locked(tmp_path) as lock:
        os.utime(tmp_path / "lock.json", (0, 0))
        lock.beat(seconds=1e9)
        assert (tmp_path / "lock.json").stat().st_mtime == 0
        lock.beat(seconds=0.0)
        assert (tmp_path / "lock.json").stat().st_mtime > time.time() - 60


@pytest.mark.parametrize("reason", ["another start", "no such process", "cut short"])
def test_stale_locks_are_recognised_without_locks_of_the_system(reason, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.files.lock.fcntl", None)
    me = psutil.Process().create_time()
    held_by(tmp_path, pid=os.getpid(), started=me)
    with pytest.raises(BusyError), locked(tmp_path):
        pass
    if reason == "another start":  # the number was given to another process
        held_by(tmp_path, pid=os.getpid(), started=me - 100)
    elif reason == "no such process":
        held_by(tmp_path, pid=2**22 + 1, started=me)
    else:
        (tmp_path / "lock.json").write_text('{"host": ')
    with locked(tmp_path):
        pass
