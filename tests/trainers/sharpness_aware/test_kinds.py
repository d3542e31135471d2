"""Weights that are complex, and weights that change their type between steps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import PERTURBED, closures_of, data, flat, make, network
from torch import nn
from torch.testing import assert_close

from trainers import METHODS, Objective, make_optimizer
from trainers.randomness import seeded

# -- complex ---------------------------------------------------------------------------------------------------------


class Waves(nn.Module):
    """A network with complex weights, or with the same weights as pairs of real numbers."""

    def __init__(self, *, pairs):
        super().__init__()
        with seeded(0):
            made = {s: torch.randn(s, dtype=torch.complex128) / 3 for s in ((5, 6), (5,), (3, 5))}
        weight, bias, last = (torch.view_as_real(t).clone() if pairs else t for t in made.values())
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.norm, self.last = nn.LayerNorm(5).double(), nn.Parameter(last)

    def forward(self, x):
        weight, bias, last = (
            p if p.is_complex() else torch.view_as_complex(p) for p in (self.weight, self.bias, self.last)
        )
        h = self.norm((x.to(weight.dtype) @ weight.T + bias).abs())
        return (h.to(weight.dtype) @ last.T).abs()

    def numbers(self):
        pairs = [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in self.parameters()]
        return torch.cat([p.reshape(-1) for p in pairs])


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_complex_weights_are_their_real_and_imaginary_parts(method, base):
    if base != "sgd" and METHODS[method].base not in (None, base):
        pytest.skip("the method fixes its base")
    ends = []
    for pairs in (False, True):
        model = Waves(pairs=pairs)
        options = PERTURBED.get(method, {}) | ({"shrink_perturb": 0.1} if method == "sam" else {})
        optimizer = make(method, model, base, grad_clip=0.5, **options)
        for x, y in data(3):
            descents, sizes, ascents = closures_of(optimizer, model, x, y, m=None if optimizer.needs_previous else 6)
            optimizer.step(descents, sizes=sizes, ascent=ascents)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if optimizer.needs_previous:
            optimizer.remember(descents, sizes=sizes)
        optimizer.step(descents, sizes=sizes, ascent=ascents)
        ends.append(model.numbers())
    assert_close(*ends, rtol=1e-10, atol=1e-13)


# -- another type between steps --------------------------------------------------------------------------------------

WIDE, NARROW, HALF = torch.float64, torch.float32, torch.bfloat16


def walk(optimizer, model, kind):
    model.to(kind)
    for x, y in data(2):
        x = x.to(kind)
        if optimizer.needs_reference:
            size = 1 if optimizer.needs_reference == "squares" else 12
            one = Objective(model, F.cross_entropy, x[:size], y[:size])
            optimizer.reference = lambda one=one, size=size: ([one], [size])
        descents, sizes, ascents = closures_of(optimizer, model, x, y, m=None if optimizer.needs_previous else 6)
        optimizer.step(descents, sizes=sizes, ascent=ascents)


@pytest.mark.filterwarnings("ignore:.*entries of the perturbation below half a unit")
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_model_may_change_its_type_between_steps(method, base):
    if base != "sgd" and METHODS[method].base not in (None, base):
        pytest.skip("the method fixes its base")
    model = network(norm=nn.LayerNorm, dtype=NARROW)
    optimizer = make(method, model, base, **({"shrink_perturb": 0.1} if method == "sam" else {}))
    for kind in (NARROW, WIDE, HALF, NARROW):
        walk(optimizer, model, kind)
        assert torch.isfinite(flat(model)).all()
        assert {p.dtype for p in model.parameters()} == {kind}


@pytest.mark.parametrize("method", ["sam", "fsam", "looksam", "vasso", "s2sam", "ogsam", "ssam_d"])
def test_what_a_method_keeps_goes_along_to_the_wider_type(method):
    # a float32 model that becomes float64 goes on as a float64 one does: the same up to what float32 has lost before
    ends = []
    for first in (NARROW, WIDE):
        model = network(norm=nn.LayerNorm, dtype=first)
        optimizer = make(method, model)
        for kind in (first, WIDE):
            walk(optimizer, model, kind)
        ends.append(flat(model))
    assert_close(*ends, rtol=1e-4, atol=1e-5)
    assert {p.dtype for p in optimizer._weights.clean().values()} == {WIDE}


@pytest.mark.parametrize("kinds", [(NARROW, WIDE), (WIDE, NARROW), (NARROW, HALF)])
@pytest.mark.parametrize("fused", [None, True])
def test_plain_steps_go_on_as_torchs_sgd_does(kinds, fused):
    ends = []
    for ours in (True, False):
        model = network(norm=nn.LayerNorm, dtype=kinds[0])
        base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused if ours else None)
        optimizer = make_optimizer("sgd", model, base) if ours else base
        for kind in kinds:
            model.to(kind)
            for x, y in data(2):
                if ours:
                    optimizer.step(Objective(model, F.cross_entropy, x.to(kind), y))
                    continue
                base.zero_grad()
                F.cross_entropy(model(x.to(kind)), y).backward()
                base.step()
        ends.append(flat(model))
    assert fused or torch.equal(*ends)
    assert_close(*ends, rtol=1e-6 if kinds[1] is not HALF else 1e-2, atol=1e-8)  # the fused kernel rounds differently
