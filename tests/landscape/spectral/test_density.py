"""Spectral densities and sums: exact for small operators, quadrature for large ones."""

import math

import numpy as np
import pytest
import torch
from problems import F64, o1, o2
from scipy.stats import wasserstein_distance
from torch.testing import assert_close

from landscape.operators import GaussNewton, Hessian
from landscape.spectral.density import (
    effective_dimension,
    lanczos_quadrature,
    log_determinant,
    spectral_density,
)


def laplacian(n: int = 100) -> torch.Tensor:
    off = torch.ones(n - 1, dtype=F64)
    return 2 * torch.eye(n, dtype=F64) - torch.diag(off, 1) - torch.diag(off, -1)


def goe(n: int, generator) -> torch.Tensor:
    noise = torch.randn(n, n, generator=generator, dtype=F64)
    return (noise + noise.T) / math.sqrt(2 * n)


def test_quadrature_reproduces_the_moments_of_the_path_graph():
    A = laplacian()
    nodes, weights = lanczos_quadrature(A, torch.ones(100, dtype=F64), 10)
    v = torch.full((100,), 0.1, dtype=F64)
    power = v
    expected = {0: 1, 1: 0.02, 2: 0.02, 3: 0.04, 4: 0.10, 5: 0.28}
    for q in range(20):
        moment = float((weights * nodes**q).sum())
        exact = float(v @ power)
        assert moment == pytest.approx(exact, rel=1e-10)
        if q in expected:
            assert moment == pytest.approx(expected[q], abs=1e-10)
        power = A @ power


