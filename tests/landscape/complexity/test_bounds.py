"""Every formula on a network whose norms are whole numbers, and what is said where one is not defined."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from landscape.complexity import (
    LayerNorms,
    fold,
    layer_norms,
    log_path_norm,
    margin_measures,
    norm_measures,
    pacbayes_measures,
    path_measures,
    sharpness_measures,
    vc_count,
)

F64 = torch.float64
W = ([[1, 2], [0, 1], [2, 0]], [[1, -1, 0], [0, 2, 1]])
W_0 = ([[1, 1], [0, 0], [1, 0]], [[0, -1, 0], [0, 1, 1]])
M, GAMMA, S, T = 100, 2.0, 0.5, 0.25

# name: (raw, adjusted), 10 digits
NORMS = {
    "params": (12, 0.3464101615),
    "log_spec_init_main": (2.0794415417, -1.2628643222),
    "log_spec_orig_main": (3.3050535211, -0.6500583324),
    "log_prod_of_spec_over_margin": (2.3513752572, -1.1268974644),
    "log_prod_of_spec": (3.7376696183, -0.4337502839),
    "fro_over_spec": (2.5952380952, 0.1610974269),
    "log_sum_of_spec_over_margin": (1.8688348091, -1.3681676884),
    "log_sum_of_spec": (2.5619819897, -1.0215940981),
    "log_prod_of_fro_over_margin": (2.8622008809, -0.8714846525),
    "log_prod_of_fro": (4.2484952420, -0.1783374720),
    "log_sum_of_fro_over_margin": (2.1242476210, -1.2404612825),
    "log_sum_of_fro": (2.8173948016, -0.8938876922),
    "fro_dist": (5, 0.2236067977),
    "dist_spec_init": (3, 0.1732050808),
    "param_norm": (17, 0.4123105626),
    "l2": (4.1231056256, 0.2030543185),
    "l2_dist": (2.2360679775, 0.1495348781),
}
MARGIN = {"inverse_margin": (0.25, 0.05)}
PATHS = {"path_norm_over_margin": (3.5, 0.1870828693), "path_norm": (14, 0.3741657387)}
BAYES = {
    "pacbayes_init": (20.2983173665, 0.4505365398),
    "pacbayes_orig": (32.2983173665, 0.5683160861),
    "pacbayes_flatness": (4, 0.2),
    "pacbayes_mag_init": (41.1897983564, 0.6417927887),
    "pacbayes_mag_orig": (35.5392047202, 0.5961476723),
    "pacbayes_mag_flatness": (16, 0.4),
}


def two_layers(weights):
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        for layer, w in zip(model, weights, strict=True):
            layer.weight.copy_(torch.tensor(w))
    return fold(model, torch.ones(1, 2))


@pytest.fixture
def network():
    return two_layers(W)


@pytest.fixture
def initial():
    return two_layers(W_0)


@pytest.fixture
def norms(network, initial, generator):
    return layer_norms(network, initial, generator=generator)


def check(found, expected):
    assert list(found) == list(expected)
    for name, (raw, adjusted) in expected.items():
        assert found[name].raw == pytest.approx(raw, abs=1e-9), name
        assert found[name].adjusted == pytest.approx(adjusted, abs=1e-9), name
        assert found[name].value("raw") == found[name].raw
        assert found[name].value("adjusted") == found[name].adjusted
        assert (found[name].name, found[name].reason) == (name, "")


def test_norms_of_the_layers(norms):
    for found, expected in (
        (norms.fro, (10, 7)), (norms.spec, (7, 6)), (norms.fro_moved, (3, 2)), (norms.spec_moved, (2, 1)),
    ):  # fmt: skip
        torch.testing.assert_close(
            torch.tensor(found, dtype=F64), torch.tensor(expected, dtype=F64), rtol=1e-13, atol=0
        )
    assert (norms.weights, norms.depth, norms.error, norms.converged) == (12, 2, 0.0, True)


def test_norm_measures(norms):
    check(norm_measures(norms, m=M, margin=GAMMA), NORMS)
    check(margin_measures(m=M, margin=GAMMA), MARGIN)


def test_path_measures(network):
    check(path_measures(log_path_norm(network, (2,)), m=M, margin=GAMMA), PATHS)


def test_pacbayes_measures(network, initial):
    check(pacbayes_measures(network.weights, initial.weights, m=M, sigma=S, sigma_magnitude=T), BAYES)
    public = pacbayes_measures(network.weights, initial.weights, m=M, sigma=S, sigma_magnitude=T, denominator="w - w0")
    check(public, {**BAYES, "pacbayes_mag_orig": (44.8611198678, 0.6697844420)})


def test_worst_case_measures_against_their_sums_written_out(network, initial):
    found = sharpness_measures(network.weights, initial.weights, m=M, alpha=S, alpha_magnitude=T, delta=0.05)
    w = [float(x) for x in network.weights]
    d = [a - float(b) for a, b in zip(w, initial.weights, strict=True)]
    for name, way in (("orig", w), ("init", d)):
        square = sum(x * x for x in way)
        flat = square * math.log(24) / (4 * S**2) + math.log(M / S) + 10
        above = 1e-6 + (T**2 + 4 * math.log(24 / 0.05)) * square / 12
        scaled = sum(math.log(above / (1e-6 + T**2 * x * x)) for x in way) / 4 + math.log(M / T) + 10
        assert found[f"sharpness_{name}"].raw == pytest.approx(flat, rel=1e-13)
        assert found[f"sharpness_mag_{name}"].raw == pytest.approx(scaled, rel=1e-13)
    assert (found["sharpness_flatness"].raw, found["sharpness_mag_flatness"].raw) == (4.0, 16.0)


def undefined(found):
    assert all(math.isnan(c.raw) and math.isnan(c.adjusted) for c in found.values() if c.reason)
    assert all(math.isfinite(c.raw) and math.isfinite(c.adjusted) for c in found.values() if not c.reason)
    return {name: c.reason for name, c in found.items() if c.reason}


@pytest.mark.parametrize(
    ("margin", "reason"), [(-0.5, "the margin is -0.5"), (0.0, "is 0, not above"), (None, "not kn")]
)
def test_margins_that_are_not_positive(norms, margin, reason):
    missing = undefined(norm_measures(norms, m=M, margin=margin))
    over = {name for name in NORMS if "margin" in name} | {"log_spec_init_main", "log_spec_orig_main"}
    assert set(missing) == over
    assert all(reason in text for text in missing.values())
    assert set(undefined(margin_measures(m=M, margin=margin))) == {"inverse_margin"}
    assert set(undefined(path_measures(1.0, m=M, margin=margin))) == {"path_norm_over_margin"}


def test_without_the_initial_weights(network, generator):
    norms = layer_norms(network, generator=generator)
    assert set(undefined(norm_measures(norms, m=M, margin=GAMMA))) == {
        "log_spec_init_main", "fro_dist", "dist_spec_init", "l2_dist",
    }  # fmt: skip
    bayes = pacbayes_measures(network.weights, None, m=M, sigma=S, sigma_magnitude=T)
    assert set(undefined(bayes)) == {"pacbayes_init", "pacbayes_mag_init"}
    public = pacbayes_measures(network.weights, None, m=M, sigma=S, sigma_magnitude=T, denominator="w - w0")
    assert set(undefined(public)) == {"pacbayes_init", "pacbayes_mag_init", "pacbayes_mag_orig"}
    worst = sharpness_measures(network.weights, None, m=M, alpha=S, alpha_magnitude=T)
    assert set(undefined(worst)) == {"sharpness_init", "sharpness_mag_init"}


def test_weights_that_are_zero_have_not_moved_or_are_not_finite(norms, network):
    zero = dataclasses.replace(norms, fro=(10.0, 0.0), spec=(7.0, 0.0))
    missing = undefined(norm_measures(zero, m=M, margin=GAMMA))
    assert set(missing) == {name for name in NORMS if "spec" in name or "log" in name} - {"dist_spec_init"}
    assert set(missing.values()) == {"a layer's weights are all zero"}
    still = dataclasses.replace(norms, fro_moved=(0.0, 0.0), spec_moved=(0.0, 0.0))
    assert undefined(norm_measures(still, m=M, margin=GAMMA)) == {
        "log_spec_init_main": "the weights have not moved from their start"
    }
    broken = dataclasses.replace(norms, fro=(math.nan, 7.0), spec=(math.nan, 6.0))
    assert "the weights are not finite" in set(undefined(norm_measures(broken, m=M, margin=GAMMA)).values())


@pytest.mark.parametrize("level", [0.0, math.nan, math.inf])
def test_noise_levels_that_were_not_found(network, initial, level):
    bayes = pacbayes_measures(network.weights, initial.weights, m=M, sigma=level, sigma_magnitude=T)
    missing = undefined(bayes)
    assert set(missing) == {"pacbayes_init", "pacbayes_orig", "pacbayes_flatness"}
    assert "no noise level was found" in missing["pacbayes_orig"]
    worst = sharpness_measures(network.weights, initial.weights, m=M, alpha=S, alpha_magnitude=level)
    assert set(undefined(worst)) == {"sharpness_mag_init", "sharpness_mag_orig", "sharpness_mag_flatness"}


def test_a_path_norm_beyond_the_range_of_numbers_has_its_adjusted_value():
    found = path_measures(1000.0, m=M, margin=GAMMA)["path_norm"]
    assert found.raw == math.inf
    assert found.adjusted == pytest.approx(math.exp(500) / 10, rel=1e-12)


def test_vc_count():
    assert vc_count(1000, 3) == pytest.approx(3000 * math.log(1000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: norm_measures(LayerNorms((1.0,), (1.0,), None, None, 1), m=0, margin=1.0), "`m` must be the number"),
        (lambda n: pacbayes_measures(n, n[:3], m=9, sigma=S, sigma_magnitude=T), r"`initial` must have the shape"),
        (lambda n: pacbayes_measures(n, n, m=9, sigma=S, sigma_magnitude=T, denominator="w0"), "`denominator` must be"),
        (lambda n: sharpness_measures(n, n[:3], m=9, alpha=S, alpha_magnitude=T), r"of `weights`, got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, message, network):
    with pytest.raises(ValueError, match=message):
        call(network.weights)
