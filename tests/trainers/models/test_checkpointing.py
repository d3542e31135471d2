"""Activation checkpointing: the same gradients and running statistics for less memory, or a refusal."""

import copy

import pytest
import torch
from drop_in import need
from torch import nn

from trainers import fit
from trainers.files.tree import equal
from trainers.models.building import build_model
from trainers.models.checkpointing import checkpoint_activations
from trainers.randomness import seeded
from trainers.runs.checkpoint import read_weights

CASES = {
    "resnet20": ((1, 8, 8), {"width": 4, "blocks": 2}),
    "resnet18": ((1, 8, 8), {"width": 4}),
    "wide_resnet": ((1, 8, 8), {"depth": 16, "widen_factor": 1, "dropout": 0.3}),
    "vit": ((1, 8, 8), {"dim": 8, "depth": 3, "heads": 2, "dropout": 0.3}),
    "timm:vit_tiny_patch16_224": ((1, 8, 8), {"patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2}),
    "hf:vit": (
        (1, 8, 8),
        {"patch_size": 4, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
    ),
}


def pass_over(model, x):
    """Bytes kept for the backward pass, gradients and buffers, of one pass with dropout."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with seeded(5):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(x).square().sum()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        bytes_ = sum(size for place, size in kept.items() if place not in weights)
        loss.backward()
    return bytes_, [p.grad for p in model.parameters()], dict(model.named_buffers())


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_buffers_are_the_same_bit_for_bit_for_less_memory(name, generator):
    library = {"timm": "timm", "hf": "transformers"}.get(name.partition(":")[0])
    if library:
        need(library)
    shape, options = CASES[name]
    plain = build_model(name, shape=shape, classes=3, generator_seed=0, options=options)
    sparing = copy.deepcopy(plain)
    checkpoint_activations(sparing, name=name)
    x = torch.randn(16, *shape, generator=generator)
    much, gradients, buffers = pass_over(plain, x)
    little, again, after = pass_over(sparing, x)
    assert equal(gradients, again)
    assert equal(buffers, after)
    assert plain.state_dict().keys() == sparing.state_dict().keys()
    assert little < 0.6 * much
    assert torch.equal(plain.eval()(x), sparing.eval()(x))


def test_a_run_has_the_same_id_and_weights_with_and_without(tmp_path):
    small = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 1, "model": "resnet20"}
    config = {**small, "model_options": {"width": 2, "blocks": 1}, "method": "sam", "ascent": "obf"}
    plain = fit(config, out=tmp_path / "plain")
    sparing = fit(config, out=tmp_path / "sparing", checkpoint_activations=True)
    assert plain.run_id == sparing.run_id
    assert equal(*(read_weights(run.checkpoint(2) / "params.safetensors") for run in (plain, sparing)))


def test_models_that_cannot_are_refused():
    mlp = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"`checkpoint_activations`: model 'mlp' cannot compute .*`micro_batch`"):
        checkpoint_activations(mlp, name="mlp")
    need("timm")
    import timm

    with pytest.raises(ValueError, match=r"running statistics \(BatchNorm\), which would count each batch twice"):
        checkpoint_activations(timm.create_model("test_resnet"), name="timm:test_resnet")

    class Refusing(nn.Linear):
        def set_grad_checkpointing(self, enable=True):
            assert not enable, "gradient checkpointing not supported"

    with pytest.raises(ValueError, match=r"'mine:it' has no such switch \(gradient checkpointing not supported\)"):
        checkpoint_activations(Refusing(2, 2), name="mine:it")
