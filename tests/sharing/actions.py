"""What the processes of these tests do; each is slowed at random where it touches files that the others touch too."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import delays
import pandas as pd
import torch

from analysis import table
from analysis.measures.cache import Cache
from analysis.table import Row

TINY = {
    "train_size": 40,
    "validation_size": 20,
    "test_size": 20,
    "epochs": 2,
    "model_options": {"width": 4, "depth": 1},
}
STUDY = {
    "name": "shared",
    "base": {**TINY, "batch_size": 20},
    "methods": [{"method": "sgd"}, {"method": "sam", "rho": 0.1}],
    "grid": {"lr": [0.05, 0.1], "seed": [0]},
    "measures": {"targets": None, "norms": None},
    "statistics": {"draws": 20, "permutations": 19},
}
PLANE = {"points": 5, "examples": 40, "numbers": False}
LINE = {**PLANE, "axes": "random", "points": 2001}


def begin(folder, seed):
    torch.set_num_threads(1)
    delays.begin(folder, seed)


def frame(key):
    """Rows that tell whose they are."""
    rows = [Row(key, float(i)) for i in range(int(key.split(":")[1]) % 3)]
    return table.to_frame(rows, run_id="x", step=1, epoch=1)


def keep_rows(folder, keys, seed):
    """Keep rows one after the other, those that are not there yet."""
    begin(folder, seed)
    weights = Path(folder) / "weights.pt"
    for key in keys:
        cache = Cache(Path(folder) / "measures", "1", weights, ("x", 1))
        if key not in cache.load():
            cache.store({key: frame(key)}, cache.stamp())


def command(folder, seed, *arguments):
    """The program `landscape`; what it prints goes to nowhere."""
    begin(folder, seed)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from analysis.cli import main

    main([str(a) for a in arguments])


def rank(folder, seed, rank, count, port, run, log):
    """One process of `torchrun`, in a surface scan; what it ends with goes to the log."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    begin(folder, seed)
    from analysis.surfaces.survey import surface

    try:
        surface(run, **PLANE)
    except Exception as error:
        Path(log).write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    if left := [name for name in threads if "gloo" in name]:  # one that is left can abort the process as Python ends
        Path(log).write_text(f"threads that are left: {left}")
        sys.exit(2)


def scan(folder, seed, run, log):
    """A surface scan alone."""
    begin(folder, seed)
    from analysis.surfaces.survey import surface

    try:
        surface(run, jobs=1, **PLANE)
    except Exception as error:
        Path(log).write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)


def scan_slowly(run):
    """A surface scan alone that writes down each block of points, and rests before it."""
    torch.set_num_threads(1)
    from analysis.surfaces import computing
    from analysis.surfaces.survey import surface

    evaluate = computing.evaluate

    def slow(*arguments, **options):
        time.sleep(0.2)
        return evaluate(*arguments, **options)

    computing.evaluate, computing.BUNDLE_SECONDS = slow, 0.0
    surface(run, jobs=1, **LINE)


def train(folder, seed, settings):
    """Train a run; one that another process trains is waited for."""
    begin(folder, seed)
    from trainers import fit
    from trainers.files.lock import BusyError

    while True:
        with suppress(BusyError):
            fit(settings, out=folder, snapshot_seconds=0.0)
            return
        time.sleep(0.02)


def study(folder, seed):
    """All of a study but the report."""
    begin(folder, seed)
    from analysis.progress import quiet
    from analysis.study import Study, StudyConfig
    from trainers import Runtime

    work = Study(StudyConfig.model_validate(STUDY), Path(folder), runtime=Runtime(jobs=1))
    work.prepare()
    work.train(quiet)
    work.measure(quiet)
    with work.alone():
        work.correlate()


def sorted_rows(rows):
    return rows.sort_values(["run_id", "measure", "split", "options"]).reset_index(drop=True)


def assert_same_rows(found, expected):
    pd.testing.assert_frame_equal(sorted_rows(found), sorted_rows(expected))
