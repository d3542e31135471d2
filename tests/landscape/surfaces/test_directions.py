"""Directions: statistics of random ones, eigenvectors against dense matrices, gradients, perturbations, differences."""

import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from problems import o1, o2, o5
from torch import nn

from landscape import (
    AbsWeight,
    AscentStep,
    Eigenpairs,
    EmpiricalRisk,
    FilterNorm,
    GaussNewton,
    Hessian,
    ascent_sharpness,
    dense,
    flatten,
    obf_loss,
    random_direction,
    top_eigenpairs,
)
from landscape.surfaces.axes import Axes
from landscape.surfaces.directions import (
    described,
    difference_axis,
    eigen_axes,
    given_axis,
    gradient_axis,
    hessian_axes,
    perturbation_axis,
    random_axes,
    sign_of,
)
from landscape.surfaces.normalisation import filters_of

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def along(axis, theta):
    return flatten({n: axis.direction.get(n, torch.zeros_like(t)) for n, t in theta.items()})


def is_json(axis):
    assert json.loads(json.dumps(axis.recipe, allow_nan=False)) == axis.recipe
    return True


# Random --------------------------------------------------------------------------------------------------------------


def test_random_directions_are_normal_with_mean_zero_and_nearly_orthogonal():
    """Neither all positive nor of mean 1/2, and not orthogonalised: the cosine is about 1/√p, not 0."""
    p = 200_000
    one, two = random_axes({"w": torch.zeros(200, 1000, dtype=F64)}, seeded(), normalise="none")
    v, w = one.direction["w"].flatten(), two.direction["w"].flatten()
    assert abs(float(v.mean())) < 5 / math.sqrt(p)
    assert float(v.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * p))
    assert float((v < 0).double().mean()) == pytest.approx(0.5, abs=2.5 / math.sqrt(p))
    assert float((v**4).mean()) == pytest.approx(3, abs=5 * math.sqrt(96 / p)), "normal, not uniform"
    cosine = float(v @ w / v.norm() / w.norm())
    assert 1e-6 < abs(cosine) < 5 / math.sqrt(p)


def test_cosines_of_random_axes_spread_as_one_over_root_p():
    theta = {"w": torch.ones(8, 8, dtype=F64)}
    g = seeded(1)
    cosines = torch.tensor([float(Axes(theta, random_axes(theta, g)).cosines[0, 1]) for _ in range(300)])
    assert abs(float(cosines.mean())) < 4 / 8 / math.sqrt(300)
    assert float(cosines.std()) == pytest.approx(1 / 8, rel=0.2)


def test_every_filter_of_every_axis_has_the_norm_of_its_weights():
    theta = {
        "fc.weight": random_direction({"w": torch.zeros(5, 7, dtype=F64)}, seeded(3))["w"],
        "fc.bias": torch.ones(5, dtype=F64),
    }
    for axis in random_axes(theta, seeded(), count=3):
        assert list(axis.direction) == ["fc.weight"]
        torch.testing.assert_close(axis.direction["fc.weight"].norm(dim=1), theta["fc.weight"].norm(dim=1))
        assert axis.unit == "filter norms"


def test_the_seed_gives_the_directions_again_and_the_recipe_says_when_it_does_not():
    theta = o2().theta
    g = seeded(7)
    first, second = random_axes(theta, g), random_axes(theta, g)
    again = random_axes(theta, seeded(7))
    assert all(torch.equal(along(a, theta), along(b, theta)) for a, b in zip(first, again, strict=True))
    assert not torch.equal(along(first[0], theta), along(second[0], theta))
    assert [axis.recipe["seed"] for axis in (*first, *second)] == [7] * 4
    assert [axis.recipe["fresh"] for axis in (*first, *second)] == [True, True, False, False]
    assert [axis.name for axis in first] == ["random direction 1", "random direction 2"]
    assert first[0].recipe["dtype"] == "float64"
    assert all(is_json(axis) for axis in first)


def test_one_dimensional_tensors_do_not_change_what_is_drawn_for_the_others():
    theta = o2().theta
    still, moved = random_axes(theta, seeded()), random_axes(theta, seeded(), one_dimensional="as drawn")
    assert torch.equal(still[1].direction["0.weight"], moved[1].direction["0.weight"])
    assert "0.bias" in moved[1].direction


