"""Log-determinant and effective dimension: oracle values, and the way from quadrature."""

import math

import pytest
import torch
from problems import F64, o1, o2
from spectra import laplacian

from landscape.operators import GaussNewton, Hessian
from landscape.spectral.density import spectral_density
from landscape.spectral.sums import effective_dimension, log_determinant


def test_log_determinants(generator):
    exact = log_determinant(Hessian(o1()), 0.1, generator=generator)
    assert exact.value == pytest.approx(-8.563704336049536, rel=1e-10)
    assert exact.stderr == 0.0
    assert log_determinant(laplacian(), 0.0, generator=generator).value == pytest.approx(math.log(101), rel=1e-10)


def test_log_determinant_by_quadrature(generator):
    large = laplacian(400)
    estimate = log_determinant(large, 0.1, runs=20, steps=60, generator=generator)
    assert abs(estimate.value - float(torch.logdet(large + 0.1 * torch.eye(400, dtype=F64)))) < 4.5 * estimate.stderr
    assert (estimate.draws, estimate.products, estimate.method) == (20, 1200, "lanczos-quadrature")


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (0.5, r"`shift` must exceed 0.816398, because A has an eigenvalue -0.816398; got 0.5"),
        (math.nan, "`shift` must be a finite number, got nan"),
        (math.inf, "`shift` must be a finite number, got inf"),
    ],
)
def test_shifts_that_leave_an_eigenvalue_below_zero_are_refused(generator, shift, message):
    with pytest.raises(ValueError, match=message):
        log_determinant(Hessian(o2()), shift, generator=generator)


def test_a_quadrature_says_that_it_saw_only_part_of_the_spectrum(generator):
    A = laplacian(300) - torch.eye(300, dtype=F64)
    with pytest.raises(
        ValueError, match=r"`shift` must exceed 0.9\d*, because A has an eigenvalue of -0.9\d* or below"
    ):
        log_determinant(A, 0.5, steps=40, generator=generator)


@pytest.mark.parametrize(("z", "value"), [(0.01, 3.830079083211343), (0.1, 2.82433966215445)])
def test_effective_dimension(generator, z, value):
    for operator in (Hessian, GaussNewton):
        estimate = effective_dimension(operator(o1()), z, generator=generator)
        assert estimate.value == pytest.approx(value, rel=1e-10)
        assert 0 <= estimate.value <= 4  # the rank


def test_effective_dimension_by_quadrature_is_the_total_of_a_density(generator):
    A = torch.diag(torch.linspace(0, 2, 400, dtype=F64))
    exact = float((A.diag() / (A.diag() + 0.3)).sum())
    estimate = effective_dimension(A, 0.3, generator=torch.Generator().manual_seed(1))
    assert estimate.value == pytest.approx(exact, rel=1e-6)  # a sign vector weighs all entries of a diagonal alike
    found = spectral_density(A, generator=torch.Generator().manual_seed(1))
    assert found.total(lambda t: t / (t + 0.3)).value == pytest.approx(estimate.value, rel=1e-12)


def test_effective_dimension_sets_negative_eigenvalues_to_zero(generator):
    A = torch.diag(torch.tensor([1.0, -5.0], dtype=F64))
    assert effective_dimension(A, 1.0, generator=generator).value == pytest.approx(0.5)


@pytest.mark.parametrize("z", [0.0, -1.0, math.inf, math.nan])
def test_refused_regularisation(generator, z):
    with pytest.raises(ValueError, match="`z` must be a finite regularisation > 0, got"):
        effective_dimension(laplacian(), z, generator=generator)


def test_progress_is_handed_on(generator):
    seen = []
    log_determinant(laplacian(300), 1.0, runs=3, steps=4, progress=seen.append, generator=generator)
    effective_dimension(laplacian(300), 1.0, runs=2, steps=4, progress=seen.append, generator=generator)
    assert [s.products for s in seen] == [4, 8, 12, 4, 8]
