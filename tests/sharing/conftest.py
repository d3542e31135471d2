"""Processes that start at once: forked from one that has imported everything; and load, where it is asked for."""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the processes, which find what they do by name

ROUNDS = int(os.environ.get("STRESS", "1"))


def pytest_generate_tests(metafunc):
    """Each test with a round is taken `STRESS` times, with other delays and kills."""
    if "round" in metafunc.fixturenames:
        metafunc.parametrize("round", range(ROUNDS))


def burn():
    while True:
        pass


@pytest.fixture(scope="session")
def context():
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["actions", "analysis.cli", "analysis.study", "analysis.surfaces.survey", "trainers"])
    return found


@pytest.fixture(scope="session", autouse=True)
def load(context):
    """A process at full load for each core, in a stress test."""
    busy = [context.Process(target=burn, daemon=True) for _ in range(os.cpu_count() if ROUNDS > 1 else 0)]
    for process in busy:
        process.start()
    yield
    for process in busy:
        process.kill()
        process.join()


@pytest.fixture
def start(context):
    """Start a function in a process; those that are left at the end of a test are killed."""
    started = []

    def begin(function, *arguments):
        process = context.Process(target=function, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run that is copied, never changed, and what alone measures and scans it."""
    from actions import PLANE, TINY

    from analysis.measures.collect import measure_run
    from analysis.measures.plan import plan
    from analysis.surfaces.survey import surface
    from trainers import fit

    run = fit(TINY, out=tmp_path_factory.mktemp("trained"))
    alone = tmp_path_factory.mktemp("alone") / run.run_id
    shutil.copytree(run.folder, alone)
    rows = {name: measure_run(alone, plan([name])) for name in ("norms", "relative_flatness", "targets")}
    sheet = surface(alone, jobs=1, **PLANE).sheets[0]
    return run, rows, sheet.file.name, sheet.file.read_bytes()


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run for the test."""
    shutil.copytree(trained[0].folder, tmp_path / "run")
    return tmp_path / "run"
