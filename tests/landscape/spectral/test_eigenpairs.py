"""Lanczos against known spectra; eigenvectors are judged by residuals, never by sign."""

import inspect
import math

import numpy as np
import pytest
import torch
from problems import F64, o1, o2
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from landscape import EmpiricalRisk
from landscape.operators import GaussNewton, Hessian, Rescaled, dense
from landscape.spectral.eigenpairs import top_eigenpairs


def unchecked(function):
    """The function as users call it: without the type checks that are on in the tests, which come first."""
    return inspect.unwrap(function)


def laplacian(n: int = 100) -> torch.Tensor:
    off = torch.ones(n - 1, dtype=F64)
    return 2 * torch.eye(n, dtype=F64) - torch.diag(off, 1) - torch.diag(off, -1)


def with_spectrum(values, generator) -> torch.Tensor:
    values = torch.as_tensor(values, dtype=F64)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=F64))
    return Q @ torch.diag(values) @ Q.T


class Counted:
    """A dense operator that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.count = matrix, 0

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, other):
        self.count += 1 if other.ndim == 1 else other.shape[1]
        return self.matrix @ other


def check(A, pairs, values, atol=1e-9):
    matrix = dense(A)
    assert pairs.converged
    assert pairs.values.dtype == pairs.residuals.dtype == F64
    assert_close(pairs.values, torch.tensor(values, dtype=F64), rtol=0, atol=atol)
    V = pairs.vectors.double()
    assert_close(V.T @ V, torch.eye(len(values), dtype=F64), rtol=0, atol=1e-6)
    residuals = torch.linalg.vector_norm(matrix.double() @ V - V * pairs.values, dim=0)
    # a residual is a difference of vectors that are as long as the eigenvalue, so it carries their rounding
    noise = 20 * torch.finfo(A.dtype).eps * float(pairs.values.abs().max())
    assert_close(pairs.residuals, residuals, rtol=1e-3, atol=noise)


O2_DOWN = [0.7566917132, 0.4599952686, 0.3270771873]
O2_UP = [-0.8163976735, -0.6848364056, -0.6524094676]


@pytest.mark.parametrize("sizes", [(5,), (3, 2)])
@pytest.mark.parametrize(
    ("which", "k", "values"),
    [
        ("largest", 1, O2_DOWN[:1]),
        ("largest", 3, O2_DOWN),
        ("smallest", 3, O2_UP),
        ("magnitude", 1, O2_UP[:1]),
        ("magnitude", 4, [O2_UP[0], O2_DOWN[0], *O2_UP[1:]]),
        ("both", 1, [O2_DOWN[0], O2_UP[0]]),
        ("both", 3, [*O2_DOWN, *O2_UP[::-1]]),
    ],
)
def test_indefinite_hessian_from_any_end(generator, sizes, which, k, values):
    H = Hessian(o2(sizes))
    pairs = top_eigenpairs(H, k, which=which, generator=generator)
    assert pairs.which == which
    check(H, pairs, values)


def test_the_dominant_eigenvalue_keeps_its_sign_from_every_start():
    H = dense(Hessian(o2()))
    for seed in range(50):
        pairs = top_eigenpairs(H, which="magnitude", tol=1e-3, generator=torch.Generator().manual_seed(seed))
        assert float(pairs.values[0]) == pytest.approx(-0.8163976735, rel=1e-5)


def test_block_eigenvalues_and_the_ratio_of_the_first_to_the_fifth(generator):
    risk = o2()
    b2 = top_eigenpairs(Hessian(risk, parameters=["2.bias"]), generator=generator)
    assert float(b2.values[0]) == pytest.approx(0.2294456111933146, rel=1e-10)
    b1 = top_eigenpairs(Hessian(risk, parameters=["0.bias"]), generator=generator)
    assert float(b1.values[0]) == pytest.approx(-0.031150740726341015, rel=1e-9)
    five = top_eigenpairs(Hessian(risk), 5, generator=generator).values
    assert float(five[0] / five[4]) == pytest.approx(12.712874313251705, rel=1e-9)
    G = GaussNewton(risk)
    check(
        G,
        top_eigenpairs(G, 5, generator=generator),
        [0.4111735590, 0.1066575848, 0.0371350459, 0.0022512014, 0.0003950027],
    )


def test_adaptive_top_eigenvalue(generator):
    risk = o1()
    A = Rescaled(Hessian(risk), risk.theta["weight"].reshape(-1).abs())
    assert float(top_eigenpairs(A, generator=generator).values[0]) == pytest.approx(0.22671238047649173, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_both_zeros_of_softmax_regression_are_found(seed):
    H = Hessian(o1())
    pairs = top_eigenpairs(H, 6, generator=torch.Generator().manual_seed(seed))
    check(H, pairs, [0.6743946869, 0.2719723937, 0.1695053923, 0.1459177797, 0, 0])


@pytest.mark.parametrize("basis", [None, 20, 12])
def test_poorly_separated_eigenvalues_of_the_path_graph(generator, basis):
    A = Counted(laplacian())
    pairs = top_eigenpairs(A, 5, basis=basis, max_products=20_000, generator=generator)
    assert pairs.products == A.count
    check(A.matrix, pairs, [2 - 2 * math.cos(k * math.pi / 101) for k in range(100, 95, -1)])
    assert_close(pairs.values[0], torch.tensor(3.999032565, dtype=F64), rtol=0, atol=1e-9)
    exact = torch.sin(torch.arange(1, 101, dtype=F64) * 100 * math.pi / 101)
    assert abs(float(exact @ pairs.vectors[:, 0]) / float(exact.norm())) > 1 - 1e-9


@pytest.mark.parametrize("basis", [None, 15])
def test_both_ends_of_the_path_graph_from_one_space(generator, basis):
    A = laplacian()
    exact = [2 - 2 * math.cos(k * math.pi / 101) for k in (100, 99, 2, 1)]
    check(A, top_eigenpairs(A, 2, which="both", basis=basis, max_products=20_000, generator=generator), exact)


@pytest.mark.parametrize(
    ("spectrum", "k", "which", "values"),
    [
        ([5, 5, -5, -5, 1, 0, 0, 2], 4, "magnitude", None),
        ([5, 5, -5, -5, 1, 0, 0, 2], 3, "largest", [5, 5, 2]),
        ([5, 5, -5, -5, 1, 0, 0, 2], 3, "smallest", [-5, -5, 0]),
        ([5, 5, -5, -5, 1, 0, 0, 2], 2, "both", [5, 5, -5, -5]),
        ([5, 5, 5, 1, 1, 1, 1, 1], 3, "largest", [5, 5, 5]),
        ([0] * 6, 2, "largest", [0, 0]),
        ([3] * 6, 3, "smallest", [3, 3, 3]),
        ([7] + [0] * 30, 4, "magnitude", [7, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_multiple_eigenvalues_of_closed_krylov_spaces(generator, spectrum, k, which, values, dtype):
    A = with_spectrum(spectrum, generator).to(dtype)
    pairs = top_eigenpairs(A, k, which=which, generator=generator)
    if values is None:  # the order within equal moduli is rounding
        assert sorted(pairs.values.round(decimals=4).tolist()) == [-5, -5, 5, 5]
        assert pairs.converged
    else:
        check(A, pairs, values, atol=1e-9 if dtype == F64 else 1e-5)


def test_the_whole_spectrum_and_the_smallest_operator(generator):
    A = with_spectrum(torch.linspace(-1, 2, 12), generator)
    pairs = top_eigenpairs(A, 12, generator=generator)
    check(A, pairs, torch.linspace(2, -1, 12).tolist(), atol=1e-6)
    one = top_eigenpairs(torch.tensor([[-3.0]], dtype=F64), generator=generator)
    assert float(one.values[0]) == -3.0


@pytest.mark.parametrize("basis", [None, 25])
def test_float32_reaches_its_default_tolerance(generator, basis):
    values = np.concatenate([[10, 6, 4], np.linspace(-1, 1, 297)])
    A = with_spectrum(values, generator).float()
    pairs = top_eigenpairs(A, 3, basis=basis, generator=generator)
    assert pairs.vectors.dtype == torch.float32
    assert bool((pairs.residuals <= 1.1e-3 * 10).all())
    check(A, pairs, [10, 6, 4], atol=5e-5)  # an eigenvalue errs by residual² / gap: (1e-3 · 10)² / 2
    assert pairs.products < 40


def test_an_iteration_cut_short_says_so(generator):
    with pytest.warns(RuntimeWarning, match="did not reach a residual .* raise `max_products` or `basis`"):
        pairs = top_eigenpairs(laplacian(), 2, max_products=12, generator=generator)
    assert not pairs.converged
    assert pairs.products == 14
    assert float(pairs.residuals.max()) > 1e-8 * 4
    distance = (torch.linalg.eigvalsh(laplacian())[:, None] - pairs.values).abs().min(0).values
    assert bool((distance <= pairs.residuals).all())  # what a residual promises


def test_the_answer_does_not_depend_on_the_start_but_the_same_start_repeats():
    A = laplacian(60)
    runs = [top_eigenpairs(A, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0].vectors, runs[1].vectors)
    assert_close(runs[0].values, runs[2].values, rtol=1e-12, atol=0)
    random = torch.random.get_rng_state()
    top_eigenpairs(A, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_network_in_single_precision_agrees_with_its_dense_hessian(generator):
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = torch.randn(30, 5, generator=generator), torch.randint(0, 3, (30,), generator=generator)
    H = Hessian(EmpiricalRisk.from_model(model, cross_entropy, data))
    exact = torch.linalg.eigvalsh(dense(H).double())
    pairs = top_eigenpairs(H, 2, which="both", generator=generator)
    assert_close(pairs.values, torch.cat([exact[-2:].flip(0), exact[:2].flip(0)]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "`k` must be between 1 and 100"),
        ({"k": 101}, "`k` must be between 1 and 100 .* got 101"),
        ({"k": 51, "which": "both"}, "`k` must be between 1 and 50"),
        ({"which": "top"}, "`which` must be 'largest', .* got 'top'"),
        ({"tol": -1.0}, "`tol` must be a relative residual >= 0"),
        ({"tol": math.nan}, "`tol` must be a relative residual >= 0"),
        ({"k": 3, "max_products": 2}, "`max_products` must be at least the 3 pairs wanted, got 2"),
        ({"k": 3, "basis": 4}, "`basis` must be at least 5 for 3 pairs, got 4"),
    ],
)
def test_refused_arguments(generator, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(top_eigenpairs)(laplacian(), **options, generator=generator)


def test_products_that_are_not_finite_are_refused(generator):
    with pytest.raises(ValueError, match="`A` gave a product that is not finite"):
        top_eigenpairs(torch.full((3, 3), math.nan), generator=generator)
