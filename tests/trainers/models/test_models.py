"""Models: sizes, initialisation, and the hand-written parts against torch's own or written-out versions."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from trainers.models.building import MODELS, build_model, model_options
from trainers.models.resnet import ResidualBlock
from trainers.models.vit import EncoderBlock, patches

F64 = torch.float64


def make(name, shape=(1, 8, 8), classes=10, seed=0, **options):
    return build_model(name, shape=shape, classes=classes, generator_seed=seed, options=options)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("mlp", (1, 8, 8), {}),
        ("mlp", (1, 40), {"dropout": 0.5}),
        ("mlp", (7,), {"depth": 0}),
        ("cnn", (1, 8, 8), {}),
        ("cnn", (3, 9, 7), {"width": 2}),
        ("cnn", (1, 40), {"width": 4}),
        ("resnet20", (1, 8, 8), {"width": 2}),
        ("resnet20", (3, 32, 32), {"width": 2, "blocks": 1}),
        ("resnet20", (3, 5, 7), {"width": 2, "blocks": 1}),
        ("vit", (1, 8, 8), {"dim": 8, "depth": 1}),
        ("vit", (3, 8, 4), {"dim": 8, "depth": 1, "patch": 4, "heads": 2, "dropout": 0.1}),
        ("vit", (1, 40), {"dim": 8, "depth": 1, "patch": 5}),
    ],
)
def test_outputs_are_logits_and_every_parameter_gets_a_gradient(name, shape, options, generator):
    model = make(name, shape, 3, **options)
    out = model(torch.randn(4, *shape, generator=generator))
    assert out.shape == (4, 3)
    out.pow(2).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("name", "shape", "options", "parameters"),
    [
        ("mlp", (1, 8, 8), {}, 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
        ("mlp", (1, 8, 8), {"depth": 0}, 64 * 10 + 10),
        ("cnn", (1, 8, 8), {}, (9 * 16 + 16) + (16 * 32 * 9 + 32) + (32 * 64 * 9 + 64) + (64 * 4 * 10 + 10)),
        ("cnn", (1, 40), {}, (5 * 16 + 16) + (16 * 32 * 5 + 32) + (32 * 64 * 5 + 64) + (64 * 10 * 10 + 10)),
        ("resnet20", (3, 32, 32), {}, 269_722),  # He et al. (2016), table 6: 0.27 million
        ("resnet20", (3, 32, 32), {"blocks": 9}, 853_018),  # ResNet-56 there: 0.85 million
        ("vit", (1, 8, 8), {}, (4 * 64 + 64) + 16 * 64 + 4 * (12 * 64**2 + 13 * 64) + 2 * 64 + (64 * 10 + 10)),
    ],
)
def test_number_of_parameters(name, shape, options, parameters):
    assert count(make(name, shape, **options)) == parameters


def test_mlp_is_linear_and_relu_in_turn(generator):
    model = make("mlp", width=5, depth=2).double()
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    x = torch.randn(3, 1, 8, 8, generator=generator, dtype=F64)
    h = x.flatten(1)
    for at in (1, 3):
        h = torch.relu(h @ model[at].weight.T + model[at].bias)
    assert_close(model(x), h @ model[5].weight.T + model[5].bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if name != "gpt" and not entry.graph])
def test_initialisation_is_decided_by_the_seed_alone(name):
    torch.rand(3)
    before = torch.get_rng_state()
    options = {"width": 4} if name == "resnet18" else {"widen_factor": 1} if name == "wide_resnet" else {}
    one = make(name, **options).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    same, other = make(name, **options).state_dict(), make(name, seed=1, **options).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("stride", [1, 2])
def test_residual_block_against_its_formula(stride, generator):
    block = ResidualBlock(3, 3 * stride, stride).double().eval()
    for bn in (block.bn1, block.bn2):
        bn.running_mean.normal_(generator=generator)
        bn.running_var.uniform_(0.5, 2, generator=generator)
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=F64)

    def normal(bn, t):
        mean, var = bn.running_mean[:, None, None], bn.running_var[:, None, None]
        return (t - mean) / (var + bn.eps).sqrt()

    h = torch.relu(normal(block.bn1, nn.functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)))
    h = normal(block.bn2, nn.functional.conv2d(h, block.conv2.weight, padding=1))
    expected = h.clone()
    expected[:, :3] += x[:, :, ::stride, ::stride]
    assert_close(block(x), torch.relu(expected), rtol=1e-12, atol=1e-12)


def test_convolutions_of_resnet_start_at_the_variance_that_keeps_relu_scale():
    model = make("resnet20", width=16)
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 19  # with the linear layer: 20
    w = convolutions[-1].detach()
    # He's variance is 2 / fan_in; the variance of n normal draws has a relative deviation of sqrt(2 / n) = 0.7 %
    assert float(w.var()) == pytest.approx(2 / (64 * 9), rel=4 * math.sqrt(2 / w.numel()))


def test_encoder_block_equals_torchs_own(generator):
    block = EncoderBlock(8, 2, 0.0).double()
    reference = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=F64
    )
    pairs = {
        "norm1": block.norm1,
        "self_attn.in_proj_": block.qkv,
        "self_attn.out_proj": block.out,
        "norm2": block.norm2,
        "linear1": block.mlp[0],
        "linear2": block.mlp[2],
    }
    state = {}
    for key, module in pairs.items():
        joint = key if key.endswith("_") else f"{key}."
        state[f"{joint}weight"], state[f"{joint}bias"] = module.weight.detach(), module.bias.detach()
    reference.load_state_dict(state)
    x = torch.randn(3, 5, 8, generator=generator, dtype=F64)
    assert_close(block(x), reference(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_patches_of_images_are_unfolds(side, generator):
    x = torch.randn(2, 3, 8, 4, generator=generator)
    expected = nn.functional.unfold(x, side, stride=side).transpose(1, 2)
    assert_close(patches(x, side), expected, rtol=0, atol=0)


def test_patches_of_signals():
    x = torch.arange(12.0).reshape(1, 2, 6)
    expected = torch.tensor([[[0.0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]])
    assert_close(patches(x, 2), expected, rtol=0, atol=0)


def test_vit_tells_positions_apart(generator):
    model = make("vit", dim=16, depth=1).double()
    x = torch.randn(2, 1, 8, 8, generator=generator, dtype=F64)
    moved = x.roll(2, dims=-1)  # permutes the patches: without positions the mean over tokens would not notice
    assert float((model(x) - model(moved)).detach().abs().max()) > 1e-4
    nn.init.zeros_(model.positions)
    assert_close(model(x), model(moved), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_dropout_is_in_train_mode_only(name, generator):
    model = make(name, dropout=0.5)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    still = make(name)
    assert torch.equal(still(x), still(x))


def test_options_are_resolved_with_defaults():
    assert model_options("vit", {"dim": 32}) == {"patch": 2, "dim": 32, "depth": 4, "heads": 4, "dropout": 0.0}
    assert model_options("mlp", {}) == {"width": 256, "depth": 2, "dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("reznet20", (1, 8, 8), {}, r"`model` 'reznet20' is unknown; there are mlp, .* Did you mean 'resnet20'\?"),
        ("tim:resnet18", (3, 8, 8), {}, r"`model` 'tim:resnet18': there is no module 'tim'; .* Did you mean 'timm'\?"),
        ("timn:vit-tiny", (3, 8, 8), {}, r"`model` 'timn:vit-tiny' is unknown; .* Did you mean 'timm'\?"),
        ("mlp", (1, 8, 8), {"widht": 3}, r"model 'mlp' has no option `widht`; .*Did you mean 'width'\?"),
        ("mlp", (1, 8, 8), {"width": 0}, "option `width` of model 'mlp' got 0: .*greater than or equal to 1"),
        ("mlp", (1, 8, 8), {"depth": -1}, "option `depth` of model 'mlp' got -1"),
        ("mlp", (1, 8, 8), {"dropout": 1.0}, "option `dropout` of model 'mlp' got 1.0: .*less than 1"),
        ("mlp", (1, 8, 8), {"dropout": float("nan")}, "option `dropout` of model 'mlp' got nan"),
        ("cnn", (1, 8, 8), {"width": "wide"}, "option `width` of model 'cnn' got 'wide'"),
        ("cnn", (1, 8, 8), {"width": 2.5}, "option `width` of model 'cnn' got 2.5"),
        ("cnn", (8,), {}, r"`shape` must be \(c, h, w\) for images or \(c, length\) for signals .* got \(8,\)"),
        ("resnet20", (1, 40), {}, r"`shape` must be that of images, .* got \(1, 40\); try 'cnn'"),
        ("vit", (8,), {}, r"`shape` must be \(c, h, w\) for images or .* got \(8,\)"),
        ("vit", (1, 8, 8), {"patch": 3}, r"`patch` must divide the sides \(8, 8\) .* got 3; use one of \[1, 2, 4, 8\]"),
        ("vit", (1, 8, 8), {"heads": 5}, "`heads` must divide `dim` 64, got 5"),
        ("mlp", (), {}, r"`shape` must be the sizes of one input, without the batch axis, got \(\)"),
        ("mlp", (0, 8), {}, r"`shape` must be the sizes of one input"),
    ],
)
def test_wrong_models_and_sizes_are_refused(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, shape, **options)


def test_wrong_classes_and_seed_are_refused():
    with pytest.raises(ValueError, match="`classes` must be at least 1, got 0"):
        make("mlp", classes=0)
    with pytest.raises(ValueError, match="`generator_seed` must be an integer"):
        make("mlp", seed=-1)


MODULE = """
from torch import nn

