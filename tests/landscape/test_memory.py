"""Memory, told before it is asked for."""

import psutil
import pytest
import torch

from landscape import memory
from landscape.memory import free_bytes, readable, require


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
