"""Fitted curves: around a planted hill, between two trained networks, and step by step by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.testing import assert_close

from landscape.paths import ModelState, StateEvaluator, barrier, curve_profile, interpolate, summarise
from landscape.paths.curves import Bezier, Polygon
from trainers.runs.connectivity import fit_curve

F64 = torch.float64
DUMMY = (torch.zeros(4, 1, dtype=F64), torch.zeros(4, dtype=F64))


class Valley(nn.Module):
    """L(w) = (‖w‖² - 1)²: a ring of minima around a hill of height 1."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64))

    def forward(self, x):
        return ((self.w.square().sum() - 1) ** 2).expand(len(x))


def mean(out, _):
    return out.mean()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("kind", "bends", "height"), [("bezier", 1, 0.03), ("bezier", 2, 0.03), ("polygon", 3, 0.03)])
def test_a_curve_goes_around_the_hill(kind, bends, height):
    ends = Valley(0.0), Valley(2 * math.pi / 3)
    line = interpolate(ends[0], mean, *ends, {"train": DUMMY}, coordinates=torch.linspace(0, 1, 61))
    assert barrier(line.coordinates, line.table("train")).value == pytest.approx(0.5625, abs=1e-6)
    curve = fit_curve(
        ends[0], mean, *ends, DUMMY, kind=kind, bends=bends, epochs=600, lr=0.03, batch_size=4, generator=generator()
    )
    assert isinstance(curve, Bezier if kind == "bezier" else Polygon)
    found = summarise(curve, curve_profile(curve, StateEvaluator(ends[0], mean, {"train": DUMMY})), subset="train")
    assert found.max.value < height
    assert found.length > found.straight
    assert torch.equal(curve.point(0).parameters["w"], ends[0].w.detach())
    assert torch.equal(curve.point(1).parameters["w"], ends[1].w.detach())


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
def test_two_steps_by_hand(kind):
    """SGD with momentum and weight decay on the bend, the gradient of (‖w‖² - 1)² by its closed form."""
    ends = Valley(0.0), Valley(2.0)
    options = {"epochs": 2, "lr": 0.1, "momentum": 0.5, "weight_decay": 0.01, "schedule": "constant", "batch_size": 9}
    curve = fit_curve(ends[0], mean, *ends, DUMMY, kind=kind, generator=generator(5), **options)
    g = generator(5)
    w1, w2 = (e.w.detach() for e in ends)
    bend, v = (w1 + w2) / 2, torch.zeros(2, dtype=F64)
    for _ in range(2):
        torch.randperm(4, generator=g)
        t = float(torch.rand((), generator=g, dtype=F64))
        if kind == "bezier":
            c = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        else:
            c = (1 - 2 * t, 2 * t, 0.0) if t < 0.5 else (0.0, 2 - 2 * t, 2 * t - 1)
        point = c[0] * w1 + c[1] * bend + c[2] * w2
        slope = 4 * (point @ point - 1) * point
        v = 0.5 * v + c[1] * slope + 0.01 * bend
        bend = bend - 0.1 * v
    assert_close(curve.points[1].parameters["w"], bend, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def digits():
    x, y = (torch.as_tensor(t) for t in load_digits(return_X_y=True))
    return (x[:600] / 16).float(), y[:600]


def train(seed, digits):
    x, y = digits
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)
        )
    optimizer, g = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), generator(seed)
    for _ in range(10):
        for part in torch.randperm(len(x), generator=g).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval()


def test_curve_between_trained_networks_is_below_the_line(digits):
    first, second = train(0, digits), train(1, digits)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (first, second)]
    state = torch.get_rng_state()
    seen = []
    options = {"epochs": 12, "lr": 0.05, "batch_size": 100, "progress": seen.append}
    curve = fit_curve(first, F.cross_entropy, first, second, digits, generator=generator(), **options)
    assert torch.equal(state, torch.get_rng_state())
    for model, old in zip((first, second), before, strict=True):
        for name, t in model.state_dict().items():
            assert torch.equal(t, old[name])
    assert [s.epoch for s in seen] == list(range(1, 13))
    assert seen[-1].loss < seen[0].loss
    evaluate = StateEvaluator(first, F.cross_entropy, {"train": digits}, modes=["recalibrate"])
    bent = summarise(curve, curve_profile(curve, evaluate, points=21), subset="train", mode="recalibrate")
    line = interpolate(
        first, F.cross_entropy, first, second, {"train": digits}, coordinates=bent.coordinates, modes=["recalibrate"]
    )
    assert bent.max.value < 0.5 * float(line.values("train", "recalibrate").max())
    again = fit_curve(first, F.cross_entropy, first, second, digits, generator=generator(), **options)
    for name, t in curve.points[1].parameters.items():
        assert torch.equal(t, again.points[1].parameters[name])


def test_batches_and_frozen_parameters(digits):
    first, second = train(0, digits), train(1, digits)
    first[0].weight.requires_grad_(False)
    x, y = digits
    batches = [(x[:100], y[:100]), (x[100:150], y[100:150])]
    curve = fit_curve(first, F.cross_entropy, first, second, batches, epochs=1, generator=generator())
    assert_close(curve.points[1].parameters["0.weight"], (first[0].weight + second[0].weight).detach() / 2)
    assert not torch.equal(curve.points[1].parameters["3.weight"], (first[3].weight + second[3].weight).detach() / 2)


def test_no_epochs_leave_the_line():
    ends = Valley(0.0), Valley(1.0)
    curve = fit_curve(ends[0], mean, *ends, DUMMY, epochs=0, generator=generator())
    assert_close(curve.points[1].parameters["w"], (ends[0].w + ends[1].w).detach() / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bends": 0}, "`bends` must be at least 1, got 0"),
        ({"epochs": -1}, "`epochs` must be at least 0, got -1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"lr": 0.0}, "`lr` must be finite and above 0, got 0.0"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "`weight_decay` must be finite and at least 0"),
        ({"schedule": "cosine"}, "`schedule` must be 'late' or 'constant'"),
        ({"kind": "spline"}, "`kind` must be 'bezier' or 'polygon'"),
        ({"lr": 1e6, "epochs": 50}, "`lr` = 1000000.0 makes the loss"),
    ],
)
def test_bad_arguments(options, message):
    ends = Valley(0.0), Valley(1.0)
    with pytest.raises(ValueError, match=message):
        fit_curve(ends[0], mean, *ends, DUMMY, generator=generator(), **options)


def test_other_architectures_are_refused():
    other = ModelState({"w": torch.zeros(3, dtype=F64)})
    with pytest.raises(ValueError, match="`start` and `end` are not of the same architecture: parameter 'w'"):
        fit_curve(Valley(0.0), mean, Valley(0.0), other, DUMMY, generator=generator())
    with pytest.raises(ValueError, match=r"`model` has a parameter 'weight' of shape \(1, 1\)"):
        fit_curve(nn.Linear(1, 1), mean, Valley(0.0), Valley(1.0), DUMMY, generator=generator())


def test_running_statistics_play_no_part_in_the_fit(digits):
    first, second = train(0, digits), train(1, digits)
    fits = []
    for mean_of_all in (0.0, 50.0):
        first[1].running_mean.fill_(mean_of_all)
        curve = fit_curve(first, F.cross_entropy, first, second, digits, epochs=1, generator=generator())
        fits.append(curve.points[1].parameters)
    for name, t in fits[0].items():
        assert torch.equal(t, fits[1][name])
