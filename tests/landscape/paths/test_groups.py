"""Groups of hidden units: found by following the operations, and right where they act and where they do not."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from landscape.paths.groups import PermutationGroups
from landscape.paths.layout import Layout
from landscape.paths.states import ModelState

EXPECTED = {
    "mlp": {"1": 12, "3": 12},
    "cnn": {"0": 4, "2": 8, "4": 16},
    "signals": {"0": 4, "2": 8, "4": 16},
    "batchnorm": {"0": 6, "4": 5, "8": 7},
    # the stream of a stage is the stream before it, and as many channels again, which come out of the padding
    "resnet20": {
        "stem.0": 8, "stages.0.conv1": 8, "stages.1.conv1": 8, "stages.2.conv1": 8,
        "stages.3.conv1": 16, "stages.3.conv2": 8, "stages.4.conv1": 16, "stages.5.conv1": 16,
        "stages.6.conv1": 32, "stages.6.conv2": 16, "stages.7.conv1": 32, "stages.8.conv1": 32,
    },
    # the residual stream, named after its first parameter; heads; places within a head; the MLPs' units
    "vit": {
        "positions": 16, "blocks.0.qkv": 4, "blocks.0.qkv#2": 4, "blocks.0.mlp.0": 64,
        "blocks.1.qkv": 4, "blocks.1.qkv#2": 4, "blocks.1.mlp.0": 64,
    },
    # two groups of four channels, of which each depthwise filter feeds three; then 12 = 4 * 3, and 5
    "grouped": {"0": 2, "0#2": 2, "0#3": 2, "4": 3, "5": 5},
    "attending": {"first": 8, "attention": 2, "attention#2": 4},
    "encoder": {"0": 8, "1.self_attn": 2, "1.self_attn#2": 4, "1.linear1": 12},
    "chunked": {"first": 6, "qkv": 4, "qkv#2": 4},
    "recurring": {"first": 6},
    "in place": {"first": 4, "wide": 7, "wide#2": 2},
    "remembering": {"keys": 7, "keys#2": 8, "values": 8},
    "unknown": {"second": 4},
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED)
def test_permuted_model_computes_the_same_function(kind, build, load, generator):
    model, x = build(kind)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    groups = PermutationGroups.of_model(model, x)
    state = ModelState.of(model)
    permutations = groups.random(generator)
    permuted = ModelState(groups.permuted(state.parameters, permutations), groups.permuted(state.buffers, permutations))
    with torch.no_grad():
        assert_close(load(model, permuted)(x), model(x), rtol=1e-11, atol=1e-11)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    moved = [n for n, t in state.parameters.items() if not torch.equal(t, permuted.parameters[n])]
    assert moved
    back = groups.permuted(permuted.parameters, groups.inverse(permutations))
    for name, t in back.items():
        assert torch.equal(t, state.parameters[name])


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_group_is_found(kind, build):
    model, x = build(kind)
    assert PermutationGroups.of_model(model, x).sizes == EXPECTED[kind]


def test_each_group_matters_by_itself(build, load, generator):
    """Swapping a group's units on all of its axes but one does change the function."""
    model, x = build("resnet20")
    groups = PermutationGroups.of_model(model, x)
    state = ModelState.of(model)
    with torch.no_grad():
        expected = model(x)
        for group in groups.sizes:
            shift = {group: torch.arange(groups.sizes[group]).roll(1)}
            left_out = next(n for n, axes in groups.layouts.items() if any(group in a.groups for a in axes))
            parameters = {**groups.permuted(state.parameters, shift), left_out: state.parameters[left_out]}
            buffers = groups.permuted(state.buffers, shift)
            assert (load(model, ModelState(parameters, buffers))(x) - expected).abs().max() > 1e-4, group


def test_running_statistics_move_along(build):
    groups = PermutationGroups.of_model(*build("batchnorm"))
    for name in ("1.running_mean", "1.running_var", "5.running_mean", "9.running_var"):
        assert name in groups.layouts


