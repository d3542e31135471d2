"""Bezier curves and polygons against their closed forms; summaries against quadrature."""

import itertools
import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torch.testing import assert_close

from landscape.paths.curves import Bezier, Polygon, make_curve, straight_bends
from landscape.paths.profile import PathProfile
from landscape.paths.states import ModelState
from landscape.paths.summary import curve_profile, summarise

F64 = torch.float64


def states(count, generator):
    return tuple(
        ModelState(
            {
                "a": torch.randn(2, 3, generator=generator, dtype=F64),
                "b": torch.randn(4, generator=generator, dtype=F64),
            },
            {"running_mean": torch.randn(2, generator=generator, dtype=F64)},
        )
        for _ in range(count)
    )


def flat(parameters):
    return torch.cat([parameters["a"].reshape(-1), parameters["b"]])


def test_quadratic_bezier_at_a_half(generator):
    w1, bend, w2 = states(3, generator)
    found = flat(Bezier((w1, bend, w2)).point(0.5).parameters)
    expected = 0.25 * flat(w1.parameters) + 0.5 * flat(bend.parameters) + 0.25 * flat(w2.parameters)
    assert_close(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_bezier_of_any_degree_is_de_casteljau(t, generator):
    points = states(5, generator)
    rows = [flat(p.parameters) for p in points]
    while len(rows) > 1:
        rows = [(1 - t) * p + t * q for p, q in itertools.pairwise(rows)]
    assert_close(flat(Bezier(points).point(t).parameters), rows[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
def test_ends_are_the_models_to_the_bit(kind, generator):
    points = states(4, generator)
    curve = make_curve(kind, points)
    for t, end in ((0.0, points[0]), (1.0, points[-1])):
        assert torch.equal(flat(curve.point(t).parameters), flat(end.parameters))
        assert torch.equal(curve.point(t).buffers["running_mean"], end.buffers["running_mean"])


def test_polygon_piece_by_piece(generator):
    points = states(4, generator)
    curve = Polygon(points)
    for i, s in ((0, 0.3), (1, 0.0), (1, 0.5), (2, 0.9)):
        expected = (1 - s) * flat(points[i].parameters) + s * flat(points[i + 1].parameters)
        assert_close(flat(curve.point((i + s) / 3).parameters), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
@pytest.mark.parametrize("t", [0.1, 0.37, 0.8])
def test_velocity_is_the_derivative(kind, t, generator):
    curve, h = make_curve(kind, states(4, generator)), 1e-5
    ahead, behind = (flat(curve.point(t + s * h).parameters) for s in (1, -1))
    assert_close(flat(curve.velocity(t)), (ahead - behind) / (2 * h), rtol=1e-8, atol=1e-8)
    assert curve.speed(t) == pytest.approx(float(flat(curve.velocity(t)).norm()), rel=1e-12)


def test_velocity_at_a_corner_depends_on_the_side(generator):
    points = states(3, generator)
    curve = Polygon(points)
    for side, piece in (("left", 0), ("right", 1)):
        step = flat(points[piece + 1].parameters) - flat(points[piece].parameters)
        assert_close(flat(curve.velocity(0.5, side=side)), 2 * step, rtol=1e-12, atol=1e-12)


def test_bends_on_the_line_give_the_line(generator):
    first, last = states(2, generator)
    for kind in ("bezier", "polygon"):
        curve = make_curve(kind, [first, *straight_bends(first, last, 2), last])
        for t in (0.2, 0.5, 0.9):
            expected = (1 - t) * flat(first.parameters) + t * flat(last.parameters)
            assert_close(flat(curve.point(t).parameters), expected, rtol=1e-12, atol=1e-12)
            mean = (1 - t) * first.buffers["running_mean"] + t * last.buffers["running_mean"]
            assert_close(curve.point(t).buffers["running_mean"], mean, rtol=1e-12, atol=1e-12)
        assert float(curve.arcs(torch.linspace(0, 1, 7, dtype=F64)).sum()) == pytest.approx(curve.straight, rel=1e-12)


def height(state: ModelState) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Two examples, whose mean loss is the squared length of `a`."""
    value = state.parameters["a"].square().sum()
    return {("train", "eval"): {"loss": torch.stack([0.5 * value, 1.5 * value])}}


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
def test_summary_against_quadrature(kind, generator):
    curve = make_curve(kind, states(3, generator))

    def value(t):
        return float(curve.point(t).parameters["a"].square().sum())

    length = quad(curve.speed, 0, 1, points=[0.5])[0]
    integral = quad(lambda t: value(t) * curve.speed(t), 0, 1, points=[0.5])[0] / length
    found = summarise(curve, curve_profile(curve, height, points=801), subset="train")
    assert found.length == pytest.approx(length, rel=1e-5)
    assert found.integral.value == pytest.approx(integral, rel=5e-5)
    assert found.mean.value == pytest.approx(quad(value, 0, 1, points=[0.5])[0], rel=1e-2)
    assert found.length > found.straight


def test_summary_of_61_points(generator):
    curve = make_curve("bezier", states(3, generator))
    grid = curve_profile(curve, height)
    found = summarise(curve, grid, subset="train")
    assert len(found.coordinates) == 61
    values = grid.values("train")
    assert found.max.value == float(values.max())
    assert found.argmax == float(found.coordinates[values.argmax()])
    assert found.min.value == float(values.min())
    assert found.mean.value == pytest.approx(float(values.mean()), rel=1e-14)
    # the two examples are half and one and a half times the mean everywhere: s / √2 is half the value
    assert found.max.stderr == pytest.approx(0.5 * found.max.value, rel=1e-12)
    assert found.integral.stderr == pytest.approx(0.5 * found.integral.value, rel=1e-12)


def test_arcs_of_a_polygon_are_exact_and_weigh_by_length():
    """Pieces of length 1 and 3, travelled in equal times: loss 0 on the first, 1 on the second."""
    points = tuple(ModelState({"a": torch.tensor(v, dtype=F64)}) for v in ([0.0, 0.0], [1.0, 0.0], [1.0, 3.0]))
    curve = Polygon(points)
    where = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=F64)
    table = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0]], dtype=F64)
    found = summarise(curve, PathProfile(where, {("train", "eval"): {"loss": table}}), subset="train")
    assert found.length == pytest.approx(4, rel=1e-14)
    assert found.straight == pytest.approx(math.sqrt(10), rel=1e-14)
    assert found.integral.value == pytest.approx((0.5 * 1.5 + 1.5) / 4, rel=1e-14)
    assert found.mean.value == pytest.approx(0.4, rel=1e-14)


def test_bad_arguments(generator):
    points = states(2, generator)
    with pytest.raises(ValueError, match="`points` must be at least the two ends"):
        Bezier(points[:1])
    with pytest.raises(ValueError, match=r"`t` must be in \[0, 1\].* got 1.5"):
        Bezier(points).point(1.5)
    with pytest.raises(ValueError, match="`points` must be at least 2, the ends, got 1"):
        curve_profile(Bezier(points), height, points=1)
    with pytest.raises(ValueError, match="`point 0` and `point 1` are not of the same architecture"):
        Polygon((points[0], ModelState({"a": torch.zeros(2)})))
    one = PathProfile(torch.zeros(1, dtype=F64), {("train", "eval"): {"loss": torch.zeros(1, 1, dtype=F64)}})
    with pytest.raises(ValueError, match="at least 2 points of the curve, got 1"):
        summarise(Bezier(points), one, subset="train")