def test_global_random_state_and_weights_stay_as_they_are():
    theta = o2().theta
    state = torch.random.get_rng_state()
    before = {n: t.clone() for n, t in theta.items()}
    random_axes(theta, seeded())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(theta[n], t) for n, t in before.items())


def test_random_directions_show_the_mean_curvature():
    """E dᵀHd/‖d‖² = tr(H)/p, with the variance of uniform directions on the sphere."""
    risk = o2()
    H = dense(Hessian(risk))
    p = len(H)
    g = seeded(5)
    values = []
    for _ in range(400):
        (axis,) = random_axes(risk.theta, g, count=1, normalise="none", one_dimensional="as drawn")
        d = along(axis, risk.theta)
        values.append(float(d @ H @ d / (d @ d)))
    mean, spread = float(H.trace()) / p, math.sqrt(2 * float((H**2).sum() - H.trace() ** 2 / p) / (p * (p + 2)))
    assert sum(values) / 400 == pytest.approx(mean, abs=4 * spread / 20)
    assert torch.tensor(values).std().item() == pytest.approx(spread, rel=0.2)


def test_a_subset_of_parameters_moves_alone():
    theta = o2().theta
    (axis,) = random_axes(theta, seeded(), count=1, parameters="2")
    assert list(axis.direction) == ["2.weight"]
    (axis,) = random_axes(theta, seeded(), count=1, filters=filters_of(nn.Sequential(nn.Linear(2, 3))))
    assert set(axis.direction) == {"0.weight", "2.weight"}


def test_filters_of_zero_norm_are_warned_of_once():
    theta = {"w": torch.tensor([[1.0, 2.0], [0.0, 0.0]])}
    with pytest.warns(RuntimeWarning, match=r"filters of zero norm stand still along the direction: 1 in `w`") as seen:
        axes = random_axes(theta, seeded())
    assert len(seen) == 1
    assert [axis.recipe["still"] for axis in axes] == [{"w": 1}] * 2


def test_bad_random_axes():
    with pytest.raises(ValueError, match=r"`count` must be from 1 to 3 directions, got 0"):
        random_axes(o2().theta, seeded(), count=0)
    with pytest.raises(ValueError, match="`parameters` has 'nowhere'"):
        random_axes(o2().theta, seeded(), parameters="nowhere")
    with pytest.raises(ValueError, match="nothing moves along the direction"):
        random_axes(o2().theta, seeded(), parameters="*.bias")


# Eigenvectors --------------------------------------------------------------------------------------------------------


