"""Buffers that a forward pass updates, of whatever class, are as after one clean pass a step."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from networks import ELSEWHERE, NO_CLEAN_PASS, PERTURBED, PLAIN_CLOSURES, closures_of, data, make, network
from quadratics import closure_of
from torch import nn

from trainers import METHODS
from trainers.randomness import seeded


class Busy(nn.Module):
    """Buffers of every kind: counted, averaged, replaced, resized, made late, shared, expanded, by power iteration."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("codes", torch.zeros(6), persistent=False)
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("resized", torch.zeros(0))
        self.register_buffer("expanded", torch.arange(6.0).expand(3, 6))
        self.register_buffer("none", None)
        self.norm, self.single = nn.BatchNorm1d(8, momentum=None), nn.InstanceNorm1d(1, track_running_stats=True)
        self.own, self.ours = OwnNorm(8), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.last = nn.utils.spectral_norm(nn.Linear(8, 3))
        self.own.register_buffer("seen", self.count)  # the same tensor

    def forward(self, x):
        weight = self.first.weight.detach().sum()
        if self.training:
            self.count += 1
            self.mean.lerp_(x.mean(0) + weight, 0.1)
            self.codes.data.copy_(self.mean + self.count)
            self.replaced = self.replaced + weight
            with torch.no_grad():
                self.resized.resize_(int(self.count)).fill_(float(weight))
            if "late" in self._buffers:
                self.late.mul_(0.9)
            else:
                self.register_buffer("late", x[0].clone())
            if self.count % 2 == 0:
                self.mean.add_(1)
        h = self.own(self.norm(self.ours(self.first(x).tanh())))
        return self.last(self.single(h[:, None])[:, 0])


class OwnNorm(nn.BatchNorm1d):
    """Running statistics in a way of its own, whatever `track_running_stats` says."""

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.running_mean += x.mean(0)
        return x - x.mean(0)


class Centred(nn.Module):
    """A criterion with a running mean of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3, dtype=torch.float64))

    def forward(self, z, t):
        loss = F.cross_entropy(z - self.centre, t)
        self.centre.lerp_(z.detach().mean(0), 0.1)
        return loss


@cache
def buffers_after(method, *, chunk=None, how="step", plain=False):
    with seeded(1):
        model, criterion = Busy().double(), Centred()
    options = PERTURBED.get(method, {}) | ({"layers": "*"} if method == "sam_on" else {})
    optimizer = make(method, model, lr=0.0, **options)
    for x, y in data(3):
        descents, sizes, ascents = closures_of(optimizer, model, x, y, m=chunk)
        if not plain and method not in ("esam", "deltasam"):
            for d in descents + (ascents or []):
                d.loss = criterion
        if plain:
            descents = [lambda d=d: d() for d in descents]
            ascents = [lambda a=a: a() for a in ascents] if ascents else None
        if how == "step":
            optimizer.step(descents, sizes=sizes, ascent=ascents)
        else:
            for d, n, a in zip(descents, sizes, ascents or [None] * len(sizes), strict=True):
                optimizer.accumulate(d, size=n, ascent=a)
            optimizer.step()
    found = {f"{m}.{n}": b for m, module in model.named_modules() for n, b in module._buffers.items() if b is not None}
    return found | ({} if plain or method in ("esam", "deltasam") else {"centre": criterion.centre})


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("setting", [{}, {"chunk": 6}, {"chunk": 6, "how": "accumulate"}, {"plain": True}])
def test_buffers_are_as_after_one_clean_pass(method, setting):
    whole = {"chunk", "how"} & setting.keys()
    if (method in ("sampa", "aesam", "aosam") and whole) or (setting.get("plain") and method not in PLAIN_CLOSURES):
        pytest.skip("it cannot be called like that")
    found, expected = buffers_after(method, **setting), buffers_after("sgd", **setting)
    expected = {name: expected[name] for name in expected if name in found or name != "centre"}
    assert found.keys() == expected.keys()
    for name, b in expected.items():
        if method in NO_CLEAN_PASS | ELSEWHERE:  # as after their first pass, wherever it was
            assert found[name].shape == b.shape
            if not b.is_floating_point():
                assert torch.equal(found[name], b), name
        else:
            assert torch.equal(found[name], b), name


def test_a_model_that_only_counts_gets_its_clean_pass_too():
    class Counting(nn.Linear):
        def forward(self, x):
            self.mean.lerp_(super().forward(x).detach().mean(0), 0.5)
            return super().forward(x)

    means = []
    for method in ("sgd", "randsam"):
        with seeded(0):
            model = Counting(6, 3).double()
            model.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        optimizer = make(method, model, lr=0.0)
        for x, y in data(2):
            optimizer.step(closure_of(model, lambda m=model, x=x, y=y: F.cross_entropy(m(x), y)))
        means.append(model.mean)
    assert torch.equal(*means)


def test_constant_buffers_cost_no_further_pass():
    model = network(norm=None)
    model.register_buffer("mask", torch.ones(3, 3))
    optimizer = make("randsam", model)
    passes = []
    for x, y in data(3):
        optimizer.step(closure_of(model, lambda x=x, y=y: F.cross_entropy(model(x), y)))
        passes.append(optimizer.last.passes)
    assert passes == [2, 1, 1]  # the first shows that a clean pass changes nothing
