"""Folding is checked by outputs; layers, their order and their norms by hand."""

import copy
import re
from pathlib import Path

import pytest
import torch
from folded_networks import Between, Branches, Reordered, mlp, settled
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from landscape.complexity import fold, layer_norms, norm_measures
from trainers.models.building import build_model

F64 = torch.float64


def resnet():
    return build_model("resnet20", shape=(2, 8, 8), classes=3, generator_seed=0, options={"width": 2, "blocks": 1})


@pytest.mark.parametrize(
    ("make", "shape", "count"),
    [
        (lambda: mlp(norm=True), (4,), 2),
        (Branches, (2, 4, 4), 3),
        (Reordered, (3,), 2),
        (resnet, (2, 8, 8), 7),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.BatchNorm1d(4), nn.ReLU()), (2, 7), 1),
        (lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.SyncBatchNorm(3)), (2, 5), 1),
    ],
    ids=["mlp", "branches", "reordered", "resnet", "groups", "transposed"],
)
def test_the_folded_copy_computes_the_same_without_batch_norm(make, shape, count, generator):
    model = settled(make(), generator).double().eval()
    x = torch.randn(5, *shape, dtype=F64, generator=generator)
    state = copy.deepcopy(model.state_dict())
    model.train()
    network = fold(model, x[:2])
    assert model.training
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    model.eval()
    assert len(network.folded) == count
    for norm in network.folded:
        layer = network.model.get_submodule(norm)
        assert (layer.weight, layer.bias, layer.eps) == (None, None, 0.0)
        layer.running_mean = layer.running_var = None  # it is the identity: without it nothing changes
        layer.forward = lambda z: z
    assert_close(network.model(x), model(x), rtol=1e-12, atol=1e-12)


def test_pairs_follow_the_data_and_not_the_order_of_definition(generator):
    network = fold(settled(Reordered(), generator), torch.randn(2, 3, generator=generator))
    assert network.folded == {"norm_of_b": "b", "norm_of_a": "a"}
    assert [layer.name for layer in network.layers] == ["a.weight", "b.weight"]


def test_rows_of_a_folded_layer_are_scaled_by_hand(generator):
    model = settled(mlp(norm=True), generator).double()
    norm = model[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = fold(model, torch.randn(2, 4, generator=generator)).layers[0]
    assert_close(folded.matrix, model[0].weight.detach() * scale.detach()[:, None], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("before", "'norm' does not directly follow one linear or convolution layer"),
        ("activation", "'norm' does not directly follow"),
        ("in place", "'norm' does not directly follow"),
        ("twice", "'norm' does not directly follow"),
        ("two norms", "'spare' does not directly follow one linear or convolution layer of its own"),
        ("unused", "'spare' is not used on these `inputs`"),
    ],
)
def test_a_pairing_that_is_none_is_refused(kind, message, generator):
    with pytest.raises(ValueError, match=message):
        fold(settled(Between(kind), generator), torch.randn(2, 3, generator=generator))


def test_a_layer_that_is_used_elsewhere_too_is_found_by_the_outputs(generator):
    model = settled(Between("skip"), generator)
    del model.spare
    with pytest.raises(ValueError, match=r"with 'norm' in the layers before them its outputs\s+differ by .* used else"):
        fold(model, torch.randn(2, 3, generator=generator))


def test_what_else_cannot_be_folded(generator):
    x = torch.randn(2, 3, generator=generator)
    with pytest.raises(ValueError, match="'1' has no running statistics"):
        fold(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), x)
    with pytest.raises(ValueError, match="no layer of weights"):
        fold(nn.ReLU(), x)
    with pytest.raises(ValueError, match="cannot run on the `inputs` in float64"):
        fold(nn.Linear(4, 3), x)
    sequence = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match="'1' has 6 features and '0' before it 4 outputs"):
        fold(sequence, torch.randn(2, 6, 3, generator=generator))


def test_what_counts_as_a_layer(generator):
    model = build_model("vit", shape=(1, 4, 4), classes=3, generator_seed=0, options={"dim": 8, "depth": 1, "heads": 2})
    network = fold(model, torch.randn(2, 1, 4, 4, generator=generator))
    assert network.left_out == ("positions",)
    assert [layer.name for layer in network.layers] == [
        "embed.weight", "blocks.0.qkv.weight", "blocks.0.out.weight", "blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight",
        "head.weight",
    ]  # fmt: skip
    assert len(network.weights) == sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2) - 4 * 8
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True)
    x = torch.randn(1, 3, 4, generator=generator)
    network = fold(attention, (x, x, x))
    assert [layer.name for layer in network.layers] == ["in_proj_weight", "out_proj.weight"]
    assert set(network.left_out) == {"bias_k", "bias_v"}


def test_tied_frozen_and_parametrised_weights(generator):
    embedding = nn.Embedding(7, 4)
    head = nn.Linear(4, 7)
    head.weight = embedding.weight
    network = fold(nn.Sequential(embedding, head), torch.tensor([[1, 2]]))
    assert [tuple(layer.weight.shape) for layer in network.layers] == [(7, 4)]
    frozen = mlp()
    frozen.requires_grad_(False)
    assert len(fold(frozen, torch.zeros(1, 4)).layers) == 3
    x = torch.randn(2, 3, dtype=F64, generator=generator)
    normalised = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)), nn.BatchNorm1d(2)).double().eval()
    settled(normalised, generator)
    network = fold(normalised, x)
    [layer] = network.layers
    assert (layer.name, tuple(layer.weight.shape)) == ("0.weight", (2, 3))
    assert_close(network.model(x), normalised(x), rtol=1e-12, atol=1e-12)


