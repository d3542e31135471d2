"""Random vectors: which numbers are drawn, how much memory estimates from them take, and whether it is told."""

import re
import weakref

import pytest
import torch
from problems import F64
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape import EmpiricalRisk, Hessian
from landscape.spectral import diagonal, frobenius_squared, spectral_density, top_eigenpairs, trace
from landscape.spectral.draws import BLOCK, on_sphere, signs, width
from landscape.spectral.orthonormal import orthonormalise
from landscape.spectral.regions import WHOLE, Regions, check_blocks

P = 300_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sized(p, dtype=torch.float32):
    """An operator that is not multiplied."""
    return Scaled(1, 1, shape=torch.Size((p, p)), dtype=dtype)


class Scaled:
    """diag(d) + U Uᵀ, whose products take no more than their result."""

    device = torch.device("cpu")

    def __init__(self, p=P, rank=1, *, shape=None, dtype=torch.float32):
        self.shape, self.dtype = shape or torch.Size((p, p)), dtype
        self.d = torch.linspace(1, 2, p)
        self.U = torch.randn(p, rank, generator=seeded(5)) * (2.0 ** -torch.arange(rank)) * (30 / p**0.5)

    def __matmul__(self, other):
        v = other.reshape(self.shape[0], -1)
        return (self.d[:, None] * v).addmm_(self.U, self.U.T @ v).view_as(other)

    def diag(self):
        return self.d.double() + self.U.double().square().sum(1)


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and remembers the most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.note(t.untyped_storage())
        return out

    def note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("p", [1, 7, 16, 33, 1001])
@pytest.mark.parametrize("cut", [(5,), (1, 1, 3), (4, 1)])
def test_signs_are_those_of_whole_numbers_drawn_at_once(p, cut, dtype):
    generator, other = seeded(3), seeded(3)
    drawn = torch.cat([signs(sized(p, dtype), count, generator) for count in cut], 1)
    assert drawn.dtype == (F64 if dtype == F64 else torch.float32)
    assert torch.equal(drawn, (2 * torch.randint(0, 2, (5, p), generator=other) - 1).T.to(drawn.dtype))
    assert torch.equal(generator.get_state(), other.get_state())


def test_the_first_signs_of_seed_zero():
    assert signs(sized(8), 2, seeded()).T.tolist() == [[-1, 1, 1, -1, 1, 1, 1, 1], [1, 1, 1, -1, -1, 1, -1, -1]]


@pytest.mark.parametrize("p", [5, 1001, WHOLE + 1000])
def test_vectors_on_the_sphere_are_drawn_again_alike(p):
    generator = seeded()
    rows, again = on_sphere(sized(p), 3, generator)
    assert_close(torch.linalg.vector_norm(rows, dim=1), torch.full((3,), p**0.5))
    state = generator.get_state()
    for _ in range(2):
        assert torch.equal(torch.cat(list(again()), 1), rows)
    assert torch.equal(generator.get_state(), state)
    if p < WHOLE:
        plain = torch.randn(3, p, generator=seeded())
        assert torch.equal(rows, plain * (p**0.5 / torch.linalg.vector_norm(plain, dim=1, keepdim=True)))


def test_long_vectors_are_multiplied_one_by_one():
    assert [width(sized(p)) for p in (10, WHOLE, WHOLE + 1, 10**6, 10**9)] == [BLOCK, BLOCK, 7, 1, 1]
    assert width(sized(WHOLE, F64)) == BLOCK
    assert width(sized(WHOLE + 1, F64)) == 3


def test_sums_over_blocks_are_the_same_in_pieces():
    p = WHOLE + 12_345
    x = torch.randn(p, 2, generator=seeded(), dtype=F64)
    blocks = check_blocks(
        {
            "run": slice(20_000, 70_000), "step": slice(3, -1, 50_001), "last": slice(-5, None), "all": slice(None),
            "down": slice(None, 7, -3), "few": torch.tensor([p - 1, 0, 0]),
            "some": torch.randint(0, p, (500,), generator=seeded()),
        },
        p,
    )  # fmt: skip
    regions = Regions(p, list(blocks.values()))
    assert len(regions.cut) > 1
    expected = torch.stack(
        [x.sum(0), *(x[torch.arange(p)[r] if isinstance(r, slice) else r].sum(0) for r in blocks.values())]
    )
    assert_close(torch.from_numpy(regions.sums(lambda t: t, x)), expected, rtol=1e-12, atol=1e-9)


def test_blocks_that_run_down_are_the_same_blocks():
    A = torch.diag(torch.arange(10.0))
    blocks = {"down": slice(8, 2, -2), "up": slice(4, 9, 2)}
    parts = trace(A, method="hutchinson", blocks=blocks, generator=seeded()).parts
    assert parts["down"].value == parts["up"].value == 4 + 6 + 8


@pytest.mark.parametrize("p", [50, 40_000])
@pytest.mark.parametrize("rank", [0, 3, 12])
def test_vectors_become_orthonormal_in_their_place(p, rank):
    rows = torch.randn(12, rank, generator=seeded(), dtype=F64) @ torch.randn(rank, p, generator=seeded(1), dtype=F64)
    before = rows.clone()
    R = orthonormalise(rows)
    assert_close(R.T @ rows, before, rtol=0, atol=1e-11 * p**0.5)
    assert_close(rows @ rows.T, torch.eye(12, dtype=F64), rtol=0, atol=1e-12)


