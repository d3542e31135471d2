"""Directions in the scale of the weights: the published rule, layouts of filters, zeros, and invariance."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import EmpiricalRisk, random_direction
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.normalisation import Filters, filters_of, normalised

F64 = torch.float64


def tensors(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64), torch.randn(shape, generator=g, dtype=F64)


def test_the_worked_example():
    w = {"w": torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=F64)}
    d = {"w": torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=F64)}
    expected = torch.tensor([[5, 0], [1.4142135624, 1.4142135624]], dtype=F64)
    made = normalised(d, w)
    torch.testing.assert_close(made.direction["w"], expected, rtol=0, atol=2e-9)
    assert not made.still
    assert made.warning == ""
    assert made.recipe["normalise"] == "filter"


def test_the_published_constant_beside_the_norm_of_the_direction():
    w, d = {"w": torch.full((1, 2), 3.0, dtype=F64)}, {"w": torch.full((1, 2), 1e-10, dtype=F64)}
    expected = 1e-10 * 3 * math.sqrt(2) / (math.sqrt(2) * 1e-10 + 1e-10)
    torch.testing.assert_close(normalised(d, w).direction["w"], torch.full((1, 2), expected, dtype=F64))


def scaled_to(d, w):
    return d * w.norm() / (d.norm() + 1e-10)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (4, 2, 3, 3), (4, 1, 3, 3), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("how", ["filter", "layer", "weight", "dfilter", "dlayer", "none"])
def test_every_rule_against_loops(shape, how):
    d, w = tensors(*shape)
    loops = {
        "filter": lambda: torch.stack([scaled_to(d[j], w[j]) for j in range(len(d))]),
        "layer": lambda: scaled_to(d, w),
        "weight": lambda: d * w,
        "dfilter": lambda: torch.stack([row / row.norm() for row in d]),
        "dlayer": lambda: d / d.norm(),
        "none": lambda: d,
    }
    torch.testing.assert_close(
        normalised({"w": d}, {"w": w}, how=how).direction["w"], loops[how](), rtol=1e-9, atol=1e-12
    )


def test_neither_argument_is_changed_nor_returned_where_it_is_scaled():
    d, w = tensors(4, 3)
    before = d.clone(), w.clone()
    made = normalised({"w": d}, {"w": w}).direction["w"]
    made.zero_()
    assert torch.equal(d, before[0])
    assert torch.equal(w, before[1])


# Where the outputs lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_has_a_filter_an_output_channel(groups):
    """Filters are found by what they do: scaling one scales one output channel, and no other."""
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False, dtype=F64)
    layout = filters_of(layer)["weight"]
    w = layer.weight.detach()
    assert w.shape == (4, 6 // groups, 3, 3)
    d = tensors(*w.shape)[0]
    made = normalised({"weight": d}, {"weight": w}, filters={"weight": layout}).direction["weight"]
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    per, into = 6 // groups, 4 // groups
    for channel in range(6):
        place = (slice(channel // per * into, (channel // per + 1) * into), channel % per)
        only = torch.zeros_like(w)
        only[place] = w[place]
        out = F.conv_transpose2d(x, only, groups=groups)
        assert [c for c in range(6) if bool(out[:, c].any())] == [channel]
        torch.testing.assert_close(made[place], scaled_to(d[place], w[place]))


class Conv1D(nn.Module):
    """As in transformers: y = x W + b, W of shape (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((5, 1, 1), 1e-6))
        self.position = nn.Parameter(torch.randn(1, 4, 3))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 2), {"weight": Filters(), "bias": None}),
        (nn.Linear(1, 2, bias=False), {"weight": Filters()}),
        (nn.Conv2d(4, 4, 3, groups=4), {"weight": Filters(), "bias": None}),
        (nn.Conv2d(4, 4, 1, groups=4, bias=False), {"weight": Filters()}),
        (nn.ConvTranspose1d(4, 2, 3, groups=2), {"weight": Filters(1, 2), "bias": None}),
        (nn.Embedding(5, 3), {"weight": Filters()}),
        (nn.Bilinear(2, 3, 4, bias=False), {"weight": Filters()}),
        (nn.BatchNorm2d(3), {"weight": None, "bias": None}),
        (nn.LayerNorm((3, 2)), {"weight": None, "bias": None}),
        (nn.GroupNorm(2, 4), {"weight": None, "bias": None}),
        (nn.RMSNorm((2, 2)), {"weight": None}),
        (Conv1D(6, 2), {"weight": Filters(1), "bias": None}),
        (LayerScale(), {"gamma": None, "position": Filters()}),
        (nn.LSTMCell(1, 2, bias=False), {"weight_ih": Filters(), "weight_hh": Filters()}),
    ],
)
def test_filters_by_module(module, expected):
    assert filters_of(module) == expected
    assert list(filters_of(module)) == [name for name, _ in module.named_parameters()]


