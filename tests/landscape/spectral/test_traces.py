"""Trace, diagonal and Frobenius norm: exact values, and the sampling error of the estimators."""

import inspect
import math
import sys

import numpy as np
import pytest
import torch
from problems import F64, o1, o2
from torch.testing import assert_close

from landscape.operators import EmpiricalFisher, GaussNewton, Hessian, Rescaled, dense
from landscape.spectral.traces import diagonal, frobenius_squared, trace

N = 200


def laplacian(n: int = 100) -> torch.Tensor:
    off = torch.ones(n - 1, dtype=F64)
    return 2 * torch.eye(n, dtype=F64) - torch.diag(off, 1) - torch.diag(off, -1)


def with_spectrum(values, generator) -> torch.Tensor:
    values = torch.as_tensor(values, dtype=F64)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=F64))
    return Q @ torch.diag(values) @ Q.T


def spread(estimates) -> float:
    return float(np.std([e.value for e in estimates], ddof=1))


@pytest.mark.parametrize(
    ("operator", "make", "value"),
    [
        (Hessian, o1, 1.2617902525891436),
        (EmpiricalFisher, o1, 1.064902957663957),
        (Hessian, o2, -0.5419815311078794),
        (GaussNewton, o2, 0.5576123939166329),
        (EmpiricalFisher, o2, 2.4979745435886653),
    ],
)
@pytest.mark.parametrize("method", ["auto", "exact", "xtrace"])
def test_traces_of_the_oracle_problems_are_exact_when_draws_suffice(generator, operator, make, value, method):
    A = operator(make())
    p = A.shape[0]
    estimate = trace(A, method=method, draws=p, generator=generator)
    assert estimate.value == pytest.approx(value, rel=1e-10)
    assert (estimate.stderr, estimate.draws, estimate.products, estimate.method) == (0.0, p, p, "exact")
    assert estimate.converged


@pytest.mark.parametrize(
    ("name", "value"),
    [("0.weight", -0.4853672955928339), ("0.bias", -0.4508814405405391), ("2.weight", 0.16482159383217931)],
)
def test_block_traces(generator, name, value):
    estimate = trace(Hessian(o2((3, 2)), parameters=[name]), generator=generator)
    assert estimate.value == pytest.approx(value, rel=1e-10)


def test_adaptive_trace(generator):
    risk = o1()
    A = Rescaled(Hessian(risk), risk.theta["weight"].reshape(-1).abs())
    assert trace(A, generator=generator).value == pytest.approx(0.2999598235694242, rel=1e-10)


@pytest.mark.parametrize(("make", "value"), [(o1, 0.5788012531150818), (o2, 2.5250888192098735)])
def test_frobenius_norms_of_the_oracle_problems(generator, make, value):
    estimate = frobenius_squared(Hessian(make()), generator=generator)
    assert estimate.value == pytest.approx(value, rel=1e-10)
    assert estimate.stderr == 0.0


def test_diagonal_of_softmax_regression_is_exact(generator):
    expected = [0.1272580975, 0.1373562535, 0.1760708852, 0.3664779649, 0.1333465993, 0.3212804522]
    found = diagonal(Hessian(o1()), draws=6, generator=generator)
    assert_close(found.value, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-9)
    assert not found.stderr.any()
    assert found.products == 6


def test_path_graph(generator):
    A = laplacian()
    assert trace(A, draws=100, generator=generator).value == 200
    assert frobenius_squared(A, draws=100, generator=generator).value == 598
    assert trace(torch.diag(torch.arange(40.0)), method="hutchinson", generator=generator).value == 780
    assert trace(torch.diag(torch.arange(40.0)), method="hutchinson", generator=generator).stderr == 0


def test_hutchinsons_variance_on_the_indefinite_hessian(generator):
    H = dense(Hessian(o2()))
    estimate = trace(H, method="hutchinson", draws=8000, generator=generator)
    variance = (estimate.stderr * math.sqrt(estimate.draws)) ** 2
    # a sample variance of n draws has relative standard error sqrt((kurtosis - 1) / n), about 2 % here
    assert variance == pytest.approx(4.697449101301332, rel=0.1)
    assert abs(estimate.value + 0.5419815311078794) < 4 * estimate.stderr
    assert estimate.products == 8000


def test_hutchinsons_variance_on_the_path_graph(generator):
    estimate = trace(laplacian(), method="hutchinson", draws=4000, generator=generator)
    assert (estimate.stderr**2) * 4000 == pytest.approx(396, rel=0.12)
    assert abs(estimate.value - 200) < 4 * estimate.stderr


