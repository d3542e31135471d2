"""Sweeps on a Ray cluster: two nodes on this machine, the same results as without, and what may go wrong."""

import importlib.util
import logging
import os
import signal
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from trainers import Runtime
from trainers.config import train_config
from trainers.runs.folder import Run
from trainers.sweep import cluster as on_cluster
from trainers.sweep.cluster import Shared, on_ray, versions
from trainers.sweep.parallel import WorkerDiedError
from trainers.sweep.running import expand, train_all

TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 1, "model_options": {"width": 4}}
INSTALLED = importlib.util.find_spec("ray") is not None

needs_ray = pytest.mark.skipif(not INSTALLED, reason="Ray is not installed: pip install 'landscape-lab[ray]'")
pytestmark = [
    pytest.mark.xdist_group("ray"),
    # Ray leaves sockets and processes of its cluster to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::DeprecationWarning:ray"),
]

MODELS = """
    import math, os, socket, time
    from pathlib import Path
    import torch

    class Slow(torch.nn.Linear):
        def forward(self, x):
            time.sleep(float(Path(__file__).with_name("seconds").read_text()))
            return super().forward(x.flatten(1))

    def slow(shape, classes):
        import ray
        with Path(__file__).with_name("nodes").open("a") as file:
            print(ray.get_runtime_context().get_node_id(), file=file)
        return Slow(math.prod(shape), classes)

    def leaves(shape, classes):
        os._exit(7)

    def seen(name, device):
        return name, device, os.environ["CUDA_VISIBLE_DEVICES"]
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A folder that the nodes can import from."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "distant.py").write_text(textwrap.dedent(MODELS))
    (folder / "seconds").write_text("0")
    return folder


@pytest.fixture(scope="module")
def nodes(module):
    """A cluster of two nodes with a core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(module)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(module), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        from ray.cluster_utils import Cluster

        checks = {"period_ms": 1000, "initial_delay_ms": 1000, "failure_threshold": 5}  # so that a death is seen soon
        settings = {"_system_config": {f"health_check_{key}": value for key, value in checks.items()}}
        for left in (2, 1, 0):
            found = Cluster()
            try:
                found.add_node(
                    num_cpus=1, include_dashboard=False, include_log_monitor=False, no_monitor=True, **settings
                )
                found.add_node(num_cpus=1, num_gpus=1)  # Ray believes it
                break
            except Exception as error:  # Ray gives a node 30 s to start, which a busy machine may not keep
                if not left or "timed out during startup" not in str(error):
                    raise
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def joined(nodes):
    """The same with one connection for all tests, so that Ray's processes import torch once, not in every test."""
    import ray

    ray.init(address=nodes.address, log_to_driver=False, logging_level="warning")
    yield nodes
    ray.shutdown()


@needs_ray
def test_two_nodes_give_the_same_runs_as_this_process(tmp_path, nodes, module):
    (module / "nodes").unlink(missing_ok=True)
    (module / "seconds").write_text("0.3")
    configs = expand(TINY, {"seed": [0, 1]}, [{"method": "sam"}])
    configs += [train_config({**TINY, "model": "distant:slow", "model_options": {}, "seed": i}) for i in range(2)]
    there = {
        r.run_id: r for r in train_all(configs, out=tmp_path / "2", trust=True, executor="ray", address=nodes.address)
    }
    (module / "seconds").write_text("0")
    assert set(there) == {c.run_id for c in configs}
    assert len(set((module / "nodes").read_text().split())) == 2  # both worked
    for run in train_all(configs[:2], out=tmp_path / "1", jobs=1):
        other = there[run.run_id]
        assert run.history().drop(columns="seconds").equals(other.history().drop(columns="seconds"))
        for step, checkpoint in run.checkpoints().items():
            a, b = (load_file(p / "params.safetensors") for p in (checkpoint, other.checkpoint(step)))
            assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    stamp = (there[configs[0].run_id].folder / "history.parquet").stat().st_mtime_ns
    assert len(list(train_all(configs, out=tmp_path / "2", executor="ray", address=nodes.address))) == 4
    assert (there[configs[0].run_id].folder / "history.parquet").stat().st_mtime_ns == stamp
    assert not list((tmp_path / "2").glob(".shared*"))


@needs_ray
def test_failures_and_dying_processes_stop_nobody_else(tmp_path, joined):
    changes = [{"seed": 0}, {"train_size": 5000}, {"model": "distant:leaves", "model_options": {}}, {"seed": 1}]
    configs = [train_config({**TINY, **change}) for change in changes]
    ended = list(train_all(configs, out=tmp_path, trust=True, executor="ray", address=joined.address))
    states = {r.run_id: r.status() for r in ended}
    assert [states[c.run_id]["status"] for c in configs] == ["finished", "failed", "failed", "finished"]
    assert "`train_size` must be" in states[configs[1].run_id]["reason"]
    assert "its process died (WorkerCrashedError" in states[configs[2].run_id]["reason"]


@needs_ray
def test_without_a_way_to_go_on_a_dead_process_is_an_error(tmp_path, joined):
    place = Runtime(jobs=1, executor="ray", address=joined.address)
    with pytest.raises(WorkerDiedError, match="a process died while it worked"):
        list(on_ray(os._exit, [(3,)], place, lost=None, folder=tmp_path))


