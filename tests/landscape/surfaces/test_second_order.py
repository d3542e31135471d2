"""The second-order model of a slice: exact on quadratics, against dense matrices, and what it says a slice shows."""

import math

import pytest
import torch
import torch.nn.functional as F
from problems import case, o1, o2, o5
from torch import nn

from landscape import EmpiricalRisk, Estimate, GaussNewton, Hessian, dense, flatten, random_direction
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.directions import difference_axis, gradient_axis, hessian_axes, random_axes
from landscape.surfaces.grid import Grid
from landscape.surfaces.second_order import second_order

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic(p=12):
    """L(w) = 0.3 + gᵀw + wᵀAw/2 with an indefinite A, in two tensors."""
    g = seeded(8)
    A = torch.randn(p, p, generator=g, dtype=F64)
    A, b = (A + A.T) / 2, torch.randn(p, generator=g, dtype=F64)
    theta = {"u": torch.randn(4, generator=g, dtype=F64), "v": torch.randn(p - 4, generator=g, dtype=F64)}

    def predict(t, x):
        w = torch.cat([t["u"], t["v"]])
        return (0.3 + b @ w + w @ A @ w / 2).expand(len(x))

    return EmpiricalRisk(predict, lambda out, _: out.mean(), [(torch.zeros(1), torch.zeros(1))], theta), A


def arbitrary_axes(theta, k, seed=0):
    g = seeded(seed)
    return Axes(theta, tuple(Axis(random_direction(theta, g), f"axis {i}") for i in range(k)))


def matrix(axes, risk):
    columns = [
        flatten({n: a.direction.get(n, torch.zeros_like(t)) for n, t in risk.theta.items()}, risk.names)
        for a in axes.axes
    ]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_on_a_quadratic_the_whole_grid_is_exact(k):
    risk, _ = quadratic()
    axes = arbitrary_axes(risk.theta, k)
    found = second_order(risk, axes)
    grid = Grid.around(2.0, [7, 6, 5][:k], axes=k)
    exact = torch.tensor([risk.value(axes.at(point)) for point in grid.points()], dtype=F64).reshape(grid.shape)
    predicted = found.predict(grid)
    assert predicted.shape == grid.shape
    torch.testing.assert_close(predicted, exact, rtol=1e-10, atol=1e-10)
    assert found.products == k
    assert found.asymmetry < 1e-12
    assert float(found.predict([0.0] * k)) == found.value == risk.value()
    assert found.note == ""


@pytest.mark.parametrize("sizes", [(5,), (3, 2)])
def test_against_the_dense_hessian_whatever_the_batches(sizes):
    risk = o2(sizes)
    axes = arbitrary_axes(risk.theta, 2)
    D, H = matrix(axes, risk), dense(Hessian(o2()))
    found = second_order(risk, axes)
    torch.testing.assert_close(found.slope, D.T @ flatten(risk.gradient()), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.curvature, D.T @ H @ D, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.gram, D.T @ D, rtol=1e-12, atol=0)
    alone = torch.stack([d @ H @ d / (d @ d) for d in D.T])
    torch.testing.assert_close(found.directional, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("problem", "expected"), [(o1, 0.3905535011793198), (o2, 0.48800538688768463)])
def test_curvature_along_the_gradient(problem, expected):
    risk = problem()
    found = second_order(risk, Axes(risk.theta, (gradient_axis(risk),)))
    assert float(found.directional[0]) == pytest.approx(expected, rel=1e-10)
    assert float(found.slope[0]) == pytest.approx(float(flatten(risk.gradient()).norm()), rel=1e-12)


def test_the_prediction_is_of_third_order_near_the_origin():
    risk = o2()
    axes = arbitrary_axes(risk.theta, 2)
    found = second_order(risk, axes)
    errors = [abs(risk.value(axes.at((h, -h))) - float(found.predict((h, -h)))) for h in (1e-2, 1e-3)]
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.1)


