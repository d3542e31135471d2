"""Mixed precision on the device: a scale changes nothing, an overflow skips one step, both types learn."""

import networks
import pytest
import torch
import torch.nn.functional as F
from on_device import CUDA, DEVICE, close, moved
from torch.amp import GradScaler

from trainers import AscentObjective, Objective, make_optimizer, obf_loss
from trainers.randomness import seeded

pytestmark = pytest.mark.gpu

FEW = ["sgd", "sam", "asam", "gsam", "looksam", "msam", "obf", "vasso"]
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def trained(method, *, steps=8, scaler=None, autocast=None, spoiled=(), settings=None):
    """Model, optimizer and losses; the loss of spoiled steps is infinite."""
    model = networks.network(dtype=torch.float32).to(DEVICE)
    optimizer = make_optimizer(
        method, model, lr=0.05, momentum=0.9, total_steps=40, steps_per_epoch=4, grad_scaler=scaler, **(settings or {})
    )
    losses, weights = [], []
    (x, y), *_ = moved(networks.data(1, 48, torch.float32), DEVICE)
    for step in range(steps):

        def loss(logits, targets, spoil=step in spoiled):
            value = F.cross_entropy(logits, targets)
            return value * torch.inf if spoil else value

        given = {
            "model": model, "loss": loss, "x": x, "y": y, "autocast": autocast, "grad_scaler": scaler,
            "parameters": list(model.parameters()),
        }  # fmt: skip
        ascent = [AscentObjective(**given, ascent=obf_loss)] if optimizer.parts.ascent == "obf" else None
        weights.append(networks.flat(model))
        losses.append(float(optimizer.step([Objective(**given)], ascent=ascent)))
    return model, optimizer, losses, weights


@pytest.mark.parametrize("method", FEW)
def test_a_scale_changes_no_step(method):
    plain, scaled = (
        networks.state(trained(method, scaler=scaler, steps=4)[0])
        for scaler in (None, GradScaler(DEVICE.type, init_scale=2.0**10))
    )
    close(scaled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", FEW)
@pytest.mark.parametrize("name", sorted(TYPES))
def test_both_types_learn_what_float32_learns(name, method):
    scaler = GradScaler(DEVICE.type, init_scale=2.0**10) if name == "float16" else None
    with seeded(0):
        low = trained(method, steps=30, scaler=scaler, autocast=TYPES[name])[2]
    with seeded(0):
        full = trained(method, steps=30)[2]
    assert low[-1] < 0.9 * low[0]
    assert abs(low[-1] - full[-1]) < 0.1 * full[0]


@pytest.mark.parametrize("method", FEW)
def test_an_overflow_skips_its_step_and_halves_the_scale(method):
    scaler = GradScaler(DEVICE.type, init_scale=2.0**8)
    _, optimizer, _, weights = trained(method, steps=4, scaler=scaler, spoiled=(1,))
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert scaler.get_scale() == 2.0**7
    assert not optimizer.last.overflow


def test_float32_is_not_rounded_to_tf32_unless_asked():
    if not CUDA:
        pytest.skip("no CUDA")
    assert not torch.backends.cuda.matmul.allow_tf32
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=g) for _ in range(2))
    exact = a.double() @ b.double()
    error = ((a.to(DEVICE) @ b.to(DEVICE)).cpu().double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-5