@needs_ray
def test_gpus_are_dealt_out_as_ray_has_them(tmp_path, joined):
    from distant import seen

    place = Runtime(device="cuda", executor="ray", address=joined.address)
    calls = [(name, place.device) for name in "ab"]
    assert sorted(on_ray(seen, calls, place, lost=None, folder=tmp_path)) == [("a", "cuda", "0"), ("b", "cuda", "0")]
    place = Runtime(workers=3, executor="ray", address=joined.address)
    with pytest.raises(ValueError, match="`workers` 3: no machine of the Ray cluster has 4 cores"):
        list(on_ray(seen, calls, place, lost=None, folder=tmp_path))


def test_a_cluster_without_gpus_is_refused():
    cluster = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    on_cluster._require(cluster, {"num_cpus": 4, "num_gpus": 0})
    with pytest.raises(ValueError, match="`device` 'cuda': no machine of the Ray cluster has a GPU"):
        on_cluster._require(cluster, {"num_cpus": 1, "num_gpus": 1})


@needs_ray
def test_a_folder_that_is_not_shared_is_refused_before_any_work(tmp_path, joined, monkeypatch):
    monkeypatch.setattr(on_cluster, "VISIBLE", 0.5)
    monkeypatch.setattr(on_cluster, "write_bytes", lambda path, _: path.parent.mkdir(parents=True))
    with pytest.raises(FileNotFoundError, match=r"`out` .* is not shared: machine .* Give a folder on a file system"):
        list(train_all([train_config(TINY)], out=tmp_path / "x", executor="ray", address=joined.address))
    assert not list((tmp_path / "x").iterdir())


@needs_ray
def test_other_versions_are_refused(tmp_path, joined, monkeypatch):
    monkeypatch.setattr(on_cluster, "versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(RuntimeError, match=r"has torch .*, and the starting machine 1\.0: results would differ"):
        list(train_all([train_config(TINY)], out=tmp_path, executor="ray", address=joined.address))


@needs_ray
def test_ctrl_c_interrupts_and_the_same_call_goes_on(tmp_path, joined, module, caplog):
    base = {**TINY, "model": "distant:slow", "model_options": {}, "epochs": 30}
    configs = [train_config({**base, "seed": i}) for i in range(3)]

    def stop():
        while len(list(tmp_path.glob("*/checkpoints/0/meta.json"))) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    (module / "seconds").write_text("0.05")
    threading.Thread(target=stop).start()
    with (
        caplog.at_level(logging.WARNING, logger="trainers"),
        pytest.raises(KeyboardInterrupt, match="stopped by SIGINT: 0 of 3 runs are done and kept; the same command"),
    ):
        list(train_all(configs, out=tmp_path, trust=True, executor="ray", address=joined.address))
    assert "stopping" in caplog.text
    for run in (Run(p.parent) for p in tmp_path.glob("*/config.json")):
        assert run.status()["status"] == "interrupted"
        assert "stopped by SIGINT after step" in run.status()["reason"]
    (module / "seconds").write_text("0")
    runs = list(train_all(configs, out=tmp_path, trust=True, executor="ray", address=joined.address, jobs=2))
    assert [(r.status()["status"], r.status()["reason"]) for r in runs] == [("finished", "")] * 3


@needs_ray
def test_a_run_whose_machine_goes_away_goes_on_elsewhere(tmp_path, joined, module):
    base = {**TINY, "model": "distant:slow", "model_options": {}, "epochs": 30}
    configs = [train_config({**base, "seed": i}) for i in range(2)]
    lost = joined.add_node(num_cpus=1)
    (module / "nodes").unlink(missing_ok=True)
    (module / "seconds").write_text("0.1")

    def pull():
        while lost.node_id not in ((module / "nodes").read_text() if (module / "nodes").exists() else ""):
            time.sleep(0.05)
        joined.remove_node(lost, allow_graceful=False)
        (module / "seconds").write_text("0")

    configs += [train_config({**base, "seed": 2})]
    thread = threading.Thread(target=pull)
    thread.start()
    runs = list(train_all(configs, out=tmp_path, trust=True, executor="ray", address=joined.address))
    thread.join()
    assert [(r.status()["status"], r.status()["reason"]) for r in runs] == [("finished", "")] * 3


@needs_ray
def test_no_cluster_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as before the other tests
    with pytest.raises(ConnectionError, match=r"no Ray cluster at `address` '127\.0\.0\.1:1' .*ray start --head"):
        list(train_all([train_config(TINY)], out=tmp_path, executor="ray", address="127.0.0.1:1"))


# -- without Ray -----------------------------------------------------------------------------------------------------


def test_where_ray_is_not_installed_the_error_says_how_to(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs Ray .*pip install 'landscape-lab\[ray\]', on every machine"):
        list(train_all([train_config(TINY)], out=tmp_path, executor="ray"))


def test_a_machine_is_checked_for_the_folder_and_its_versions(tmp_path):
    (tmp_path / ".shared").write_text("abc")
    Shared(tmp_path / ".shared", "abc", versions(), patience=0).check()
    with pytest.raises(FileNotFoundError, match="is not shared"):  # another folder under the same name
        Shared(tmp_path / ".shared", "other", versions(), patience=0).check()
    with pytest.raises(RuntimeError, match=r"has numpy .*, and the starting machine 0\.1"):
        Shared(tmp_path / ".shared", "abc", {**versions(), "numpy": "0.1"}, patience=0).check()


def test_a_file_that_a_network_shows_late_is_waited_for(tmp_path):
    threading.Timer(0.5, lambda: (tmp_path / ".shared").write_text("abc")).start()
    begun = time.monotonic()
    Shared(tmp_path / ".shared", "abc", {}, patience=20).check()
    assert 0.4 < time.monotonic() - begun < 10
