"""A step of every method takes the weights on the device to where it takes them on the CPU, in float64."""

import networks
import pytest
import torch
from on_device import DEVICE, DrawnOnTheCpu, close, moved

from trainers import METHODS
from trainers.randomness import seeded

pytestmark = pytest.mark.gpu

STEPS = 3
SITUATIONS = {
    "chunks": {"method": "sam", "m": 5},
    "one perturbation a batch": {"method": "sam", "m": 5, "sharing": "batch"},
    "adamw": {"method": "gsam", "base": "adamw"},
    "obf": {"method": "sam", "ascent": "obf"},
    "clipped": {"method": "asam", "grad_clip": 0.1},
    "skips": {"method": "sam", "skip_nonfinite": True},
    "gate by the norm": {"method": "sam", "gate": "adaptive"},
    "diagnosed": {"method": "gsam", "diagnose": True},
    "shrunk": {"method": "sam", "shrink_perturb": 0.1},
}


def trained(device, method, *, m=None, base="sgd", **options):
    """Weights, buffers, losses and the last radius after some steps."""
    model = networks.network().to(device)
    with seeded(3), DrawnOnTheCpu():
        optimizer = networks.make(method, model, base, **options)
        losses = networks.train(model, optimizer, moved(networks.data(STEPS), device), m=m)
    return networks.state(model), losses


@pytest.mark.parametrize("method", sorted(METHODS))
def test_steps_are_those_of_the_cpu(method):
    options = networks.PERTURBED.get(method, {})
    close(trained(DEVICE, method, **options), trained("cpu", method, **options))


@pytest.mark.parametrize("situation", sorted(SITUATIONS))
def test_steps_are_those_of_the_cpu_in(situation):
    close(trained(DEVICE, **SITUATIONS[situation]), trained("cpu", **SITUATIONS[situation]))


def test_the_state_of_an_optimizer_goes_from_the_device_to_the_cpu_and_back():
    ends = []
    for places in ((DEVICE, "cpu", DEVICE), ("cpu", "cpu", "cpu")):
        kept, weights = None, None
        for device in places:
            model = networks.network().to(device)
            optimizer = networks.make("gsam", model)
            if kept is not None:
                model.load_state_dict(moved(weights, device))
                optimizer.load_state_dict(kept)
            networks.train(model, optimizer, moved(networks.data(1), device))
            kept, weights = optimizer.state_dict(), model.state_dict()
        ends.append(weights)
    close(*ends)


def test_nothing_is_left_on_another_device():
    model = networks.network().to(DEVICE)
    optimizer = networks.make("asam", model)
    networks.train(model, optimizer, moved(networks.data(1), DEVICE))
    kinds = {t.device.type for t in model.state_dict().values()}
    kinds |= {t.device.type for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)}
    assert kinds == {DEVICE.type}
