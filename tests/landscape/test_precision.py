"""Measures are in the parameters' own precision, whatever autocast is around the call."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape as ls


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def risk() -> ls.EmpiricalRisk:
    source = seeded()
    x, y = torch.randn(24, 4, generator=source), torch.randint(3, (24,), generator=source)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source))
    return ls.EmpiricalRisk.from_model(model, F.cross_entropy, (x, y))


def curvature() -> ls.GaussNewton:
    return ls.GaussNewton(risk())


def plane() -> ls.Axes:
    theta = risk().theta
    return ls.Axes(theta, ls.random_axes(theta, generator=seeded()))


MEASURES = {
    "eigenpairs": lambda: ls.top_eigenpairs(ls.Hessian(risk()), k=2, generator=seeded()).values,
    "trace": lambda: ls.trace(curvature(), generator=seeded()).value,
    "diagonal": lambda: ls.diagonal(curvature(), draws=8, generator=seeded()).value,
    "Frobenius norm": lambda: ls.frobenius_squared(curvature(), generator=seeded()).value,
    "density": lambda: ls.spectral_density(curvature(), generator=seeded()).average(torch.square).value,
    "log-determinant": lambda: ls.log_determinant(curvature(), 1.0, generator=seeded()).value,
    "effective dimension": lambda: ls.effective_dimension(curvature(), 1.0, generator=seeded()).value,
    "relative flatness": lambda: ls.relative_flatness(risk(), "2.weight").value,
    "Fisher-Rao norm": lambda: ls.fisher_rao_norm(risk()),
    "worst case": lambda: ls.worst_case_sharpness(risk(), 0.1, generator=seeded()).value,
    "second order": lambda: ls.second_order(risk(), plane()).curvature,
    "axes": lambda: plane().gram,
}


@pytest.mark.parametrize("name", MEASURES)
def test_autocast_around_a_call_changes_no_digit(name):
    measured = MEASURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = measured()
        with torch.autocast("cpu", torch.bfloat16):
            found = measured()
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_a_measure_leaves_the_callers_autocast_on():
    with torch.autocast("cpu", torch.bfloat16):
        ls.trace(curvature(), generator=seeded())
        assert torch.is_autocast_enabled("cpu")
