"""Memory: budgets and micro-batches change nothing but memory, and the estimate is near what is held."""

import pytest
import torch
from problems import F64, ConvNorm, SelfAttention, case, cosines, o2, small
from torch import nn
from torch.testing import assert_close

import landscape.memory
from landscape import EmpiricalFisher, Fisher, GaussNewton, Hessian
from landscape.kernels import second_derivatives
from landscape.operators import curvature

EXACT = {"rtol": 1e-10, "atol": 1e-12}
OPERATORS = [Hessian, GaussNewton, Fisher, EmpiricalFisher]


@pytest.fixture
def free(monkeypatch):
    """Pretends that so many bytes are free."""

    def set_free(count):
        for module in (curvature, landscape.memory):
            monkeypatch.setattr(module, "free_bytes", lambda _: count)

    return set_free


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_micro_batches_change_nothing(operator, size):
    risk = o2((3, 2))
    A = operator(risk, micro_batch=size)
    assert A.point.risk.sizes == {1: [1] * 5, 2: [2, 1, 2], 4: [3, 2], 100: [3, 2]}[size]
    assert_close(A @ cosines(17), operator(risk) @ cosines(17), **EXACT)
    assert risk.sizes == [3, 2]


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_micro_batches_of_language_models_go_by_tokens(operator):
    c = case("language")
    A = operator(c.risk(), micro_batch=1)
    assert A.point.risk.sizes == [1] * 5
    assert_close(A @ cosines(88), operator(c.risk()) @ cosines(88), **EXACT)


@pytest.mark.parametrize("mode", ["batch", "train"])
def test_batches_with_statistics_of_their_own_are_not_cut(mode):
    c = case(f"conv:{'batch' if mode == 'train' else mode}")
    c.mode = mode
    with pytest.raises(
        ValueError, match=r"`micro_batch` = 2 would cut batches .* use mode='eval' or 'recalibrate', or make"
    ):
        Hessian(c.risk(), micro_batch=2)
    assert Hessian(c.risk(), micro_batch=4).path == "kept"  # no batch is larger


@pytest.mark.parametrize("mode", ["eval", "recalibrate"])
def test_batches_in_other_modes_are_cut(mode):
    c = case(f"conv:{mode}")
    v = cosines(126)
    assert_close(Hessian(c.risk(), micro_batch=2) @ v, Hessian(c.risk()) @ v, **EXACT)


def test_auto_counts_what_all_batches_would_keep():
    x, y = torch.randn(200, 2, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.zeros(200).long()
    few = o2().on((x[:2], y[:2]))
    assert Hessian(few, budget=20_000).path == "kept"
    assert Hessian(few.on(list(zip(x.split(2), y.split(2), strict=True))), budget=20_000).path == "afresh"


def test_auto_does_not_count_the_weights_as_activations():
    # two vectors of 16 kB and the input of 16 kB, saved once; with the weights it would be more than 60 kB
    wide = small(nn.Linear(2000, 1), shape=(1, 2000), sizes=(1,), loss=lambda out, _: (out**2).mean())
    assert Hessian(wide, budget=60_000).path == "kept"
    assert Hessian(wide, budget=45_000).path == "afresh"


@pytest.mark.parametrize("operator", OPERATORS)
def test_auto_keeps_a_quarter_of_what_is_free(operator, free):
    risk = small(nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2)), shape=(200, 3), sizes=(120, 80))
    needed = operator(risk)._kept_bytes()
    free(4 * needed + 8)
    assert operator(risk).path == "kept"
    free(4 * needed - 8)
    assert operator(risk).path == "afresh"
    assert operator(risk, budget=needed).path == "kept"


@pytest.mark.parametrize("operator", OPERATORS)
def test_batches_are_cut_where_one_does_not_fit(operator, free):
    risk = small(nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2)), shape=(200, 3), sizes=(120, 80))
    expected = operator(risk) @ cosines(122)
    whole = operator(risk)._trial.graph_bytes([120])
    free(whole)  # half of it may be used in one pass
    A = operator(risk)
    assert A.path == "afresh"
    assert max(A.point.risk.sizes) < 120
    assert sum(A.point.risk.sizes) == 200
    assert A._trial.graph_bytes([max(A.point.risk.sizes)]) <= whole / 2
    assert_close(A @ cosines(122), expected, **EXACT)
    chosen = operator(risk, micro_batch=110)  # the user's choice is kept
    assert max(chosen.point.risk.sizes) == 110


def test_batches_that_may_not_be_cut_stay_whole(free):
    risk = case("conv:batch").risk()
    free(1000)
    A = Hessian(risk)
    assert (A.path, A.point.risk.sizes) == ("afresh", [4, 3])


@pytest.mark.parametrize("operator", OPERATORS)
def test_keeping_what_does_not_fit_is_refused(operator, free):
    free(100)
    with pytest.raises(MemoryError, match=rf"{operator.__name__} with path='kept' needs .*, but 100 bytes is free on"):
        operator(o2(), path="kept")
    with pytest.raises(MemoryError, match=r"use path='afresh', fewer examples or fewer `parameters`"):
        operator(o2(), path="kept")


def held_by_graph(A):
    """Bytes of distinct tensors that a kept graph saves, weights and data apart, counted as they are packed."""
    point = A.point
    own = {t.untyped_storage().data_ptr() for t in point.leaves}
    total = 0
    for batch in point.risk.batches:
        batch = point.batch(batch)
        seen = {}

        def pack(t, seen=seen):
            if t.untyped_storage().data_ptr() not in own:
                seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with second_derivatives(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            grads = torch.autograd.grad(point.loss(batch), point.leaves, create_graph=True)
            torch.autograd.grad(grads, point.leaves, [torch.ones_like(g) for g in grads], retain_graph=True)
        total += sum(seen.values())
    return total


@pytest.mark.parametrize(
    ("model", "shape"),
    [(ConvNorm, (40, 2, 12, 12)), (SelfAttention, (40, 16, 3))],
    ids=["conv", "attention"],
)
def test_the_estimate_is_near_what_is_held(model, shape):
    """Eight examples are tried, 40 are kept: within a factor of two."""
    A = Hessian(small(model(), shape=shape, sizes=(24, 16), classes=3, dtype=torch.float32))
    assert A.path == "kept"
    assert 0.5 < A._kept_bytes() / held_by_graph(A) < 2


def test_examples_gradients_are_counted_by_rows():
    c = case("language")
    A = EmpiricalFisher(c.risk())
    assert A.by_rows
    assert A._kept_bytes() == 5 * 88 * 8


def test_afresh_takes_the_way_of_least_memory_to_the_same_products():
    risk = case("conv:eval").risk()
    kept, afresh = Hessian(risk, path="kept"), Hessian(risk, path="afresh")
    norms = [m for m in afresh.point.risk.predict.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all("forward" not in vars(m) for m in norms)
    assert not afresh.point.channels_last
    assert_close(afresh.dense(), kept.dense(), rtol=1e-10, atol=1e-12)
