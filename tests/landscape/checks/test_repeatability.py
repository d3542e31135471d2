"""Random losses are refused by every measure, and nothing is drawn from the caller's generator on the way."""

import random

import pytest
import torch
from problems import F64, small
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from landscape import (
    AscentStep,
    Hessian,
    ascent_sharpness,
    average_sharpness,
    gradient_moments,
    keskar_sharpness,
    noise_radius,
    relative_flatness,
    worst_case_sharpness,
)
from landscape.evaluate import evaluate
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.grid import Grid
from landscape.surfaces.scan import scan


def source():
    return torch.Generator().manual_seed(0)


def scanned(risk):
    axes = Axes(risk.theta, (Axis({k: torch.ones_like(t) for k, t in risk.theta.items()}, "ones"),))
    return scan(risk, axes, Grid.around(1.0, 3, axes=1))


MEASURES = {
    "ascent": lambda r: ascent_sharpness(r, AscentStep(0.01)),
    "m": lambda r: ascent_sharpness(r, AscentStep(0.01), m=2),
    "average": lambda r: average_sharpness(r, 0.01, generator=source()),
    "apgd": lambda r: worst_case_sharpness(r, 0.01),
    "pgd, m": lambda r: worst_case_sharpness(r, 0.01, 2, method="pgd"),
    "keskar": lambda r: keskar_sharpness(r, dimension=2, generator=source()),
    "radius": lambda r: noise_radius(r, draws=2, generator=source()),
    "flatness": relative_flatness,
    "moments": gradient_moments,
    "scan": scanned,
    "evaluate": evaluate,
    "hessian": Hessian,
}


class Noisy(nn.Module):
    """With noise of one of several sources; all but the last are torch's."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.line, self.kind = nn.Linear(3, 2), kind

    def forward(self, x):
        if self.kind == "input":
            x = x + 0.1 * torch.randn_like(x)
        if self.kind == "dropout":
            x = dropout(x, 0.5, training=True)
        if self.kind == "python":
            x = x * (1 + 0.1 * random.random())
        return self.line(x)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", ["input", "dropout", "python", "loss"])
def test_random_losses_are_refused(measure, kind):
    def noisy(out, y):
        return cross_entropy(out + 0.1 * torch.randn_like(out), y)

    risk = small(Noisy(kind), loss=noisy if kind == "loss" else cross_entropy)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"random|differ between two passes"):
        MEASURES[measure](risk)
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_drawn_seldom_is_found_too():
    """Both passes agree three times in four; that random numbers were drawn tells."""

    class Seldom(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return 2 * out if torch.rand(()) < 0.3 else out

    with torch.random.fork_rng():
        torch.set_rng_state(torch.Generator().manual_seed(4).get_state())
        risk = small(Seldom(3, 2))
        with pytest.raises(ValueError, match="the same examples gave"):
            ascent_sharpness(risk, AscentStep(0.01))


def test_draws_without_effect_are_no_matter():
    class Drawing(nn.Linear):
        def forward(self, x):
            torch.rand(3)
            return super().forward(x)

    assert ascent_sharpness(small(Drawing(3, 2)), AscentStep(0.01)).value > 0


def test_dropout_in_train_mode_is_named_and_its_value_is_one_draw():
    risk = small(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)), mode="train")
    with pytest.raises(ValueError, match=r"the dropout layers \['1'\] are on, because mode='train': use mode='eval'"):
        average_sharpness(risk, 0.01, generator=source())
    with torch.random.fork_rng():
        assert risk.value() != risk.value()


def test_it_is_asked_once():
    calls = []

    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    risk = small(Counting(3, 2).to(F64))
    average_sharpness(risk, 0.01, draws=3, generator=source())
    first = len(calls)
    average_sharpness(risk.at(risk.theta), 0.01, draws=3, generator=source())
    assert len(calls) - first == 7