def test_quadrature_stops_where_the_krylov_space_closes():
    nodes, weights = lanczos_quadrature(
        torch.diag(torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=F64)), torch.ones(4).double(), 4
    )
    assert_close(nodes, torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    assert_close(weights, torch.tensor([0.25, 0.5, 0.25], dtype=F64))


def test_single_vector_lanczos_on_the_path_graph_has_the_reference_ritz_values():
    start = torch.cos(torch.arange(100, dtype=F64))
    tops = [float(lanczos_quadrature(laplacian(), start, m)[0][-1]) for m in (10, 20, 40, 80)]
    assert tops == pytest.approx([3.9022, 3.9754, 3.9938, 3.9974], abs=1e-4)


def test_small_operators_are_exact(generator):
    found = spectral_density(Hessian(o2()), generator=generator)
    assert found.exact
    assert (found.p, found.runs, found.products) == (17, 1, 17)
    assert float(found.nodes[0]) == pytest.approx(-0.8163976735363385, rel=1e-10)
    assert float(found.nodes[-1]) == pytest.approx(0.7566917131566099, rel=1e-10)
    assert_close(found.weights.sum(), torch.tensor(1.0, dtype=F64))
    assert found.average(lambda t: t).value * 17 == pytest.approx(-0.5419815311078794, rel=1e-10)
    assert found.average(lambda t: t**2).value * 17 == pytest.approx(2.5250888192098735, rel=1e-10)
    assert found.average(lambda t: t).stderr == 0.0
    zero = torch.tensor([-1e-9], dtype=F64)
    assert float(found.cumulative(zero)[0]) * 17 == pytest.approx(7)  # seven negative eigenvalues
    grid = torch.linspace(-1, 1, 2001, dtype=F64)
    assert float(found.density(grid)[grid < -0.5].sum()) > 0  # the negative lobe
    assert not found.stderr(grid).any()


@pytest.mark.parametrize("sigma", [None, 0.05])
@pytest.mark.parametrize("size", [30, 300])
def test_densities_integrate_to_one(generator, sigma, size):
    found = spectral_density(goe(size, generator), runs=3, steps=20, generator=generator)
    grid = torch.linspace(-3, 3, 4001, dtype=F64)
    total = torch.trapezoid(found.density(grid, sigma=sigma), grid)
    assert float(total) == pytest.approx(1, abs=1e-3)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((found.nodes.diff() >= 0).all())


def test_semicircle(generator):
    A = goe(400, generator)
    found = spectral_density(A, runs=10, steps=50, generator=generator)
    exact = torch.linalg.eigvalsh(A)
    assert not found.exact
    assert found.products == 500
    distance = wasserstein_distance(found.nodes.numpy(), exact.numpy(), found.weights.numpy())
    assert distance < 0.10  # eight reference runs had at most 0.050
    assert abs(float(found.nodes[-1] - exact[-1])) < 1e-5
    second, fourth = found.average(lambda t: t**2), found.average(lambda t: t**4)
    assert abs(second.value - float((exact**2).mean())) < 4.5 * second.stderr
    assert abs(fourth.value - float((exact**4).mean())) < 4.5 * fourth.stderr
    assert (second.draws, second.method) == (10, "lanczos-quadrature")


def test_marchenko_pastur_has_its_atom_at_zero(generator):
    X = torch.randn(200, 400, generator=generator, dtype=F64)
    A = X.T @ X / 200
    found = spectral_density(A, runs=10, steps=60, generator=generator)
    small = torch.tensor([1e-6], dtype=F64)
    each = found.average(lambda t: (t.abs() < 1e-6).double())
    assert abs(each.value - 0.5) < 4.5 * each.stderr
    assert float(found.cumulative(small)[0]) == pytest.approx(each.value, abs=1e-12)


def test_standard_errors_over_runs_are_honest(generator):
    A = goe(260, generator)
    grid = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
    several = [spectral_density(A, runs=5, steps=9, generator=generator) for _ in range(80)]
    values = torch.stack([s.density(grid, sigma=0.1) for s in several])
    stated = torch.stack([s.stderr(grid, sigma=0.1) ** 2 for s in several]).mean(0).sqrt()
    assert_close(stated, values.std(0), rtol=0.35, atol=0)  # 80 repeats: a relative standard error of 8 %
    squares = [s.average(lambda t: t**2) for s in several]
    spread = np.std([e.value for e in squares], ddof=1)
    assert math.sqrt(np.mean([e.stderr**2 for e in squares])) == pytest.approx(spread, rel=0.35)


def test_a_single_run_has_no_standard_error(generator):
    found = spectral_density(goe(300, generator), runs=1, steps=5, generator=generator)
    assert math.isnan(found.average(lambda t: t).stderr)
    assert bool(found.stderr(torch.zeros(2, dtype=F64)).isnan().all())


def test_log_determinants(generator):
    exact = log_determinant(Hessian(o1()), 0.1, generator=generator)
    assert exact.value == pytest.approx(-8.563704336049536, rel=1e-10)
    assert exact.stderr == 0.0
    assert log_determinant(laplacian(), 0.0, generator=generator).value == pytest.approx(math.log(101), rel=1e-10)
    large = laplacian(400)
    estimate = log_determinant(large, 0.1, runs=20, steps=60, generator=generator)
    assert abs(estimate.value - float(torch.logdet(large + 0.1 * torch.eye(400, dtype=F64)))) < 4.5 * estimate.stderr


@pytest.mark.parametrize(("z", "value"), [(0.01, 3.830079083211343), (0.1, 2.82433966215445)])
def test_effective_dimension(generator, z, value):
    for operator in (Hessian, GaussNewton):
        estimate = effective_dimension(operator(o1()), z, generator=generator)
        assert estimate.value == pytest.approx(value, rel=1e-10)
        assert 0 <= estimate.value <= 4


def test_effective_dimension_sets_negative_eigenvalues_to_zero(generator):
    A = torch.diag(torch.tensor([1.0, -5.0], dtype=F64))
    assert effective_dimension(A, 1.0, generator=generator).value == pytest.approx(0.5)


def test_runs_are_repeatable_and_leave_the_global_random_state_alone():
    A = goe(300, torch.Generator().manual_seed(9))
    random = torch.random.get_rng_state()
    runs = [spectral_density(A, runs=2, steps=5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0].nodes, runs[1].nodes)
    assert not torch.equal(runs[0].nodes, runs[2].nodes)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_refused_arguments(generator):
    A = laplacian()
    with pytest.raises(ValueError, match="`runs` and `steps` must be at least 1, got 0 and 80"):
        spectral_density(A, runs=0, generator=generator)
    with pytest.raises(ValueError, match="`steps` must be between 1 and 100, got 101"):
        lanczos_quadrature(A, torch.ones(100, dtype=F64), 101)
    with pytest.raises(ValueError, match=r"`start` must be a finite vector that is not zero, got one of length 0.0"):
        lanczos_quadrature(A, torch.zeros(100, dtype=F64), 5)
    with pytest.raises(ValueError, match=r"`shift` must exceed 0.816398, because A has an eigenvalue -0.816398"):
        log_determinant(Hessian(o2()), 0.5, generator=generator)
    with pytest.raises(ValueError, match=r"`z` must be a finite regularisation > 0, got 0.0"):
        effective_dimension(A, 0.0, generator=generator)
    found = spectral_density(A, generator=generator)
    with pytest.raises(ValueError, match=r"`sigma` must be > 0, got -1.0"):
        found.density(torch.zeros(1, dtype=F64), sigma=-1.0)
