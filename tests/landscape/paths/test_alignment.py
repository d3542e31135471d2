"""Alignment of trained models: the same function, a smaller distance, a lower barrier."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.testing import assert_close

from landscape.paths.alignment import align, interpolate_aligned
from landscape.paths.groups import PermutationGroups
from landscape.paths.states import ModelState


@pytest.fixture(scope="module")
def trained():
    """Two networks with BatchNorm trained on digits from different initial weights."""
    x, y = (torch.as_tensor(t) for t in load_digits(return_X_y=True))
    x, y = (x[:600] / 16).float(), y[:600]
    models = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
        g = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(12):
            for part in torch.randperm(600, generator=g).split(60):
                optimizer.zero_grad()
                F.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
        models.append(model.eval())
    return models, (x, y)


def test_alignment_of_trained_models(trained):
    (first, second), data = trained
    before = copy.deepcopy(second.state_dict())
    found = interpolate_aligned(
        first, F.cross_entropy, first, second, {"train": data}, coordinates=[0, 0.25, 0.5, 0.75, 1]
    )
    matching = found.alignment.matching
    assert matching.distance < 0.95 * matching.distance_before
    for mode in ("eval", "recalibrate"):
        rough, smooth = found.barriers("train", mode)
        assert smooth.value + 3 * smooth.stderr < rough.value - 3 * rough.stderr
    # the aligned model is the other one: same loss at a = 1, with its statistics moved along
    assert_close(found.before.values("train")[-1], found.after.values("train")[-1], rtol=1e-5, atol=1e-6)
    assert found.alignment.difference < 1e-5
    for name, t in second.state_dict().items():
        assert torch.equal(t, before[name])


def test_permuted_copy_has_a_barrier_before_and_none_after(trained, generator):
    (model, _), data = trained
    groups, state = PermutationGroups.of_model(model, data), ModelState.of(model)
    planted = groups.random(generator)
    copied = ModelState(groups.permuted(state.parameters, planted), groups.permuted(state.buffers, planted))
    found = interpolate_aligned(model, F.cross_entropy, state, copied, {"train": data}, coordinates=[0, 0.5, 1])
    before, after = found.barriers("train")
    assert before.value > 10 * before.stderr > 0
    assert after.value == pytest.approx(0, abs=1e-6)
    assert found.alignment.matching.distance == 0
    for name, t in found.alignment.state.buffers.items():
        assert torch.equal(t, state.buffers[name])


def test_groups_that_change_the_function_are_refused(trained):
    (first, second), data = trained
    tensors = dict(first.state_dict())
    missing = PermutationGroups.of_axes({"hidden": [("0.weight", 0), ("0.bias", 0), ("3.weight", 1)]}, tensors)
    with pytest.raises(ValueError, match=r"`groups` change what the model computes: outputs differ by"):
        align(first, first, second, data, groups=missing)
    whole = PermutationGroups.of_axes(
        {
            "hidden": [
                ("0.weight", 0), ("0.bias", 0), ("3.weight", 1),
                *((f"1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")),
            ]
        },
        tensors,
    )  # fmt: skip
    by_hand, found = align(first, first, second, data, groups=whole), align(first, first, second, data)
    assert by_hand.matching.distance == found.matching.distance


def test_other_architectures_are_refused(trained):
    (first, _), data = trained
    with pytest.raises(ValueError, match="`reference` and `other` are not of the same architecture"):
        align(first, first, nn.Linear(64, 10), data)
