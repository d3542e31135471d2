"""float32 by default, float64, bfloat16: each product is the float64 one to that precision."""

import copy

import pytest
import torch
from problems import F64, ConvNorm, Encoder, Recurrent, cosines, small
from torch import nn
from torch.testing import assert_close

from landscape import EmpiricalFisher, Fisher, GaussNewton, Hessian

OPERATORS = [Hessian, GaussNewton, Fisher, EmpiricalFisher]

MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (6, 3)),
    "conv": (ConvNorm, (6, 2, 4, 4)),
    "encoder": (Encoder, (6, 3, 4)),
    "lstm": (lambda: Recurrent("lstm"), (6, 3, 2)),
}


def pair(name, dtype):
    make, shape = MODELS[name]
    model = make()
    wide = small(copy.deepcopy(model), shape=shape, sizes=(4, 2))
    narrow = small(model, shape=shape, sizes=(4, 2), dtype=dtype)
    theta = {k: t.to(dtype).double() for k, t in wide.theta.items()}  # the same point, rounded alike
    data = [(x.double(), y) for x, y in narrow.batches]
    return wide.at(theta).on(data), narrow


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", MODELS)
def test_float32_products(name, operator):
    wide, narrow = pair(name, torch.float32)
    A, B = operator(narrow), operator(wide)
    v = cosines(A.shape[0])
    product = A @ v.float()
    assert (A.dtype, product.dtype) == (torch.float32, torch.float32)
    # rounding of 6e-8 in each of some tens of operations, relative to the largest entry
    scale = float((B @ v).abs().max())
    assert_close(product.double(), B @ v, rtol=0, atol=3e-5 * scale)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["mlp", "encoder"])
def test_bfloat16_products(name, operator):
    """Eight bits: 0.4 % an operation; a product is within a tenth of the float64 one in norm."""
    wide, narrow = pair(name, torch.bfloat16)
    A, B = operator(narrow), operator(wide)
    v = cosines(A.shape[0]).bfloat16()
    product, expected = A @ v, B @ v.double()
    assert (A.dtype, product.dtype) == (torch.bfloat16, torch.bfloat16)
    assert float((product.double() - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("operator", [Hessian, GaussNewton, Fisher])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_finite_differences_in_float32(name, operator):
    """h = 5e-3 max(1, ‖θ‖): errors of about 1e-3 of the product, as the text says."""
    wide, narrow = pair(name, torch.float32)
    A, B = operator(narrow, path="difference"), operator(wide)
    v = cosines(A.shape[0])
    expected = B @ v
    assert float(((A @ v.float()).double() - expected).norm() / expected.norm()) < 1e-2


def test_float64_is_stated_and_nothing_is_cast():
    A = Hessian(small(nn.Linear(3, 2), dtype=torch.float64))
    assert A.dtype == F64
    with pytest.raises(ValueError, match=r"dtype torch\.float64, got \(8,\) and torch\.float32"):
        A @ torch.ones(8)


def test_channels_last_changes_nothing_but_rounding():
    """float32 images run with the channels last in memory; vectors keep the parameters' own order."""
    wide, narrow = pair("conv", torch.float32)
    A, B = Hessian(narrow), Hessian(wide)
    assert A.point.channels_last
    assert not B.point.channels_last
    assert A.blocks == B.blocks
    D = A.dense().double()
    expected = B.dense()
    assert_close(D, expected, rtol=0, atol=3e-5 * float(expected.abs().max()))
