"""Lanczos against known spectra; eigenvectors are judged by residuals, never by sign."""

import inspect
import math
import tracemalloc
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from problems import F64, o1, o2
from spectra import laplacian, with_spectrum
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from landscape import EmpiricalRisk, flatten
from landscape.operators import GaussNewton, Hessian, Rescaled, dense
from landscape.spectral.eigenpairs import top_eigenpairs


def unchecked(function):
    """The function as users call it: without the type checks that are on in the tests, which come first."""
    return inspect.unwrap(function)


class Counted:
    """A dense operator that counts its products, and is interrupted at one of them."""

    def __init__(self, matrix, stop_at=math.inf):
        self.matrix, self.count, self.stop_at = matrix, 0, stop_at

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, other):
        self.count += 1 if other.ndim == 1 else other.shape[1]
        if self.count >= self.stop_at:
            raise KeyboardInterrupt
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
    # one check for all: what it is off by, which is rounding, is added to each
    assert_close(pairs.residuals, residuals, rtol=1e-3, atol=10 * noise)
    assert bool((pairs.residuals >= residuals * (1 - 1e-3) - noise).all())


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


def test_a_small_end_is_found_to_a_share_of_itself(generator):
    values = np.concatenate([np.linspace(-1, 8, 300), [60]])
    A = with_spectrum(values, generator)
    rough, fine = (top_eigenpairs(A, which="both", tol=1e-3, own_tol=own, generator=generator) for own in (None, 0.01))
    assert fine.converged
    assert float(fine.residuals[1]) <= 0.01 * abs(float(fine.values[1])) < float(rough.residuals[1])
    check(A, fine, [60, -1], atol=2e-3)
    assert rough.products < fine.products < 100
    # an end that is zero has no size of its own: a tenth of the usual tolerance is enough
    flat = with_spectrum(np.concatenate([np.zeros(150), np.linspace(0, 8, 150), [60]]), generator)
    pairs = top_eigenpairs(flat, which="both", tol=1e-3, own_tol=0.01, generator=generator)
    assert pairs.converged
    assert float(pairs.residuals[1]) <= 0.0061
    assert float(pairs.values[1]) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("own_tol", [-1.0, math.nan])
def test_a_tolerance_that_is_none_is_refused(own_tol, generator):
    with pytest.raises(ValueError, match="`own_tol` must be a relative residual >= 0"):
        top_eigenpairs(laplacian(), own_tol=own_tol, generator=generator)


def test_an_iteration_cut_short_says_so(generator):
    with pytest.warns(RuntimeWarning, match="did not reach a residual .* raise `max_products` or `basis`"):
        pairs = top_eigenpairs(laplacian(), 2, max_products=12, generator=generator)
    assert not pairs.converged
    assert pairs.products == 12  # the residuals are measured from these
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


