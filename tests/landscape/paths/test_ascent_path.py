"""SAM's ascent path: exact on a quadratic, the spec's oracles elsewhere."""

import pytest
import torch
from problems import F64, o1, o2, o5
from torch.testing import assert_close

from landscape import AbsWeight, AscentStep
from landscape.paths.ascent_path import ascent_path

H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=F64)
g = torch.tensor([0.4, -0.2], dtype=F64)


def test_quadratic_is_its_second_order_prediction():
    found = ascent_path(o5(), AscentStep(0.1))
    values = found.profile.values("own")
    assert_close(values, found.second_order, rtol=0, atol=1e-10)
    e = 0.1 * g / g.norm()
    a = found.coordinates
    assert_close(values, 0.7 + a * float(g @ e) + a**2 * float(e @ H @ e) / 2, rtol=0, atol=1e-12)
    assert_close(found.first_order, 0.7 + a * float(g @ e), rtol=0, atol=1e-12)
    assert found.slope == pytest.approx(float(g @ e), rel=1e-10)
    assert found.curvature == pytest.approx(float(e @ H @ e), rel=1e-10)
    assert found.gradient_norm == pytest.approx(float(g.norm()), rel=1e-12)
    assert_close(found.distance, 0.1 * a, rtol=0, atol=1e-12)
    assert (len(a), float(a[0]), float(a[10]), float(a[-1])) == (31, 0.0, 1.0, 3.0)
    assert float(values[10] - values[0]) == pytest.approx(0.0547213595, abs=1e-9)


@pytest.mark.parametrize(("rho", "rise"), [(0.05, 0.0240709050), (0.5, 0.2853376275)])
def test_softmax_regression(rho, rise):
    found = ascent_path(o1(), AscentStep(rho), coordinates=[0, 1])
    values = found.profile.values("own")
    assert float(values[1] - values[0]) == pytest.approx(rise, abs=1e-9)


def test_tanh_network_and_its_taylor_prediction():
    found = ascent_path(o2((3, 2)), AscentStep(0.05), coordinates=[0, 1])
    assert float(found.profile.values("own").diff()) == pytest.approx(0.0530917717, abs=1e-9)
    assert found.second_order is not None
    assert float(found.second_order[1] - found.second_order[0]) == pytest.approx(0.0531006086, abs=1e-9)
    assert found.profile.table("own").shape == (2, 5)
    assert found.profile.table("own", metric="error").shape == (2, 5)


def test_zero_is_the_model_itself_and_nothing_moves():
    risk = o2()
    before = {name: t.clone() for name, t in risk.theta.items()}
    found = ascent_path(risk, AscentStep(0.2, metric=AbsWeight(0.01)))
    assert float(found.profile.values("own")[0]) == pytest.approx(risk.value(), rel=1e-14)
    for name, t in risk.theta.items():
        assert torch.equal(t, before[name])


def test_several_steps_on_a_quadratic():
    found = ascent_path(o5(), AscentStep(0.05), steps=3)
    w, corners = torch.zeros(2, dtype=F64), [torch.zeros(2, dtype=F64)]
    for _ in range(3):
        slope = g + H @ w
        w = w + 0.05 * slope / slope.norm()
        corners.append(w)
    for j, e in enumerate(corners):
        value = float(found.profile.values("own")[10 * j])
        assert value == pytest.approx(float(0.7 + g @ e + e @ H @ e / 2), abs=1e-12)
        assert float(found.distance[10 * j]) == pytest.approx(float(e.norm()), abs=1e-12)
    halfway = (corners[1] + corners[2]) / 2
    beyond = corners[3] + 2 * (corners[3] - corners[2])
    for at, e in ((15, halfway), (50, beyond)):
        expected = float(0.7 + g @ e + e @ H @ e / 2)
        assert float(found.profile.values("own")[at]) == pytest.approx(expected, abs=1e-12)
        assert float(found.second_order[at]) == pytest.approx(expected, abs=1e-10)
        assert float(found.first_order[at]) == pytest.approx(float(0.7 + g @ e), abs=1e-10)
    assert len(found.steps) == 3
    assert_close(found.lengths, torch.full((3,), 0.05, dtype=F64), rtol=1e-9, atol=0)


def test_other_data_are_seen_from_the_same_path():
    whole = o2()
    x, y = whole.batches[0]
    found = ascent_path(whole.on((x[:2], y[:2])), AscentStep(0.1), others={"train": (x, y)}, coordinates=[0, 1])
    e = AscentStep(0.1)(whole.theta, whole.on((x[:2], y[:2])).gradient())
    moved = {name: t + e[name] for name, t in whole.theta.items()}
    assert float(found.profile.values("train")[1]) == pytest.approx(whole.value(moved), rel=1e-12)
    assert float(found.profile.values("own")[1]) == pytest.approx(whole.on((x[:2], y[:2])).value(moved), rel=1e-12)


def test_first_order_alone_costs_no_hessian():
    found = ascent_path(o2(), AscentStep(0.1), second_order=False)
    assert found.second_order is None
    assert found.curvature is None


def test_bad_arguments():
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        ascent_path(o5(), AscentStep(0.1), steps=0)
    with pytest.raises(ValueError, match="`coordinates` must be at least 0"):
        ascent_path(o5(), AscentStep(0.1), coordinates=[-1.0, 0.0])
    with pytest.raises(ValueError, match="`others` must not use the name 'own'"):
        ascent_path(o5(), AscentStep(0.1), others={"own": None})
    with pytest.raises(ValueError, match=r"displacement of length 0\.0 in step 1"):
        ascent_path(o5(), AscentStep(0.0))
