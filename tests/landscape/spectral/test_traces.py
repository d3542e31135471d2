"""The trace: exact values, the sampling error of the estimators, what `auto` saves, and honest intervals."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from problems import F64, o1, o2
from spectra import laplacian, with_spectrum
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import EmpiricalRisk, top_eigenpairs
from landscape.operators import EmpiricalFisher, GaussNewton, Hessian, Rescaled, dense
from landscape.spectral.traces import trace

N = 200
INDEX = np.arange(1, N + 1)
SPECTRA = {
    "i^-2": INDEX**-2.0,
    "alternating": (-1.0) ** (INDEX - 1) / INDEX,
    "flat": np.linspace(1, 3, N),
    "geometric": 0.7 ** (INDEX - 1),
    "outliers": np.concatenate([np.linspace(60, 140, 10), np.random.default_rng(1).uniform(0, 2, N - 10)]),
    "multiple": np.concatenate([np.full(10, 100.0), np.random.default_rng(1).uniform(0, 2, N - 10)]),
    "no trace": np.linspace(-1, 1, N),
}
METHODS = ["auto", "hutchinson", "hutch++", "xtrace", "xnystrace"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(*args, **options):
    """A trace whose warnings do not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return trace(*args, **options)


def coverage(estimates, exact: float) -> float:
    noise = 1e-9 * max(1, abs(exact))
    return float(np.mean([low - noise <= exact <= high + noise for low, high in (e.interval() for e in estimates)]))


class Stopped:
    """A dense operator that counts its products, and that the user stops after some."""

    def __init__(self, matrix, products=math.inf):
        self.matrix, self.left, self.count = matrix, products, 0

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, other):
        new = 1 if other.ndim == 1 else other.shape[1]
        if self.count + new > self.left:
            raise KeyboardInterrupt
        self.count += new
        return self.matrix @ other


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
@pytest.mark.parametrize("method", ["auto", "exact", "xtrace", "hutch++", "xnystrace"])
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


def test_path_graph(generator):
    A = laplacian()
    assert trace(A, draws=100, generator=generator).value == 200
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


def test_draws_come_from_the_generator_alone():
    random = torch.random.get_rng_state()
    a, b, c = (trace(laplacian(), generator=torch.Generator().manual_seed(s)).value for s in (1, 1, 2))
    assert a == b != c
    assert torch.equal(torch.random.get_rng_state(), random)


TABLE = [  # root mean square errors of 300 repeats of reference implementations, and the products spent
    ("i^-2", 30, {"hutchinson": 0.267, "hutch++": 0.0108, "xtrace": 0.0066, "xnystrace": 0.0052}),
    ("i^-2", 60, {"hutchinson": 0.197, "hutch++": 0.0029, "xtrace": 0.0016, "xnystrace": 0.0010}),
    ("alternating", 30, {"hutchinson": 0.352, "hutch++": 0.156, "xtrace": 0.110}),
    ("flat", 30, {"hutchinson": 2.2, "hutch++": 4.3, "xtrace": 3.0, "xnystrace": 2.1}),
    ("geometric", 60, {"hutchinson": 0.258, "hutch++": 7.2e-4, "xtrace": 2.6e-5, "xnystrace": 2.1e-8}),
]