CLUSTER = [5, 5, 5, 4.0001, 4, 4, -5, -5, *np.linspace(-1, 1, 192)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("basis", [None, 24])
@pytest.mark.parametrize(
    ("which", "k", "values"),
    [
        ("largest", 6, [5, 5, 5, 4.0001, 4, 4]),
        ("smallest", 2, [-5, -5]),
        ("both", 2, [5, 5, -5, -5]),
    ],
)
def test_a_block_finds_multiplicities_up_to_its_width(which, k, values, basis, seed):
    generator = torch.Generator().manual_seed(seed)
    A = with_spectrum(CLUSTER, generator)
    # a tolerance that rounding cannot help: copies that are not in the start vectors stay unseen
    pairs = top_eigenpairs(A, k, which=which, block=3, basis=basis, tol=1e-6, max_products=2000, generator=generator)
    check(A, pairs, values, atol=1e-6)


def test_what_the_block_is_for(generator):
    """The oracle of the test above: from one vector there is one copy, until rounding brings another in."""
    A = torch.diag(torch.tensor([5.0, 5.0, 4.0, *torch.linspace(-1, 1, 97).tolist()], dtype=F64))
    one = top_eigenpairs(A, 2, tol=1e-3, generator=generator)
    assert_close(one.values, A.diag()[[0, 2]], rtol=0, atol=1e-4)
    assert_close(top_eigenpairs(A, 2, tol=1e-3, block=2, generator=generator).values, A.diag()[:2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize("k", [1, 5, 7])
def test_blocks_that_lose_rank(generator, block, k):
    spectrum = [3.0, 2.0, 2.0, 2.0, -1.0, 0.0, 0.0]
    A = with_spectrum(spectrum, generator)
    check(A, top_eigenpairs(A, k, block=block, generator=generator), sorted(spectrum, reverse=True)[:k])


@pytest.mark.parametrize("block", [1, 3])
def test_products_are_counted_in_vectors(generator, block):
    A = Counted(laplacian())
    with pytest.warns(RuntimeWarning, match="did not reach"):
        pairs = top_eigenpairs(A, 2, block=block, max_products=31, generator=generator)
    assert pairs.products == A.count <= 32


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("value", [3.0, 0.0])
def test_multiples_of_the_identity(generator, value, block):
    A = value * torch.eye(50, dtype=F64)
    pairs = top_eigenpairs(A, 3, block=block, generator=generator)
    check(A, pairs, [value] * 3)
    assert pairs.products <= 10


def test_the_tolerance_is_relative_to_the_whole_operator(generator):
    values = [-1000.0, *np.linspace(0, 1, 199)]
    A = with_spectrum(values, generator)
    pairs = top_eigenpairs(A, tol=1e-4, generator=generator)
    assert pairs.converged
    assert float(pairs.residuals[0]) <= 1e-4 * 1000 * (1 + 1e-9)
    fine = top_eigenpairs(A, tol=1e-4, basis=12, generator=generator)  # a restart forgets the other end, not its size
    assert fine.converged
    assert fine.products <= pairs.products + 5


def test_few_products_for_an_outlier(generator):
    A = with_spectrum([10, 6, 4, *np.linspace(-1, 1, 297)], generator).float()
    assert top_eigenpairs(A, generator=generator).products <= 9
    ten = Counted(with_spectrum([*range(20, 10, -1), *np.linspace(-1, 1, 290)], generator).float())
    assert top_eigenpairs(ten, 10, generator=generator).products == ten.count <= 30


@pytest.mark.parametrize("tol", [1e-4, 1e-6])
def test_a_restart_costs_few_products(tol):
    A = laplacian(300)
    whole, restarted = (
        top_eigenpairs(A, tol=tol, basis=basis, max_products=1000, generator=torch.Generator().manual_seed(0))
        for basis in (300, 100)
    )
    assert restarted.products <= 1.15 * whole.products


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("which", ["largest", "both"])
def test_without_vectors(k, which):
    A = laplacian(60)
    runs = [
        top_eigenpairs(A, k, which=which, vectors=wanted, generator=torch.Generator().manual_seed(3))
        for wanted in (True, False)
    ]
    assert runs[1].vectors is None
    assert runs[1].converged
    assert_close(runs[0].values, runs[1].values, rtol=1e-14, atol=0)
    assert_close(runs[0].residuals, runs[1].residuals, rtol=1e-6, atol=1e-13)
    assert top_eigenpairs(torch.eye(5, dtype=F64), vectors=False, generator=torch.Generator()).vectors is None


OUTLIERS = [10, 8, 7, 6.9, 6.8, *np.linspace(-1, 1, 295)]


@pytest.mark.parametrize("basis", [None, 25])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(
    ("dtype", "store", "tol"),
    [
        (F64, torch.float32, 1e-11),
        (F64, torch.bfloat16, 1e-8),
        (F64, (torch.float16, "cpu"), 1e-8),
        (torch.float32, torch.bfloat16, 1e-3),
        (torch.float32, "cpu", 1e-3),
        (torch.float32, F64, 1e-4),
    ],
)
def test_a_basis_in_other_precision_keeps_the_tolerance(generator, dtype, store, tol, k, basis):
    A = with_spectrum(OUTLIERS, generator).to(dtype)
    pairs = top_eigenpairs(A, k, store=store, tol=tol, basis=basis, max_products=1000, generator=generator)
    assert pairs.converged
    assert pairs.vectors.dtype == dtype
    V = pairs.vectors.double()
    residuals = torch.linalg.vector_norm(A.double() @ V - V * pairs.values, dim=0)
    assert bool((residuals <= 1.01 * tol * 10 + 20 * torch.finfo(dtype).eps * 10).all())
    assert bool((residuals <= 2 * pairs.residuals + 20 * torch.finfo(dtype).eps * 10).all())
    assert_close(pairs.values, torch.tensor(OUTLIERS[:k], dtype=F64), rtol=0, atol=10 * tol)


def test_a_rounded_basis_cut_short_does_not_claim_convergence(generator):
    A = with_spectrum(OUTLIERS, generator)
    with pytest.warns(RuntimeWarning, match="did not reach"):
        pairs = top_eigenpairs(A, 3, store=torch.bfloat16, max_products=25, generator=generator)
    assert not pairs.converged
    V = pairs.vectors
    residuals = torch.linalg.vector_norm(A @ V - V * pairs.values, dim=0)
    assert float(residuals.max()) > 1e-7  # the recurrence alone would have promised 1e-8 by now
    assert bool((residuals <= 2 * pairs.residuals).all())


class Noisy(Counted):
    """An operator whose products are off by 1 % at random: no recurrence holds."""

    def __matmul__(self, other):
        exact = super().__matmul__(other)
        noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(self.count), dtype=F64)
        return exact + 0.01 * exact.norm() * noise / noise.norm()


@pytest.mark.parametrize("k", [1, 3])
def test_a_recurrence_that_lies_is_found_out(generator, k):
    A = Noisy(with_spectrum(OUTLIERS, generator))
    with pytest.warns(RuntimeWarning, match="did not reach"):
        pairs = top_eigenpairs(A, k, tol=1e-4, generator=generator)
    assert not pairs.converged
    assert float(pairs.residuals.max()) > 0.03  # 1 % of about 10, up to chance
    assert pairs.products == A.count < 300  # it gives up rather than to go round in circles


def test_bfloat16_operators_are_worked_on_in_single_precision(generator):
    A = with_spectrum([10, 5, *np.linspace(-1, 1, 98)], generator).bfloat16()
    pairs = top_eigenpairs(A, 2, generator=generator)
    exact = torch.linalg.eigvalsh((A.double() + A.double().T) / 2)[-2:].flip(0)
    assert pairs.vectors.dtype == torch.bfloat16
    assert bool(((pairs.values - exact).abs() <= pairs.residuals + 0.01 * 10).all())


@pytest.mark.parametrize(("k", "which"), [(1, "largest"), (3, "both")])
@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("stop_at", [2, 5, 60])
def test_an_interrupt_returns_the_best_so_far(generator, stop_at, k, which, vectors):
    A = Counted(laplacian(), stop_at)
    with pytest.warns(RuntimeWarning, match=f"interrupted after {stop_at - 1} products: these are the best"):
        pairs = top_eigenpairs(A, k, which=which, basis=20, vectors=vectors, generator=generator)
    assert A.count == stop_at  # nothing is multiplied after an interrupt
    assert not pairs.converged
    assert not pairs.verified
    assert len(pairs.values) == min(stop_at - 1, 2 * k if which == "both" else k)
    distance = (torch.linalg.eigvalsh(A.matrix)[:, None] - pairs.values).abs().min(0).values
    assert bool((distance <= pairs.residuals * (1 + 1e-9)).all())
    if vectors:
        V = pairs.vectors
        residuals = torch.linalg.vector_norm(A.matrix @ V - V * pairs.values, dim=0)
        assert_close(pairs.residuals, residuals, rtol=1e-6, atol=1e-12)


def test_an_interrupt_of_the_check_keeps_the_pairs(generator):
    spectrum = [7.0, 3.0, 3.0, 3.0, 1.0, 1.0]
    whole = Counted(with_spectrum(spectrum, torch.Generator().manual_seed(1)))
    top_eigenpairs(whole, 3, generator=torch.Generator().manual_seed(2))
    cut = Counted(whole.matrix, stop_at=whole.count)  # the pairs are multiplied last
    with pytest.warns(RuntimeWarning, match="best 3 of 3 pairs"):
        pairs = top_eigenpairs(cut, 3, generator=torch.Generator().manual_seed(2))
    assert_close(pairs.values, torch.tensor([7.0, 3, 3], dtype=F64), rtol=0, atol=1e-9)
    V = pairs.vectors
    assert_close(cut.matrix @ V, V * pairs.values, rtol=0, atol=1e-8)


def test_an_interrupt_before_the_first_product_is_raised(generator):
    with pytest.raises(KeyboardInterrupt):
        top_eigenpairs(Counted(laplacian(), stop_at=1), generator=generator)


def test_progress_is_told_after_each_product(generator):
    seen = []
    pairs = top_eigenpairs(laplacian(), tol=1e-3, progress=seen.append, generator=generator)
    assert [status.products for status in seen] == list(range(1, pairs.products))
    assert {status.work for status in seen} == {"top_eigenpairs"}
    assert {status.most for status in seen} == {321}
    assert seen[-1].residual <= 1e-3 < seen[0].residual


def test_a_progress_function_may_stop_the_search(generator):
    def stop(status):
        if status.products == 7:
            raise KeyboardInterrupt

    with pytest.warns(RuntimeWarning, match="interrupted after 7 products"):
        assert top_eigenpairs(laplacian(), progress=stop, generator=generator).products == 7


def test_nothing_is_printed_unless_asked(generator, capfd):
    top_eigenpairs(laplacian(20), generator=generator)
    assert capfd.readouterr() == ("", "")


class Nothing:
    """An operator too large to have a basis, whose product is never reached."""

    def __init__(self, p):
        self.shape, self.dtype, self.device = torch.Size((p, p)), torch.float32, torch.device("cpu")

    def __matmul__(self, other):
        raise AssertionError("memory comes first")


@pytest.fixture
def one_gibibyte(monkeypatch):
    """A machine with 1 GiB free."""
    import landscape.memory
    import landscape.spectral.eigenpairs

    monkeypatch.setattr(landscape.memory, "free_bytes", lambda _: 2**30)
    monkeypatch.setattr(landscape.spectral.eigenpairs, "free_bytes", lambda _: 2**30)


def test_memory_is_told_first(generator, one_gibibyte):
    message = r"Krylov basis of 300 vectors of length 1000000 needs 1.14 GiB, but 1 GiB is free on cpu: lower `basis`"
    with pytest.raises(MemoryError, match=message):
        top_eigenpairs(Nothing(10**6), basis=300, generator=generator)
    with pytest.raises(MemoryError, match=r"by `store` .* `parameters`"):
        top_eigenpairs(Nothing(10**9), generator=generator)
    with pytest.raises(AssertionError, match="memory comes first"):  # half the bytes fit
        top_eigenpairs(Nothing(10**6), basis=300, store=torch.bfloat16, generator=generator)


def test_a_basis_that_was_not_asked_for_fits(generator, one_gibibyte):
    from landscape.spectral.eigenpairs import _capacity

    def length(p, need=1, block=1, store=torch.float32):
        return unchecked(_capacity)(Nothing(p), None, need, block, (store, torch.device("cpu")), vectors=True)

    assert length(10_000) == 300
    assert length(10**6) == 67  # 256 MiB
    assert length(10**6, store=torch.bfloat16) == 134
    assert length(3 * 10**6) == 30  # what a search wants at least
    assert length(5 * 10**6) == 19  # half of what is free is 26 vectors, of which 7 go beside the basis
    assert length(10**6, need=30) == 69  # 134 less 65
    assert length(10**6, block=8) == 80


def test_memory_is_flat_over_200_products(generator):
    class Watched(Counted):
        def __matmul__(self, other):
            if self.count in (60, 200):
                sizes.append(live_bytes())
            return super().__matmul__(other)

    def live_bytes():
        import gc

        storages = {}
        for tensor in (t for t in gc.get_objects() if type(t) is torch.Tensor):
            with suppress(NotImplementedError):  # a wrapper of torch.func that an earlier test left alive
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(storages.values()) + tracemalloc.get_traced_memory()[0]

    sizes = []
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            A = Watched(laplacian(300))
            top_eigenpairs(A, 5, basis=25, max_products=210, tol=1e-14, generator=generator)
    finally:
        tracemalloc.stop()
    assert A.count >= 200
    assert sizes[1] - sizes[0] < 2 * 300 * 8  # less than two vectors


def test_a_summary_to_read(generator):
    pairs = top_eigenpairs(torch.diag(torch.tensor([3.0, -1.0], dtype=F64)), which="both", generator=generator)
    text = str(pairs)
    assert text == repr(pairs)
    assert text.splitlines()[0].startswith("Eigenpairs(both; converged after 2 products)")
    assert "   3  residual" in text
    assert "  -1  residual" in text
    with pytest.warns(RuntimeWarning):
        cut = top_eigenpairs(laplacian(), max_products=5, generator=generator)
    assert "NOT converged after 5 products" in str(cut)


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
        ({"block": 0}, "`block` must be between 1 and p = 100, got 0"),
        ({"block": 101}, "`block` must be between 1 and p = 100, got 101"),
        ({"block": 4, "max_products": 3}, "`max_products` must be at least the 4 of one block, got 3"),
        ({"k": 3, "block": 2, "basis": 6}, "`basis` must be at least 7 for 3 pairs, got 6"),
        ({"store": torch.int8}, "`store` must have a floating-point dtype of 16 bits or more.* got torch.int8"),
        ({"store": "attic"}, "`store` must be a dtype, a device or a pair of both, got 'attic'"),
    ],
)
def test_refused_arguments(generator, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(top_eigenpairs)(laplacian(), **options, generator=generator)


def test_products_that_are_not_finite_are_refused(generator):
    with pytest.raises(ValueError, match="`A` gave a product that is not finite"):
        top_eigenpairs(torch.full((3, 3), math.nan), generator=generator)


def test_a_start_near_the_answer_saves_products_and_misses_nothing():
    p = 300
    values = torch.cat([torch.tensor([10.0, 9.0], dtype=F64), torch.linspace(0, 8, p - 2, dtype=F64)])
    A = torch.diag(values)
    near, far = torch.zeros(p, dtype=F64), torch.zeros(p, dtype=F64)
    near[0], far[1] = 3.0, 1e-3  # an exact eigenvector in whose space nothing else lies
    cold = top_eigenpairs(A, generator=torch.Generator().manual_seed(0))
    warm = top_eigenpairs(A, start=near, generator=torch.Generator().manual_seed(0))
    misled = top_eigenpairs(A, start=far, generator=torch.Generator().manual_seed(0))
    assert warm.products < cold.products
    for pairs in (cold, warm, misled):
        assert pairs.converged
        assert_close(pairs.values, values[:1], rtol=1e-8, atol=0)


def test_the_curvature_of_a_risk_starts_from_its_gradient():
    H = Hessian(o2())
    g = flatten(o2().gradient())
    assert_close(H.guess(), g)
    assert_close(Hessian(o2(), parameters=["2"]).guess(), g[9:])


@pytest.mark.parametrize("start", [torch.zeros(5), torch.ones(4), torch.full((5,), torch.nan)])
def test_a_start_that_is_none_is_refused(start):
    with pytest.raises(ValueError, match=r"`start` must be a finite vector of shape \(5,\) that is not zero"):
        top_eigenpairs(torch.eye(5), start=start, generator=torch.Generator())


@pytest.mark.parametrize("seed", range(8))
def test_one_parameter_whatever_the_start(seed):
    """A random direction and the operator's guess are opposite to each other in half of all cases."""
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 0.5 if seed % 2 else -0.5)
    hessian = Hessian(EmpiricalRisk.from_model(model, torch.nn.functional.mse_loss, (x, 0 * x)))  # L = 2.5 w²
    found = top_eigenpairs(hessian, generator=torch.Generator().manual_seed(seed))
    assert found.values.tolist() == pytest.approx([5.0])