def test_circular_norms_use_the_sizes_that_were_met(generator):
    model = settled(resnet(), generator)
    x = torch.randn(2, 2, 8, 8, generator=generator)
    network = fold(model, x)
    found = layer_norms(network, spectrum="circular", generator=generator)
    reshaped = layer_norms(network, generator=generator)
    assert found.fro == reshaped.fro
    for layer, circular, matrix in zip(network.layers, found.spec, reshaped.spec, strict=True):
        if layer.convolution is None:
            assert circular == pytest.approx(matrix, rel=1e-12)
        else:
            taps = layer.weight[0, 0].numel()
            assert circular <= taps * matrix * (1 + 1e-12)  # each frequency is a sum of unit phases over the taps
    assert {layer.sizes for layer in network.layers if layer.convolution is not None} == {
        ((8, 8),),
        ((4, 4),),
        ((2, 2),),
    }


def test_networks_that_do_not_match(generator):
    a, b = fold(mlp(), torch.zeros(1, 4)), fold(mlp((4, 7, 5, 3)), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="`initial` must have the layers of `network`"):
        layer_norms(a, b, generator=generator)


# Invariances: what a rescaling or a permutation that leaves the function alone does to each measure

UNDER_SCALING = {
    "params", "log_spec_orig_main", "log_prod_of_spec_over_margin", "log_prod_of_spec",
    "fro_over_spec", "log_sum_of_spec_over_margin", "log_sum_of_spec", "log_prod_of_fro_over_margin", "log_prod_of_fro",
    "log_sum_of_fro_over_margin", "log_sum_of_fro",
}  # fmt: skip


def measured(model, initial, x, generator):
    networks = [fold(m, x) for m in (model, initial)]
    return norm_measures(layer_norms(*networks, generator=generator), m=50, margin=1.5)


@pytest.mark.parametrize("norm", [False, True])
def test_rescaling_of_layers(norm, generator):
    model, initial = (settled(mlp(norm=norm), generator).double().eval() for _ in range(2))
    x = torch.randn(3, 4, dtype=F64, generator=generator)
    before = measured(model, initial, x, generator)
    scaled = copy.deepcopy(model)
    linear = [m for m in scaled if isinstance(m, nn.Linear)]
    units = [m for m in scaled if isinstance(m, nn.BatchNorm1d if norm else nn.Linear)]
    with torch.no_grad():
        for factor, layer, following in ((3.0, units[0], linear[1]), (0.25, units[1], linear[2])):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
            following.weight.div_(factor)
    assert_close(scaled(x), model(x), rtol=1e-12, atol=1e-12)
    after = measured(scaled, initial, x, generator)
    same = {name for name in before if after[name].raw == pytest.approx(before[name].raw, rel=1e-10)}
    assert same == UNDER_SCALING


def test_rescaling_of_single_units_changes_the_norms(generator):
    model, initial = (settled(mlp(), generator).double() for _ in range(2))
    x = torch.randn(3, 4, dtype=F64, generator=generator)
    before = measured(model, initial, x, generator)
    with torch.no_grad():
        factors = torch.rand(6, dtype=F64, generator=generator) + 0.5
        model[0].weight.mul_(factors[:, None])
        model[0].bias.mul_(factors)
        model[2].weight.div_(factors)
    after = measured(model, initial, x, generator)
    same = {name for name in before if after[name].raw == pytest.approx(before[name].raw, rel=1e-10)}
    assert same == {"params"}


def test_scaling_before_batch_norm_is_folded_away(generator):
    model = settled(mlp(norm=True), generator).double().eval()
    x = torch.randn(3, 4, dtype=F64, generator=generator)
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            layer.eps = 0.0
    before = fold(model, x).weights
    with torch.no_grad():
        model[0].weight.mul_(7)
        model[0].bias.mul_(7)
        model[1].running_mean.mul_(7)
        model[1].running_var.mul_(49)
    assert_close(fold(model, x).weights, before, rtol=1e-12, atol=0)


def test_permutation_of_hidden_units(generator):
    model, initial = (settled(mlp(norm=True), generator).double().eval() for _ in range(2))
    x = torch.randn(3, 4, dtype=F64, generator=generator)
    order = torch.randperm(6, generator=generator)
    moved = []
    for m in (model, initial):
        m = copy.deepcopy(m)
        with torch.no_grad():
            for t in (m[0].weight, m[0].bias, m[1].weight, m[1].bias, m[1].running_mean, m[1].running_var):
                t.copy_(t[order].clone())
            m[3].weight.copy_(m[3].weight[:, order].clone())
        moved.append(m)
    assert_close(moved[0](x), model(x), rtol=1e-12, atol=1e-12)
    before, after = measured(model, initial, x, generator), measured(*moved, x, generator)
    for name, value in before.items():
        assert after[name].raw == pytest.approx(value.raw, rel=1e-10), name


def test_the_document_runs_as_written(capsys):
    text = (Path(__file__).parents[3] / "docs" / "complexity.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(block, {})
    assert "log_prod_of_spec_over_margin" in capsys.readouterr().out
