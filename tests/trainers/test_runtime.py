"""Where computing happens: which devices, how many processes, and who of several ranks has which."""

import os
from dataclasses import replace

import pytest
import torch

from landscape.ranks import Ranks
from trainers import Runtime, fit
from trainers import runtime as runtimes
from trainers.runtime import device_of, require_float64
from trainers.sweep.parallel import cores, in_parallel


@pytest.fixture
def any_device(monkeypatch):
    """Devices need not be there: a CPU with a number stands for one of several."""
    monkeypatch.setattr("trainers.runtime.device_of", lambda name: name)


TINY = {"epochs": 1, "train_size": 20, "validation_size": 0, "test_size": 20, "model_options": {"width": 2, "depth": 1}}


@pytest.mark.parametrize(("device", "names"), [
    ("cpu", ("cpu",)), ("cpu:0", ("cpu:0",)), ("cpu:0,1", ("cpu:0", "cpu:1")), ("cpu:2,0", ("cpu:2", "cpu:0")),
])  # fmt: skip
def test_devices_by_name(device, names, any_device):
    assert Runtime(device).devices == names


def test_auto_is_the_best_that_there_is(monkeypatch):
    assert Runtime("auto").devices == (("cuda",) if torch.cuda.is_available() else ("cpu",))
    assert device_of("auto").type == Runtime("auto").devices[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("trainers.runtime.device_of", lambda name: name)
    assert Runtime("auto").devices == ("cuda",)


@pytest.mark.parametrize(("fields", "limit"), [
    ({}, None), ({"jobs": 3}, 3), ({"device": "cpu:0"}, 1), ({"device": "cpu:0,1"}, 2),
    ({"device": "cpu:0,1", "jobs": 4}, 4), ({"ranks": Ranks(1, 2)}, 1), ({"jobs": 3, "ranks": Ranks(1, 2)}, 3),
])  # fmt: skip
def test_as_many_processes_as_devices_unless_more_are_asked_for(fields, limit, any_device):
    runtime = Runtime(**fields)
    assert runtime.limit == limit
    assert runtime.processes == (limit or cores())


@pytest.mark.parametrize(("devices", "count", "shares"), [
    ("cpu", 3, ["cpu", "cpu", "cpu"]),
    ("cpu:0,1,2,3", 2, ["cpu:0,2", "cpu:1,3"]),
    ("cpu:0,1,2", 2, ["cpu:0,2", "cpu:1"]),
    ("cpu:4,5", 3, ["cpu:4", "cpu:5", "cpu:4"]),
])  # fmt: skip
def test_ranks_share_the_devices(devices, count, shares, any_device):
    assert [Runtime(devices)._among(Ranks(rank, count)).device for rank in range(count)] == shares


def test_a_runtime_or_its_fields():
    assert Runtime.of(jobs=2) == Runtime(jobs=2)
    assert Runtime.of(Runtime(jobs=2)) == Runtime(jobs=2)
    assert Runtime.of(Runtime(jobs=2), device="cpu:0") == Runtime("cpu:0", 2)
    with pytest.raises(TypeError, match="jbos"):
        Runtime.of(jbos=2)


@pytest.mark.parametrize(("fields", "message"), [
    ({"device": "meta"}, "`device` 'meta' is not there .it holds no numbers.; this machine has cpu"),
    ({"device": "cpu:0,x"}, "`device` 'cpu:x' is not there"),
    ({"device": "cpu:1"}, "`device` 'cpu:1' is not there .there is one CPU, whose cores `jobs` shares out.; this"),
    ({"device": "cpu:0,1"}, "`device` 'cpu:1' is not there"),
    ({"device": "cpu:1,1"}, "`device` 'cpu:1,1' names a device twice: name each once"),
    ({"jobs": 0}, "`jobs` must be at least 1, got 0; leave it out for one a core"),
    ({"workers": -1}, "`workers` must be a whole number of processes >= 0, got -1"),
    ({"workers": True}, "`workers` must be a whole number of processes >= 0, got True"),
    ({"executor": "threads"}, "`executor` must be 'processes', 'ray' or 'population', got 'threads'"),
    ({"address": "x:1"}, "`address` is a Ray cluster's, got 'x:1' with executor 'processes': use 'ray'"),
    ({"device": "cpu:0", "executor": "ray"}, "`device` must be 'cpu' or 'cuda' with executor 'ray', .* got 'cpu:0'"),
])  # fmt: skip
def test_what_is_not_there_or_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Runtime(**fields)


def test_each_process_keeps_to_its_device():
    calls = [(name,) for name in "abcd"]
    found = sorted(in_parallel(os.path.join, calls, jobs=2, devices=("first", "second")))
    assert [place[0] for place in found] == list("abcd")
    assert {place[2:] for place in found} == {"first", "second"}
    assert list(in_parallel(os.path.join, calls[:1], jobs=1, devices=("first", "second"))) == ["a/first"]


def test_torchrun_of_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with Runtime().joined() as among:
        assert among == Runtime()
        assert among.ranks.count == 1
    assert not torch.distributed.is_initialized()
    among = replace(Runtime(), ranks=Ranks(1, 2))
    with among.joined() as again:  # those that have joined do not join again
        assert again is among


def test_the_device_is_no_part_of_what_a_run_is(tmp_path):
    first, second = (fit(TINY, out=tmp_path / device, device=device) for device in ("cpu", "auto"))
    assert first.run_id == second.run_id
    if device_of("auto").type == "cpu":
        step = max(first.checkpoints())
        one, two = (run.checkpoint(step) / "params.safetensors" for run in (first, second))
        assert one.read_bytes() == two.read_bytes()


def test_processes_of_a_machine_have_a_gpu_each_and_nccl_or_are_refused(monkeypatch):
    monkeypatch.setattr(runtimes, "device_of", torch.device)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    third = Runtime("cuda")._among(Ranks(3, 4))  # the second of the second machine
    assert third.device == "cuda:1"
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert third._backends() == "cpu:gloo,cuda:nccl"
    assert Runtime()._among(Ranks(3, 4))._backends() == "gloo"
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="`device` 'cuda:1' of several processes needs NCCL, which this build of"):
        third._backends()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"2 processes would share the 1 GPUs of this machine, and NCCL takes one"):
        third._backends()


def test_all_devices_of_a_kind(monkeypatch, any_device):
    monkeypatch.setattr("trainers.runtime.devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    assert Runtime("cuda:all").devices == ("cuda:0", "cuda:1")
    assert Runtime("cuda:all")._among(Ranks(1, 2)).device == "cuda:1"


def test_a_device_that_is_full_or_has_no_float64_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"`device` 'cuda' is not there .*; this machine has cpu"):
        Runtime("cuda:all")

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", full)
        with pytest.raises(MemoryError, match=r"`device` 'cpu' is full, .* is free: free some, or name another"):
            Runtime("cpu")
    message = "cannot be had on `device` 'mps', which has no float64: take cpu or cuda, or float32"
    with pytest.raises(ValueError, match=f"^this {message}"):
        require_float64(torch.device("mps"), "this")
    monkeypatch.setattr("trainers.runs.training.device_of", lambda _: torch.device("mps"))
    with pytest.raises(ValueError, match=f"`precision` 'float64' {message}"):
        fit({**TINY, "precision": "float64"}, out=tmp_path)
