"""Averages of weights: recursions written out, timm's own, and buffers of every kind."""

import copy

import pytest
import torch
from drop_in import need
from torch import nn
from torch.testing import assert_close

from trainers.models.averaging import WeightAverage
from trainers.randomness import seeded


class Net(nn.Module):
    """With running statistics, a counter, and an index that rounding would change."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.tied = self.layer
        self.register_buffer("index", torch.arange(100))
        self.register_buffer("mask", torch.tensor([True, False]), persistent=False)

    def forward(self, x):
        return self.norm(self.layer(x))


def path(model, steps, generator):
    """A model that walks about, in train mode; its states so far."""
    states = []
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn(p.shape, generator=generator, dtype=p.dtype)
            model(torch.randn(5, 3, generator=generator, dtype=torch.float64))
        states.append({k: t.clone() for k, t in [*model.named_parameters(), *model.named_buffers()]})
        yield states


def walked(average, model, steps, generator):
    """The states of a model that walks about and is averaged."""
    found = []
    for states in path(model, steps, generator):
        average.update(model)
        found = states
    return found


def net():
    with seeded(0):
        return Net().double()


def test_the_moving_average_is_its_recursion(generator):
    model = net()
    average = WeightAverage(model, "ema", 0.7)
    states = walked(average, model, 6, generator)
    expected = states[0]
    for state in states[1:]:
        for key, value in state.items():
            moves = value.is_floating_point()
            expected[key] = 0.7 * expected[key] + 0.3 * value if moves else value
    found = average.state_dict()
    assert found["count"] == 6
    assert found["tensors"].keys() == expected.keys()
    for key, value in expected.items():
        assert_close(found["tensors"][key], value, rtol=1e-12, atol=1e-12)


def test_the_moving_average_is_timms(generator):
    need("timm")
    from timm.utils import ModelEmaV3

    model = net()
    del model.tied  # theirs moves a tensor that has two names twice
    ours, theirs = WeightAverage(model, "ema", 0.9), ModelEmaV3(model, decay=0.9)
    for step, _ in enumerate(path(model, 5, generator)):
        ours.update(model)
        theirs.update(model, step + 1)
    for key, value in theirs.module.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value), key


def test_the_mean_of_weights_and_statistics_of_its_own(generator):
    model = net()
    average = WeightAverage(model, "swa", 0.7)
    states = walked(average, model, 4, generator)
    mean = torch.stack([s["layer.weight"] for s in states]).mean(0)
    assert_close(average.model.layer.weight.detach(), mean, rtol=1e-12, atol=1e-12)
    batches = [(torch.randn(n, 3, generator=generator, dtype=torch.float64), torch.zeros(n)) for n in (8, 4)]
    average.recalibrate(batches)
    outputs = [average.model.layer(x).detach() for x, _ in batches]
    assert_close(average.model.norm.running_mean, torch.cat(outputs).mean(0), rtol=1e-12, atol=1e-12)
    variances = (8 * outputs[0].var(0) + 4 * outputs[1].var(0)) / 12
    assert_close(average.model.norm.running_var, variances, rtol=1e-12, atol=1e-12)
    assert not average.model.training


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_state_that_is_taken_over_goes_on_as_before(kind, generator):
    model = net()
    whole, first = WeightAverage(model, kind, 0.7), WeightAverage(model, kind, 0.7)
    for step, _ in enumerate(path(model, 6, generator)):
        if step == 3:
            second = WeightAverage(net(), kind, 0.7)
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            first = second
        whole.update(model)
        first.update(model)
    a, b = whole.state_dict(), first.state_dict()
    assert a["count"] == b["count"] == 6
    assert all(torch.equal(a["tensors"][k], b["tensors"][k]) for k in a["tensors"])


def test_the_model_is_left_as_it_is(generator):
    model = net()
    before = copy.deepcopy(model.state_dict())
    average = WeightAverage(model, "ema", 0.5)
    average.update(model)
    with torch.no_grad():
        average.model.layer.weight.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Linear(2, 2)
    model.scaled = model.weight * 2  # no leaf
    with pytest.raises(ValueError, match=r"`average` 'swa' keeps a copy of the model, and `copy.deepcopy` fails on it"):
        WeightAverage(model, "swa", 0.5)
