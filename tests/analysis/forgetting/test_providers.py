import math

import pytest
import torch
from problems import o1, o2
from torch.testing import assert_close

from analysis.forgetting.providers import (
    PROVIDERS,
    OwnPerturbation,
    check_provider,
    provider_options,
    raw_direction,
    unit_direction,
)
from analysis.forgetting.radii import iso_loss_radius
from landscape import AbsWeight, AscentStep, flatten, norm

W = torch.tensor([0.5, -0.25, 0.0, 0.75, -0.5, 0.25], dtype=torch.float64)
G = torch.tensor([-0.0587336368, 0.1476853143, 0.3053688016, -0.2006592694, -0.2466351648, 0.0529739551]).double()


def displacement(name, rho, **options):
    risk = o1()
    raw = raw_direction(PROVIDERS[name].objective, risk, generator=torch.Generator().manual_seed(3), **options)
    return flatten(PROVIDERS[name].step(rho)(risk.theta, raw))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sam", 0.5 * G / G.norm()),
        ("asam", 0.5 * W**2 * G / (W * G).norm()),
        ("asam_before", 0.5 * W.abs() * G / (W * G).norm()),
        ("asam_after", 0.5 * W.abs() * G / G.norm()),
        ("zero", torch.zeros(6, dtype=torch.float64)),
    ],
)
def test_displacements_on_softmax_regression(name, expected):
    assert_close(displacement(name, 0.5), expected, rtol=0, atol=1e-8)  # the gradient is written to 10 digits


@pytest.mark.parametrize(
    ("name", "length"), [("sam", 0.5), ("asam_before", 0.5), ("asam_after", 0.2127), ("asam", 0.3235147939)]
)
def test_lengths_of_the_adaptive_versions_differ(name, length):
    assert float(displacement(name, 0.5).norm()) == pytest.approx(length, abs=5e-5)


def test_random_directions_have_the_radius_and_the_adaptive_one_spares_zero_weights():
    plain, adaptive = displacement("random", 0.5), displacement("random_adaptive", 0.5)
    for delta in (plain, adaptive):
        assert float(delta.norm()) == pytest.approx(0.5, abs=1e-12)
    assert plain[2] != 0
    assert adaptive[2] == 0
    ratio = adaptive / (plain * W.abs())
    assert_close(ratio[[0, 1, 3, 4, 5]], ratio[0].expand(5), rtol=1e-12, atol=0)


def test_obf_at_gamma_zero_pushes_the_true_logit_down_and_the_others_up():
    risk = o1()
    ((x, y),) = risk.batches
    q = torch.full((4, 3), 1 / 3, dtype=torch.float64) - torch.nn.functional.one_hot(y, 3)
    raw = raw_direction("obf", risk, gamma=0.0)
    assert_close(flatten(raw), (q.T @ x / 4).flatten(), rtol=1e-12, atol=1e-14)


def test_obf_takes_its_options():
    a, b = (flatten(raw_direction("obf", o1(), **o)) for o in ({"C": -1.0}, {"C": -1.0, "link": "sigmoid"}))
    assert float((a - b).norm()) > 1e-3


def test_unit_direction_has_length_one_and_tells_what_one_unit_of_rho_is():
    risk = o1()
    step = PROVIDERS["asam"].step(1.0)
    unit, per_rho = unit_direction(step, risk.theta, risk.gradient())
    assert float(norm(unit)) == pytest.approx(1.0, abs=1e-14)
    assert per_rho == pytest.approx(2 * 0.3235147939, abs=1e-9)
    zero, none = unit_direction(step, risk.theta, {"weight": torch.full((3, 2), math.nan, dtype=torch.float64)})
    assert none == 0.0
    assert not zero["weight"].any()


def test_eta_enters_the_metric():
    assert PROVIDERS["asam"].step(0.5, eta=0.01).metric == AbsWeight(0.01)
    assert PROVIDERS["sam"].step(0.5, eta=0.01) == AscentStep(0.5)
    options = {"C": None, "gamma": 0.5, "link": "softmax", "eta": 0.1}
    assert provider_options("asam", **options) == {"eta": 0.1, "scope": "all"}
    assert provider_options("obf", **options) == {"C": None, "gamma": 0.5, "link": "softmax"}
    assert provider_options("sam", **options) == {}


@pytest.mark.parametrize("start", [1e-4, 0.3, 50.0])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_iso_loss_radius_of_a_power_takes_few_evaluations(power, start):
    calls = []

    def rise(r):
        calls.append(r)
        return 0.7 * r**power

    radius = iso_loss_radius(rise, 0.1, start=start, smallest=1e-6, largest=1e3)
    assert radius is not None
    assert 0.7 * radius**power == pytest.approx(0.1, rel=1e-3)
    assert len(calls) <= 3 + abs(math.log2(radius / start)) + 1


@pytest.mark.parametrize(
    "rise",
    [
        lambda r: math.expm1(r) - 3 * r if r < 5 else math.inf,  # falls first, then rises beyond float range
        lambda r: 0.2 * r / (1 + r),  # saturates at twice the target
        lambda r: 0.1 * r + 5 * max(r - 0.9, 0) ** 4,
        lambda r: math.nan if r > 20 else r * r - 0.5 * r,
    ],
    ids=["dips", "saturates", "kink", "nan far out"],
)
def test_iso_loss_radius_of_awkward_curves(rise):
    radius = iso_loss_radius(rise, 0.1, start=0.05, smallest=1e-6, largest=100.0)
    assert radius is not None
    assert rise(radius) == pytest.approx(0.1, rel=1.001e-3)


def test_iso_loss_radius_comes_back_from_where_the_loss_is_not_a_number():
    radius = iso_loss_radius(lambda r: math.nan if r > 20 else r, 0.1, start=50.0, smallest=1e-6, largest=100.0)
    assert radius == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    "rise",
    [lambda r: -r, lambda r: r * 0 + 0.05, lambda r: r * 0 + 1.0, lambda r: r * math.nan, lambda r: float(r > 1.7)],
    ids=["falls", "too low", "too high", "nan", "jumps"],
)
def test_iso_loss_radius_gives_up(rise):
    assert iso_loss_radius(rise, 0.1, start=0.05, smallest=1e-6, largest=100.0) is None


def test_directions_leave_the_risk_alone():
    risk = o2()
    before = {k: t.clone() for k, t in risk.theta.items()}
    state = torch.get_rng_state()
    for name, provider in PROVIDERS.items():
        raw = raw_direction(
            provider.objective, risk, radius=0.1, initial=risk.theta, last_update=risk.theta,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert list(raw) == risk.names, name
        unit_direction(provider.step(1.0), risk.theta, raw)
    for k, t in risk.theta.items():
        assert torch.equal(t, before[k])
        assert t.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_provider("sgd"), "`providers` has no 'sgd'; choose from sam, asam"),
        (lambda: OwnPerturbation("adam", AscentStep(0.1)), "`providers` has no 'adam'"),
        (lambda: raw_direction("obf", o1(), C=0.5), "`C` must be above 1"),
        (lambda: PROVIDERS["asam"].step(-1.0), "`rho` must be a finite radius >= 0, got -1.0"),
        (
            lambda: iso_loss_radius(float, 0.0, start=1, smallest=0.1, largest=2),
            "`target` must be a finite rise .* 0.0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
