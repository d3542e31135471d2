"""Rows in other precision and elsewhere, against the same arithmetic on a whole matrix."""

import pytest
import torch
from problems import F64
from torch.testing import assert_close

from landscape.spectral import basis as module
from landscape.spectral.basis import Basis, loses_digits

CPU = torch.device("cpu")
KINDS = [(F64, F64, 0), (F64, torch.float32, 0), (F64, torch.float32, 3), (torch.float32, torch.bfloat16, 3)]


def filled(generator, work, kept, fine, length=8, p=50):
    rows = torch.randn(length, p, generator=generator, dtype=work)
    basis = Basis(length, p, dtype=work, device=CPU, kept=(kept, CPU), fine=fine)
    basis.put(0, rows[:2])
    basis.put(2, rows[2:])
    rows[basis.fine :] = rows[basis.fine :].to(kept).to(work)  # what is left of them
    return basis, rows


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}-{kind[2]}")
def pair(request, generator, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 1024)  # several chunks of a few rows or columns each
    return filled(generator, *request.param)


def test_rows_come_back(pair):
    basis, rows = pair
    assert len(basis) == 8
    for start, stop in [(0, 8), (0, 3), (1, 2), (2, 5), (3, 8), (5, 5)]:
        assert torch.equal(basis.get(start, stop), rows[start:stop])


@pytest.mark.parametrize("count", [0, 1, 3, 4, 8])
@pytest.mark.parametrize("shape", [(50,), (50, 3)])
def test_dot_products_and_sums(pair, generator, count, shape):
    basis, rows = pair
    w = torch.randn(shape, generator=generator, dtype=rows.dtype)
    found = basis.project(w, count)
    assert found.shape == (count, *shape[1:])
    assert_close(found, rows[:count] @ w)
    assert_close(basis.subtract(w, found), w - rows[:count].T @ found)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_combinations(pair, generator, start):
    basis, rows = pair
    mix = torch.randn(8 - start, 3, generator=generator, dtype=rows.dtype)
    expected = mix.T @ rows[start:]
    assert_close(basis.combine(start, mix), expected)
    assert basis.mix(start, mix) is False
    tolerance = 4e-3 if basis.rest.dtype == torch.bfloat16 else 1e-6
    assert_close(basis.get(start, start + 3), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(basis.get(start + 3, 8), rows[start + 3 :])
    assert torch.equal(basis.get(0, start), rows[:start])


def test_an_interrupt_waits_until_all_columns_are_mixed(pair, generator, monkeypatch):
    basis, rows = pair
    mix, calls, real = torch.randn(8, 4, generator=generator, dtype=rows.dtype), [], basis._mixed

    def mixed(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(basis, "_mixed", mixed)
    assert basis.mix(0, mix) is True
    assert len(calls) >= 3  # at least two chunks, one of them tried twice
    tolerance = 4e-3 if basis.rest.dtype == torch.bfloat16 else 1e-6
    assert_close(basis.get(0, 4), mix.T @ rows, rtol=tolerance, atol=tolerance)


def test_which_dtypes_lose_digits():
    assert loses_digits(torch.bfloat16, torch.float32)
    assert loses_digits(torch.float16, torch.float32)
    assert loses_digits(torch.float32, F64)
    assert not loses_digits(F64, torch.float32)
    assert not loses_digits(F64, F64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_a_basis_on_the_cpu_of_work_on_the_gpu(generator, kept):
    gpu = torch.device("cuda")
    basis = Basis(6, 40, dtype=torch.float32, device=gpu, kept=(kept, CPU), fine=2)
    rows = torch.randn(6, 40, generator=generator)
    basis.put(0, rows.to(gpu))
    rows[basis.fine :] = rows[basis.fine :].to(kept).float()
    w = torch.randn(40, 2, generator=generator)
    found = basis.project(w.to(gpu), 6)
    assert found.device.type == "cuda"
    assert_close(found.cpu(), rows @ w)
    assert_close(basis.subtract(w.to(gpu), found).cpu(), w - rows.T @ (rows @ w), rtol=1e-4, atol=1e-4)
    assert_close(basis.get(0, 6).cpu(), rows)
