"""Running statistics: held still inside a block, and estimated afresh, against closed forms."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from landscape.batchnorm import frozen_statistics, recalibrate, tracking_modules

F64 = torch.float64

LAYERS = {
    "batch1d": lambda: nn.BatchNorm1d(3, dtype=F64),
    "cumulative": lambda: nn.BatchNorm1d(3, momentum=None, dtype=F64),
    "no_affine": lambda: nn.BatchNorm1d(3, affine=False, dtype=F64),
    "frozen": lambda: nn.BatchNorm1d(3, dtype=F64).requires_grad_(False),
    "sync": lambda: nn.SyncBatchNorm(3, dtype=F64),
    "instance": lambda: nn.InstanceNorm1d(3, track_running_stats=True, dtype=F64),
    "instance_affine": lambda: nn.InstanceNorm1d(3, track_running_stats=True, affine=True, dtype=F64),
}


def signals(generator, n=6):
    return 2 + 3 * torch.randn(n, 3, 4, generator=generator, dtype=F64)


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def unchanged(model, before):
    after = dict(model.named_buffers())
    assert list(after) == list(before)
    return all(torch.equal(after[name], before[name]) for name in before)


@pytest.fixture(params=LAYERS)
def layer(request, generator):
    module = LAYERS[request.param]()
    module(signals(generator))  # statistics that are neither 0 and 1 nor those of the next batch
    return module


def test_train_mode_uses_the_batch_and_leaves_the_statistics(layer, generator):
    x, before = signals(generator), buffers(layer)
    with frozen_statistics([layer]):
        inside = layer(x)
    assert unchanged(layer, before)
    assert_close(inside, layer(x), rtol=0, atol=0)
    assert not unchanged(layer, before)  # and outside they move again


def test_gradients_inside_are_those_outside(layer, generator):
    x = signals(generator).requires_grad_()
    weights = torch.randn(6, 3, 4, generator=generator, dtype=F64)
    with frozen_statistics([layer]):
        (inside,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    (outside,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    assert_close(inside, outside, rtol=0, atol=0)


def test_eval_mode_goes_on_using_the_running_statistics(layer, generator):
    x = signals(generator)
    layer.eval()
    outside, before = layer(x), buffers(layer)
    with frozen_statistics([layer]):
        assert_close(layer(x), outside, rtol=0, atol=0)
    assert unchanged(layer, before)


def test_mode_may_change_inside(layer, generator):
    x = signals(generator)
    outside, before = layer.eval()(x), buffers(layer)
    with frozen_statistics([layer]):
        assert not torch.equal(layer.train()(x), outside)
    with frozen_statistics([layer.train()]):
        assert layer.eval().training is False
        assert_close(layer(x), outside, rtol=0, atol=0)
    assert unchanged(layer, before)


def test_nesting_repeats_and_exceptions_restore(layer, generator):
    x, before = signals(generator), buffers(layer)
    tensors = dict(layer.named_buffers())
    with frozen_statistics([layer, layer]), pytest.raises(AttributeError, match="shape"), frozen_statistics([layer]):
        layer(x).no_such_shape()
    assert layer.track_running_stats
    assert unchanged(layer, before)
    assert all(tensors[name] is b for name, b in layer.named_buffers())
    with frozen_statistics([layer]):
        with frozen_statistics([layer]):
            layer(x)
        layer(x)  # still frozen after the inner block
    assert unchanged(layer, before)
    layer(x)
    assert not unchanged(layer, before)


def test_batch_that_is_not_finite_leaves_the_statistics(layer):
    before = buffers(layer)
    with frozen_statistics([layer]):
        layer(torch.full((6, 3, 4), float("nan"), dtype=F64))
    assert unchanged(layer, before)


def test_cumulative_average_skips_what_happened_inside(generator):
    layer = nn.BatchNorm1d(2, momentum=None, dtype=F64)
    a, b, c = (torch.randn(5, 2, generator=generator, dtype=F64) for _ in range(3))
    layer(a)
    with frozen_statistics([layer]):
        layer(b)
    layer(c)
    assert int(layer.num_batches_tracked) == 2
    assert_close(layer.running_mean, (a.mean(0) + c.mean(0)) / 2, rtol=1e-14, atol=1e-14)


def test_tracking_modules_are_found_wherever_they_are():
    norms = [nn.BatchNorm2d(3), nn.BatchNorm1d(3).eval(), nn.InstanceNorm2d(3, track_running_stats=True)]
    others = [nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), nn.BatchNorm1d(3, track_running_stats=False)]
    model = nn.Sequential(nn.Sequential(*norms[:2]), *others, norms[2], norms[0])
    assert tracking_modules(model) == norms
    assert tracking_modules(nn.Linear(2, 2)) == []


def test_nothing_to_freeze_makes_no_new_object():
    assert frozen_statistics([]) is frozen_statistics([])
    with frozen_statistics([]), frozen_statistics([]):
        pass


def test_other_layers_in_the_list_are_left_alone():
    linear = nn.Linear(2, 2)
    with frozen_statistics([linear]):
        assert not hasattr(linear, "track_running_stats")
    assert not hasattr(linear, "track_running_stats")


def test_model_in_place_of_a_list_is_refused():
    with pytest.raises(ValueError, match=r"`modules` must be a list of layers: pass `tracking_modules\(model\)`"):
        frozen_statistics(nn.Sequential(nn.BatchNorm1d(2)))


def ragged(generator):
    return [(torch.randn(n, 3, generator=generator, dtype=F64) + n, torch.zeros(n)) for n in (5, 5, 2)]


@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
def test_recalibration_averages_over_batches_by_size(generator, momentum):
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum, dtype=F64), nn.Dropout(0.5), nn.Linear(3, 2, dtype=F64))
    batches = ragged(generator)
    model(batches[0][0])
    recalibrate(model.eval(), batches)
    share = [len(x) / 12 for x, _ in batches]
    mean = sum(s * x.mean(0) for s, (x, _) in zip(share, batches, strict=True))
    var = sum(s * x.var(0) for s, (x, _) in zip(share, batches, strict=True))
    assert_close(model[0].running_mean, mean, rtol=1e-12, atol=1e-12)
    assert_close(model[0].running_var, var, rtol=1e-12, atol=1e-12)
    assert_close(mean, torch.cat([x for x, _ in batches]).mean(0), rtol=1e-12, atol=1e-12)
    assert model[0].momentum == momentum
    assert not any(m.training for m in model.modules())


def test_recalibration_of_deep_layers_runs_at_evaluation_dropout(generator):
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 4, dtype=F64), nn.BatchNorm1d(4, dtype=F64))
    x = torch.randn(7, 3, generator=generator, dtype=F64)
    state = torch.get_rng_state()
    recalibrate(model, (x, torch.zeros(7)))
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(model[2].running_mean, model[1](x).mean(0), rtol=1e-12, atol=1e-12)
    assert all(m.training for m in model.modules())


def test_recalibration_takes_loaders_dicts_and_mixed_modes(generator):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3, dtype=F64)
            self.drop = nn.Dropout(0.5).eval()

        def forward(self, inputs, labels=None):
            return self.drop(self.norm(inputs))

    batches = ragged(generator)
    expected = torch.cat([x for x, _ in batches]).mean(0)
    model = Named()
    recalibrate(model, [{"inputs": x, "labels": y} for x, y in batches])
    assert_close(model.norm.running_mean, expected, rtol=1e-12, atol=1e-12)
    assert model.norm.training
    assert not model.drop.training
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*batches, strict=True))), batch_size=5
    )
    model.norm.reset_running_stats()
    recalibrate(model, loader)
    assert_close(model.norm.running_mean, expected, rtol=1e-12, atol=1e-12)


def test_recalibration_that_fails_puts_everything_back(generator):
    model = nn.Sequential(nn.BatchNorm1d(3, dtype=F64), nn.Linear(3, 2, dtype=F64))
    model(ragged(generator)[0][0])
    before = buffers(model)
    with pytest.raises(ValueError, match="`data` has no example"):
        recalibrate(model, [])
    with pytest.raises(RuntimeError):
        recalibrate(model, [*ragged(generator), (torch.zeros(4, 2, dtype=F64), torch.zeros(4))])
    assert unchanged(model, before)
    assert model.training
    assert model[0].momentum == 0.1


def test_model_without_statistics_reads_no_data():
    recalibrate(nn.Linear(2, 2), iter(()))
