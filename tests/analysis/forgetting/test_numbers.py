"""Numbers of perturbed forgetting worked out apart from this code: OBF's directions, limits, and Fisher's curvature."""

import math

import numpy as np
import pytest
import torch
from forgetting_problems import measure
from problems import F64, o1

from analysis.forgetting.information import output_information
from analysis.forgetting.metrics import Outputs, forgetting_metrics
from analysis.forgetting.providers import OwnPerturbation, raw_direction
from landscape import AscentStep
from landscape.objectives import obf_direction

LOGITS, LABEL = torch.tensor([[2.0, 0.0, -1.0]], dtype=F64), torch.tensor([0])


@pytest.mark.parametrize(
    ("options", "alpha", "direction"),
    [
        ({"C": 1000, "link": "sigmoid"}, 0.9998645292, (-0.5474798932, -0.1665989313, 0.0644283457)),
        ({"C": 1000}, 0.9998146923, (-0.5104903472, 0.2191592952, 0.2913310520)),
        ({"C": -1}, 1.0, (-0.5104614011, 0.2191381339, 0.2913232672)),
        ({"gamma": 1e-12}, 0.0, (-2 / 3, 1 / 3, 1 / 3)),
    ],
    ids=["sigmoid", "softmax", "no chance level", "label to uniform"],
)
def test_directions_of_obf(options, alpha, direction):
    q, weight = obf_direction(LOGITS, LABEL, **options)
    assert float(weight) == pytest.approx(alpha, abs=1e-10)
    np.testing.assert_allclose(q[0].numpy(), direction, rtol=0, atol=1e-10)
    shift = float(q.sum())
    assert (abs(shift) > 0.1) == (options.get("link") == "sigmoid")  # a sigmoid's direction shifts all logits


def test_the_providers_direction_is_obfs_pulled_back():
    risk = o1()
    x, y = risk.batches[0]
    q, _ = obf_direction(risk.outputs(), y, C=1000)
    expected = q.T @ x / len(x)
    found = raw_direction("obf", risk, C=1000.0, gamma=1.0, link="softmax")["weight"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_divergence_tends_to_the_fisher_curvature_along_the_gradient():
    risk = o1()
    g = risk.gradient()["weight"]
    x, _ = risk.batches[0]
    p, z = torch.softmax(risk.outputs(), 1), x @ g.T
    form = ((p * z**2).sum(1) - (p * z).sum(1) ** 2).mean() / (2 * g.square().sum())
    assert float(form) == pytest.approx(0.1952767506, abs=1e-10)
    rho, values = 1e-3, []
    for r in (rho, 2 * rho):
        own = OwnPerturbation("sam", AscentStep(r))
        found = measure(risk, risk.batches[0], providers=["sam"], radii=["own"], own=own, m=None)
        values.append(found["sam", "own", "exposed", "KL"].value / r**2)
    assert 2 * values[0] - values[1] == pytest.approx(float(form), rel=1e-6)  # Richardson: the first order is gone


def test_what_softmax_regression_knows_before():
    risk = o1()
    info = output_information(torch.softmax(risk.outputs(), 1).numpy(), risk.targets().numpy())
    found = [float(v) for v in (info.mi, info.cmi, info.mean_entropy)]
    assert found == pytest.approx([0.0825410249, 0.0121109250, 0.9714010448], abs=1e-10)


def test_hand_table_in_all_its_numbers():
    labels = np.array([0, 0, 1, 1])
    before = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    after = np.array([[0.7, 0.3], [0.45, 0.55], [0.4, 0.6], [0.55, 0.45]])
    ce = [-np.log(t[range(4), labels]).mean() for t in (before, after)]
    assert ce == pytest.approx([0.2990011587, 0.6161289900], abs=1e-10)
    made = [Outputs.from_logits(torch.from_numpy(np.log(t)), labels) for t in (before, after)]
    found = forgetting_metrics(*made, labels)
    assert float(found["dCE"]) == pytest.approx(ce[1] - ce[0], abs=1e-12)
    marginal = [math.log(2) + float(sum(q * math.log(q) for q in t.mean(0))) for t in (before, after)]
    assert marginal == pytest.approx([0.0, 0.0012505214], abs=1e-10)
    assert float(found["F_bias"]) == pytest.approx(marginal[0] - marginal[1], abs=1e-12)