@pytest.mark.parametrize(
    ("spectrum", "draws", "method", "error"), [(s, d, m, e) for s, d, row in TABLE for m, e in row.items()]
)
def test_errors_of_the_estimators_are_those_of_the_reference_runs(generator, spectrum, draws, method, error):
    values = SPECTRA[spectrum]
    exact = float(values.sum())
    A = with_spectrum(values, generator)
    estimates = [trace(A, method=method, draws=draws, generator=generator) for _ in range(40)]
    rmse = math.sqrt(np.mean([(e.value - exact) ** 2 for e in estimates]))
    assert error / 1.5 < rmse < error * 1.5
    stated = math.sqrt(np.mean([e.stderr**2 for e in estimates]))
    assert 0.8 * rmse < stated < (4.5 if method == "xnystrace" else 2.2) * rmse  # conservative, but not by much more
    assert {e.products for e in estimates} == {draws}
    shares = {"hutchinson": 1, "xnystrace": 1, "xtrace": 2, "hutch++": 3}
    assert {e.draws for e in estimates} == {draws // shares[method]}


@pytest.mark.parametrize(("spectrum", "draws"), [(s, d) for s, d, _ in TABLE])
def test_auto_spends_a_fixed_number_of_draws_well(generator, spectrum, draws):
    values = SPECTRA[spectrum]
    A = with_spectrum(values, generator)
    errors, stated = [], []
    for _ in range(20):
        e = trace(A, draws=draws, generator=generator)
        errors.append(e.value - float(values.sum()))
        stated.append(e.stderr)
        assert e.products == draws
    rmse = math.sqrt(np.mean(np.square(errors)))
    row = next(row for s, d, row in TABLE if (s, d) == (spectrum, draws))
    plain, sketched = row["hutchinson"], row["xtrace"]
    # as good as the better of the two classical ways, within the noise of twenty errors; where the decay is geometric
    # XTrace goes deeper, because auto keeps ten probes at least
    assert rmse < (0.01 * plain if spectrum == "geometric" else 1.6 * min(plain, sketched))
    assert 0.6 * rmse < math.sqrt(np.mean(np.square(stated))) < 2.5 * rmse


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", ["flat", "multiple", "alternating"])
def test_intervals_of_a_fixed_number_of_draws_cover_the_truth(spectrum, method):
    values = SPECTRA[spectrum]
    if method == "xnystrace" and values.min() < 0:
        pytest.skip("for positive semidefinite operators")
    A = with_spectrum(values, seeded(5))
    estimates = [trace(A, method=method, draws=30 if method == "auto" else 64, generator=seeded(s)) for s in range(100)]
    assert coverage(estimates, float(values.sum())) >= 0.9
    assert {e.converged for e in estimates} == {True}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", ["i^-2", "outliers"])
def test_intervals_of_a_run_that_stops_by_itself_cover_the_truth(spectrum, method):
    values = SPECTRA[spectrum]
    if method == "xnystrace" and values.min() < 0:
        pytest.skip("for positive semidefinite operators")
    A = with_spectrum(values, seeded(5))
    exact = float(values.sum())
    estimates = [quiet(A, method=method, draws=150, tol=0.05, generator=seeded(s)) for s in range(100)]
    reached = [e for e in estimates if e.converged]
    assert coverage(estimates, exact) >= 0.9
    assert all(e.stderr <= 0.05 * abs(e.value) for e in reached)
    assert len(reached) == 100 or method == "hutchinson"


def test_intervals_on_the_indefinite_oracle_hessian_cover_the_truth():
    H = dense(Hessian(o2()))
    estimates = [quiet(H, method="hutchinson", draws=320, tol=0.1, generator=seeded(s)) for s in range(100)]
    assert coverage(estimates, -0.5419815311078794) >= 0.9
    assert min(e.products for e in estimates) >= 200  # (2.167 / 0.0542)² = 1600 are needed; a mean near 0 never stops
    exact = trace(H, tol=0.02, generator=seeded(0))
    assert exact.value == pytest.approx(-0.5419815311078794, rel=0.06)
    assert exact.products <= 17 + 10  # ten probes, and then all of the matrix


PRODUCTS = [  # at 2 % standard error: the largest ratio of auto's products to Hutchinson's
    ("flat", N, 1.0),
    ("i^-2", N, 0.02),
    ("geometric", N, 0.05),
    ("outliers", 1000, 0.3),
    ("multiple", 1000, 0.45),
]


@pytest.mark.parametrize(("spectrum", "p", "ratio"), PRODUCTS)
def test_products_of_auto_at_two_percent(spectrum, p, ratio):
    values = np.concatenate([SPECTRA[spectrum], np.random.default_rng(2).uniform(0, 2, p - N)])
    A = Stopped(with_spectrum(values, seeded(5)))
    exact = float(values.sum())
    diagonal = float((A.matrix.diag() ** 2).sum())
    needed = max(10.0, 2 * (float((values**2).sum()) - diagonal) / (0.02 * exact) ** 2)  # Hutchinson's, on average
    estimates = [trace(A, tol=0.02, generator=seeded(s)) for s in range(10)]
    assert A.count == sum(e.products for e in estimates)
    assert A.count / 10 <= ratio * needed
    assert math.sqrt(np.mean([(e.value / exact - 1) ** 2 for e in estimates])) < 0.03  # ten errors: within a half


def test_auto_costs_little_more_where_nothing_is_to_be_gained():
    A = with_spectrum(np.linspace(-0.9, 1.1, 600), seeded(5))
    pairs = [
        [trace(A, method=m, tol=0.04, generator=seeded(s)).products for m in ("auto", "hutchinson")] for s in range(15)
    ]
    auto, plain = np.mean(pairs, axis=0)
    assert plain > 50
    assert auto <= 1.1 * plain


def test_auto_saves_products_on_a_trained_network(generator):
    model = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 6)).to(F64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64) / 3)
    x = torch.randn(200, 8, generator=generator, dtype=F64)
    y = (x @ torch.randn(8, 6, generator=generator, dtype=F64)).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    H = dense(Hessian(EmpiricalRisk.from_model(model, cross_entropy, (x, y))))
    exact = float(H.trace())
    needed = 2 * float((H**2).sum() - (H.diag() ** 2).sum()) / (0.02 * exact) ** 2
    estimates = [trace(H, tol=0.02, generator=seeded(s)) for s in range(20)]
    assert needed > 80
    assert np.mean([e.products for e in estimates]) <= 0.5 * needed
    assert coverage(estimates, exact) >= 0.85  # of twenty


