"""Models whose kernels cannot be differentiated twice: a path is found, said, and right to its accuracy."""

import copy
import warnings

import pytest
import torch
from problems import F64, cosines, small
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from landscape import EmpiricalFisher, EmpiricalRisk, Fisher, GaussNewton, Hessian

OPERATORS = [Hessian, GaussNewton, Fisher, EmpiricalFisher]
LOOSE = {"rtol": 1e-6, "atol": 1e-8}  # central differences in float64


class Once(torch.autograd.Function):
    """tanh whose backward pass is marked as not differentiable; autograd.grad passes over the mark in silence."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(_, g, x):
        return g * (1 - torch.tanh(x) ** 2)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError("derivative for fused_tanh_backward is not implemented")


class Fused(torch.autograd.Function):
    """tanh with a backward kernel of its own that has no derivative, as fused kernels have."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        return Slope.apply(g, ctx.saved_tensors[0])


class Net(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


def risks(activation):
    model = Net(activation)
    risk = small(model, sizes=(4, 2))
    plain = copy.deepcopy(model)
    plain.activation = torch.tanh
    return risk, EmpiricalRisk.from_model(plain, cross_entropy, risk.batches)


KERNELS = [(Once.apply, r"Once|once_differentiable"), (Fused.apply, "fused_tanh_backward")]
IDS = ["once", "fused"]


@pytest.mark.parametrize(("kernel", "name"), KERNELS, ids=IDS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_path_is_found_and_said(operator, kernel, name):
    risk, plain = risks(kernel)
    expected = operator(plain).dense()
    if operator is EmpiricalFisher:  # goes by per-example gradients, which need no second derivative
        A = operator(risk)
        assert_close(A.dense(), expected, rtol=1e-10, atol=1e-12)
        return
    with pytest.warns(RuntimeWarning, match=f"{operator.__name__}: .*({name}).* no second derivative"):
        A = operator(risk)
    assert A.path == "difference"
    assert A.note.startswith("finite differences, because ")
    assert_close(A.dense(), expected, **LOOSE)


@pytest.mark.parametrize(("kernel", "name"), KERNELS, ids=IDS)
@pytest.mark.parametrize("operator", [Hessian, GaussNewton, Fisher])
@pytest.mark.parametrize("path", ["kept", "afresh"])
def test_paths_that_need_second_derivatives_are_refused(operator, path, kernel, name):
    risk, _ = risks(kernel)
    with pytest.raises(ValueError, match=f"`path` = '{path}' needs second derivatives, which .*({name}).* lacks: use"):
        operator(risk, path=path)


@pytest.mark.parametrize("operator", [Hessian, GaussNewton, Fisher])
def test_the_path_may_be_asked_for_without_a_warning(operator):
    risk, plain = risks(Fused.apply)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A = operator(risk, path="difference")
    v = cosines(A.shape[0])
    assert A.path == "difference"
    assert not A.note
    assert_close(A @ v, operator(plain) @ v, **LOOSE)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_error_of_the_model_is_not_taken_for_a_missing_derivative(operator):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(*_):
            raise RuntimeError("the disk is full")

    risk, _ = risks(Broken.apply)
    with pytest.raises(RuntimeError, match="the disk is full"):
        operator(risk)


@pytest.mark.parametrize("compile_", [False, True], ids=["wrapped", "in place"])
def test_compiled_models_are_measured_uncompiled(compile_):
    """Compiled code has no second derivative; the module underneath has."""
    model = Net(torch.tanh)
    plain = small(model, sizes=(4, 2))
    if compile_:
        compiled = copy.deepcopy(model)
        compiled.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
    risk = EmpiricalRisk.from_model(compiled, cross_entropy, plain.batches)
    assert risk.names == plain.names
    for operator in OPERATORS:
        A = operator(risk)
        assert A.path == "kept"
        assert_close(A @ cosines(26), operator(plain) @ cosines(26), rtol=1e-12, atol=1e-14)


def test_wrappers_for_several_devices_are_taken_off():
    model = Net(torch.tanh)
    plain = small(model)
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    risk = EmpiricalRisk.from_model(wrapped, cross_entropy, plain.batches)
    assert risk.names == plain.names
    assert_close(Hessian(risk) @ cosines(26), Hessian(plain) @ cosines(26), rtol=1e-12, atol=1e-14)


def test_a_part_without_second_derivatives_does_not_matter_if_it_is_held():
    """With the layers above it alone, the kernel's derivative is never asked for."""
    risk, plain = risks(Fused.apply)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A = Hessian(risk, parameters="last")
    assert A.path == "kept"
    assert_close(A.dense(), Hessian(plain, parameters="last").dense(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_step_follows_the_weights(scale):
    """θ and v of very different lengths: the relative error stays small."""
    risk, plain = risks(Fused.apply)
    theta = {name: scale * t for name, t in plain.theta.items()}
    v = 1e4 * cosines(26)
    A, B = Hessian(risk, theta, path="difference"), Hessian(plain, theta)
    expected = B @ v
    # ‖θ‖ of about 100 makes the step long; the third derivatives of a saturated network are small
    assert float((A @ v - expected).norm()) < 1e-5 * max(float(expected.norm()), 1e-3)
    assert A.dtype == F64
