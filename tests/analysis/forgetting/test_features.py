import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from forgetting_problems import SAM, classifier, rng
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.features import feature_forgetting, features, last_linear, noisy_information
from landscape import EmpiricalRisk, displaced


def network():
    g = rng(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    _, (x, y) = classifier()
    return model, EmpiricalRisk.from_model(model, cross_entropy, (x, y)), (x, y)


def test_features_are_the_input_of_the_last_linear_layer():
    model, risk, (x, _) = network()
    assert last_linear(model) == "4"
    np.testing.assert_allclose(features(risk, x), model[:4](x).detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(features(risk, x, layer="2"), model[:2](x).detach().numpy(), rtol=1e-14)
    zero = {k: t * 0 for k, t in risk.theta.items()}
    assert not features(risk, x, theta=zero).any()
    assert not any(child._forward_pre_hooks for child in model.modules())
    assert not any(child._forward_pre_hooks for child in risk.predict.module.modules())


def test_two_points_far_apart_hold_one_bit():
    h = np.array([[0.0, 0.0], [10.0, 0.0]])
    noise = np.random.default_rng(0).standard_normal((50, 2, 2))
    labels = np.zeros(2, dtype=int)
    assert noisy_information(h, labels, scale=1.0, noise=noise).mean() == pytest.approx(math.log(2), abs=1e-4)
    # the mixture of the others alone has no bound of its own: 50 nats here, cut at that of two points
    cut = noisy_information(h, labels, scale=1.0, noise=noise, leave_one_out=True)
    assert cut == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_shares_against_densities_one_at_a_time(leave_one_out):
    g = np.random.default_rng(1)
    h, labels, noise = g.normal(size=(9, 3)), np.array([0, 0, 0, 0, 1, 1, 1, 1, 2]), g.standard_normal((3, 9, 3))
    s = 0.8
    expected = np.zeros(9)
    for i in range(8):
        others = [j for j in range(9) if labels[j] == labels[i] and (j != i or not leave_one_out)]
        n_y = (labels == labels[i]).sum()
        for eps in noise:
            z = h[i] + s * eps[i]
            own = multivariate_normal(h[i], s**2).logpdf(z)
            mix = np.log(np.mean([multivariate_normal(h[j], s**2).pdf(z) for j in others]))
            expected[i] += min(own - mix, math.log(n_y)) / 3
    found = noisy_information(h, labels, scale=s, noise=noise, leave_one_out=leave_one_out)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(st.integers(0, 2**31), st.floats(0.01, 10))
def test_information_is_bounded_and_does_not_see_where_features_are(seed, scale):
    g = np.random.default_rng(seed)
    h, labels, noise = g.normal(size=(30, 4)), np.arange(30) % 3, g.standard_normal((1, 30, 4))
    found = noisy_information(h, labels, scale=scale, noise=noise)
    assert (found <= math.log(10) + 1e-12).all()
    q, _ = np.linalg.qr(g.normal(size=(4, 4)))
    moved = noisy_information(h @ q + 5, labels, scale=scale, noise=noise @ q)
    np.testing.assert_allclose(moved, found, atol=1e-8)
    order = g.permutation(30)
    again = noisy_information(h[order], labels[order], scale=scale, noise=noise[:, order])
    np.testing.assert_allclose(again, found[order], atol=1e-10)


def test_blocks_make_no_difference(monkeypatch):
    g = np.random.default_rng(2)
    h, labels, noise = g.normal(size=(40, 4)), np.arange(40) % 2, g.standard_normal((2, 40, 4))
    whole = noisy_information(h, labels, scale=0.5, noise=noise, leave_one_out=True)
    monkeypatch.setattr("analysis.forgetting.features.BLOCK", 60)
    parts = noisy_information(h, labels, scale=0.5, noise=noise, leave_one_out=True)
    np.testing.assert_allclose(parts, whole, atol=1e-13)


def test_equal_features_hold_nothing():
    noise = np.random.default_rng(0).standard_normal((2, 6, 3))
    found = noisy_information(np.ones((6, 3)), np.zeros(6, dtype=int), scale=0.1, noise=noise)
    np.testing.assert_allclose(found, 0, atol=1e-12)


def test_f_z_against_one_batch_at_a_time():
    risk, held_out = classifier()
    asked = Displacements(providers=["sam", "zero"], radii=["own"], own=SAM, m=20, batches=3)
    rows = feature_forgetting(risk, held_out, asked, noise=0.3, draws=2, generator=rng())
    found = {(r.measure, r.options.get("provider"), r.split): r for r in rows}
    x, y = torch.cat([b[0] for b in risk.batches]), risk.targets()
    g = rng()
    index = [torch.randperm(120, generator=g)[:20].sort().values for _ in range(3)]
    torch.randint(2**62, (3,), generator=g)
    source = np.random.default_rng(int(torch.randint(2**62, (1,), generator=g)))
    h = features(risk, x)
    scale = 0.3 * math.sqrt(h.var(0).mean())
    noise = {"train": source.standard_normal((2, 120, 16)), "held_out": source.standard_normal((2, 80, 16))}
    for split, (a, b) in {"train": (x, y), "held_out": held_out}.items():
        base = noisy_information(features(risk, a), b.numpy(), scale=scale, noise=noise[split])
        drops = []
        for chosen in index:
            delta = SAM.step(risk.theta, risk.on((x[chosen], y[chosen])).gradient())
            after = features(risk, a, theta=displaced(risk.theta, delta))
            drops.append(base - noisy_information(after, b.numpy(), scale=scale, noise=noise[split]))
        row = found["F_z", "sam", split]
        assert row.value == pytest.approx(np.mean(drops), abs=1e-10)
        each, examples = np.mean(drops, 1), np.mean(drops, 0)
        error = math.hypot(each.std(ddof=1) / math.sqrt(3), examples.std(ddof=1) / math.sqrt(len(a)))
        assert row.stderr == pytest.approx(error, rel=1e-8)
        assert found["feature_information", None, split].value == pytest.approx(base.mean(), abs=1e-12)
        assert found["F_z", "zero", split].value == 0.0
    assert "only 25 examples of a class" in found["F_z", "sam", "held_out"].warnings


def test_a_diverged_model_is_rows_that_say_so():
    risk, held_out = classifier()
    broken = risk.at({k: t * math.nan for k, t in risk.theta.items()})
    asked = Displacements(providers=["sam"], radii=["iso-loss"], m=20, batches=2)
    rows = feature_forgetting(broken, held_out, asked, generator=rng())
    assert all(math.isnan(r.value) and r.warnings for r in rows)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(self.layer(x))


HELD_OUT = classifier()[1]
ASKED = Displacements(providers=["sam"], radii=["own"], m=9)
FLAT = {"h": np.ones((2, 1)), "labels": np.zeros(2, dtype=int)}


@pytest.mark.parametrize(
    ("layer", "message"),
    [("9", "`layer` '9' is no module of the model; there are 0, 1"), ("all", "`layer` 'all' is no module")],
)
def test_an_unknown_layer_is_named(layer, message):
    _, risk, (x, _) = network()
    with pytest.raises(ValueError, match=message):
        features(risk, x, layer=layer)


def test_models_without_features_are_named():
    _, risk, (x, _) = network()
    with pytest.raises(ValueError, match=r"`layer`: the model has no nn\.Linear"):
        last_linear(nn.Tanh())
    with pytest.raises(ValueError, match=r"`layer` 'layer' must be called once.* got 2 calls"):
        features(EmpiricalRisk.from_model(Twice().double(), cross_entropy, (x, x)), x)
    with pytest.raises(ValueError, match=r"`risk` must be made by EmpiricalRisk\.from_model"):
        features(replace(risk, predict=lambda _, z: z), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0, "noise": np.ones((1, 2, 1))}, r"`scale` must be a finite standard deviation above 0, got 0\.0"),
        ({"scale": 1.0, "noise": np.ones((1, 2, 2))}, "`noise` must have shape"),
    ],
)
def test_bad_noise_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        noisy_information(**FLAT, **options)


@pytest.mark.parametrize(
    ("options", "shrink", "message"),
    [
        ({"noise": 0.0}, 1, r"`noise` must be a finite share .* got 0\.0"),
        ({"draws": 0}, 1, "`draws` must be at least 1, got 0"),
        ({}, 0, "the features are the same on all inputs"),
    ],
)
def test_bad_arguments_are_named(options, shrink, message):
    _, risk, _ = network()
    scaled = risk.at({k: t * shrink for k, t in risk.theta.items()})
    with pytest.raises(ValueError, match=message):
        feature_forgetting(scaled, HELD_OUT, ASKED, generator=rng(), **options)