def test_filters_of_attention_recurrent_tied_and_wrapped_modules():
    assert filters_of(nn.MultiheadAttention(4, 2))["in_proj_weight"] == Filters()
    assert set(filters_of(nn.LSTM(2, 3)).values()) == {Filters(), None}
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    assert filters_of(tied) == {"0.weight": Filters()}
    assert filters_of(nn.DataParallel(nn.Linear(2, 2, bias=False))) == {"weight": Filters()}
    split = filters_of(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2, bias=False)))
    assert split == {"parametrizations.weight.original0": None, "parametrizations.weight.original1": Filters()}
    risk = EmpiricalRisk.from_model(nn.Linear(2, 2), F.cross_entropy, (torch.ones(1, 2), torch.zeros(1).long()))
    assert filters_of(risk.predict) == {"weight": Filters(), "bias": None}


def test_a_layer_norm_of_two_axes_stands_still_by_its_module():
    model = nn.LayerNorm((3, 2), dtype=F64)
    d = random_direction(dict(model.named_parameters()), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="only biases and normalisation layers are left"):
        normalised(d, dict(model.named_parameters()), filters=filters_of(model))


# Biases, normalisation layers, zeros ---------------------------------------------------------------------------------


def test_biases_and_normalisation_layers_stand_still_unless_asked():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    theta = {n: p.detach() for n, p in model.named_parameters()}
    d = random_direction(theta, torch.Generator().manual_seed(0))
    made = normalised(d, theta)
    assert list(made.direction) == ["0.weight"]
    assert made.recipe["held_tensors"] == 3
    drawn = normalised(d, theta, one_dimensional="as drawn")
    assert all(torch.equal(drawn.direction[n], d[n]) for n in ("0.bias", "1.weight", "1.bias"))
    torch.testing.assert_close(drawn.direction["0.weight"], made.direction["0.weight"])


def test_a_normalisation_layer_just_initialised():
    """Its weights, all one, have a norm; its bias, all zero, has none: it stands still, and that is said."""
    norm = nn.BatchNorm1d(4).double()
    theta = {n: p.detach() for n, p in norm.named_parameters()}
    d = random_direction(theta, torch.Generator().manual_seed(0))
    made = normalised(d, theta, one_dimensional="own norm")
    torch.testing.assert_close(made.direction["weight"], scaled_to(d["weight"], theta["weight"]))
    assert float(made.direction["weight"].norm()) == pytest.approx(2.0)
    assert not bool(made.direction["bias"].any())
    assert made.still == {"bias": 1}
    assert "1 in `bias`" in made.warning
    sizes = made.direction["weight"].abs()
    assert float(sizes.max() - sizes.min()) > 0.1, "not ± the weights themselves"


def test_filters_of_zero_norm_stand_still_are_counted_and_named():
    d, w = tensors(4, 3)
    w[1] = w[3] = 0
    made = normalised({"fc.weight": d}, {"fc.weight": w})
    assert made.still == {"fc.weight": 2}
    assert not bool(made.direction["fc.weight"][[1, 3]].any())
    assert bool(made.direction["fc.weight"].isfinite().all())
    assert "filters of zero norm stand still along the direction: 2 in `fc.weight`" in made.warning
    assert made.recipe["still"] == {"fc.weight": 2}
    assert normalised({"fc.weight": d}, {"fc.weight": w}, how="dfilter").still == {}
    assert normalised({"w": d}, {"w": w}, how="weight").still == {"w": 6}
    assert normalised({"w": d, "v": d}, {"w": w, "v": 0 * w}, how="layer").still == {"v": 1}


def test_groups_count_their_zero_filters_once():
    d, w = tensors(4, 3, 2)
    w[:2, 1] = 0
    made = normalised({"w": d}, {"w": w}, filters={"w": Filters(1, 2)})
    assert made.still == {"w": 1}


def test_many_names_are_cut_short_in_the_warning():
    d, w = tensors(2, 2)
    zeros = {f"layer{i}": 0 * w for i in range(7)}
    made = normalised({**dict.fromkeys(zeros, d), "last": d}, {**zeros, "last": w})
    assert "and 2 more tensors" in made.warning


def test_half_precision_norms_are_taken_in_single():
    g = torch.Generator().manual_seed(0)
    w = (torch.randn(2, 200_000, generator=g) * 3).half()  # sums of squares overflow half precision
    d = torch.randn(2, 200_000, generator=g).half()
    made = normalised({"w": d}, {"w": w}).direction["w"]
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.double().norm(dim=1), w.double().norm(dim=1), rtol=1e-3, atol=0)
    d[0] = 0  # 1e-10 is zero in half precision
    assert not bool(normalised({"w": d}, {"w": w}).direction["w"][0].any())


