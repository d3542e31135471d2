"""Passes: gradients are cleared before each, and closures that compute nothing afresh are refused."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import PERTURBED, PLAIN_CLOSURES, closures_of, data, flat, make, network, state
from quadratics import Quadratic, closure_of, tensor
from torch import nn

from trainers import Objective, make_optimizer
from trainers.randomness import seeded

DROPPED = "ignore:gradients from before the step were dropped"


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# -- clearing --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(DROPPED)
@pytest.mark.parametrize("how", ["step", "chunks", "batch", "accumulate"])
@pytest.mark.parametrize("method", PLAIN_CLOSURES)
def test_a_closure_that_does_not_clear_takes_the_step_of_one_that_does(method, how):
    ends = []
    for clears in (True, False):
        model = network(norm=nn.LayerNorm)
        optimizer = make(method, model, sharing="batch" if how == "batch" else "chunk", **PERTURBED.get(method, {}))
        if (optimizer.needs_previous and how == "chunks") or (optimizer.needs_batch and how == "accumulate"):
            pytest.skip("such a method sees whole batches")
        for x, y in data(3):
            descents, sizes, ascents = closures_of(optimizer, model, x, y, m=None if how == "step" else 6)
            if not clears:
                F.cross_entropy(model(x), y).backward()  # on top of what the last step has left
                descents = [adding(model, d) for d in descents]
                ascents = [adding(model, a) for a in ascents] if ascents else None
            if how == "accumulate":
                for d, n, a in zip(descents, sizes, ascents or [None] * len(sizes), strict=True):
                    optimizer.accumulate(d, size=n, ascent=a)
                optimizer.step()
            else:
                optimizer.step(descents, sizes=sizes, ascent=ascents)
        ends.append(flat(model))
    assert torch.equal(*ends)


def adding(model, objective):
    def closure():
        loss = getattr(objective, "ascent", objective.loss)(model(objective.x), objective.y)
        loss.backward()
        return loss

    return closure


def test_gradients_from_before_the_step_are_dropped_with_one_warning():
    model = Quadratic()
    optimizer, closure = make_optimizer("sam", model, lr=0.1, rho=0.5), closure_of(model, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)
        optimizer.step(closure)  # what the last step has left is its own
        optimizer.zero_grad(set_to_none=False)
        optimizer.step(closure)
        make_optimizer("sam", model, lr=0.1, rho=0.5).step(closure)  # another optimizer takes over
    model().backward()
    with pytest.warns(UserWarning, match=r"dropped.*`accumulate\(closure\)`"):
        optimizer.step(closure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model().backward()
        optimizer.step(closure)


@pytest.mark.parametrize("clears", ["optimizer", "model"])
def test_two_optimizers_over_one_graph_whose_closures_clear_are_not_warned(clears):
    generator, critic = nn.Linear(4, 5), nn.Linear(5, 1)
    optimizers = [make_optimizer("sam", m, torch.optim.SGD(m.parameters(), lr=0.1)) for m in (generator, critic)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            for optimizer, model in zip(optimizers, (generator, critic), strict=True):

                def closure(to_clear=optimizer if clears == "optimizer" else model):
                    to_clear.zero_grad()
                    loss = critic(generator(torch.ones(3, 4))).square().mean()
                    loss.backward()
                    return loss

                optimizer.step(closure)


@pytest.mark.filterwarnings(DROPPED)
def test_clearing_leaves_alone_what_the_base_optimizer_does_not_hold():
    model = network(norm=None)
    optimizer = make_optimizer("sam", model, torch.optim.SGD(model[4].parameters(), lr=0.1))
    (x, y), *_ = data(1)
    kept = torch.ones_like(model[0].weight)
    model[0].weight.grad = kept.clone()
    features = model[:4](x).detach()
    optimizer.step(Objective(model[4], F.cross_entropy, features, y))
    assert torch.equal(model[0].weight.grad, kept)
    objective = Objective(model, F.cross_entropy, x, y)
    optimizer.step(objective)  # which now adds one clean gradient to it, as plain torch would
    (clean,) = torch.autograd.grad(F.cross_entropy(model(x), y), model[0].weight)
    model[0].weight.grad = None
    optimizer.base.param_groups[0]["lr"] = 0.0
    optimizer.step(objective)
    torch.testing.assert_close(model[0].weight.grad, clean, rtol=1e-12, atol=0)
    objective()  # by hand it clears as ever
    torch.testing.assert_close(model[0].weight.grad, clean, rtol=1e-12, atol=0)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["step", "accumulate"])
@pytest.mark.parametrize("method", PLAIN_CLOSURES)
def test_a_closure_without_a_backward_pass_is_refused_and_nothing_moves(method, how):
    model = network()
    optimizer = make(method, model, **PERTURBED.get(method, {}))
    if how == "accumulate" and optimizer.needs_batch:
        pytest.skip("such a method sees whole batches")
    (x, y), *_ = data(1)

    def closure():
        return F.cross_entropy(model(x), y)

    before, parts = state(model), copy.deepcopy(optimizer.parts.state_dict())
    given = {"ascent": closure} if optimizer.parts.ascent == "obf" else {}
    with pytest.raises(ValueError, match=r"`loss.backward\(\)`.*recompute inside the closure"):
        getattr(optimizer, how)(closure, **given)
    assert same(state(model), before)
    assert same(optimizer.parts.state_dict(), parts)
    assert all(p.grad is None for p in model.parameters())
    assert optimizer.steps_taken == 0
    descents, sizes, ascents = closures_of(optimizer, model, x, y)
    optimizer.step(descents, sizes=sizes, ascent=ascents)
    fresh = network()
    other = make(method, fresh, **PERTURBED.get(method, {}))
    descents, sizes, ascents = closures_of(other, fresh, x, y)
    other.step(descents, sizes=sizes, ascent=ascents)
    assert same(state(model), state(fresh))  # as if nothing had been


@pytest.mark.parametrize("returned", [torch.clone, torch.detach, torch.Tensor.item])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("method", ["sam", "wsam", "tracesam", "lookbehind", "aesam"])
def test_a_graph_from_outside_is_refused(method, deep, returned):
    with seeded(0):
        layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)] if deep else [nn.Linear(6, 3)]
    model = nn.Sequential(*layers).double()  # one layer keeps no weights for its backward pass, and torch sees nothing
    optimizer = make(method, model, **PERTURBED.get(method, {}))
    (x, y), *_ = data(1)
    loss, before = F.cross_entropy(model(x), y), flat(model)

    def closure():
        loss.backward(retain_graph=True)
        return returned(loss)

    with pytest.raises(ValueError, match="recompute inside the closure"):
        optimizer.step(closure)
    assert torch.equal(flat(model), before)


def test_outputs_from_outside_are_refused():
    with seeded(0):
        model = nn.Linear(6, 3).double()
    optimizer = make_optimizer("sam", model, lr=0.1)
    (x, y), *_ = data(1)
    outputs = model(x)

    def closure():
        loss = F.cross_entropy(outputs, y)
        loss.backward(retain_graph=True)
        return loss

    with pytest.raises(ValueError, match="recompute inside the closure"):
        optimizer.step(closure)


def test_a_graph_that_is_gone_is_refused():
    model = Quadratic()
    optimizer, loss = make_optimizer("sam", model, lr=0.1), model()

    def closure():
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="recompute inside the closure"):
        optimizer.step(closure)


@pytest.mark.parametrize("rho", [1e-12, 0.0, 0.5])
def test_closures_that_compute_afresh_are_not_refused(rho):
    # with a step too short to change a digit, and with a loss of fixed slope, called past the model's own forward
    w = nn.Parameter(tensor(2.0, 1.0).float())
    model = nn.ParameterDict({"w": w})
    optimizer = make_optimizer("sam", model, lr=0.1, rho=rho)

    def closure():
        loss = (3 * w).sum() + 1e4
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(w.detach(), torch.tensor([1.7, 0.7]))


def test_weights_behind_a_sign_may_not_respond():
    class Binary(nn.Module):  # the sign passes gradients straight through: a short step changes no output
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(tensor(2.0, -1.0))

        def forward(self):
            return ((self.w.sign() - self.w).detach() + self.w).square().sum() + self.w.sum() * 0

    model = Binary()
    make_optimizer("sam", model, lr=0.1, rho=0.1).step(closure_of(model, model))
