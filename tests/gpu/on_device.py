"""The device that is compared with the CPU, equality up to rounding, and draws that do not depend on the device."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device(os.environ.get("LANDSCAPE_DEVICE", "cuda"))
CUDA = DEVICE.type == "cuda"

largest = 0.0  # relative difference that `close` has seen


def close(actual, expected, *, rtol=1e-9, atol=1e-11):
    """Assert that numbers of the device are those of the CPU, to rounding in float64."""
    global largest
    if isinstance(expected, Mapping):
        assert list(actual) == list(expected)
        for name in expected:
            close(actual[name], expected[name], rtol=rtol, atol=atol)
        return
    if isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            close(one, other, rtol=rtol, atol=atol)
        return
    actual, expected = (torch.as_tensor(t).detach().cpu() for t in (actual, expected))
    if expected.is_floating_point() and expected.numel():
        scale = expected.abs().nan_to_num(posinf=0).max()
        apart = (actual - expected).abs().nan_to_num(posinf=0).max()
        largest = max(largest, float(apart / scale) if scale > 0 else float(apart))
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True, check_stride=False)


def moved(value, device):
    """Tensors on a device, in lists, tuples and dicts too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: moved(v, device) for k, v in value.items()}
    return type(value)(moved(v, device) for v in value) if isinstance(value, list | tuple) else value


class DrawnOnTheCpu(TorchFunctionMode):
    """Draws from a generator on another device are taken from one on the CPU with its seed, and moved there.

    What a device draws from a seed is its own affair; so that the rest can be compared, it is given the CPU's numbers.
    """

    def __init__(self, generators=lambda generator: generator.device.type != "cpu"):
        super().__init__()
        self.meant = generators
        self.twins = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        generator = kwargs.get("generator")
        if not isinstance(generator, torch.Generator) or not self.meant(generator):
            return function(*args, **kwargs)
        kwargs["generator"] = self._twin(generator)
        device = next((a.device for a in args if isinstance(a, Tensor)), kwargs.get("device") or generator.device)
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        drawn = function(*moved(args, "cpu"), **kwargs)
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return args[0].copy_(drawn)
        return drawn.to(device)

    def _twin(self, generator):
        seed = generator.initial_seed()
        twin, drawn_from = self.twins.get(id(generator), (None, None))
        if twin is None or drawn_from != seed:
            twin = torch.Generator().manual_seed(seed)
            self.twins[id(generator)] = twin, seed
        return twin