def test_bad_input():
    d, w = tensors(2, 2)
    with pytest.raises(ValueError, match=r"`direction` has `w` of shape \(2, 2\), `theta` has no such parameter"):
        normalised({"w": d}, {"v": w})
    with pytest.raises(ValueError, match=r"`theta` has \(3, 2\)"):
        normalised({"w": d}, {"w": torch.zeros(3, 2, dtype=F64)})
    with pytest.raises(ValueError, match="nothing moves along the direction with `how` = 'filter'"):
        normalised({"w": d}, {"w": 0 * w})
    with pytest.raises(ValueError, match="nothing moves along the direction"):
        normalised({"b": torch.ones(2)}, {"b": torch.ones(2)})


# Invariance: rescaled ReLU networks ----------------------------------------------------------------------------------

SIZES = (3, 6, 5, 2)


def relu_net():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    g = torch.Generator().manual_seed(4)
    theta = {n: torch.randn(p.shape, generator=g, dtype=F64) for n, p in model.named_parameters()}
    x = torch.randn(20, 3, generator=g, dtype=F64)
    y = torch.randint(0, 2, (20,), generator=g)
    return EmpiricalRisk.from_model(model, F.cross_entropy, (x, y)).at(theta)


def rescaled(theta, first, second):
    """The same function: outputs of layers 1 and 2 times the factors, inputs of the next ones by their inverses."""
    return {
        "0.weight": theta["0.weight"] * first[:, None],
        "0.bias": theta["0.bias"] * first,
        "2.weight": theta["2.weight"] * second[:, None] / first,
        "2.bias": theta["2.bias"] * second,
        "4.weight": theta["4.weight"] / second,
        "4.bias": theta["4.bias"],
    }


def losses(risk, theta, how):
    raw = random_direction(theta, torch.Generator().manual_seed(11))
    axes = Axes(theta, (Axis(normalised(raw, theta, how=how).direction, "d"),))
    return torch.tensor([risk.value(axes.at((a,))) for a in (-1.0, -0.5, 0.0, 0.3, 1.0)], dtype=F64)


LAYERS = (torch.full((6,), 7.0, dtype=F64), torch.full((5,), 0.05, dtype=F64))
NEURONS = (torch.linspace(0.1, 5, 6, dtype=F64), torch.linspace(3, 0.2, 5, dtype=F64))


def test_rescaling_leaves_the_function_as_it_is():
    risk = relu_net()
    for factors in (LAYERS, NEURONS):
        torch.testing.assert_close(risk.outputs(rescaled(risk.theta, *factors)), risk.outputs())


@pytest.mark.parametrize("how", ["filter", "layer", "weight"])
def test_the_picture_of_a_network_with_rescaled_layers_is_the_same(how):
    risk = relu_net()
    before, after = losses(risk, risk.theta, how), losses(risk, rescaled(risk.theta, *LAYERS), how)
    torch.testing.assert_close(after, before, rtol=1e-8, atol=0)
    assert float(before.max() - before.min()) > 0.1


@pytest.mark.parametrize("how", ["none", "dfilter", "dlayer"])
def test_it_is_another_without_the_weights_norms(how):
    risk = relu_net()
    before, after = losses(risk, risk.theta, how), losses(risk, rescaled(risk.theta, *LAYERS), how)
    assert float((after - before).abs().max()) > 0.05


@pytest.mark.parametrize(("how", "same"), [("weight", True), ("filter", False), ("layer", False)])
def test_rescaled_neurons_are_seen_by_all_but_the_weightwise_rule(how, same):
    risk = relu_net()
    before, after = losses(risk, risk.theta, how), losses(risk, rescaled(risk.theta, *NEURONS), how)
    assert (float((after - before).abs().max()) < 1e-9) == same


@pytest.mark.parametrize("factors", [LAYERS, NEURONS], ids=["layers", "neurons"])
def test_a_direction_rescaled_with_the_network_gives_the_same_losses(factors):
    risk = relu_net()
    direction = normalised(random_direction(risk.theta, torch.Generator().manual_seed(2)), risk.theta).direction
    whole = {n: direction.get(n, torch.zeros_like(t)) for n, t in risk.theta.items()}
    one = Axes(risk.theta, (Axis(whole, "d"),))
    other = Axes(rescaled(risk.theta, *factors), (Axis(rescaled(whole, *factors), "d"),))
    unscaled = Axes(other.origin, (Axis(whole, "d"),))
    for a in (-1.0, 0.4, 1.0):
        assert risk.value(other.at((a,))) == pytest.approx(risk.value(one.at((a,))), rel=1e-10)
        assert abs(risk.value(unscaled.at((a,))) - risk.value(one.at((a,)))) > 1e-3
