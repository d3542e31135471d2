"""Shared fixtures: a seeded generator, one thread, float64 oracles."""

import signal
from contextlib import ExitStack
from pathlib import Path

import jaxtyping
import pytest
import torch
import typechecker
from _pytest.nodeid import NodeId
from drop_in import torchvision_without_operators
from hypothesis import settings


def pytest_configure(config):
    """Let torchvision be imported where its compiled operators do not load; let SIGINT and SIGHUP be heard."""
    jaxtyping.jaxtyped = typechecker.jaxtyped  # which decorates all of `landscape` when it is imported
    stack = ExitStack()
    stack.enter_context(torchvision_without_operators())
    config.add_cleanup(stack.close)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, whose children ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


HERE = Path(__file__)
LONG = ("test_house.py", "test_studies.py", "test_study.py", "test_documents.py", "test_browser.py", "test_report.py")


def shared_by(item):
    """The first file with a fixture that this test shares with others; None where it shares none."""
    made = [known[-1] for known in item._fixtureinfo.name2fixturedefs.values()]
    files = {Path(one.func.__code__.co_filename) for one in made if one.scope in ("module", "session")}
    return next((path for path in sorted(files) if HERE.parent in path.parents and path != HERE), None)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """What tests share is made by one process; the longest first, so that at the end no process waits for the other."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None and (file := shared_by(item)):
            item.add_marker(pytest.mark.xdist_group(file.relative_to(HERE.parent).as_posix()))
        group = item.get_closest_marker("xdist_group")
        if group and getattr(item.config.option, "loadgroup", False):  # xdist 3.8 writes what pytest 9.2 does not read
            item._id = NodeId.parse(f"{item.nodeid}@{group.args[0]}")
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


settings.register_profile("landscape", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("landscape")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The folder of the smoke study, made once; tests that use it share a worker (xdist_group "smoke")."""
    from analysis.progress import quiet
    from analysis.study import Study, read_study
    from trainers import Runtime

    folder = tmp_path_factory.mktemp("smoke") / "study"
    path = Path(__file__).parents[1] / "studies" / "smoke.yaml"
    Study(read_study(path), folder, runtime=Runtime(jobs=1), command="landscape study studies/smoke.yaml").all(quiet)
    return folder