def test_forms_of_coordinates():
    risk = o2()
    found = second_order(risk, arbitrary_axes(risk.theta, 2))
    one = found.predict((0.3, 0.5))
    assert one.shape == ()
    many = found.predict(torch.tensor([[0.3, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(many[0], one, rtol=1e-6, atol=0)
    assert many.dtype == F64
    assert found.predict(torch.zeros(4, 3, 2)).shape == (4, 3)
    with pytest.raises(ValueError, match=r"`where` must have 2 coordinates a point, one an axis, got shape \(3,\)"):
        found.predict((1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"`where` must have 2 coordinates"):
        found.predict(Grid.around(1.0, 3, axes=1))


# What a slice shows --------------------------------------------------------------------------------------------------


def test_principal_curvatures_are_those_of_the_slice_whatever_its_axes():
    risk = o2()
    axes = arbitrary_axes(risk.theta, 3)
    D, H = matrix(axes, risk), dense(Hessian(risk))
    Q = torch.linalg.qr(D).Q
    expected = torch.linalg.eigvalsh(Q.T @ H @ Q).flip(0)
    found = second_order(risk, axes)
    torch.testing.assert_close(found.principal, expected, rtol=1e-9, atol=1e-12)
    mixed = D @ torch.tensor([[1.0, 40.0, 0.0], [0.3, 1.0, 0.001], [0.0, 2.0, 1.0]], dtype=F64)
    like = risk.theta
    names = list(like)
    others = []
    for column in mixed.T:
        parts = column.split([t.numel() for t in like.values()])
        others.append(Axis({n: c.view_as(like[n]) for n, c in zip(names, parts, strict=True)}, "mixed"))
    torch.testing.assert_close(second_order(risk, Axes(like, tuple(others))).principal, expected, rtol=1e-7, atol=1e-9)
    eigenvalues = torch.linalg.eigvalsh(H)
    assert float(eigenvalues[0]) - 1e-12 <= float(found.principal[-1])
    assert float(found.principal[0]) <= float(eigenvalues[-1]) + 1e-12
    assert float((found.directional - expected).abs().max()) > 1e-3, "which those along the axes are not"


def test_a_plane_of_eigenvectors_has_ellipses_of_the_right_shape():
    risk = o5()
    axes = Axes(risk.theta, hessian_axes(Hessian(risk), generator=seeded()))
    found = second_order(risk, axes)
    torch.testing.assert_close(found.principal, torch.tensor([3.6180339887, 1.3819660113], dtype=F64))
    assert found.axis_ratio == pytest.approx((1 + math.sqrt(5)) / 2)
    assert abs(float(found.curvature[0, 1])) < 1e-8
    shown = found.shown(lambda_max=3.6180339887, trace=5.0, p=2)
    assert (shown.largest, shown.trace, shown.over_random) == pytest.approx((1.0, 1.0, 1.0))
    assert (shown.trace_stderr, shown.over_random_stderr) == (0.0, 0.0)


def test_the_axis_ratio_is_that_of_weight_space_not_of_stretched_coordinates():
    risk = o5()
    one, two = hessian_axes(Hessian(risk), generator=seeded(), scale="curvature")
    assert second_order(risk, Axes(risk.theta, (one, two))).axis_ratio == pytest.approx((1 + math.sqrt(5)) / 2)


def test_there_is_no_ellipse_on_a_saddle_or_a_line():
    risk = o2()
    saddle = Axes(risk.theta, hessian_axes(Hessian(risk), which="both", generator=seeded()))
    assert math.isnan(second_order(risk, saddle).axis_ratio)
    assert math.isnan(second_order(risk, arbitrary_axes(risk.theta, 1)).axis_ratio)


def test_shares_carry_the_error_of_the_trace():
    risk = o2()
    found = second_order(risk, Axes(risk.theta, random_axes(risk.theta, seeded(), normalise="none")))
    inside = float(found.principal.sum())
    shown = found.shown(lambda_max=0.7566917132, trace=Estimate(-0.5, 0.1, 20), p=17)
    assert shown.largest == pytest.approx(float(found.principal[0]) / 0.7566917132)
    assert shown.largest < 1
    assert shown.trace == pytest.approx(inside / -0.5)
    assert shown.trace_stderr == pytest.approx(abs(inside) / 0.5 * 0.2)
    assert shown.over_random == pytest.approx(inside / 2 / (-0.5 / 17))
    assert shown.over_random_stderr == pytest.approx(abs(shown.over_random) * 0.2)
    nothing = found.shown()
    assert all(math.isnan(v) for v in (nothing.largest, nothing.trace, nothing.trace_stderr, nothing.over_random))
    with pytest.raises(ValueError, match=r"`lambda_max` must be above 0"):
        found.shown(lambda_max=-1.0)
    with pytest.raises(ValueError, match=r"`p` must be a number of parameters of at least 1"):
        found.shown(trace=1.0, p=0)


# Other operators, subsets, bad input ---------------------------------------------------------------------------------


def test_an_operator_made_before_is_used():
    risk = o2()
    axes = arbitrary_axes(risk.theta, 2)
    H = Hessian(risk)
    torch.testing.assert_close(second_order(risk, axes, operator=H).curvature, second_order(risk, axes).curvature)
    G = GaussNewton(risk)
    D = matrix(axes, risk)
    torch.testing.assert_close(second_order(risk, axes, operator=G).curvature, D.T @ dense(G) @ D)
    with pytest.raises(ValueError, match=r"`operator` was made at another point than the origin of `axes`"):
        second_order(risk, arbitrary_axes({n: t + 1 for n, t in risk.theta.items()}, 1), operator=H)
    with pytest.raises(ValueError, match=r"`operator` differentiates by 2 parameters, `risk` by 4"):
        second_order(risk, axes, operator=Hessian(risk, parameters="2"))


def test_the_origin_counts_and_not_the_risks_own_point():
    risk, A = quadratic()
    origin = {n: t + 1 for n, t in risk.theta.items()}
    axes = arbitrary_axes(origin, 2)
    found = second_order(risk, axes)
    assert found.value == pytest.approx(risk.value(origin))
    assert float(found.predict((0.4, 2.0))) == pytest.approx(risk.value(axes.at((0.4, 2.0))), rel=1e-10)
    D = matrix(axes, risk)
    torch.testing.assert_close(found.curvature, D.T @ A @ D)


def test_axes_of_a_few_parameters_and_of_an_origin_with_frozen_ones():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    model[0].requires_grad_(False)
    risk = EmpiricalRisk.from_model(model, F.cross_entropy, o2().batches)
    origin = {n: p.detach() for n, p in model.named_parameters()}
    axes = Axes(origin, (Axis({"2.bias": torch.tensor([1.0, 2.0], dtype=F64)}, "bias"),))
    d = torch.tensor([0.0] * 6 + [1.0, 2.0], dtype=F64)
    H = dense(Hessian(risk))
    assert float(second_order(risk, axes).curvature) == pytest.approx(float(d @ H @ d), rel=1e-10)
    foreign = Axes(origin, (Axis({"0.bias": torch.ones(3, dtype=F64)}, "frozen"),))
    with pytest.raises(ValueError, match=r"axis 'frozen' moves \['0.bias'\], which `risk` does not differentiate by"):
        second_order(risk, foreign)
    part = {n: t for n, t in origin.items() if n != "2.bias"}
    lacking = Axes(part, (Axis({"2.weight": torch.ones(2, 3, dtype=F64)}, "w"),))
    with pytest.raises(ValueError, match=r"`axes` has an origin without the parameters \['2.bias'\]"):
        second_order(risk, lacking)


def test_statistics_that_move_are_noted():
    risk = o2()
    end = {n: t + 1 for n, t in risk.theta.items()}
    moved = difference_axis(risk.theta, end, buffers=({"m": torch.zeros(1)}, {"m": torch.ones(1)}))
    assert "held at those of the origin" in second_order(risk, Axes(risk.theta, (moved,))).note


def test_dependent_axes_have_no_principal_curvatures():
    risk = o2()
    (axis,) = arbitrary_axes(risk.theta, 1).axes
    found = second_order(risk, Axes(risk.theta, (axis, axis)))
    with pytest.raises(ValueError, match="the axes are linearly dependent"):
        _ = found.principal


@pytest.mark.parametrize("name", ["sdpa:causal", "recurrent:gru", "tied", "conv:batch"])
def test_models_of_every_kind(name):
    """Against central differences of the loss along the axes."""
    risk = case(name).risk()
    axes = arbitrary_axes(risk.theta, 2)
    found = second_order(risk, axes)
    h = 1e-4
    f = {(i, j): risk.value(axes.at((i * h, j * h))) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    slope = torch.tensor([(f[1, 0] - f[-1, 0]) / (2 * h), (f[0, 1] - f[0, -1]) / (2 * h)], dtype=F64)
    mixed = (f[1, 1] - f[1, -1] - f[-1, 1] + f[-1, -1]) / (4 * h * h)
    own = [(f[1, 0] - 2 * f[0, 0] + f[-1, 0]) / h**2, (f[0, 1] - 2 * f[0, 0] + f[0, -1]) / h**2]
    curvature = torch.tensor([[own[0], mixed], [mixed, own[1]]], dtype=F64)
    torch.testing.assert_close(found.slope, slope, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.curvature, curvature, rtol=1e-4, atol=1e-4)
