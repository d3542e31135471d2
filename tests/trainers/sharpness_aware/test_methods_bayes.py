"""bSAM: the draw from the posterior, the displacement from the mean, and its own base optimizer."""

import pytest
import torch
from quadratics import F64, LAYOUTS, NEAR, Quadratic, TwoExamples, closure_of, cut, on_q, tensor, walk
from torch import nn
from torch.testing import assert_close

import trainers.sharpness_aware.offsets as offsets
from trainers import make_optimizer

SETTINGS = {"lr": 0.5, "rho": 0.1, "examples": 100, "prior_precision": 1.0, "damping": 0.1}


@pytest.fixture
def draws(monkeypatch):
    """The vectors that the posterior draws, one after another."""
    vectors = []
    monkeypatch.setattr(offsets, "random_direction", lambda like, _: cut(tensor(*vectors.pop(0)), like))
    return vectors


def kept(held, key):
    return torch.cat([held.optimizer.base.state[p][key].reshape(-1) for p in held.model.parameters()])


def set_precision(held, *values):
    pieces = cut(tensor(*values), {n: p.detach() for n, p in held.model.named_parameters()})
    for name, p in held.model.named_parameters():
        held.optimizer.base.state[p]["precision"].copy_(pieces[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bsam_takes_the_oracle_step(layout, draws):
    draws.append((1.0, -1.0))
    held = on_q("bsam", layout, **SETTINGS)
    set_precision(held, 1.0, 4.0)
    walk(held)
    assert_close(held.visited[0], tensor(3.1, 0.95), **NEAR)  # θ, not perturbed from
    assert_close(held.visited[1], tensor(3.31, 1.095), **NEAR)  # ω + eps
    assert_close(kept(held, "momentum"), tensor(0.334, 0.439), **NEAR)
    assert_close(held.w, tensor(2.833, 0.945125), **NEAR)
    assert_close(kept(held, "precision"), tensor(1.00221, 4.00371), **NEAR)


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_each_chunk_has_its_own_noise_and_the_means_enter_the_state(how, draws):
    noises = [(1.0, -1.0), (0.5, 2.0)]
    draws.extend(noises)
    model = TwoExamples()
    optimizer = make_optimizer("bsam", model, **SETTINGS)
    optimizer.base.state[model.w]["precision"].copy_(tensor(1.0, 4.0))
    pair, third = closure_of(model, lambda: model([0, 1])), closure_of(model, lambda: model([2]))
    if how == "step":
        optimizer.step([pair, third], sizes=[2, 1])
    else:
        optimizer.accumulate(pair, size=2)
        optimizer.accumulate(third, size=1)
        optimizer.step()
    w, s, N = tensor(3.0, 1.0), tensor(1.0, 4.0), 100
    g_e, h = torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
    for n, rows, share in zip(noises, ([0, 1], [2]), (2 / 3, 1 / 3), strict=True):
        g = (w + tensor(*n) / (N * s).sqrt() - model.centres[rows]).mean(0)
        h += share * s.sqrt() * g.abs()
        g_e += share * (w + 0.1 * g / s - model.centres[rows]).mean(0)
    g_m = 0.1 * (g_e + 0.01 * w)
    assert_close(model.w.detach(), w - 0.5 * g_m / s, **NEAR)
    assert_close(optimizer.base.state[model.w]["precision"], 0.999 * s + 0.001 * (h + 0.01 + 0.1), **NEAR)


def test_the_precision_used_is_the_old_one_and_a_step_without_gradient_moves_nothing(draws):
    draws.extend([(1.0, -1.0)] * 2)
    model = nn.ParameterDict({"used": tensor(3.0, 1.0), "unused": tensor(5.0)})
    optimizer = make_optimizer("bsam", model, **SETTINGS)
    draws[:] = [(1.0, -1.0, 0.3)] * 2
    optimizer.step(closure_of(model, lambda: 0.5 * (tensor(1.0, 4.0) * model["used"] ** 2).sum()))
    assert torch.equal(model["unused"].detach(), tensor(5.0))
    assert float(optimizer.base.state[model["unused"]]["precision"]) == 1.0


def test_a_step_that_fails_leaves_nothing_behind(draws):
    draws.extend([(1.0, -1.0)] * 4)
    held = on_q("bsam", "one", **SETTINGS)

    def broken():
        raise RuntimeError("no data")

    good = closure_of(held.model, held.model)
    with pytest.raises(RuntimeError, match="no data"):
        held.optimizer.step([good, broken])
    twin = on_q("bsam", "one", **SETTINGS)
    for h in (held, twin):
        draws[:] = [(1.0, -1.0)]
        h.optimizer.step(closure_of(h.model, h.model))
    assert_close(kept(held, "precision"), kept(twin, "precision"), rtol=0, atol=0)


def test_a_plain_step_does_not_shrink_the_precision_for_want_of_a_gradient(draws):
    # outside its window bSAM is its base optimizer, whose h is that of the gradient at hand
    held = on_q("bsam", "one", **SETTINGS, window=(5, None))
    walk(held)
    expected = 0.999 + 0.001 * (tensor(3.0, 4.0) + 0.01 + 0.1)
    assert_close(kept(held, "precision"), expected, **NEAR)


def test_bsam_is_its_own_base_optimizer():
    model = Quadratic()
    with pytest.raises(ValueError, match="pass `examples=`"):
        make_optimizer("bsam", model, lr=0.1)
    with pytest.raises(ValueError, match="its own base optimizer"):
        make_optimizer("bsam", model, torch.optim.SGD(model.parameters(), lr=0.1))
    for name, value in (("prior_precision", -1.0), ("damping", -0.1)):
        with pytest.raises(ValueError, match=f"`{name}` must be >= 0"):
            make_optimizer("bsam", model, lr=0.1, examples=10, **{name: value})
    with pytest.raises(ValueError, match="`examples` must be the number"):
        make_optimizer("bsam", model, lr=0.1, examples=0)
