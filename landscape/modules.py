"""The tree of modules of a model: copies that share parameters, and where it holds parameters and buffers."""

import copy
from typing import Any

from torch import Tensor, nn

Slot = tuple[Any, Any]  # a container that holds a parameter, and the key or index where


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without what torch.compile and data parallelism put around it."""
    while True:
        if hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the tree of modules and buffers that shares parameters, and tensors that cannot be copied."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    for child in model.modules():
        for value in child.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:  # computed by a hook before each call
                shared[id(value)] = value
    try:
        return copy.deepcopy(model, memo=shared)
    except Exception as error:
        raise ValueError(
            f"`model` cannot be copied ({type(error).__name__}: {error}): give `EmpiricalRisk` a function "
            "predict(theta, inputs) instead, such as torch.func.functional_call makes."
        ) from error


def slots(module: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, list[Slot]]:
    """All places in the tree of modules that hold each parameter."""
    places: dict[int, list[Slot]] = {id(p): [] for p in parameters.values()}
    for child in module.modules():
        containers: list[Any] = [child._parameters, child.__dict__]
        containers += [
            v for v in child.__dict__.values() if isinstance(v, list) and v
        ]  # recurrent layers' flat weights
        for container in containers:
            items = enumerate(container) if isinstance(container, list) else container.items()
            for key, value in items:
                if isinstance(value, nn.Parameter) and id(value) in places:
                    places[id(value)].append((container, key))
    return {name: places[id(parameter)] for name, parameter in parameters.items()}


def buffer_slots(module: nn.Module, names: set[str]) -> list[tuple[Any, str]]:
    """Where buffers of these names are held."""
    prefixes = [(child._buffers, f"{path}." if path else "") for path, child in module.named_modules()]
    return [(held, key) for held, path in prefixes for key, b in held.items() if b is not None and path + key in names]