def sized(shape, classes, *, hidden=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], hidden), nn.Linear(hidden, classes))

def fixed():
    return nn.Linear(5, 2)

def bare():
    model = nn.Flatten()
    model.layers = [nn.Linear(5, 2)]
    return model

def number(**everything):
    return len(everything)
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "models_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_models_of_the_user(modules):
    model = make("models_of_mine:sized", (5,), 2, hidden=7)
    assert [tuple(p.shape) for p in model.parameters()] == [(7, 5), (7,), (2, 7), (2,)]
    again = make("models_of_mine:sized", (5,), 2, hidden=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert isinstance(make("models_of_mine:fixed", (5,), 2), nn.Linear)


def test_wrong_models_of_the_user_are_refused(modules):
    with pytest.raises(ValueError, match=r"`options` of model 'models_of_mine:sized' do not fit .*'widht'"):
        make("models_of_mine:sized", (5,), 2, widht=7)
    with pytest.raises(ValueError, match=r"`model` 'models_of_mine:bare' has no parameters to train: .*ModuleList"):
        make("models_of_mine:bare", (5,), 2)
    with pytest.raises(ValueError, match=r"`model` 'models_of_mine:number' must return a torch.nn.Module, got int"):
        make("models_of_mine:number", (5,), 2)
    with pytest.raises(PermissionError, match="'models_of_mine:fixed' was not imported"):
        build_model("models_of_mine:fixed", shape=(5,), classes=2, generator_seed=0, trust=False)
