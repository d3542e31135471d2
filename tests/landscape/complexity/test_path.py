"""The path norm against the paths themselves, and where it has no meaning."""

import copy
import itertools
import math

import pytest
import torch
from folded_networks import Branches, mlp, settled
from torch import nn
from torch.testing import assert_close

from landscape.complexity import fold, log_path_norm
from trainers.models.building import build_model

F64 = torch.float64


def brute_force(model):
    """Σ over all paths of the products of squared weights, path by path; a bias starts paths of its own."""
    layers = [copy.deepcopy(m).requires_grad_(False) for m in model if isinstance(m, nn.Linear)]
    total = 0.0
    for start in range(len(layers) + 1):  # the layer before which a path starts: inputs, or the biases of layer start-1
        if start == 0:
            sources = [(j, 1.0) for j in range(layers[0].in_features)]
        elif layers[start - 1].bias is None:
            continue
        else:
            sources = [(j, float(b) ** 2) for j, b in enumerate(layers[start - 1].bias)]
        widths = [range(layer.out_features) for layer in layers[start:]]
        for (j, value), *units in itertools.product(sources, *widths):
            product, at = value, j
            for layer, unit in zip(layers[start:], units, strict=True):
                product *= float(layer.weight[unit, at]) ** 2
                at = unit
            total += product
    return total


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2), (2, 3, 2), (2, 3, 4, 2)])
def test_against_all_paths(sizes, bias, generator):
    model = settled(mlp(sizes, bias=bias), generator).double()
    network = fold(model, torch.zeros(1, sizes[0], dtype=F64))
    assert math.exp(log_path_norm(network, (sizes[0],))) == pytest.approx(brute_force(model), rel=1e-12)


def test_a_skip_connection_is_a_path(generator):
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)) + x)

    model = settled(Skip(), generator).double()
    a, b = model.a.weight.detach().square(), model.b.weight.detach().square()
    network = fold(model, torch.zeros(1, 3))
    expected = float((b @ (a + torch.eye(3, dtype=F64))).sum())
    assert math.exp(log_path_norm(network, (3,))) == pytest.approx(expected, rel=1e-12)


def test_it_does_not_see_rescaling_and_order_of_units_but_of_single_weights(generator):
    model = settled(mlp(norm=True), generator).double().eval()
    x = torch.randn(2, 4, dtype=F64, generator=generator)
    before = log_path_norm(fold(model, x), (4,))
    factors = torch.rand(6, dtype=F64, generator=generator) + 0.5
    order = torch.randperm(6, generator=generator)
    with torch.no_grad():
        model[1].weight.mul_(factors)
        model[1].bias.mul_(factors)
        model[3].weight.div_(factors)
        for t in (model[0].weight, model[0].bias, model[1].weight, model[1].bias, model[1].running_mean):
            t.copy_(t[order].clone())
        model[1].running_var.copy_(model[1].running_var[order].clone())
        model[3].weight.copy_(model[3].weight[:, order].clone())
    assert log_path_norm(fold(model, x), (4,)) == pytest.approx(before, abs=1e-11)
    with torch.no_grad():
        model[3].weight.mul_(2)
    assert log_path_norm(fold(model, x), (4,)) != pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("factor", [1e-70, 1e-30, 1e30, 1e70])
def test_weights_whose_product_leaves_the_range_of_numbers(factor, generator):
    model = settled(mlp((2, 3, 3, 3, 2), bias=abs(math.log10(factor)) < 40), generator).double()
    expected = log_path_norm(fold(model, torch.zeros(1, 2)), (2,))
    with torch.no_grad():
        for i, layer in enumerate(m for m in model if isinstance(m, nn.Linear)):
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor ** (i + 1))
    found = log_path_norm(fold(model, torch.zeros(1, 2, dtype=F64)), (2,))
    assert found == pytest.approx(expected + 8 * math.log(factor), rel=1e-12)  # four layers, squared


@pytest.mark.parametrize("factor", [1e-100, 1e100])
def test_beyond_twice_the_range_it_is_an_error_and_no_number(factor, generator):
    model = settled(mlp((2, 3, 3, 3, 2), bias=False), generator).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    with pytest.raises(ValueError, match="not between 1e-580 and 1e580"):
        log_path_norm(fold(model, torch.zeros(1, 2, dtype=F64)), (2,))


def test_convolutions_and_pooling(generator):
    pooled = settled(
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)),
        generator,
    ).double()
    network = fold(pooled, torch.zeros(1, 1, 4, 4))
    squared = [p.detach().square() for p in pooled.parameters()]
    h = nn.functional.max_pool2d(
        nn.functional.conv2d(torch.ones(1, 1, 4, 4, dtype=F64), squared[0], squared[1], padding=1), 2
    )
    expected = (squared[2] @ h.flatten() + squared[3]).sum()
    assert_close(log_path_norm(network, (1, 4, 4)), float(expected.log()), rtol=1e-12, atol=0)
    for model, shape in (
        (settled(Branches(), generator), (2, 4, 4)),
        (build_model("resnet20", shape=(1, 8, 8), classes=3, generator_seed=0, options={"width": 2}), (1, 8, 8)),
        (build_model("cnn", shape=(1, 8, 8), classes=3, generator_seed=0), (1, 8, 8)),
        (mlp(activation=nn.LeakyReLU), (4,)),
    ):
        assert math.isfinite(log_path_norm(fold(model, torch.randn(2, *shape, generator=generator)), shape))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) * self.b(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp(activation=nn.Tanh), "uses tanh"),
        (mlp(activation=nn.GELU), "uses gelu"),
        (mlp(activation=nn.ReLU6), "uses hardtanh"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "uses layer_norm"),
        (Gate(), "not in\\s+proportion"),
        (nn.Embedding(4, 3), "one floating-point input; it says"),
    ],
    ids=["tanh", "gelu", "relu6", "layer norm", "gate", "embedding"],
)
def test_where_it_is_not_defined(model, message):
    inputs = torch.tensor([[1, 2]]) if isinstance(model, nn.Embedding) else torch.zeros(1, 4)
    with pytest.raises(ValueError, match=message):
        log_path_norm(fold(model, inputs), (4,))


def test_attention_is_named(generator):
    model = build_model("vit", shape=(1, 4, 4), classes=3, generator_seed=0, options={"dim": 8, "depth": 1, "heads": 2})
    network = fold(model, torch.randn(1, 1, 4, 4, generator=generator))
    with pytest.raises(ValueError, match=r"uses .*attention"):
        log_path_norm(network, (1, 4, 4))


def test_no_path_at_all():
    model = mlp(bias=False)
    with torch.no_grad():
        model[2].weight.zero_()
    assert log_path_norm(fold(model, torch.zeros(1, 4)), (4,)) == -math.inf
    with torch.no_grad():
        model[2].weight.fill_(math.nan)
    with pytest.raises(ValueError, match="finite weights"):
        log_path_norm(fold(model, torch.zeros(1, 4)), (4,))
