"""What other landscape tools get wrong, as tests of ours; and, where they are installed, that they do.

loss-landscapes 3.0.6 steps along its second axis before it evaluates, so that the origin lies between its points (odd
numbers) or off the middle (even), and moves the model itself by additions that round. landscaper 1.3.1 steps by
distance / (steps / 2) but writes linspace coordinates, replaces what is not finite by the mean or the extremes, and
adds random noise to the largest values.
"""

import copy
import importlib.util
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from problems import F64, small
from torch import nn
from torch.testing import assert_close

from landscape.params import dot
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.grid import Grid
from landscape.surfaces.scan import scan


def axes_of(risk, k=2):
    g = torch.Generator().manual_seed(1)
    made = []
    for i in range(k):
        d = {n: torch.randn(t.shape, generator=g, dtype=F64).to(t.dtype) for n, t in risk.theta.items()}
        made.append(Axis(d, f"axis {i}"))
    return Axes(risk.theta, tuple(made))


def trained():
    """A softmax regression at the minimum of its convex risk: nothing around it is lower."""
    risk = small(nn.Linear(3, 2), (12, 3), sizes=(12,))
    theta = {k: 0 * t for k, t in risk.theta.items()}
    x, y = risk.batches[0]
    y = torch.tensor([0, 1] * 6)  # not separable
    risk = risk.on((x, y)).at(theta)
    flat = torch.cat([t.reshape(-1) for t in theta.values()]).requires_grad_()

    def loss():
        return F.cross_entropy(x @ flat[:6].view(2, 3).T + flat[6:], y)

    optimizer = torch.optim.LBFGS([flat], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    found = flat.detach()
    return risk.at({"weight": found[:6].view(2, 3), "bias": found[6:]})


@pytest.mark.parametrize("points", [10, 11])
def test_the_minimum_of_a_convex_risk_is_the_middle_of_its_picture(points):
    risk = trained()
    surface = scan(risk, axes_of(risk), Grid.around(0.5, points, axes=2))
    loss = surface.values["loss"]
    assert surface.centre["loss"][0] == pytest.approx(risk.value(), rel=1e-12)
    assert float(loss.min()) >= surface.centre["loss"][0] - 1e-12
    if points % 2:
        assert int(loss.argmin()) == loss.numel() // 2
    # mirror images about the middle agree to third order; a grid that is off by a step differs to first order
    first_order = (loss - loss.flip(0, 1)).abs().max() / (loss - loss.min()).max()
    assert float(first_order) < 0.6


def test_coordinates_are_where_the_model_was_evaluated():
    risk = trained()
    axes = axes_of(risk)
    surface = scan(risk, axes, Grid.around(0.5, 4, axes=2))
    for i, point in enumerate(surface.grid.points()):
        assert float(surface.values["loss"].reshape(-1)[i]) == pytest.approx(risk.value(axes.at(point)), rel=1e-12)


def test_no_noise_is_added_and_two_scans_agree_to_the_bit():
    risk = trained()
    axes = axes_of(risk)
    one, two = (scan(risk, axes, Grid.around(0.5, 5, axes=2)) for _ in range(2))
    assert torch.equal(one.values["loss"], two.values["loss"])


def test_a_plateau_stays_flat():
    risk = small(nn.Linear(3, 2))
    axes = Axes(risk.theta, (Axis({"bias": torch.ones(2, dtype=F64)}, "the same to all classes"),))
    loss = scan(risk, axes, Grid.around(2.0, 9, axes=1)).values["loss"]
    assert_close(loss, torch.full_like(loss, risk.value()), rtol=1e-12, atol=0)


def test_the_model_is_not_moved_even_by_rounding():
    model = nn.Linear(3, 2)
    risk = small(model, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    scan(risk, axes_of(risk), Grid.around(1e6, 5, axes=2))
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def distance(one, other):
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)))


def peer_problem():
    """A linear model, and a copy of its weights."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2, 0.5], [0.3, 1, -1]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    return model, [p.detach().clone() for p in model.parameters()]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_loss_landscapes_misses_the_middle_and_moves_the_model():
    library = pytest.importorskip("loss_landscapes")
    seen = []

    class Where(library.metrics.Metric):
        def __call__(self, wrapper):
            seen.append([p.detach().clone() for p in wrapper.get_module_parameters().parameters])
            return 0.0

    model, start = peer_problem()
    for steps in (5, 6):
        seen.clear()
        library.random_plane(model, Where(), distance=1, steps=steps, normalization="filter", deepcopy_model=True)
        away = [distance(w, start) for w in seen]
        i, j = divmod(away.index(min(away)), steps)
        assert min(away) > 0.05 if steps == 5 else i != j  # not evaluated at all, or beside the diagonal
    library.random_plane(model, Where(), distance=1, steps=5, normalization="filter")
    assert not all(torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_landscaper_hides_infinities_adds_noise_and_misplaces_points(monkeypatch):
    spec = importlib.util.find_spec("landscaper")
    if spec is None:
        pytest.skip("landscaper is not installed")
    package = types.ModuleType("landscaper")  # its __init__ asks for topology libraries that this needs not
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "landscaper", package)
    compute = importlib.import_module("landscaper.compute").compute_loss_landscape
    model, start = peer_problem()
    g = torch.Generator().manual_seed(0)
    directions = [[torch.randn(p.shape, generator=g) for p in start] for _ in range(2)]
    places = []

    def loss(m, _):
        places.append([p.detach().clone() for p in m.parameters()])
        value = distance(m.parameters(), start) ** 2
        return math.inf if value > 0.05 else value

    found, coordinates = compute(model, None, directions, loss, steps=5, distance=0.1, dim=2, device="cpu")
    again, _ = compute(model, None, directions, loss, steps=5, distance=0.1, dim=2, device="cpu")
    assert math.isfinite(found.max())  # infinite where it matters most
    assert (found != again).any()  # another call, other values
    told = abs(float(coordinates[0][0])) * distance(start, [torch.zeros_like(t) for t in start])
    assert distance(places[2], start) == pytest.approx(0.8 * told, rel=1e-3)  # four fifths of the coordinate


def test_two_random_axes_are_nearly_orthogonal_and_their_cosine_is_reported():
    risk = small(nn.Linear(40, 30), (6, 40), 30)
    axes = axes_of(risk)
    surface = scan(risk, axes, Grid.around(1.0, 3, axes=2))
    cosine = dot(axes.axes[0].direction, axes.axes[1].direction) / (axes.axes[0].length * axes.axes[1].length)
    assert float(surface.cosines[0, 1]) == pytest.approx(cosine, rel=1e-12)
    assert abs(cosine) < 4 / math.sqrt(1230)