def test_eigenvectors_of_the_quadratic():
    risk = o5()
    one, two = hessian_axes(Hessian(risk), generator=seeded())
    assert [a.recipe["eigenvalue"] for a in (one, two)] == pytest.approx([3.6180339887, 1.3819660113])
    assert one.name == "Hessian eigenvector, λ = 3.618"
    golden = (1 + math.sqrt(5)) / 2
    expected = torch.tensor([golden, 1.0], dtype=F64) / math.sqrt(1 + golden**2)
    torch.testing.assert_close(one.direction["w"], expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(two.direction["w"], expected.flip(0) * torch.tensor([-1.0, 1.0]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("largest", [0.7566917132, 0.4599952686]),
        ("smallest", [-0.8163976735, -0.6848364056]),
        ("both", [0.7566917132, -0.8163976735]),
    ],
)
def test_eigenvectors_of_an_indefinite_hessian(which, expected):
    risk = o2((3, 2))
    H = dense(Hessian(risk))
    axes = hessian_axes(Hessian(risk), which=which, generator=seeded())
    for axis, value in zip(axes, expected, strict=True):
        v = along(axis, risk.theta)
        assert axis.recipe["eigenvalue"] == pytest.approx(value, abs=1e-9)
        assert float((H @ v - value * v).norm()) < 1e-6
        assert axis.length == pytest.approx(1)
        assert axis.recipe["converged"]
        assert axis.recipe["residual"] < 1e-7
        assert is_json(axis)
    assert abs(float(Axes(risk.theta, axes).cosines[0, 1])) < 1e-6


def test_the_sign_of_an_eigenvector_does_not_depend_on_the_start():
    risk = o2()
    axes = [hessian_axes(Hessian(risk), generator=seeded(s), count=1)[0] for s in range(6)]
    for axis in axes:
        torch.testing.assert_close(along(axis, risk.theta), along(axes[0], risk.theta), rtol=0, atol=1e-6)


def test_the_sign_rule_does_not_let_rounding_choose():
    v = torch.tensor([0.1, 1.0, -1.0], dtype=F64)
    for noise in (1e-9, -1e-9):
        w = v + torch.tensor([0.0, noise, 0.0], dtype=F64)
        assert sign_of(w) == 1.0
        assert sign_of(-w) == -1.0
    assert sign_of(torch.zeros(3)) == 1.0


def test_the_unit_of_curvature_makes_a_second_order_change_of_one_half():
    risk = o5()
    flat = risk.at({"w": risk.theta["w"] - torch.linalg.solve(dense(Hessian(risk)), flatten(risk.gradient()))})
    for axis in hessian_axes(Hessian(flat), scale="curvature", generator=seeded()):
        assert axis.unit == "1/√|λ|"
        point = Axes(flat.theta, (axis,)).at((2.0,))
        assert risk.value(point) - flat.value() == pytest.approx(2.0, rel=1e-9)


def test_axes_of_other_operators_and_of_a_subset():
    risk = o2()
    (axis,) = hessian_axes(GaussNewton(risk, parameters="2"), count=1, generator=seeded())
    assert axis.name.startswith("GaussNewton eigenvector, λ = 0.")
    assert set(axis.direction) == {"2.weight", "2.bias"}
    G = dense(GaussNewton(risk, parameters="2"))
    assert axis.recipe["eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(G)[-1]))
    point = Axes(risk.theta, (axis,)).at((1.0,))
    assert torch.equal(point["0.weight"], risk.theta["0.weight"])


def test_an_iteration_that_did_not_converge_is_told():
    risk = o2()
    with pytest.warns(RuntimeWarning, match="did not reach"):
        (axis,) = hessian_axes(Hessian(risk), count=1, max_products=2, tol=1e-10, generator=seeded())
    assert not axis.recipe["converged"]
    assert axis.recipe["residual"] > 1e-6


def test_bad_eigen_axes():
    risk = o1()
    pairs = top_eigenpairs(Hessian(risk), 2, generator=seeded())
    with pytest.raises(ValueError, match=r"`pairs` has vectors of length 6, `theta` has 2 entries"):
        eigen_axes(pairs, o5().theta)
    with pytest.raises(ValueError, match=r"`indices` must be from 0 to 1, got 2"):
        eigen_axes(pairs, risk.theta, indices=(0, 2))
    without = top_eigenpairs(Hessian(risk), 1, vectors=False, generator=seeded())
    with pytest.raises(ValueError, match=r"`pairs` has no vectors"):
        eigen_axes(without, risk.theta)
    zero = Eigenpairs(torch.zeros(1, dtype=F64), torch.eye(6, 1, dtype=F64), torch.zeros(1), True, 1, "smallest")
    with pytest.raises(ValueError, match=r"'curvature' needs eigenvalues that are not zero"):
        eigen_axes(zero, risk.theta, indices=(0,), scale="curvature")
    with pytest.raises(ValueError, match=r"`count` must be from 1 to 3, and even for which='both', got 3"):
        hessian_axes(Hessian(risk), which="both", count=3, generator=seeded())


# Gradient and perturbations ------------------------------------------------------------------------------------------


def test_the_gradient_axis_is_the_unit_vector_of_steepest_ascent():
    risk = o5()
    axis = gradient_axis(risk)
    torch.testing.assert_close(axis.direction["w"], torch.tensor([2.0, -1.0], dtype=F64) / math.sqrt(5))
    assert axis.recipe["norm"] == pytest.approx(math.hypot(0.4, 0.2))
    assert risk.value(Axes(risk.theta, (axis,)).at((1e-3,))) > risk.value()
    assert is_json(axis)
    flat = EmpiricalRisk(lambda t, x: t["w"].sum() * 0 + x, lambda out, _: out.mean(), risk.batches, risk.theta)
    with pytest.raises(ValueError, match=r"the gradient of `risk` has norm 0"):
        gradient_axis(flat)


@pytest.mark.parametrize(("rho", "rise"), [(0.05, 0.0530917717), (0.2, 0.2191610957)])
def test_coordinate_one_of_sams_axis_is_the_perturbed_point(rho, rise):
    risk = o2((3, 2))
    axis = perturbation_axis(risk, AscentStep(rho))
    axes = Axes(risk.theta, (axis,))
    assert risk.value(axes.at((1.0,))) - risk.value() == pytest.approx(rise, abs=1e-9)
    assert axis.length == pytest.approx(rho)
    assert axis.name == "SAM perturbation"
    assert axis.unit == f"‖ε‖ = {rho:.3g}"
    assert axis.recipe["first_order_rise"] == pytest.approx(rho * 1.0498120379672005)
    assert axis.recipe["perturbation"]["rho"] == rho
    assert is_json(axis)


@pytest.mark.parametrize(
    ("metric", "name"), [(AbsWeight(0.01), "ASAM perturbation"), (FilterNorm(), "ascent perturbation")]
)
def test_adaptive_axes_are_what_the_measure_applies(metric, name):
    risk = o2()
    step = AscentStep(0.3, metric=metric)
    axis = perturbation_axis(risk, step)
    rise = risk.value(Axes(risk.theta, (axis,)).at((1.0,))) - risk.value()
    assert rise == pytest.approx(ascent_sharpness(risk, step).value, rel=1e-12)
    assert axis.name == name
    if isinstance(metric, AbsWeight):  # Kwon et al., eq. 6, written out
        g, T = flatten(risk.gradient()), flatten(risk.theta).abs() + 0.01
        torch.testing.assert_close(along(axis, risk.theta), 0.3 * T**2 * g / (T * g).norm(), rtol=1e-9, atol=0)
        assert axis.recipe["perturbation"]["metric"] == {"kind": "AbsWeight", "eta": 0.01, "scope": "all"}
    assert is_json(axis)


def test_obfs_axis_ascends_its_own_objective_on_a_batch():
    risk = o1()
    x, y = risk.batches[0]
    batch = risk.on((x[:2], y[:2]))
    axis = perturbation_axis(batch, AscentStep(0.1), ascent=partial(obf_loss, C=3, gamma=0.5))
    W = risk.theta["weight"].clone().requires_grad_()
    obf_loss(x[:2] @ W.T, y[:2], C=3, gamma=0.5).backward()
    torch.testing.assert_close(axis.direction["weight"], 0.1 * W.grad / W.grad.norm(), rtol=1e-9, atol=0)
    sam = perturbation_axis(batch, AscentStep(0.1))
    assert float(Axes(risk.theta, (axis, sam)).cosines[0, 1]) < 0.999
    assert axis.name == "OBF perturbation"
    assert axis.recipe["ascent"] == {"kind": "obf_loss", "C": 3, "gamma": 0.5}
    assert axis.recipe["examples"] == 2
    assert is_json(axis)


def test_a_raw_direction_of_ones_own_and_other_names():
    risk = o2()
    raw = random_direction(risk.theta, seeded(2))
    axis = perturbation_axis(risk, AscentStep(0.5), raw=raw)
    torch.testing.assert_close(along(axis, risk.theta), 0.5 * flatten(raw) / flatten(raw).norm(), rtol=1e-9, atol=0)
    assert axis.recipe["first_order_rise"] is None
    assert axis.name == "perturbation"
    assert perturbation_axis(risk, AscentStep(0.5), name="mine").name == "mine"

    def mine(theta, grad):
        return {"2.bias": grad["2.bias"]}

    only = perturbation_axis(risk, mine)
    assert list(only.direction) == ["2.bias"]
    assert only.recipe["perturbation"] == {"kind": "mine"}
    assert perturbation_axis(risk, AscentStep(0.5, p=math.inf)).recipe["perturbation"]["p"] == "inf"


def test_bad_perturbation_axes():
    with pytest.raises(ValueError, match=r"the displacement of `perturbation` has length 0"):
        perturbation_axis(o2(), AscentStep(0.0))
    with pytest.raises(ValueError, match=r"`ascent` and `raw` are two ways"):
        perturbation_axis(o2(), AscentStep(0.1), ascent=obf_loss, raw=o2().theta)


def test_labels_of_perturbations():
    risk = o1()
    assert perturbation_axis(risk, AscentStep(1.0), ascent=obf_loss).name == "OBF perturbation"
    adaptive = AscentStep(1.0, metric=AbsWeight())
    assert perturbation_axis(risk, adaptive, ascent=obf_loss).name == "adaptive OBF perturbation"
    assert perturbation_axis(risk, AscentStep(1.0, p=1), ascent=obf_loss).name == "OBF perturbation, own ball"
    assert perturbation_axis(risk, AscentStep(1.0), ascent=F.cross_entropy).name == "perturbation"
    assert described([1, None, math.nan, AscentStep]) == [1, None, "nan", {"kind": "AscentStep"}]


def test_frozen_parameters_stand_still():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    model[0].requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    x, y = o2().batches[0]
    risk = EmpiricalRisk.from_model(model, F.cross_entropy, (x, y))
    origin = {n: p.detach() for n, p in model.named_parameters()}
    found = [
        gradient_axis(risk),
        perturbation_axis(risk, AscentStep(0.1)),
        *hessian_axes(Hessian(risk), generator=seeded()),
    ]
    for axis in found:
        assert set(axis.direction) == {"2.weight", "2.bias"}
        assert Axes(origin, (axis,)).at((1.0,))["0.weight"] is origin["0.weight"]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# Differences and given directions ------------------------------------------------------------------------------------


def test_a_difference_ends_at_the_other_model():
    g = seeded(1)
    like = {"w": torch.zeros(50, 40), "b": torch.zeros(40), "same": torch.zeros(3)}
    start, end = random_direction(like, g), random_direction(like, g)
    end["same"] = start["same"].clone()
    axis = difference_axis(start, end)
    there = Axes(start, (axis,)).at((1.0,))
    for name, t in end.items():
        torch.testing.assert_close(there[name], t, rtol=0, atol=1e-6)  # rounding at the size of the larger of the two
    assert there["same"] is start["same"]
    assert axis.recipe["length"] == pytest.approx(axis.length)
    assert is_json(axis)


def test_running_statistics_move_along_where_they_are_given():
    one, two = ({"m": torch.tensor([a]), "num": torch.tensor(n)} for a, n in ((1.0, 3), (4.0, 5)))
    theta = {"w": torch.ones(2)}
    axis = difference_axis(theta, {"w": torch.zeros(2)}, buffers=(one, two))
    assert list(axis.buffers) == ["m"]
    assert float(one["m"] + Axes(theta, (axis,)).buffers_at((1.0,))["m"]) == 4.0
    only = difference_axis(theta, theta, buffers=(one, two))
    assert only.length == 0
    assert difference_axis(theta, {"w": torch.zeros(2)}).buffers == {}


def test_bad_differences():
    theta = {"w": torch.ones(2), "b": torch.ones(1)}
    with pytest.raises(ValueError, match=r"`start` and `end` are equal"):
        difference_axis(theta, theta)
    with pytest.raises(ValueError, match=r"`end` does not have the names of the start, such as \['b'\]"):
        difference_axis(theta, {"w": torch.ones(2)})
    with pytest.raises(ValueError, match=r"`end` has `w` of shape \(3,\), the start has \(2,\)"):
        difference_axis(theta, {"w": torch.ones(3), "b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"`w` has entries that are not finite"):
        difference_axis(theta, {"w": torch.tensor([1.0, math.inf]), "b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"`buffers` does not have the names"):
        difference_axis(theta, {"w": torch.zeros(2), "b": torch.ones(1)}, buffers=({"m": torch.ones(1)}, {}))


def test_given_directions():
    theta = o2().theta
    vector = torch.arange(17, dtype=F64)
    axis = given_axis(vector, theta, name="mine", recipe={"from": "a paper"})
    torch.testing.assert_close(along(axis, theta), vector, rtol=0, atol=0)
    assert (axis.name, axis.unit, axis.recipe["from"]) == ("mine", "weights", "a paper")
    part = given_axis({"2.bias": torch.ones(2)}, theta)
    assert list(part.direction) == ["2.bias"]
    assert part.direction["2.bias"].dtype == F64
    scaled = given_axis(vector, theta, normalise="filter", one_dimensional="zero")
    torch.testing.assert_close(scaled.direction["0.weight"].norm(dim=1), theta["0.weight"].norm(dim=1))
    assert scaled.unit == "filter norms"
    assert is_json(scaled)


def test_bad_given_directions():
    theta = o2().theta
    with pytest.raises(ValueError, match=r"`vector` must have 17 entries"):
        given_axis(torch.ones(3, dtype=F64), theta)
    with pytest.raises(ValueError, match=r"`vector` is zero"):
        given_axis(torch.zeros(17, dtype=F64), theta)
    with pytest.raises(ValueError, match=r"`vector` has entries that are not finite, in \['0.weight'\]"):
        given_axis({"0.weight": torch.full((3, 2), math.nan, dtype=F64)}, theta)
    with pytest.raises(ValueError, match=r"`theta` has no such parameter"):
        given_axis({"z": torch.ones(1)}, theta)
