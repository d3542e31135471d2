"""Memory, told before it is asked for."""

import psutil
import pytest
import torch

from landscape import memory
from landscape.memory import Usage, explained, free_bytes, fullness, ran_out, readable, require, shortage


def test_free_memory_of_the_machine():
    free = free_bytes("cpu")
    total = psutil.virtual_memory().total
    assert isinstance(free, int)
    assert 0 < free <= total
    assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)  # others come and go


def test_free_memory_of_a_gpu_counts_what_the_cache_holds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert free_bytes("cuda:1") == 5_400


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_free_memory_of_this_gpu():
    before = free_bytes("cuda")
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert before - free_bytes("cuda") >= len(held) * 0.9
    del held
    assert free_bytes("cuda") == pytest.approx(before, rel=0.01)  # the cache's is free as well


def test_a_request_that_fits_passes_and_one_that_does_not_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3 * 2**29)
    require(3 * 2**29, "cpu", what="The basis", instead="lower `basis`")
    message = r"^The basis needs 2 GiB, but 1.5 GiB is free on cpu: lower `basis`\.$"
    with pytest.raises(MemoryError, match=message):
        require(2**31, "cpu", what="The basis", instead="lower `basis`")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1024, "1 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (1000 * 2**20, "1,000 MiB"),
        (1023.9 * 2**20, "1,024 MiB"),
        (2**70, "1,048,576 PiB"),
    ],
)
def test_sizes_in_units(count, text):
    assert readable(count) == text


GIB = 2**30
SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80.0 GiB")


@pytest.mark.parametrize(("asked", "used", "told"), [
    # 12 GiB of activations of 128 examples, and 2 more that did not fit: 100 MiB an example and a bit; 12 GiB to have
    (2.0, Usage(80 * GIB, 0, 22 * GIB, 10 * GIB, 22 * GIB), "at most 64 may fit (`size`)"),
    # 3 GiB to have for 14 of 128 examples: 27 of them
    (4.0, Usage(80 * GIB, GIB, 12 * GIB, 10 * GIB, 20 * GIB), "at most 16 may fit (`size`)"),
    (64.0, Usage(80 * GIB, 0, 10 * GIB, 10 * GIB, 10 * GIB), "not even one would fit"),
])  # fmt: skip
def test_what_would_fit_follows_from_what_the_pass_held(monkeypatch, asked, used, told):
    monkeypatch.setattr(memory, "usage", lambda _: used)
    error = torch.OutOfMemoryError(str(SHORT).replace("2.00", f"{asked:.2f}"))
    text = shortage(error, "cuda:0", examples=128, option="`size`")
    held = f"{readable(used.free)} of 80 GiB is free, and other processes hold {readable(used.others)}"
    assert (
        text
        == f"out of memory on cuda:0 with 128 examples a pass: {asked:.3g} GiB more was asked for, and {held}; {told}"
    )
    assert "examples" not in shortage(error, "cuda:0", examples=None, option="")


def test_a_device_that_does_not_tell_is_asked_for_half():
    text = shortage(RuntimeError("DefaultCPUAllocator: not enough memory"), "cpu", examples=20, option="`size`")
    assert text.endswith("is free; at most 8 may fit (`size`)")
    assert shortage(SHORT, "cpu", examples=1, option="`size`").endswith("; not even one would fit")


def test_usage_of_a_gpu(monkeypatch):
    numbers = {"memory_reserved": 700, "memory_allocated": 300, "max_memory_allocated": 600}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5_000, 80_000))
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, number=number: number)
    assert memory.usage("cuda:1") == Usage(80_000, 5_000, 700, 300, 600)
    assert memory.usage("cpu") is None
    assert fullness("cuda:1") == "4.88 KiB of 78.1 KiB is free, and other processes hold 72.6 KiB"


def test_what_ran_out_is_one_kind_of_error_and_others_are_themselves():
    for error in (
        SHORT,
        MemoryError("x needs 3 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ):
        assert ran_out(error)
        told = pytest.raises(MemoryError, match=r"(out of memory on cpu|x needs 3 GiB).*; goes on.$")
        with told, explained("cpu", examples=None, option="", then="; goes on"):
            raise error
    assert not ran_out(RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="assert"), explained("cpu", examples=2, option=""):
        raise RuntimeError("CUDA error: device-side assert triggered")
