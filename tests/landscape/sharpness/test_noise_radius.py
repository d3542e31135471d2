"""Radii against the normal distribution, brackets against functions that are known, and boxes by hand."""

import math

import numpy as np
import pytest
import torch
from problems import F64, o5
from scipy.stats import norm as normal
from sharpness_problems import PHI_ROOT, fitted, perceptron, sign_classifier

from landscape import EmpiricalRisk, displaced, random_direction
from landscape.sharpness import noise_radius, worst_case_radius
from landscape.sharpness.noise_radius import bracket, crossing


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("start", [1e-5, 0.1, 0.78, 40.0])
@pytest.mark.parametrize("tol", [1e-2, 1e-11])
def test_bisection_finds_the_root(start, tol):
    asked = []

    def exceeds(s):
        asked.append(s)
        return 1 - normal.cdf(1 / s) > 0.1

    low, high = bracket(exceeds, start=start if start > 1e-4 else 1e-3, tol=tol)
    assert low <= PHI_ROOT + 1e-10
    assert PHI_ROOT - 1e-10 <= high <= low * (1 + tol)
    assert len(asked) == len(set(asked))
    assert len(asked) < (30 if tol > 1e-9 else 60)
    if tol < 1e-9:
        assert math.sqrt(low * high) == pytest.approx(PHI_ROOT, abs=1e-9)


def test_brackets_without_an_end():
    assert bracket(lambda _: True, start=1.0, tol=0.01) == (0.0, 0.0)
    low, high = bracket(lambda _: False, start=1.0, tol=0.01)
    assert (low, high) == (4096.0, math.inf)


@pytest.mark.parametrize("magnitude", [False, True])
def test_noise_that_flips_a_tenth_of_the_signs(magnitude):
    risk = sign_classifier(2.0 if magnitude else 1.0)
    found = noise_radius(risk, magnitude=magnitude, draws=100, generator=seeded())
    assert abs(found.value - PHI_ROOT) < 4 * found.stderr
    expected = 0.3 / math.sqrt(100) / (normal.pdf(1 / PHI_ROOT) / PHI_ROOT**2)  # of the drop, over its slope
    assert found.stderr == pytest.approx(expected, rel=0.35)
    assert found.high <= found.low * 1.01
    assert found.converged
    assert found.draws == 100
    assert found.products == 100 * len(found.drops)
    assert found.drops[found.low] <= 0.1 < found.drops[found.high]


def test_the_drop_is_what_it_says():
    risk = fitted(perceptron())
    found = noise_radius(risk, draws=5, generator=seeded())
    source = seeded()
    seeds = [int(torch.randint(2**62, (1,), generator=source)) for _ in range(5)]
    flat = {"w": torch.cat([t.flatten() for t in risk.theta.values()])}
    errors = []
    for seed in seeds:
        noise = random_direction(flat, seeded(seed))["w"]
        parts = noise.split([t.numel() for t in risk.theta.values()])
        delta = {k: part.view_as(t) for (k, t), part in zip(risk.theta.items(), parts, strict=True)}
        out = risk.outputs(displaced(risk.theta, delta, found.high))
        errors.append(float((out.argmax(1) != risk.targets()).double().mean()))
    assert found.drops[found.high] == pytest.approx(np.mean(errors) - found.base)


def test_common_random_numbers_and_magnitude():
    risk = fitted(perceptron())
    a, b, c = (noise_radius(risk, draws=4, generator=seeded(s)).value for s in (1, 1, 2))
    assert a == b
    assert a != c
    scaled = risk.at({k: 3 * t for k, t in risk.theta.items()})  # ReLU and biases: other functions, but
    bare = fitted(perceptron(bias=False))  # without biases the decisions do not change with the scale
    big = bare.at({k: 3 * t for k, t in bare.theta.items()})
    plain = [noise_radius(r, draws=4, generator=seeded(1)).value for r in (bare, big)]
    assert plain[1] == pytest.approx(3 * plain[0], rel=0.02)
    relative = [noise_radius(r, magnitude=True, eps=0.0, draws=4, generator=seeded(1)).value for r in (bare, big)]
    assert relative[1] == pytest.approx(relative[0], rel=0.02)
    assert noise_radius(scaled, draws=2, generator=seeded()).value > 0


