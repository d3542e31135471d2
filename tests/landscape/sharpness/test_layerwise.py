"""Relative flatness and the Fisher-Rao norm against dense matrices and closed forms."""

import pytest
import torch
from problems import F64, o1, o2, o5
from sharpness_problems import examples, perceptron, risk_of, transformed
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from landscape import EmpiricalRisk, Hessian, dense
from landscape.sharpness import fisher_rao_norm, homogeneous_fisher_rao_norm, relative_flatness


def by_definition(risk, name, kind):
    """From the dense Hessian of the layer."""
    W = risk.theta[name]
    H = dense(Hessian(risk, parameters=name)).view(*W.shape, *W.shape)
    if kind == "trace":
        return float(torch.einsum("sd,td,sjtj->", W, W, H))
    tops = [torch.linalg.eigvalsh(H[s, :, s])[-1] for s in range(len(W))]
    return float(sum(top * (w @ w) for top, w in zip(tops, W, strict=True)))


@pytest.mark.parametrize("method", ["auto", "output", "exact"])
@pytest.mark.parametrize(("kind", "value"), [("trace", 0.5139083264), ("max", 0.3752899999)])
def test_softmax_regression(method, kind, value):
    found = relative_flatness(o1(), method=method, kind=kind, standardise=False)
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.stderr == 0


@pytest.mark.parametrize("kind", ["trace", "max"])
@pytest.mark.parametrize("layer", ["0", "2.weight"])
@pytest.mark.parametrize("sizes", [(5,), (3, 2)])
def test_layers_of_the_tanh_network(kind, layer, sizes):
    risk = o2(sizes)
    name = layer if "weight" in layer else f"{layer}.weight"
    found = relative_flatness(risk, layer, kind=kind, standardise=False)
    assert found.value == pytest.approx(by_definition(risk, name, kind), rel=1e-9)


def test_other_losses_at_the_output():
    x, _ = examples()
    y = torch.linspace(-1, 1, 72, dtype=F64).view(24, 3)
    risk = EmpiricalRisk.from_model(perceptron(nn.Tanh), mse_loss, (x, y))
    for kind in ("trace", "max"):
        found = relative_flatness(risk, kind=kind, standardise=False, method="output")
        assert found.value == pytest.approx(by_definition(risk, "4.weight", kind), rel=1e-9)


@pytest.mark.parametrize("problem", [o1, o2])
def test_probes_have_the_right_mean(problem):
    name = "weight" if problem is o1 else "0.weight"
    for standardise in (False, True):
        exact = relative_flatness(problem(), name, method="exact", standardise=standardise).value
        g = torch.Generator().manual_seed(0)
        found = relative_flatness(problem(), name, method="probes", standardise=standardise, draws=600, generator=g)
        assert abs(found.value - exact) < 4 * found.stderr
        assert found.stderr < 0.2 * abs(exact)
        assert found.draws == found.products == 600


@pytest.mark.parametrize("layer", ["2", "4"])
def test_standardising_is_what_rescaled_weights_give(layer):
    """Divide a layer's inputs by their standard deviations, multiply its columns by them: the plain value there."""
    risk = risk_of(perceptron())
    seen = []
    model = perceptron()
    hook = model[int(layer)].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    model(examples()[0])
    hook.remove()
    spread = seen[0].std(0, correction=0).detach()
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    with torch.no_grad():
        for net in (model, risk.predict.parameters):
            weight = net[int(layer)].weight if net is model else net[f"{layer}.weight"]
            weight[:, spread == 0] = 0  # the columns of units that are never active count for nothing
    before = model[int(layer) - 2]
    with torch.no_grad():
        before.weight.div_(scale[:, None])
        before.bias.div_(scale)
        model[int(layer)].weight.mul_(scale)
    for kind in ("trace", "max"):
        plain = relative_flatness(risk_of(model), layer, kind=kind, standardise=False).value
        assert relative_flatness(risk, layer, kind=kind).value == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("kind", ["trace", "max"])
def test_rescaling_layers_and_neurons(kind):
    model = perceptron()
    a, layers, neurons = (risk_of(m) for m in (model, transformed(model, "T1"), transformed(model, "T1n")))
    for layer in ("2", "4"):
        plain = [relative_flatness(r, layer, kind=kind, standardise=False).value for r in (a, layers, neurons)]
        assert plain[1] == pytest.approx(plain[0], rel=1e-8)
    assert plain[2] != pytest.approx(plain[0], rel=1e-2)  # the last layer, whose columns change one by one
    standard = [relative_flatness(r, "4", kind=kind).value for r in (a, layers, neurons)]
    assert standard[1:] == pytest.approx([standard[0]] * 2, rel=1e-8)


def test_refused_layers():
    for call, message in (
        (lambda: relative_flatness(o2(), "7"), "`layer` must be one of the linear layers .*, got '7'"),
        (lambda: relative_flatness(o5()), "`layer` is missing: the model has no linear layer"),
        (lambda: relative_flatness(o2(), "0", method="output"), "`method` = 'output' needs the layer that makes"),
        (lambda: relative_flatness(o2(), "0", kind="max", method="probes"), "`method` = 'probes' is for `kind`"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    g = torch.Generator()
    with pytest.raises(ValueError, match="`draws` must be at least 2, for the standard error, got 1"):
        relative_flatness(o2(), "0", method="probes", draws=1, generator=g)


def test_fisher_rao_of_softmax_regression():
    assert fisher_rao_norm(o1()) == pytest.approx(0.4351639949, abs=1e-9)
    assert fisher_rao_norm(o1()) ** 2 == pytest.approx(0.1893677024, abs=1e-9)
    assert homogeneous_fisher_rao_norm(o1(), 1) ** 2 == pytest.approx(0.1893677024, abs=1e-9)
    assert fisher_rao_norm(o1(), kind="true") ** 2 == pytest.approx(0.1864171548, abs=1e-9)


def test_homogeneous_networks_meet_the_closed_form_and_biases_break_it():
    bare, biased = risk_of(perceptron(bias=False)), risk_of(perceptron())
    assert homogeneous_fisher_rao_norm(bare, 3) == pytest.approx(fisher_rao_norm(bare), rel=1e-10)
    assert homogeneous_fisher_rao_norm(biased, 3) != pytest.approx(fisher_rao_norm(biased), rel=1e-2)
    with pytest.raises(ValueError, match="`depth` must be at least 1 layer of weights, got 0"):
        homogeneous_fisher_rao_norm(bare, 0)


def test_cross_entropy_of_another_kind_goes_by_its_own_hessian():
    model = perceptron()
    smooth = EmpiricalRisk.from_model(model, lambda out, y: cross_entropy(out, y, label_smoothing=0.3), examples())
    assert relative_flatness(smooth).value == pytest.approx(relative_flatness(risk_of(model)).value, rel=1e-9)
