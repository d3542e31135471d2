"""The Lanczos relation A Q = Q T + Q_next C, checked on dense matrices at every turn."""

import math

import numpy as np
import pytest
import torch
from problems import F64
from torch.testing import assert_close

from landscape.operators import dense
from landscape.spectral.krylov import Krylov, working_dtype

CPU = torch.device("cpu")


def symmetric(generator, p=40, dtype=F64):
    A = torch.randn(p, p, generator=generator, dtype=F64)
    return (A + A.T).to(dtype)


def parts(space):
    """Q and Q_next as columns, T and C."""
    end = space.held + space.size
    Q = space.basis.get(space.held, end).T.double()
    T = torch.from_numpy(space.matrix[: space.size, : space.size].copy())
    return Q, space.basis.get(end, end + space.width).T.double(), T, torch.from_numpy(space.coupling)


def check_relation(space, A, atol=1e-12):
    Q, after, T, C = parts(space)
    A, atol = A.double(), atol * float(torch.linalg.matrix_norm(A.double(), 2))
    whole = torch.cat([space.basis.get(0, space.held).T.double(), Q, after], dim=1)
    assert_close(whole.T @ whole, torch.eye(whole.shape[1], dtype=F64), rtol=0, atol=atol)
    assert_close(T, T.T, rtol=0, atol=0)
    if not space.held:
        assert_close(A @ Q, Q @ T + after @ C, rtol=0, atol=atol)
    assert_close(T, Q.T @ A @ Q, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [(F64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_relation_holds_through_steps_and_restarts(generator, block, dtype, atol):
    A = symmetric(generator, dtype=dtype)
    space = Krylov(A, capacity=20, block=block, generator=generator)
    space.begin()
    for _ in range(3):
        while not space.full:
            before = space.size
            space.extend()
            assert space.size == before + block
            check_relation(space, A, atol)
        values, vectors, residuals = space.ritz()
        V = parts(space)[0] @ torch.from_numpy(vectors)
        exact = torch.linalg.vector_norm(A.double() @ V - V * torch.from_numpy(values), dim=0)
        assert_close(torch.from_numpy(residuals), exact, rtol=1e-3, atol=20 * atol)
        kept = np.argsort(-values)[:6]
        space.restart(values[kept], vectors[:, kept])
        assert space.size == 6
        check_relation(space, A, atol)
    assert space.largest <= float(torch.linalg.matrix_norm(A.double(), 2)) * (1 + atol)


def test_one_vector_gives_the_tridiagonal_matrix(generator):
    A = symmetric(generator)
    space = Krylov(A, capacity=70, generator=generator)
    space.begin(2 * torch.ones(40, dtype=torch.long))
    while not space.closed and space.size < space.capacity:
        space.extend()
    assert space.closed
    assert space.size == space.products == 40
    assert_close(space.basis.get(0, 1)[0], torch.ones(40, dtype=F64) / math.sqrt(40))
    T = space.matrix[:40, :40]
    assert np.abs(np.triu(T, 2)).max() == 0
    np.testing.assert_allclose(space.ritz()[0], torch.linalg.eigvalsh(A), rtol=0, atol=1e-12)


def test_the_solver_of_a_long_tridiagonal_projection_agrees(generator, monkeypatch):
    space = Krylov(symmetric(generator, 80), capacity=75, generator=generator)
    space.begin()
    for _ in range(75):
        space.extend()
    values, vectors, residuals = space.ritz()  # above SHORT
    monkeypatch.setattr("landscape.spectral.krylov.SHORT", 1000)
    again = space.ritz()
    np.testing.assert_allclose(values, again[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.abs(vectors), np.abs(again[1]), rtol=0, atol=1e-8)
    np.testing.assert_allclose(residuals, again[2], rtol=0, atol=1e-8)


@pytest.mark.parametrize("block", [1, 3])
def test_a_block_narrows_and_closes_where_the_space_is_invariant(generator, block):
    Q, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=F64))
    A = Q @ torch.diag(torch.tensor([4.0, 4.0, 4.0, 2.0] + [0.0] * 26, dtype=F64)) @ Q.T
    space = Krylov(A, capacity=20, block=block, generator=generator)
    space.begin()
    while not space.closed:
        space.extend()
        check_relation(space, A)
    # block independent vectors see min(block, multiplicity) directions of each of the three eigenspaces
    assert space.size == {1: 3, 3: 7}[block]
    assert float(space.loose(space.ritz()[1]).max()) < 1e-10  # what was dropped is in the books
    assert np.sum(np.isclose(space.ritz()[0], 4)) == block


def test_a_space_begun_in_the_complement_of_locked_vectors(generator):
    A = symmetric(generator, 12)
    exact, V = torch.linalg.eigh(A)
    space = Krylov(A, locked=3, capacity=9, block=2, generator=generator)
    space.lock(exact[-3:].numpy(), np.zeros(3), V[:, -3:].T)
    space.begin()
    while not space.closed:
        space.extend()
        check_relation(space, A)
    np.testing.assert_allclose(space.ritz()[0], exact[:9], rtol=0, atol=1e-11)
    products = space.products
    space.unlock()
    space.extend()
    assert space.products == products + 3
    np.testing.assert_allclose(space.ritz()[0], exact[-3:], rtol=0, atol=1e-11)


def test_unlocked_vectors_have_true_residuals(generator):
    A = symmetric(generator)
    Q, _ = torch.linalg.qr(torch.randn(40, 4, generator=generator, dtype=F64))
    space = Krylov(A, locked=4, capacity=20, generator=generator)
    space.lock(np.ones(4), np.zeros(4), Q.T)
    space.unlock()
    space.extend()
    check_relation(space, A)
    values, vectors, residuals = space.ritz()
    V = Q @ torch.from_numpy(vectors)
    exact = torch.linalg.vector_norm(A @ V - V * torch.from_numpy(values), dim=0)
    assert_close(torch.from_numpy(residuals), exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("block", [1, 3])
def test_slack_says_what_rounding_left_out(generator, kept, block):
    A = symmetric(generator)
    space = Krylov(A, locked=2, capacity=30, block=block, kept=(kept, CPU), generator=generator)
    space.begin()
    while space.size < 18:
        space.extend()
    Q, after, T, C = parts(space)
    errors = torch.linalg.vector_norm(A @ Q - Q @ T - after @ C, dim=0)
    epsilon = torch.finfo(kept).eps
    # in T the rows are taken for orthonormal, which adds errors of the order of rounding / √p along the basis
    assert float(errors.max()) <= 4 * float(space.slack.max()) < 4 * epsilon * float(torch.linalg.matrix_norm(A, 2))
    assert float(space.slack.max()) > 0.05 * epsilon


def test_an_interrupted_restart_is_complete(generator, monkeypatch):
    A = symmetric(generator)
    space = Krylov(A, capacity=20, generator=generator)
    space.begin()
    while not space.full:
        space.extend()
    real, calls = space.basis._mixed, []

    def mixed(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(space.basis, "_mixed", mixed)
    values, vectors, _ = space.ritz()
    with pytest.raises(KeyboardInterrupt):
        space.restart(values[-5:], vectors[:, -5:])
    assert space.size == 5
    check_relation(space, A)


def test_products_that_are_not_finite_are_refused(generator):
    space = Krylov(torch.full((3, 3), math.inf), capacity=3, generator=generator)
    space.begin()
    with pytest.raises(ValueError, match=r"`A` gave a product that is not finite.* Look for weights and data"):
        space.extend()
    assert space.size == 0


def test_an_operator_may_give_back_its_argument(generator):
    class Identity:
        shape, dtype, device = torch.Size((10, 10)), F64, CPU

        def __matmul__(self, other):
            return other

    space = Krylov(Identity(), capacity=5, generator=generator)
    space.begin()
    first = space.basis.get(0, 1).clone()
    space.extend()
    assert space.closed
    assert torch.equal(space.basis.get(0, 1), first)
    assert_close(dense(Identity()), torch.eye(10, dtype=F64))


def test_working_dtypes():
    assert (
        working_dtype(torch.bfloat16) == working_dtype(torch.float16) == working_dtype(torch.float32) == torch.float32
    )
    assert working_dtype(F64) == F64
