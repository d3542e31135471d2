"""What several processes share, attacked by delays, kills and load: nothing is lost or mixed, and nobody hangs.

`make stress` takes each test 20 times, under load.
"""

import json
import os
import random
import signal
import socket
import threading
import time

import actions
import pandas as pd
import pytest
from delays import killed_at_random

from analysis.measures.cache import Cache
from analysis.measures.checkpoints import RunCheckpoint, kept_rows
from analysis.measures.plan import plan
from analysis.surfaces.survey import surface
from trainers import Run
from trainers.files.lock import BusyError, locked
from trainers.files.writing import SILENCE

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharing")]

PATIENT = 120.0  # seconds after which a process counts as hanging


def ended(processes):
    """Exit codes of processes, which must end."""
    deadline, processes = time.monotonic() + PATIENT, list(processes)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    assert None not in codes, f"hanging: {codes}"
    return codes


def asides(folder):
    """Files aside and locks, which nobody must leave."""
    return [p for p in folder.rglob("*") if p.name.startswith(".") or p.suffix == ".lock" or p.name == "lock.json"]


def test_rows_that_several_processes_keep_are_all_there_whoever_is_killed(tmp_path, start, round):
    (tmp_path / "weights.pt").write_bytes(b"weights")
    keys = [f"{'abcd'[i % 4]}:{i}" for i in range(12)]
    done, seen = threading.Event(), []

    def read():
        cache = Cache(tmp_path / "measures", "1", tmp_path / "weights.pt", ("x", 1))
        while not done.is_set():
            found = cache.load()
            seen.append(len(found))
            for key, rows in found.items():
                pd.testing.assert_frame_equal(rows, actions.frame(key))

    broken = []
    threading.excepthook, before = (lambda arguments: broken.append(arguments.exc_value)), threading.excepthook
    reader = threading.Thread(target=read)
    reader.start()
    try:
        kept = [start(actions.keep_rows, str(tmp_path), keys[i::4], 4 * round + i) for i in range(3)]
        _, code = killed_at_random(lambda s: start(actions.keep_rows, str(tmp_path), keys[3::4], s), round + 1)
        assert code == 0
        assert ended(kept) == [0, 0, 0]
    finally:
        done.set()
        reader.join()
        threading.excepthook = before
    assert not broken, broken[0]
    assert seen == sorted(seen)  # what was seen once is never gone again
    cache = Cache(tmp_path / "measures", "1", tmp_path / "weights.pt", ("x", 1))
    assert sorted(cache.load()) == sorted(keys)
    cache.store({"e:1": actions.frame("e:1")}, cache.stamp())  # which also sweeps up behind those killed
    assert not asides(tmp_path)
    assert len(list((tmp_path / "measures").iterdir())) == 2


def test_commands_that_measure_one_checkpoint_lose_no_row_and_mix_none(copy, trained, start, round):
    _, rows, *_ = trained
    commands = [("measure", copy, "--measures", name, "--out", copy / f"{i}.parquet") for i, name in enumerate(rows)]
    assert ended(start(actions.command, str(copy), 10 * round + i, *c) for i, c in enumerate(commands)) == [0, 0, 0]
    last = RunCheckpoint(copy, max(Run(copy).checkpoints()))
    for i, (name, expected) in enumerate(rows.items()):
        actions.assert_same_rows(kept_rows(last, plan([name]), 0), expected)
        actions.assert_same_rows(pd.read_parquet(copy / f"{i}.parquet"), expected)
    assert not asides(copy)


def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_ranks_that_are_slowed_at_random_give_the_bytes_of_one(copy, trained, start, tmp_path, round):
    *_, name, whole = trained
    at = port()
    ranks = [
        start(actions.rank, str(copy), 7 * round + i, i, 4, at, str(copy), str(tmp_path / f"{i}.log")) for i in range(4)
    ]
    assert ended(ranks) == [0] * 4, [p.read_text() for p in tmp_path.glob("*.log")]
    assert (copy / "surfaces" / name).read_bytes() == whole
    assert [p.name for p in (copy / "surfaces").iterdir()] == [name]


def test_ranks_of_which_one_is_killed_end_and_the_same_command_goes_on(copy, trained, start, tmp_path, round):
    *_, name, whole = trained
    draw, at = random.Random(round), port()
    logs = [tmp_path / f"{i}.log" for i in range(3)]
    ranks = [start(actions.rank, str(copy), 7 * round + i, i, 3, at, str(copy), str(logs[i])) for i in range(3)]
    victim = draw.randrange(3)
    while not (copy / "surfaces").exists() and all(p.exitcode is None for p in ranks):
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.3))
    os.kill(ranks[victim].pid, signal.SIGKILL)
    codes = ended(ranks)
    for i in range(3):
        if i != victim and codes[i] == 1:
            assert "another process of `torchrun` has ended" in logs[i].read_text()
    assert ended([start(actions.scan, str(copy), round, str(copy), str(tmp_path / "log"))]) == [0]
    assert (copy / "surfaces" / name).read_bytes() == whole
    assert [p.name for p in (copy / "surfaces").iterdir()] == [name]