def test_radii_that_do_not_exist():
    risk = sign_classifier(1e-5)
    with pytest.warns(RuntimeWarning, match="the smallest noise tried costs too much accuracy"):
        found = noise_radius(risk, magnitude=True, eps=1.0, draws=8, generator=seeded())
    assert found.value == 0
    assert not found.converged
    wrong = risk.on((torch.ones(1, dtype=F64), torch.zeros(1, dtype=torch.int64)))
    with pytest.warns(RuntimeWarning, match="no noise up to .* costs enough accuracy"):
        found = noise_radius(wrong, draws=2, generator=seeded())
    assert math.isinf(found.value)
    assert not found.converged
    assert math.isnan(noise_radius(fitted(perceptron()), draws=1, generator=seeded()).stderr)


def test_crossing_is_linear_in_the_logarithm():
    radii, drops = [1.0, 2.0, 4.0, 8.0], [0.0, 0.05, 0.15, 0.4]
    assert crossing(radii, drops, 0.1, 1) == pytest.approx(2 * math.sqrt(2))
    assert crossing(radii, drops, 0.1, 3) == pytest.approx(2 * math.sqrt(2))
    assert crossing(radii, drops, 0.1, 0) == pytest.approx(2 * math.sqrt(2))
    assert crossing(radii, drops, 0.5, 1) == 8.0
    assert crossing(radii, drops, -0.1, 1) == 1.0


@pytest.mark.parametrize(("magnitude", "w", "value"), [(False, 1.0, 1.0), (False, 3.0, 3.0), (True, 3.0, 1 - 1e-3 / 3)])
def test_the_box_that_turns_a_sign(magnitude, w, value):
    found = worst_case_radius(sign_classifier(w), magnitude=magnitude, steps=5, tol=1e-4)
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.stderr == 0
    assert found.converged


def test_the_box_of_a_network():
    risk = fitted(perceptron())
    plain = worst_case_radius(risk, steps=5)
    assert plain.drops[plain.low] <= 0.1 < plain.drops[plain.high]
    more = worst_case_radius(risk, steps=10, restarts=1)
    assert more.value <= plain.value * 1.05
    noise = noise_radius(risk, draws=4, generator=seeded())
    assert plain.value < noise.value  # the worst direction is worse than a random one
    bare = fitted(perceptron(bias=False))
    big = bare.at({k: 3 * t for k, t in bare.theta.items()})
    relative = [worst_case_radius(r, magnitude=True, eps=0.0, steps=5).value for r in (bare, big)]
    assert relative[1] == pytest.approx(relative[0], rel=0.3)  # the search follows another loss


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (noise_radius, {"drop": 0.0}, "`drop` must be between 0 and 1, such as 0.1, got 0.0"),
        (noise_radius, {"draws": 0}, "`draws` must be at least 1, got 0"),
        (noise_radius, {"eps": -1.0}, "`eps` must be a finite radius >= 0, got -1.0"),
        (noise_radius, {"tol": 0.0}, "`tol` must be finite and above 0, got 0.0"),
        (worst_case_radius, {"start": math.inf}, "`start` must be finite and above 0, got inf"),
        (worst_case_radius, {"steps": 0}, "`steps` must be at least 1, got 0"),
        (worst_case_radius, {"restarts": -1}, "`restarts` must be at least 0, got -1"),
    ],
)
def test_refused_arguments(call, options, message):
    with pytest.raises(ValueError, match=message):
        call(fitted(perceptron()), **options, generator=seeded())


def test_without_labels_there_is_no_accuracy():
    with pytest.raises(ValueError, match="`risk` has no accuracy"):
        noise_radius(o5(), generator=seeded())
    with pytest.raises(ValueError, match="`risk` has no accuracy"):
        worst_case_radius(o5())


class _Sign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return torch.cat([-x * self.w, x * self.w], dim=1)


def test_the_drop_of_the_worst_case_counts_from_the_error_that_was_there():
    x, y = torch.ones(10, 1, dtype=torch.float64), torch.tensor([1] * 9 + [0])
    risk = EmpiricalRisk.from_model(_Sign(), torch.nn.functional.cross_entropy, (x, y))
    found = worst_case_radius(risk, drop=0.05)  # less than the error at the start
    assert found.base == pytest.approx(0.1)
    assert found.value == pytest.approx(1.0, rel=0.02)  # where w = 1 changes its sign
