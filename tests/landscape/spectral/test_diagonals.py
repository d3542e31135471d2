"""Diagonal and Frobenius norm: exact values, and the sampling error of the estimators."""

import math

import numpy as np
import pytest
import torch
from problems import F64, o1, o2
from spectra import laplacian
from torch.testing import assert_close

from landscape.operators import Hessian, dense
from landscape.spectral.diagonals import diagonal, frobenius_squared


class Interrupted:
    """A dense operator that the user stops after some products."""

    def __init__(self, matrix, products):
        self.matrix, self.left = matrix, products

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, other):
        self.left -= 1 if other.ndim == 1 else other.shape[1]
        if self.left < 0:
            raise KeyboardInterrupt
        return self.matrix @ other


@pytest.mark.parametrize(("make", "value"), [(o1, 0.5788012531150818), (o2, 2.5250888192098735)])
def test_frobenius_norms_of_the_oracle_problems(generator, make, value):
    estimate = frobenius_squared(Hessian(make()), generator=generator)
    assert estimate.value == pytest.approx(value, rel=1e-10)
    assert (estimate.stderr, estimate.method) == (0.0, "exact")
    assert frobenius_squared(laplacian(), draws=100, generator=generator).value == 598


def test_diagonal_of_softmax_regression_is_exact(generator):
    expected = [0.1272580975, 0.1373562535, 0.1760708852, 0.3664779649, 0.1333465993, 0.3212804522]
    found = diagonal(Hessian(o1()), draws=6, generator=generator)
    assert_close(found.value, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-9)
    assert not found.stderr.any()
    assert found.products == 6
    assert found.converged


def test_diagonal_has_its_stated_variance(generator):
    A = dense(Hessian(o2()))
    off = (A**2).sum(1) - A.diag() ** 2
    found = diagonal(A, draws=16, generator=generator)
    assert (found.draws, found.products) == (16, 16)
    many = [diagonal(A, draws=16, generator=generator) for _ in range(300)]
    values = torch.stack([d.value for d in many])
    assert_close(values.var(0), off / 16, rtol=0.4, atol=1e-12)  # 300 samples: 8 % a standard error, and heavy tails
    z = (values.mean(0) - A.diag()) / (off / 16 / 300).sqrt()
    assert float(z.abs().max()) < 4
    assert_close(torch.stack([d.stderr**2 for d in many]).mean(0), off / 16, rtol=0.15, atol=1e-12)


def test_blocks_of_draws_are_joined_into_one_mean_and_variance():
    A = laplacian(60)
    found = diagonal(A, draws=37, generator=torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    z = (2 * torch.cat([torch.randint(0, 2, (n, 60), generator=g) for n in (16, 16, 5)]) - 1).double()
    terms = z * (z @ A)
    assert_close(found.value, terms.mean(0), rtol=1e-12, atol=1e-12)
    assert_close(found.stderr, terms.std(0) / math.sqrt(37), rtol=1e-12, atol=1e-12)


def test_frobenius_is_unbiased(generator):
    A = laplacian()
    estimates = [frobenius_squared(A, draws=20, generator=generator) for _ in range(200)]
    values = [e.value for e in estimates]
    spread = float(np.std(values, ddof=1))
    assert abs(np.mean(values) - 598) < 4 * spread / math.sqrt(200)
    assert math.sqrt(np.mean([e.stderr**2 for e in estimates])) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("draws", [20, 100])
def test_frobenius_norms_of_blocks_of_rows(draws):
    A = laplacian()
    blocks = {"first": slice(0, 30), "rest": torch.arange(30, 100)}
    estimate = frobenius_squared(A, draws=draws, blocks=blocks, generator=torch.Generator().manual_seed(0))
    assert estimate.value == pytest.approx(sum(part.value for part in estimate.parts.values()), rel=1e-12)
    for name, region in blocks.items():
        part, exact = estimate.parts[name], float((A[region] ** 2).sum())
        assert abs(part.value - exact) <= 4.5 * part.stderr + 1e-9


def test_frobenius_stops_at_its_tolerance(generator):
    estimate = frobenius_squared(laplacian(400), tol=0.02, generator=generator)
    assert estimate.converged
    assert estimate.stderr <= 0.02 * estimate.value
    assert 10 <= estimate.products < 100
    with pytest.warns(RuntimeWarning, match="frobenius_squared did not reach a standard error of .* raise `draws`"):
        cut = frobenius_squared(laplacian(400), tol=1e-5, draws=20, generator=generator)
    assert not cut.converged


def test_an_interrupted_diagonal_returns_what_is_known(generator):
    A = Interrupted(laplacian(), 40)
    with pytest.warns(RuntimeWarning, match="diagonal was interrupted after 32 products"):
        found = diagonal(A, generator=generator)
    assert (found.draws, found.converged) == (32, False)
    assert abs(float(found.value.mean()) - 2) < 0.5
    with pytest.raises(KeyboardInterrupt):
        diagonal(Interrupted(laplacian(), 3), generator=generator)


def test_progress(generator):
    seen = []
    diagonal(laplacian(), draws=40, progress=seen.append, generator=generator)
    assert [(s.work, s.products, s.most) for s in seen] == [("diagonal", n, 40) for n in (16, 32, 40)]
    assert 0 < seen[-1].residual < 1


def test_refused_arguments(generator):
    for function in (diagonal, frobenius_squared):
        with pytest.raises(ValueError, match="`draws` must be at least 2"):
            function(laplacian(), draws=1, generator=generator)
        with pytest.raises(ValueError, match="`A` gave a product that is not finite"):
            function(torch.full((3, 3), math.nan), draws=2, generator=generator)
    with pytest.raises(ValueError, match="`tol` must be a relative standard error > 0"):
        frobenius_squared(laplacian(), tol=-1.0, generator=generator)
