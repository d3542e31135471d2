"""Several points at once: the same numbers as one at a time, and when."""

import math

import pytest
import torch
import torch.nn.functional as F
from problems import F64, case, small
from torch import nn
from torch.testing import assert_close

from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.batched import stacked, usual_points
from landscape.surfaces.grid import Grid
from landscape.surfaces.scan import Scanner, scan


def axes_of(risk, k=2, only=None):
    g = torch.Generator().manual_seed(4)
    made = []
    for i in range(k):
        d = {n: torch.randn(t.shape, generator=g, dtype=F64).to(t.dtype) for n, t in risk.theta.items()}
        made.append(Axis({n: t for n, t in d.items() if only is None or only in n}, f"axis {i}"))
    return Axes(risk.theta, tuple(made))


@pytest.mark.parametrize(
    "name", ["conv:eval", "conv:batch", "sdpa:causal", "padded", "encoder", "tied", "returns:dict"]
)
@pytest.mark.parametrize("only", [None, "bias"])
def test_values_and_errors_agree_to_rounding_in_float64(name, only):
    risk = case(name).risk()
    axes, grid = axes_of(risk, only=only), Grid.around(0.7, 4, axes=2)
    one, many = (scan(risk, axes, grid, batch_points=k) for k in (1, 5))
    assert (one.context["batch_points"], many.context["batch_points"]) == (1, 5)
    for metric in one.values:
        assert_close(many.values[metric], one.values[metric], rtol=1e-12, atol=1e-12)
        assert_close(many.stderr[metric], one.stderr[metric], rtol=1e-10, atol=1e-12)


def test_stacked_weights_are_the_axes_points():
    risk = small(nn.Linear(3, 2))
    axes = axes_of(risk, only="weight")
    points = [(0.5, -1.0), (2.0, 0.25)]
    made = stacked(axes, points, pad=4)
    assert list(made) == ["weight"]
    expected = torch.stack([axes.at(p)["weight"] for p in (*points, points[1], points[1])])
    assert_close(made["weight"], expected, rtol=1e-14, atol=1e-14)


def test_a_block_does_not_depend_on_what_fills_it_up():
    risk = small(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), dtype=torch.float32)
    scanner = Scanner(risk, axes_of(risk), batch_points=8)
    points = list(Grid.around(1.0, 3, axes=2).points())
    whole, part = scanner.evaluate(points)["loss"][0], scanner.evaluate(points[:3])["loss"][0]
    assert torch.equal(whole[:3], part)
    assert len(whole) == 9


@pytest.mark.filterwarnings("ignore:RNN module weights:UserWarning")
@pytest.mark.parametrize("name", ["recurrent:lstm", "conv:recalibrate"])
def test_models_that_cannot_be_vmapped_are_evaluated_one_at_a_time_and_say_so(name):
    risk = case(name).risk()
    scanner = Scanner(risk, axes_of(risk), batch_points=4)
    assert scanner.batch_points == 1
    assert scanner.notes[-1].startswith("one point at a time: ")
    assert scanner.notes == scanner.context["notes"]


class Counting(nn.Linear):
    """Changes a buffer of its own at each call."""

    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Branching(nn.Linear):
    def forward(self, x):
        out = super().forward(x)
        return out if out.sum() > 0 else 2 * out


class Mistaken(nn.Linear):
    """Gives other values inside vmap."""

    def forward(self, x):
        out = super().forward(x)
        return 2 * out if torch._C._functorch.maybe_current_level() is not None else out


@pytest.mark.parametrize("model", [Branching, Mistaken])
def test_branches_and_wrong_values_are_found_out(model):
    risk = small(model(3, 2))
    axes = axes_of(risk)
    scanner = Scanner(risk, axes, batch_points=4)
    assert scanner.batch_points == 1
    values, _ = scanner.evaluate([(0.3, 0.4), (-0.3, 0.2)])["loss"]
    assert_close(values, torch.tensor([risk.value(axes.at(p)) for p in [(0.3, 0.4), (-0.3, 0.2)]], dtype=F64))


def test_a_models_own_counter_is_not_the_callers():
    model = Counting()
    risk = small(model)
    scan(risk, axes_of(risk), Grid.around(1.0, 3, axes=2))
    assert int(model.calls) == 0


def test_settings_are_as_they_were():
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    risk = case("encoder").risk()
    Scanner(risk, axes_of(risk), batch_points=4).centre()
    assert before == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())


@pytest.mark.parametrize(
    ("parameters", "examples", "activation", "points"),
    [
        (1000, 64, 256, 64),  # 4 + 16 KiB a point: more than 64 fit into 4 MiB
        (25_000, 64, 512, 16),  # 98 + 32 KiB: 32 do not fit
        (200_000, 64, 512, 4),
        (270_000, 64, 512, 1),  # 3 would fit
        (1000, 512, 65_536, 1),  # a residual network
        (1000, 64, 0, 1),
    ],
)
def test_how_many_points_is_a_matter_of_sizes_alone(parameters, examples, activation, points):
    theta = {"w": torch.zeros(parameters)}
    axes = Axes(theta, (Axis({"w": torch.ones(parameters)}, "ones"),))
    assert usual_points(axes, examples=examples, activation=activation) == points


def test_small_networks_are_evaluated_many_points_at_once_unasked():
    risk = small(nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2)), dtype=torch.float32)
    axes = axes_of(risk)
    assert Scanner(risk, axes).batch_points == 64
    assert Scanner(risk, axes).bytes > 64 * 2 * 4 * 50
    many, one = (Scanner(risk, axes, batch_points=k).evaluate([(0.3, 0.1)])["loss"] for k in ("auto", 1))
    assert_close(many, one, rtol=1e-5, atol=1e-6)
    assert not math.isnan(float(many[1]))
    assert float(one[0]) == pytest.approx(
        float(F.cross_entropy(risk.outputs(axes.at((0.3, 0.1))), risk.targets())), rel=1e-5
    )