METHODS = ["hutchinson", "auto", "hutch++", "xtrace", "xnystrace"]
ESTIMATES = {
    **{m: lambda A, m=m: trace(A, method=m, draws=30, generator=seeded()) for m in METHODS},
    "hutch++ in stages": lambda A: trace(A, method="hutch++", draws=30, atol=1e-9, generator=seeded()),
    "xtrace, blocks": lambda A: trace(A, method="xtrace", draws=30, blocks={"a": slice(0, 9)}, generator=seeded()),
    "diagonal": lambda A: diagonal(A, draws=8, generator=seeded()),
    "frobenius": lambda A: frobenius_squared(A, draws=16, generator=seeded()),
    "density": lambda A: spectral_density(A, runs=2, steps=20, generator=seeded()),
    "eigenpairs": lambda A: top_eigenpairs(A, 2, basis=30, tol=1e-7, max_products=35, generator=seeded()),
}
MOST = {"hutchinson": 20, "hutch++": 40, "xtrace": 40, "xnystrace": 60, "diagonal": 20, "frobenius": 20}


def taken(A, estimate):
    """The most bytes that a call holds at once, beside what the operator holds."""
    with Peak() as peak:
        A @ torch.ones(A.shape[0])
        held, peak.most = peak.now, peak.now
        estimate(A)
    return peak.most - held


def told(A, estimate, monkeypatch):
    """The bytes that a call says that it needs."""
    with monkeypatch.context() as patched:
        patched.setattr("landscape.memory.free_bytes", lambda _: 0)
        patched.setattr("landscape.memory.readable", lambda count: f"{count:.0f}")
        with pytest.raises(MemoryError) as refused:
            estimate(A)
    return int(re.search(r"needs (\d+), but 0 is free", str(refused.value))[1])


@pytest.mark.filterwarnings("ignore:top_eigenpairs did not reach", "ignore:trace did not reach")
@pytest.mark.parametrize("name", ESTIMATES)
def test_memory_is_little_and_told_before_it_is_taken(name, monkeypatch):
    A = Scaled()
    most = taken(A, ESTIMATES[name])
    assert most / (4 * P) <= MOST.get(name, 70)
    if name not in ("auto", "hutch++ in stages"):  # these tell what they begin with
        assert told(A, ESTIMATES[name], monkeypatch) == pytest.approx(most, rel=0.2)


@pytest.mark.parametrize("name", ["hutchinson", "hutch++", "density"])
def test_what_a_product_takes_is_told_by_the_operator(name, monkeypatch):
    model = nn.Sequential(nn.Linear(50, 500), nn.Tanh(), nn.Linear(500, 550), nn.Tanh(), nn.Linear(550, 2))
    x, y = torch.randn(4, 50, generator=seeded()), torch.tensor([0, 1, 1, 0])
    H = Hessian(EmpiricalRisk.from_model(model, cross_entropy, (x, y)))
    most = taken(H, ESTIMATES[name])
    assert told(H, ESTIMATES[name], monkeypatch) == pytest.approx(most, rel=0.2)
    assert (H + H).rescaled(torch.ones(H.shape[0])).beside(1) == H.beside(1) + 2


@pytest.mark.parametrize("method", METHODS)
def test_traces_of_long_vectors(method):
    """In pieces and one product at a time: within the standard error, whole and block by block."""
    p = WHOLE + 5000
    A = Scaled(p, rank=12)
    blocks = {"a": slice(0, p // 3), "b": torch.arange(p // 3, p)}
    estimate = trace(A, method=method, draws=60, blocks=blocks, generator=seeded())
    exact = A.diag()
    assert abs(estimate.value - float(exact.sum())) < 4 * estimate.stderr
    assert estimate.stderr < 1e-2 * estimate.value
    for name, region in blocks.items():
        part = estimate.parts[name]
        assert abs(part.value - float(exact[region].sum())) < 4 * part.stderr
    plain = trace(A, method=method, draws=60, generator=seeded())
    assert plain.value == pytest.approx(estimate.value, rel=1e-5)
    assert plain.stderr == pytest.approx(estimate.stderr, rel=1e-2)


def test_estimates_by_signs_keep_their_numbers():
    """Whole numbers throughout, so exact on any machine: those of seed 4 on the path graph of 101 nodes."""
    off = torch.ones(100, dtype=F64)
    A = 2 * torch.eye(101, dtype=F64) - torch.diag(off, 1) - torch.diag(off, -1)
    plain = trace(A, method="hutchinson", draws=40, generator=seeded(4))
    squares = frobenius_squared(A, draws=40, generator=seeded(4))
    entries = diagonal(A, draws=40, generator=seeded(4)).value
    assert (plain.value, squares.value) == (198.6, 588.8)
    assert (entries * 40).round().long()[:6].tolist() == [82, 98, 78, 58, 86, 80]


@pytest.mark.parametrize("p", [3, 5, 12])
@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
def test_sketches_with_a_tolerance_end_with_the_whole_space(method, p):
    A = torch.diag(torch.arange(1.0, p + 1, dtype=F64))
    estimate = trace(A, method=method, tol=1e-3, generator=seeded())
    assert estimate.value == pytest.approx(p * (p + 1) / 2, rel=1e-8)
    assert estimate.converged
    assert estimate.products <= 3 * p


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
def test_a_tolerance_asks_for_memory_stage_by_stage(method, monkeypatch):
    A = Scaled(1000, rank=12)
    first = told(A, lambda A: trace(A, method=method, tol=1e-9, generator=seeded()), monkeypatch)
    monkeypatch.setattr("landscape.memory.free_bytes", lambda _: first)
    with pytest.warns(RuntimeWarning, match="trace did not reach a standard error"):
        estimate = trace(A, method=method, tol=1e-9, generator=seeded())
    assert 10 <= estimate.products <= 60
    assert abs(estimate.value - float(A.diag().sum())) < 5 * estimate.stderr