@pytest.mark.parametrize("rank", [0, 1, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["xtrace", "auto", "hutch++"])
def test_low_rank_is_exact(generator, rank, dtype, method):
    A = with_spectrum([2.0**-i for i in range(rank)] + [0.0] * (60 - rank), generator).to(dtype)
    exact = float(A.diag().sum())
    estimate = trace(A, method=method, draws=45, generator=generator)
    noise = 200 * torch.finfo(dtype).eps
    assert estimate.value == pytest.approx(exact, abs=noise)
    assert estimate.stderr <= noise


@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutch++"])
def test_sketches_grown_in_stages_are_as_good_as_at_once(method):
    A = with_spectrum(SPECTRA["i^-2"], seeded(0))
    exact = float(SPECTRA["i^-2"].sum())
    grown = [quiet(A, method=method, draws=60, tol=1e-9, generator=seeded(s)) for s in range(30)]
    once = [trace(A, method=method, draws=60, generator=seeded(s)) for s in range(30)]
    assert not any(e.converged for e in grown)
    errors = [math.sqrt(np.mean([(e.value - exact) ** 2 for e in es])) for es in (grown, once)]
    assert errors[0] == pytest.approx(errors[1], rel=0.5)  # thirty of each: 13 %


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_that_is_not_reached_is_told(generator, method):
    A = with_spectrum(SPECTRA["flat"], generator)
    with pytest.warns(
        RuntimeWarning, match="trace did not reach a standard error of .* raise `draws`, `tol` or `atol`"
    ):
        estimate = trace(A, method=method, draws=24, tol=1e-6, generator=generator)
    assert not estimate.converged
    assert estimate.products == 24
    assert estimate.stderr > 1e-6 * estimate.value


def test_an_absolute_tolerance_serves_where_the_trace_is_zero(generator):
    A = with_spectrum(SPECTRA["no trace"], generator)
    estimate = trace(A, atol=2.0, generator=generator)
    assert estimate.converged
    assert estimate.stderr <= 2


@pytest.mark.parametrize("method", ["exact", *METHODS])
@pytest.mark.parametrize("draws", [30])
def test_block_traces_add_up_and_are_unbiased(method, draws):
    p = 90
    A = with_spectrum(np.concatenate([[30.0, 20, 10, 5], np.linspace(0, 1, p - 4)]), seeded(1))
    if method != "xnystrace":
        A = A - 0.5 * torch.eye(p, dtype=F64)
    blocks = {"a": slice(0, 20), "b": torch.arange(20, 50), "c": slice(50, None)}
    many = [trace(A, method=method, draws=draws, blocks=blocks, generator=seeded(s)) for s in range(40)]
    for e in many:
        assert sum(part.value for part in e.parts.values()) == pytest.approx(e.value, rel=1e-9)
        assert {part.products for part in e.parts.values()} == {e.products}
    for name, region in blocks.items():
        exact = float(A.diag()[region].sum())
        values = np.array([e.parts[name].value for e in many])
        assert abs(values.mean() - exact) <= 4.5 * values.std(ddof=1) / math.sqrt(40) + 1e-9
        assert coverage([e.parts[name] for e in many], exact) >= 0.8  # of forty, each of three blocks
        if method != "exact":
            stated = math.sqrt(np.mean([e.parts[name].stderr ** 2 for e in many]))
            assert 0.7 * values.std() < stated < 6 * values.std()


@pytest.mark.parametrize("method", ["auto", "hutch++", "xtrace"])
def test_block_traces_are_unbiased_where_no_subspace_stands_out(method):
    signs = torch.cat([torch.full((30,), 2.0), torch.full((60,), -1.0)]).double()
    noise = torch.randn(90, 90, generator=seeded(3), dtype=F64) / 100
    A = torch.diag(signs) + noise + noise.T
    blocks = {"up": slice(0, 30), "down": slice(30, 90)}
    many = [trace(A, method=method, draws=36, blocks=blocks, generator=seeded(s)) for s in range(30)]
    for name, region in blocks.items():
        values = np.array([e.parts[name].value for e in many])
        # a term that is left out of the part that the basis holds would be 10 % and more of the block's trace
        assert abs(values.mean() / float(A.diag()[region].sum()) - 1) < 0.05
        assert values.std(ddof=1) / math.sqrt(30) < 0.0125 * 60


def test_blocks_change_neither_the_products_nor_the_estimate():
    A = with_spectrum(SPECTRA["outliers"], seeded(1))
    for method in METHODS:
        plain = trace(A, method=method, generator=seeded(0))
        split = trace(A, method=method, blocks={"some": slice(3, 50)}, generator=seeded(0))
        assert split.value == pytest.approx(plain.value, rel=1e-10)
        assert (split.products, list(split.parts)) == (plain.products, ["some"])


def test_block_traces_of_the_oracle_hessian(generator):
    blocks = {"0.weight": slice(0, 6), "0.bias": slice(6, 9), "2.weight": slice(9, 15), "2.bias": slice(15, 17)}
    estimate = trace(Hessian(o2((3, 2))), blocks=blocks, generator=generator)
    values = [part.value for part in estimate.parts.values()]
    assert values == pytest.approx([-0.4853672956, -0.4508814405, 0.1648215938, 0.2294456112], abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_trace_returns_what_is_known(method):
    A = with_spectrum(SPECTRA["flat"], seeded(0))
    with pytest.warns(RuntimeWarning, match="trace was interrupted after [0-9]+ products: the estimate is what they"):
        estimate = trace(Stopped(A, 70), method=method, draws=120, tol=1e-4, generator=seeded(0))
    assert not estimate.converged
    assert 20 <= estimate.products <= 70
    low, high = estimate.interval(0.999)
    assert low < 400 < high
    with pytest.raises(KeyboardInterrupt):
        trace(Stopped(A, 1), method=method, generator=seeded(0))


def test_progress_tells_products_and_relative_error(generator):
    seen = []
    estimate = trace(with_spectrum(SPECTRA["outliers"], generator), progress=seen.append, generator=generator)
    assert seen[-1].products == estimate.products == 64
    assert [s.products for s in seen] == sorted(s.products for s in seen)
    assert seen[-1].most == 64
    assert seen[-1].residual == pytest.approx(estimate.stderr / estimate.value)


def test_methods_by_name(generator):
    A = laplacian()
    assert trace(A, draws=7, generator=generator).method == "hutchinson"
    assert trace(A, draws=100, generator=generator).method == "exact"
    assert trace(A, draws=100, method="hutchinson", generator=generator).method == "hutchinson"
    assert trace(with_spectrum(SPECTRA["outliers"], generator), generator=generator).method == "lanczos-hutchinson"
    for method in ("hutch++", "xtrace", "xnystrace"):
        assert trace(A, method=method, generator=generator).method == method


def test_auto_does_without_columns_that_do_not_fit(monkeypatch):
    A = with_spectrum(SPECTRA["outliers"], seeded(0))
    monkeypatch.setattr("landscape.spectral.deflation.free_bytes", lambda _: 4000)
    estimate = trace(A, draws=100, generator=seeded(0))
    assert (estimate.method, estimate.products) == ("hutchinson", 100)


def test_a_basis_that_grows_late_lets_all_probes_follow(monkeypatch):
    A = with_spectrum(SPECTRA["outliers"], seeded(0))
    monkeypatch.setattr("landscape.spectral.deflation.free_bytes", lambda _: 4 * 25 * N)
    estimate = trace(A, draws=100, generator=seeded(0))
    assert estimate.products == 100
    assert abs(estimate.value - float(SPECTRA["outliers"].sum())) < 4 * estimate.stderr


def test_sketches_that_do_not_fit_are_refused(generator, monkeypatch):
    monkeypatch.setattr("landscape.memory.free_bytes", lambda _: 1000)
    for method, name in [("xtrace", "XTrace"), ("hutch\\+\\+", "Hutch"), ("xnystrace", "XNysTrace")]:
        with pytest.raises(
            MemoryError, match=f"{name}.* vectors of 100 entries needs .*: lower `draws`, or take method="
        ):
            trace(laplacian(), method=method.replace("\\", ""), generator=generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_lower_precision(dtype, method):
    values = SPECTRA["outliers"]
    A = with_spectrum(values, seeded(0)).to(dtype)
    estimate = trace(A, method=method, generator=seeded(1))
    exact = float(values.sum())
    low, high = estimate.interval(0.999)
    noise = 30 * torch.finfo(dtype).eps * 140 * 10  # eigenvalues of at most 140, ten of them
    assert low - noise < exact < high + noise


def test_a_matrix_with_curvature_below_zero_is_refused_by_xnystrace(generator):
    with pytest.raises(
        ValueError, match=r"`A` must be positive semidefinite for method='xnystrace', but it has .* take"
    ):
        trace(with_spectrum(SPECTRA["no trace"], generator), method="xnystrace", generator=generator)
    estimate = trace(torch.zeros(100, 100, dtype=F64), method="xnystrace", generator=generator)
    assert estimate.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch"}, "`method` must be 'auto', .* got 'hutch'"),
        ({"draws": 1}, "`draws` must be at least 2, for a standard error, got 1"),
        ({"draws": 3, "method": "xtrace"}, "`draws` must be at least 4 for method='xtrace', got 3"),
        ({"draws": 5, "method": "hutch++"}, "`draws` must be at least 6 for method='hutch[+][+]', got 5"),
        ({"draws": 1, "method": "xnystrace"}, "`draws` must be at least 2 for method='xnystrace', got 1"),
        ({"tol": 0.0}, "`tol` must be a relative standard error > 0, or None, got 0.0"),
        ({"tol": math.nan}, "`tol` must be a relative standard error > 0"),
        ({"atol": -1.0}, "`atol` must be an absolute standard error >= 0, got -1.0"),
        ({"blocks": {"a": slice(100, 120)}}, "`blocks` has no entries of 0 to 99 for 'a'"),
        ({"blocks": {"a": torch.tensor([3, 100])}}, "`blocks` must hold whole numbers from 0 to 99, got .* for 'a'"),
        ({"blocks": {"a": torch.tensor([0.5])}}, "`blocks` must hold whole numbers"),
    ],
)
def test_refused_arguments(generator, options, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(trace)(laplacian(), **options, generator=generator)


@pytest.mark.parametrize("method", ["exact", *METHODS])
def test_products_that_are_not_finite_are_refused(generator, method):
    with pytest.raises(ValueError, match="`A` gave a product that is not finite"):
        trace(torch.full((100, 100), math.nan), method=method, generator=generator)


# -- beside a subspace that is known -------------------------------------------------------------------------------


def outlying(p=120):
    """A dense matrix with ten outliers beside a noisy bulk."""
    g = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(p, p, generator=g, dtype=torch.float64)).Q
    values = torch.randn(p, generator=g, dtype=torch.float64)
    values[:10] += 20 * torch.arange(1, 11, dtype=torch.float64)
    return (Q * values) @ Q.T


@pytest.mark.parametrize("which", ["both", "largest"])
def test_a_search_keeps_its_space_with_the_products(which):
    A = outlying()
    pairs = top_eigenpairs(A, k=2, which=which, tol=1e-6, keep=True, generator=torch.Generator().manual_seed(0))
    R, H = pairs.space.rows, torch.from_numpy(pairs.space.images)
    torch.testing.assert_close(R @ R.T, torch.eye(len(R), dtype=R.dtype), atol=1e-10, rtol=0)
    torch.testing.assert_close(A @ R[: H.shape[1]].T, R.T @ H, atol=1e-9, rtol=0)
    assert top_eigenpairs(A, k=2).space is None


def test_probes_beside_a_known_space_are_unbiased_and_surer():
    A = outlying()
    blocks = {"first": slice(0, 30), "rest": slice(30, 120)}
    space = top_eigenpairs(A, k=2, which="both", keep=True).space
    found = [
        trace(A, draws=8, known=space, blocks=blocks, generator=torch.Generator().manual_seed(seed))
        for seed in range(60)
    ]
    plain = [trace(A, draws=8, method="hutchinson", generator=torch.Generator().manual_seed(s)) for s in range(60)]
    for value, of in (
        (float(A.trace()), lambda e: e),
        *((float(A[part, part].trace()), lambda e, name=name: e.parts[name]) for name, part in blocks.items()),
    ):
        values = np.array([of(e).value for e in found])
        spread = values.std(ddof=1)
        assert abs(values.mean() - value) < 4 * spread / math.sqrt(60)
        told = math.sqrt(np.mean([of(e).stderr ** 2 for e in found]))
        assert 0.7 < told / spread < 1.6
    assert np.std([e.value for e in found]) < np.std([e.value for e in plain]) / 5
    assert {e.products for e in found} == {8}


def test_a_known_space_goes_on_growing_where_that_pays():
    A = outlying()
    small = top_eigenpairs(A, k=1, tol=0.5, keep=True, max_products=3)
    found = trace(A, draws=60, known=small.space, generator=torch.Generator().manual_seed(0))
    assert found.value == pytest.approx(float(A.trace()), abs=5 * found.stderr)
    assert found.stderr < trace(A, draws=60, method="hutchinson").stderr / 3


def test_a_space_of_another_operator_is_refused():
    space = top_eigenpairs(outlying(60), keep=True).space
    with pytest.raises(ValueError, match="`known` is a subspace of 60 entries, and A has 120"):
        trace(outlying(), draws=8, known=space)
