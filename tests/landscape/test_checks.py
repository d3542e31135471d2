"""Wrong arguments say what was expected."""

import jaxtyping
import numpy as np
import pytest
import torch
from problems import F64
from torch import nn
from torch.nn.functional import cross_entropy

import landscape as ls

SOURCE = torch.Generator().manual_seed(0)
X, Y = torch.randn(6, 3, generator=SOURCE, dtype=F64), torch.tensor([0, 1, 1, 0, 1, 0])
MODEL = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
RISK = ls.EmpiricalRisk.from_model(MODEL, cross_entropy, (X, Y))
H = ls.Hessian(RISK)
AXES, GRID = ls.Axes(RISK.theta, (ls.gradient_axis(RISK),)), ls.Grid.around(0.1, 3, axes=1)
of = ls.EmpiricalRisk.from_model


@pytest.fixture(autouse=True)
def without_the_typechecker_of_the_tests():
    """As users have it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


WRONG = {
    "swapped": (lambda: of(cross_entropy, MODEL, (X, Y)), "`model` must be .* model and loss are swapped"),
    "a class of models": (lambda: of(nn.Linear, cross_entropy, (X, Y)), "`model` must be .* got the class Linear"),
    "a class of losses": (lambda: of(MODEL, nn.CrossEntropyLoss, (X, Y)), r"call it, CrossEntropyLoss\(\)"),
    "a loss by name": (lambda: of(MODEL, "cross_entropy", (X, Y)), "`loss` must be a function of .*'cross_entropy'"),
    "a number for a perturbation": (
        lambda: ls.ascent_sharpness(RISK, 0.05),
        r"a radius makes landscape.AscentStep\(0.05\)",
    ),
    "a class of perturbations": (lambda: ls.ascent_sharpness(RISK, ls.AscentStep), "got the class AscentStep"),
    "text for a radius": (lambda: ls.AscentStep("0.05"), "`rho` must be a finite radius"),
    "a model for a risk": (lambda: ls.Hessian(MODEL), "`risk` must be a landscape.EmpiricalRisk, got Sequential"),
    "an operator for a risk": (lambda: ls.worst_case_sharpness(H, 0.1), "`risk` must be .* got Hessian"),
    "a model for a scan": (
        lambda: ls.scan(MODEL, AXES, GRID),
        "`risks` must be a landscape.EmpiricalRisk, got Sequential",
    ),
    "a risk for an operator": (lambda: ls.trace(RISK, generator=SOURCE), r"use landscape.Hessian\(risk\)"),
    "an array for an operator": (lambda: ls.trace(np.eye(3), generator=SOURCE), "use torch.from_numpy"),
    "not square": (lambda: ls.top_eigenpairs(torch.ones(2, 3), generator=SOURCE), r"square, of shape \(p, p\)"),
    "a seed for a generator": (lambda: ls.trace(H, generator=3), r"torch.Generator\(\).manual_seed\(3\)"),
    "another generator": (
        lambda: ls.average_sharpness(RISK, 0.1, generator=np.random.default_rng(0)),
        "torch.Generator",
    ),
    "text for a tolerance": (lambda: ls.trace(H, tol="1e-3", generator=SOURCE), "`tol` must be a number, got '1e-3'"),
    "half a pair": (lambda: ls.top_eigenpairs(H, k=1.5, generator=SOURCE), "`k` must be a whole number, got 1.5"),
    "no pairs": (lambda: ls.top_eigenpairs(H, k=-1, generator=SOURCE), "`k` must be between 1 and"),
    "half an example": (lambda: ls.ascent_sharpness(RISK, ls.AscentStep(0.1), m=2.0), "`m` must be a whole number"),
    "no example": (lambda: ls.ascent_sharpness(RISK, ls.AscentStep(0.1), m=0), "`m` must be between 1"),
    "a vector for a point": (lambda: RISK.value(ls.flatten(RISK.theta)), r"landscape.unflatten\(vector, risk.theta\)"),
    "a point that lacks a name": (lambda: RISK.value({"0.weight": MODEL[0].weight}), "`theta` lacks the parameters"),
    "a state dict": (lambda: RISK.gradient(MODEL.state_dict()), r"`theta` has \['1.running_mean', .* no parameters"),
    "another shape": (
        lambda: RISK.value({**RISK.theta, "0.bias": torch.zeros(1, dtype=F64)}),
        r"'0.bias' of shape \(1,\); the risk's has \(2,\)",
    ),
    "another shape for an operator": (
        lambda: ls.Hessian(RISK, {**RISK.theta, "0.bias": torch.zeros(1, dtype=F64)}),
        r"'0.bias' of shape",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_say_what_was_expected(what):
    call, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        call()