def test_a_matrix_with_off_diagonal_mass(generator):
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=F64)  # zᵀAz is 5 ± 2, so are value and error
    estimate = trace(A, method="hutchinson", draws=4000, generator=generator)
    assert abs(estimate.value - 5) < 4 * estimate.stderr
    assert estimate.stderr == pytest.approx(2 / 4000**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("values", "method", "draws", "error"),
    [
        ([i**-2.0 for i in range(1, N + 1)], "xtrace", 30, 0.0066),
        ([i**-2.0 for i in range(1, N + 1)], "xtrace", 60, 0.0016),
        ([(-1) ** (i - 1) / i for i in range(1, N + 1)], "xtrace", 30, 0.110),
        (np.linspace(1, 3, N), "xtrace", 30, 3.0),
        (np.linspace(1, 3, N), "hutchinson", 30, 2.2),
        ([i**-2.0 for i in range(1, N + 1)], "hutchinson", 30, 0.267),
        ([0.7 ** (i - 1) for i in range(1, N + 1)], "xtrace", 60, 2.6e-5),
    ],
)
def test_errors_of_the_estimators_are_those_of_the_reference_runs(generator, values, method, draws, error):
    exact = float(np.sum(values))
    estimates = [
        trace(with_spectrum(values, generator), method=method, draws=draws, generator=generator) for _ in range(50)
    ]
    rmse = math.sqrt(np.mean([(e.value - exact) ** 2 for e in estimates]))
    assert error / 1.5 < rmse < error * 1.5
    # conservative, but no more than the factor 1.5 and the dependence of the leave-one-out terms explain
    stated = math.sqrt(np.mean([e.stderr**2 for e in estimates]))
    assert 0.8 * rmse < stated < 2.2 * rmse
    assert {e.products for e in estimates} == {draws}
    assert {e.draws for e in estimates} == {draws // 2 if method == "xtrace" else draws}


@pytest.mark.parametrize("rank", [0, 1, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("tol", [None, 1e-12])
def test_xtrace_is_exact_on_low_rank(generator, rank, dtype, tol):
    A = with_spectrum([2.0**-i for i in range(rank)] + [0.0] * (60 - rank), generator).to(dtype)
    exact = float(A.diag().sum())
    estimate = trace(A, method="xtrace", draws=40, tol=tol, generator=generator)
    noise = 200 * torch.finfo(dtype).eps
    assert estimate.value == pytest.approx(exact, abs=noise)
    assert estimate.stderr <= noise


def test_xtrace_grown_in_stages_is_as_good_as_at_once(generator):
    A = with_spectrum([i**-2.0 for i in range(1, N + 1)], generator)
    seeds = range(40)
    grown = [trace(A, draws=60, tol=1e-9, generator=torch.Generator().manual_seed(s)) for s in seeds]
    once = [trace(A, draws=60, generator=torch.Generator().manual_seed(s)) for s in seeds]
    assert not any(e.converged for e in grown)
    # the vectors are the same; the orthonormal bases differ by rounding alone
    assert_close(np.array([e.value for e in grown]), np.array([e.value for e in once]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["xtrace", "hutchinson"])
def test_a_tolerance_stops_on_the_standard_error(generator, method):
    A = with_spectrum(np.linspace(1, 3, N), generator)
    estimate = trace(A, method=method, draws=150, tol=0.02, generator=generator)
    assert estimate.converged
    assert 10 <= estimate.products < 150
    assert estimate.stderr <= 0.02 * estimate.value
    strict = trace(A, method=method, draws=20, tol=1e-6, generator=generator)
    assert not strict.converged
    assert strict.products == 20


def test_a_negative_trace_does_not_stop_early(generator):
    H = dense(Hessian(o2()))
    estimate = trace(H, method="hutchinson", draws=2000, tol=0.1, generator=generator)
    assert estimate.products > 200  # (2.167 / 0.0542)² = 1600 are needed on average


@pytest.mark.parametrize(("draws", "chosen"), [(7, "hutchinson"), (8, "xtrace"), (64, "xtrace"), (100, "exact")])
def test_auto_chooses_by_the_budget(generator, draws, chosen):
    assert trace(laplacian(), draws=draws, generator=generator).method == chosen


def test_auto_does_without_storage_that_does_not_fit(generator, monkeypatch):
    monkeypatch.setattr(sys.modules["landscape.spectral.traces"], "XTRACE_BYTES", 1000)
    assert trace(laplacian(), generator=generator).method == "hutchinson"


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


def test_frobenius_is_unbiased(generator):
    A = laplacian()
    estimates = [frobenius_squared(A, draws=20, generator=generator) for _ in range(200)]
    values = [e.value for e in estimates]
    assert abs(np.mean(values) - 598) < 4 * spread(estimates) / math.sqrt(200)
    assert math.sqrt(np.mean([e.stderr**2 for e in estimates])) == pytest.approx(spread(estimates), rel=0.2)


def test_draws_come_from_the_generator_alone():
    random = torch.random.get_rng_state()
    a, b, c = (trace(laplacian(), generator=torch.Generator().manual_seed(s)).value for s in (1, 1, 2))
    assert a == b != c
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch"}, "`method` must be 'auto', .* got 'hutch'"),
        ({"draws": 1}, "`draws` must be at least 2, for a standard error, got 1"),
        ({"draws": 3, "method": "xtrace"}, "`draws` must be at least 4 for method='xtrace'"),
        ({"tol": 0.0}, "`tol` must be a relative standard error > 0, or None, got 0.0"),
        ({"tol": math.nan}, "`tol` must be a relative standard error > 0"),
    ],
)
def test_refused_arguments(generator, options, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(trace)(laplacian(), **options, generator=generator)


def test_one_draw_is_refused_everywhere(generator):
    for function in (diagonal, frobenius_squared):
        with pytest.raises(ValueError, match="`draws` must be at least 2"):
            function(laplacian(), draws=1, generator=generator)
