"""Spectral densities: exact for small operators, quadrature for large ones."""

import math

import numpy as np
import pytest
import torch
from problems import F64, o2
from scipy.stats import wasserstein_distance
from spectra import laplacian
from torch.testing import assert_close

from landscape.operators import GaussNewton, Hessian, dense
from landscape.spectral.density import _quadrature, spectral_density
from landscape.spectral.krylov import Krylov


def goe(n: int, generator) -> torch.Tensor:
    noise = torch.randn(n, n, generator=generator, dtype=F64)
    return (noise + noise.T) / math.sqrt(2 * n)


def lanczos_quadrature(A: torch.Tensor, start: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights of the run of `spectral_density` that begins from this vector."""
    space = Krylov(A, capacity=steps, images=0, generator=torch.Generator())
    space.begin(start)
    return _quadrature(space)


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
    several = [spectral_density(A, runs=5, steps=9, generator=generator) for _ in range(50)]
    values = torch.stack([s.density(grid, sigma=0.1) for s in several])
    stated = torch.stack([s.stderr(grid, sigma=0.1) ** 2 for s in several]).mean(0).sqrt()
    assert_close(stated, values.std(0), rtol=0.35, atol=0)  # 50 repeats: a relative standard error of 10 %
    squares = [s.average(lambda t: t**2) for s in several]
    spread = np.std([e.value for e in squares], ddof=1)
    assert math.sqrt(np.mean([e.stderr**2 for e in squares])) == pytest.approx(spread, rel=0.35)


def test_the_standard_error_of_an_average_is_that_of_the_runs_means(generator):
    found = spectral_density(goe(300, generator), runs=6, steps=5, generator=generator)
    terms = found.weights * found.nodes**2 * 6
    means = np.array([float(terms[found.run == r].sum()) for r in range(6)])
    estimate = found.average(lambda t: t**2)
    assert estimate.value == pytest.approx(means.mean(), rel=1e-12)
    assert estimate.stderr == pytest.approx(means.std(ddof=1) / math.sqrt(6), rel=1e-9)
    assert found.total(lambda t: t**2).stderr == pytest.approx(300 * estimate.stderr, rel=1e-9)


def test_a_single_run_has_no_standard_error(generator):
    found = spectral_density(goe(300, generator), runs=1, steps=5, generator=generator)
    assert math.isnan(found.average(lambda t: t).stderr)
    assert bool(found.stderr(torch.zeros(2, dtype=F64)).isnan().all())


def marchenko_pastur(samples: int, p: int, generator) -> torch.Tensor:
    X = torch.randn(samples, p, generator=generator, dtype=F64)
    return X.T @ X / samples


def test_marchenko_pastur_has_its_edges(generator):
    A = marchenko_pastur(800, 400, generator)
    found = spectral_density(A, runs=10, steps=60, generator=generator)
    assert float(found.nodes[-1]) == pytest.approx((1 + math.sqrt(0.5)) ** 2, rel=0.05)
    assert float(found.nodes[0]) == pytest.approx((1 - math.sqrt(0.5)) ** 2, rel=0.15)
    second = found.average(lambda t: t**2)
    assert abs(second.value - float((A**2).sum()) / 400) < 4.5 * second.stderr
    assert float((A**2).sum()) / 400 == pytest.approx(1.5, rel=0.05)
    low, high = found.quantile(0.0), found.quantile(1.0)
    assert (low.value, high.value) == (float(found.nodes[0]), float(found.nodes[-1]))


def test_quantiles_and_bulk_width_are_those_of_the_eigenvalues_with_honest_errors(generator):
    A = goe(300, generator)
    exact = torch.linalg.eigvalsh(A)
    several = [spectral_density(A, runs=8, steps=25, generator=generator) for _ in range(12)]
    truths = {share: float(exact.quantile(share)) for share in (0.1, 0.5, 0.9)}
    width = float(exact.quantile(0.975) - exact.quantile(0.025))
    for made, truth in [
        *(([s.quantile(share) for s in several], truth) for share, truth in truths.items()),
        ([s.bulk_width() for s in several], width),
    ]:
        errors = np.array([e.value - truth for e in made])
        stated = math.sqrt(np.mean([e.stderr**2 for e in made]))
        assert abs(errors.mean()) < 4.5 * stated / math.sqrt(12)
        assert stated > 0.6 * math.sqrt(np.mean(errors**2))  # twelve errors: 20 %; rather too large for the width


def test_quantiles_of_exact_spectra_are_interpolated(generator):
    found = spectral_density(torch.diag(torch.arange(1.0, 6.0, dtype=F64)), generator=generator)
    assert found.quantile(0.5).value == pytest.approx(3)
    assert found.quantile(0.4).value == pytest.approx(2.5)
    assert found.bulk_width(0.4).value == pytest.approx(2)
    assert found.quantile(0.5).stderr == 0


def test_negative_mass_of_the_indefinite_hessian(generator):
    found = spectral_density(Hessian(o2()), generator=generator)
    assert found.negative_mass().value == pytest.approx(7 / 17)  # four zeros do not count
    assert found.negative_mass(0.1).value == pytest.approx(4 / 17)
    assert spectral_density(GaussNewton(o2()), generator=generator).negative_mass().value == 0


def test_negative_mass_by_quadrature_has_an_honest_error(generator):
    A = goe(300, generator)
    exact = float((torch.linalg.eigvalsh(A) < 0).double().mean())
    several = [spectral_density(A, runs=5, steps=20, generator=generator).negative_mass() for _ in range(20)]
    spread = np.std([e.value for e in several], ddof=1)
    assert abs(np.mean([e.value for e in several]) - exact) < 4 * spread / math.sqrt(20) + 0.01
    # twenty repeats: a relative error of 16 % of the spread
    assert 0.6 < math.sqrt(np.mean([e.stderr**2 for e in several])) / spread < 2


def test_spectral_entropy(generator):
    flat = spectral_density(torch.diag(torch.tensor([2.0, -2.0, 2.0, 0.0], dtype=F64)), generator=generator)
    assert flat.entropy().value == pytest.approx(math.log(3), rel=1e-12)
    values = torch.linalg.eigvalsh(dense(Hessian(o2()))).abs()
    q = values / values.sum()
    expected = -float(torch.special.xlogy(q, q).sum())
    assert spectral_density(Hessian(o2()), generator=generator).entropy().value == pytest.approx(expected, rel=1e-8)
    zero = spectral_density(torch.zeros(3, 3, dtype=F64), generator=generator)
    assert math.isnan(zero.entropy().value)


def test_spectral_entropy_by_quadrature(generator):
    A = marchenko_pastur(800, 400, generator)
    q = torch.linalg.eigvalsh(A)
    q = q / q.sum()
    estimate = spectral_density(A, steps=60, generator=generator).entropy()
    assert abs(estimate.value + float(torch.special.xlogy(q, q).sum())) < 4.5 * estimate.stderr
    assert 0 < estimate.stderr < 0.1


def test_moments_of_every_run_are_exact(generator):
    A = goe(300, generator)
    found = spectral_density(A, runs=3, steps=6, generator=torch.Generator().manual_seed(4))
    g = torch.Generator().manual_seed(4)
    signs = (2 * torch.stack([torch.randint(0, 2, (300,), generator=g) for _ in range(3)]) - 1).double()
    for r, v in enumerate(signs / math.sqrt(300)):
        power = v
        for q in range(12):
            moment = float((3 * found.weights * found.nodes**q)[found.run == r].sum())
            assert moment == pytest.approx(float(v @ power), rel=1e-9, abs=1e-10)
            power = A @ power


def test_runs_that_close_early_are_exact(generator):
    A = torch.diag(torch.cat([torch.full((200,), 3.0), torch.full((100,), -1.0)])).double()
    found = spectral_density(A, runs=4, steps=50, generator=generator)
    assert found.products == 8  # two distinct eigenvalues
    assert_close(found.nodes, torch.tensor([-1.0] * 4 + [3.0] * 4, dtype=F64))
    assert found.negative_mass().value == pytest.approx(1 / 3, rel=1e-9)
    assert found.average(lambda t: t).stderr == pytest.approx(0, abs=1e-12)  # signs weigh a diagonal alike


def test_all_runs_share_one_basis(generator, monkeypatch):
    import landscape.spectral.density as module

    made = []
    original = module.Krylov
    monkeypatch.setattr(module, "Krylov", lambda *args, **options: made.append(1) or original(*args, **options))
    spectral_density(goe(300, generator), runs=5, steps=4, generator=generator)
    assert len(made) == 1


def test_progress_and_interrupt(generator):
    A = goe(300, generator)
    seen = []
    spectral_density(A, runs=3, steps=5, progress=seen.append, generator=generator)
    assert [(s.work, s.products, s.most) for s in seen] == [("spectral_density", n, 15) for n in (5, 10, 15)]

    def stop(status):
        if status.products == 10:
            raise KeyboardInterrupt

    with pytest.warns(RuntimeWarning, match="spectral_density was interrupted after 2 of 3 runs"):
        found = spectral_density(A, runs=3, steps=5, progress=stop, generator=generator)
    assert (found.runs, found.converged, found.products) == (2, False, 10)
    assert float(found.weights.sum()) == pytest.approx(1)
    assert not found.entropy().converged


def test_an_interrupt_before_the_first_run_is_passed_on(generator):
    class Stopped:
        shape, dtype, device = torch.Size((300, 300)), F64, torch.device("cpu")

        def __matmul__(self, other):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spectral_density(Stopped(), generator=generator)


def test_a_basis_that_does_not_fit_is_refused_before_it_is_made(generator, monkeypatch):
    monkeypatch.setattr("landscape.memory.free_bytes", lambda _: 1000)
    with pytest.raises(MemoryError, match=r"A Lanczos basis of 80 vectors of 300 entries needs .*: lower `steps`"):
        spectral_density(goe(300, generator), generator=generator)


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
    found = spectral_density(A, generator=generator)
    with pytest.raises(ValueError, match=r"`sigma` must be > 0, got -1.0"):
        found.density(torch.zeros(1, dtype=F64), sigma=-1.0)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="`share` must be between 0 and 1, got"):
            found.quantile(share)
        with pytest.raises(ValueError, match="`share` must be between 0 and 1, got"):
            found.bulk_width(share)
    with pytest.raises(ValueError, match=r"`tol` must be a distance from zero >= 0, got -1.0"):
        found.negative_mass(-1.0)
