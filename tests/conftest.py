"""Shared fixtures: a seeded generator, one thread, float64 oracles."""

import signal
from contextlib import ExitStack
from pathlib import Path

import jaxtyping
import pytest
import torch
import typechecker
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


LONG = ("test_house.py", "test_studies.py", "test_study.py", "test_documents.py", "test_browser.py", "test_report.py")


def pytest_collection_modifyitems(items):
    """The longest first, so that at the end no process waits for the other."""
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