def test_ranks_that_meet_a_lock_all_say_who_holds_it(copy, trained, start, tmp_path, round):
    *_, name, _ = trained
    at, logs = port(), [tmp_path / f"{i}.log" for i in range(2)]
    with locked(copy / "surfaces", name.replace(".npz", ".lock")):
        ranks = [start(actions.rank, str(copy), round + i, i, 2, at, str(copy), str(logs[i])) for i in range(2)]
        assert ended(ranks) == [1, 1]
    assert all(f"is in use by process {os.getpid()} on" in log.read_text() for log in logs)


def test_commands_that_scan_one_surface(copy, trained, start, tmp_path, round):
    *_, name, whole = trained
    logs = [tmp_path / f"{i}.log" for i in range(3)]
    scans = [start(actions.scan, str(copy), 3 * round + i, str(copy), str(logs[i])) for i in range(2)]
    _, code = killed_at_random(lambda s: start(actions.scan, str(copy), s, str(copy), str(logs[2])), round, 0.1, 0.6)
    for found, log in zip([*ended(scans), code], logs, strict=True):
        assert found == 0 or "BusyError" in log.read_text()
    if not (copy / "surfaces" / name).exists():  # the last one was refused since another one lived, which was killed
        assert ended([start(actions.scan, str(copy), 0, str(copy), str(logs[0]))]) == [0]
    assert (copy / "surfaces" / name).read_bytes() == whole
    assert not [p for p in asides(copy) if p.suffix != ".lock"]


def test_a_scan_that_is_killed_goes_on_from_what_it_wrote_down(copy, start):
    sheet = surface(copy, jobs=1, **actions.LINE).sheets[0]
    whole = sheet.file.read_bytes()
    sheet.file.unlink()
    process = start(actions.scan_slowly, str(copy))
    journal = sheet.file.with_suffix(".parts") / "0.journal"
    deadline = time.monotonic() + PATIENT
    while time.monotonic() < deadline and not (journal.exists() and journal.stat().st_size > 3000):
        time.sleep(0.02)
    with pytest.raises(BusyError, match="is in use by process"):
        surface(copy, jobs=1, **actions.LINE)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 3000 < journal.stat().st_size < 2001 * 64  # of eight numbers a point
    assert not sheet.file.exists()
    assert surface(copy, jobs=1, **actions.LINE).sheets[0].file.read_bytes() == whole
    assert not journal.parent.exists()


def test_a_run_that_several_processes_train_is_that_of_one(tmp_path, start, trained, round):
    run = trained[0]
    other = start(actions.train, str(tmp_path), round, actions.TINY)
    _, code = killed_at_random(lambda s: start(actions.train, str(tmp_path), s, actions.TINY), round, 0.1, 0.5)
    assert code == 0
    assert ended([other]) == [0]
    found = Run(tmp_path / run.run_id)
    assert found.finished
    drop = "seconds"
    assert found.history().drop(columns=drop).equals(run.history().drop(columns=drop))
    for step, folder in run.checkpoints().items():
        mine = found.checkpoint(step) / "params.safetensors"
        assert mine.read_bytes() == (folder / "params.safetensors").read_bytes()


@pytest.fixture(scope="module")
def studied(context, tmp_path_factory):
    """The tables of a study that ran alone."""
    folder = tmp_path_factory.mktemp("studied")
    process = context.Process(target=actions.study, args=(str(folder), 0))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder


def test_two_studies_in_one_folder_leave_the_tables_of_one(tmp_path, start, studied, round):
    assert ended([start(actions.study, str(tmp_path), 2 * round + i) for i in range(2)]) == [0, 0]
    whole = pd.read_parquet(studied / "measures.parquet")
    assert whole["value"].notna().any()
    actions.assert_same_rows(pd.read_parquet(tmp_path / "measures.parquet"), whole)
    for path in (studied / "statistics").glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "statistics" / path.name), pd.read_parquet(path))
    assert not asides(tmp_path)


def hold(folder, seconds):
    with locked(actions.Path(folder), "x.lock", wait=PATIENT):
        count = actions.Path(folder) / "count"
        now = int(count.read_text()) if count.exists() else 0
        time.sleep(seconds)
        count.write_text(str(now + 1))


def test_a_lock_is_held_by_one_at_a_time_and_taken_over_from_the_dead(tmp_path, start, round):
    holder = start(hold, str(tmp_path), 600.0)
    while not (tmp_path / "x.lock").exists():
        time.sleep(0.01)
    with pytest.raises(BusyError, match=f"process {holder.pid} on"), locked(tmp_path, "x.lock"):
        pass
    waiting = [start(hold, str(tmp_path), 0.01 * i) for i in range(6)]
    os.kill(holder.pid, signal.SIGKILL)
    assert ended(waiting) == [0] * 6
    assert (tmp_path / "count").read_text() == "6"
    assert [p.name for p in tmp_path.iterdir()] == ["count"]


def test_a_lock_of_a_machine_that_is_gone_is_waited_for_and_taken_over(tmp_path, start, round):
    (tmp_path / "x.lock").write_text(json.dumps({"host": "gone", "pid": 1, "started": 0.0}))
    soon = time.time() - SILENCE + 1.5  # its heart beat last ten minutes ago, almost
    os.utime(tmp_path / "x.lock", (soon, soon))
    begun = time.monotonic()
    waiting = [start(hold, str(tmp_path), 0.0) for _ in range(3)]
    assert ended(waiting) == [0] * 3
    assert time.monotonic() - begun > 1.0
    assert (tmp_path / "count").read_text() == "3"
