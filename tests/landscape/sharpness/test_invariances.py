"""Transformations that leave the function alone: each measure is unchanged where that is claimed, and only there."""

import pytest
import torch
from problems import F64
from sharpness_problems import Normalised, examples, fitted, perceptron, risk_of, transformed
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import AbsWeight, AscentStep, EmpiricalRisk, FilterNorm, TensorNorm
from landscape.sharpness import (
    ascent_sharpness,
    average_sharpness,
    first_order_sharpness,
    fisher_rao_norm,
    gradient_moments,
    keskar_sharpness,
    logit_normalised,
    noise_radius,
    relative_flatness,
    worst_case_sharpness,
)

E = AbsWeight()


def seeded():
    return torch.Generator().manual_seed(0)


def moments(r):
    return gradient_moments(r, elementwise=True)


# measure, transformations that leave it alone; those not named must change it
MEASURES = {
    "one step": (lambda r: ascent_sharpness(r, AscentStep(0.3)).value, "T3 T5"),
    "m = 4": (lambda r: ascent_sharpness(r, AscentStep(0.3), 4).value, "T3 T5"),
    "first order": (lambda r: first_order_sharpness(r, 0.3, 4).value, "T3 T5"),
    "apgd": (lambda r: worst_case_sharpness(r, 0.3, steps=5).value, "T3 T5"),
    "apgd linf": (lambda r: worst_case_sharpness(r, 0.03, norm="linf", steps=5).value, "T3 T5"),
    "adaptive": (lambda r: ascent_sharpness(r, AscentStep(0.3, metric=E)).value, "T1 T1n T5"),
    "adaptive apgd": (lambda r: worst_case_sharpness(r, 0.3, metric=E, steps=5).value, "T1 T1n T5"),
    "adaptive linf": (lambda r: worst_case_sharpness(r, 0.03, norm="linf", metric=E, steps=5).value, "T1 T1n T5"),
    "layerwise": (lambda r: worst_case_sharpness(r, 0.3, metric=TensorNorm(), steps=5).value, "T1 T5"),
    "filterwise": (lambda r: worst_case_sharpness(r, 0.3, metric=FilterNorm(), steps=5).value, "T1 T5"),
    "adaptive, normalised": (
        lambda r: worst_case_sharpness(logit_normalised(r), 0.3, metric=E, steps=5).value,
        "T1 T1n T4 T5",
    ),
    "plain, normalised": (lambda r: worst_case_sharpness(logit_normalised(r), 0.3, steps=5).value, "T3 T5"),
    "keskar": (lambda r: keskar_sharpness(r, 1e-2, steps=5).value, "T5"),
    "relative flatness": (lambda r: relative_flatness(r).value, "T1 T1n T3 T5"),
    "Fisher-Rao": (fisher_rao_norm, "T1 T1n T3 T5"),
    "true Fisher-Rao": (lambda r: fisher_rao_norm(r, kind="true"), "T1 T1n T3 T5"),
    "covariance": (lambda r: moments(r).covariance_trace().value, "T3 T5"),
    "noise scale": (lambda r: moments(r).noise_scale(unbiased=False).value, "T3 T5"),
    "signal to noise": (lambda r: moments(r).signal_to_noise(), "T1 T1n T3 T5"),
}


@pytest.mark.parametrize("which", ["T1", "T1n", "T3", "T4", "T5"])
@pytest.mark.parametrize("name", MEASURES)
def test_unchanged_where_claimed_and_only_there(name, which):
    measure, claims = MEASURES[name]
    model = perceptron()
    before, after = (measure(risk_of(m)) for m in (model, transformed(model, which)))
    if which in claims.split():
        assert after == pytest.approx(before, rel=1e-6)
    else:
        assert abs(after / before - 1) > 1e-3


def test_the_transformations_leave_the_function_alone():
    model = perceptron()
    x, _ = examples()
    for which in ("T1", "T1n", "T5"):
        torch.testing.assert_close(transformed(model, which)(x), model(x), rtol=1e-12, atol=1e-12)
    shift = transformed(model, "T3")(x).softmax(1)
    torch.testing.assert_close(shift, model(x).softmax(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(transformed(model, "T4")(x).argmax(1), model(x).argmax(1))


@pytest.mark.parametrize("name", MEASURES)
def test_weights_in_front_of_a_normalisation(name):
    measure, claims = MEASURES[name]
    before, after = (measure(EmpiricalRisk.from_model(Normalised(c), cross_entropy, examples())) for c in (1.0, 3.0))
    free = "T1" in claims.split()
    assert (after == pytest.approx(before, rel=1e-6)) == (free or name == "relative flatness")


def test_average_sharpness_in_proportion_to_the_weights():
    model = perceptron()
    a, b = risk_of(model), risk_of(transformed(model, "T1n"))
    relative = [average_sharpness(r, 0.1, draws=3, metric=E, generator=seeded()).value for r in (a, b)]
    assert relative[1] == pytest.approx(relative[0], rel=1e-9)
    plain = [average_sharpness(r, 0.1, draws=3, generator=seeded()).value for r in (a, b)]
    assert abs(plain[1] / plain[0] - 1) > 1e-3


def test_noise_radii_under_rescaling():
    model = perceptron(nn.ReLU)
    a, b = fitted(model), fitted(transformed(model, "T1"))
    free = [noise_radius(r, magnitude=True, eps=0.0, draws=4, generator=seeded()).value for r in (a, b)]
    assert free[1] == pytest.approx(free[0], rel=1e-6)
    plain = [noise_radius(r, draws=4, generator=seeded()).value for r in (a, b)]
    assert abs(plain[1] / plain[0] - 1) > 0.02
    assert a.theta["0.weight"].dtype == F64