def test_what_is_not_understood_stays_put_and_says_why(build):
    groups = PermutationGroups.of_model(*build("unknown"))
    assert "take_along_dim" in groups.left["first.weight, axis 0"] or "gather" in groups.left["first.weight, axis 0"]
    assert all("second.weight, axis 0" not in name for name in groups.left)


def test_module_with_an_unknown_operation_is_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
    with pytest.raises(ValueError, match=r"rnn_layer' in '1'|lstm.* in '1'.*Pass `groups`"):
        PermutationGroups.of_model(model, torch.zeros(2, 6, 3))


def test_softmax_regression_has_no_hidden_units():
    with pytest.raises(ValueError, match=r"no hidden units that can be permuted\. Pass `groups`"):
        PermutationGroups.of_model(nn.Linear(3, 4), torch.zeros(2, 3))


@pytest.mark.parametrize("form", ["tensor", "pair", "batches", "dict"])
def test_inputs_in_every_form(form):
    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    model, x = Net(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(5, 3)
    given = {"tensor": x, "pair": (x, torch.zeros(5)), "batches": [(x, torch.zeros(5))], "dict": {"x": x}}[form]
    assert PermutationGroups.of_model(model, given).sizes == {"0": 4}


def test_groups_by_hand_agree_with_those_found(build):
    model, x = build("mlp")
    found = PermutationGroups.of_model(model, x)
    hand = PermutationGroups.of_axes(
        {
            "1": [("1.weight", 0), ("1.bias", 0), ("3.weight", 1)],
            "3": [("3.weight", 0), ("3.bias", 0), ("5.weight", 1)],
        },
        dict(model.named_parameters()),
    )
    assert hand.sizes == found.sizes
    assert dict(hand.layouts) == dict(found.layouts)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"a": [("nothing", 0)]}, "no axis of the model's tensors"),
        ({"a": [("0.weight", 2)]}, "no axis of the model's tensors"),
        ({"a": [("0.weight", 0), ("0.weight", 1)]}, "axes of 4 and 3 entries"),
        ({"a": [("0.bias", 0)], "b": [("0.bias", 0)]}, "twice: in 'a' and in 'b'"),
    ],
)
def test_wrong_groups_by_hand(axes, message):
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=message):
        PermutationGroups.of_axes(axes, dict(model.named_parameters()))


def test_wrong_permutations(build):
    model, x = build("mlp")
    groups, tensors = PermutationGroups.of_model(model, x), ModelState.of(model).parameters
    with pytest.raises(ValueError, match="'5', which is none of the groups"):
        groups.permuted(tensors, {"5": torch.arange(3)})
    with pytest.raises(ValueError, match="must hold 0 to 11 once each"):
        groups.permuted(tensors, {"1": torch.zeros(12, dtype=torch.long)})


def test_layout_of_products_and_rows_by_hand():
    """A row of [a product of a group of 2 and 3 fixed entries] and [a group of 2]."""
    layout = Layout(
        8, "row", parts=(Layout(6, "product", parts=(Layout(2, "group", "g"), Layout(3))), Layout(2, "group", "h"))
    )
    swap = torch.tensor([1, 0])
    assert layout.index({"g": swap}).tolist() == [3, 4, 5, 0, 1, 2, 6, 7]
    assert layout.index({"h": swap, "g": swap}).tolist() == [3, 4, 5, 0, 1, 2, 7, 6]
    assert layout.entries("g").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert layout.entries("h").tolist() == [[6], [7]]
    assert layout.entries("k").numel() == 0
    both = Layout(6, "product", parts=(Layout(2, "group", "g"), Layout(3, "group", "h")))
    for p, q in itertools.product(itertools.permutations(range(2)), itertools.permutations(range(3))):
        index = both.index({"g": torch.tensor(p), "h": torch.tensor(q)})
        assert index.tolist() == [3 * i + j for i in p for j in q]
    assert both.beside("g") == {"h"}
    assert layout.beside("g") == set()
