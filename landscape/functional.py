"""A module as a pure function of its parameters, with little to pay for each call."""

import copy
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from landscape.params import Params

Slot = tuple[dict[str, Any], str]  # a module's own dict of parameters, and the name in it


class PureModel:
    """Calls a module with given parameters in place of its own; the module itself is never touched.

    Works on a copy of the tree of modules that shares every parameter, so that modes can differ. `torch.func`'s
    functional_call does the same for any module, but looks the parameters up anew at each call, which for small models
    costs as much as the forward pass.

    Args:
        model: Any module; tied parameters count once.
        mode: Mode of the copy: "eval" fixes BatchNorm statistics and switches dropout off.
    """

    def __init__(self, model: nn.Module, *, mode: Literal["eval", "train"] = "eval") -> None:
        self.module = copy.deepcopy(model, memo={id(p): p for p in model.parameters()})
        self.module.train(mode == "train")
        self.parameters: dict[str, nn.Parameter] = dict(self.module.named_parameters())
        places: dict[int, list[Slot]] = {}
        for child in self.module.modules():
            for name, parameter in child._parameters.items():
                if parameter is not None:
                    places.setdefault(id(parameter), []).append((child._parameters, name))
        self._slots = {name: places[id(parameter)] for name, parameter in self.parameters.items()}

    def __call__(self, theta: Params, inputs: Any) -> Any:
        """The outputs at θ; parameters that θ lacks are the module's own.

        Args:
            theta: Tensors by name.
            inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        """
        try:
            for name, tensor in theta.items():
                for owner, key in self._slots[name]:
                    owner[key] = tensor
            if isinstance(inputs, dict):
                return self.module(**inputs)
            return self.module(*inputs) if isinstance(inputs, tuple) else self.module(inputs)
        finally:
            self._put_back(theta)

    def _put_back(self, names: Iterable[str]) -> None:
        for name in names:
            own: Tensor = self.parameters[name]
            for owner, key in self._slots[name]:
                owner[key] = own
