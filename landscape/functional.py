"""A module as a pure function of its parameters, with little to pay for each call."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.batches import Batch
from landscape.batchnorm import recalibrate, tracking_modules
from landscape.calling import Signature
from landscape.embeddings import bound_embeddings
from landscape.params import Params
from landscape.trees import map_tensors, tensors

Mode = Literal["eval", "batch", "recalibrate", "train"]
Slot = tuple[Any, Any]  # a container that holds a parameter, and the key or index where

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = nn.modules.dropout._DropoutNd


class PureModel:
    """Calls a module with given parameters in place of its own; the module itself is never touched.

    Works on a copy of the tree of modules that shares every parameter, so that modes can differ. `torch.func`'s
    functional_call does the same for any module, but looks the parameters up anew at each call, which for small models
    costs as much as the forward pass. Parameters that a module also keeps elsewhere (in a list, as recurrent layers do)
    are replaced there too. Wrappers by torch.compile, DataParallel and DistributedDataParallel are taken off: compiled
    code has no second derivatives.

    BatchNorm with running statistics is computed as x · k + b, k = γ/√(v + ε), b = β - m k: the same function, whose
    second derivative takes a third of the time of the fused kernel's. Embeddings with a largest norm have it as part of
    the function, see `landscape.embeddings`. A complex parameter is given by its real and imaginary parts.

    The first call is watched on copies. A model that writes on its inputs gets copies from then on, and buffers that it
    changes are lent to it anew at each call, so that the outputs depend on θ and the inputs alone.

    Args:
        model: Any module; tied parameters count once.
        mode: "eval" fixes BatchNorm statistics and switches dropout off; "batch" normalises with the statistics of
            each batch, without updating any, dropout off; "recalibrate" is "eval", for a caller that asks for
            `recalibrated` copies; "train" leaves everything as in training, dropout included.

    Raises:
        ValueError: If the mode is unknown, or the model cannot be copied or has parameters without a shape; at the
            first call, if the model writes on its parameters or makes new ones.
    """

    def __init__(self, model: nn.Module, *, mode: Mode = "eval") -> None:
        if mode not in ("eval", "batch", "recalibrate", "train"):
            raise ValueError(f"`mode` must be 'eval', 'batch', 'recalibrate' or 'train', got {mode!r}.")
        self.mode = mode
        lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
        if lazy:
            raise ValueError(f"`model` has parameters without a shape yet, {lazy}: call it on a batch first.")
        self.module = _shared_copy(_unwrapped(model))
        self.module.train(mode == "train")
        if mode in ("batch", "train"):
            for norm in tracking_modules(self.module):
                norm.train()
                norm.track_running_stats = False  # type: ignore[assignment]
        for child in self.module.modules():
            if type(child) in BATCH_NORMS and not child.training:
                setattr(child, "forward", partial(_affine_norm, child, child.forward))  # noqa: B010
        self.parameters: dict[str, nn.Parameter] = dict(self.module.named_parameters())
        self._slots = _slots(self.module, self.parameters)
        bound_embeddings(self.module, {id(p) for name, p in self.parameters.items() if len(self._slots[name]) > 1})
        self.signature = Signature.of(self.module)
        self._complex = any(p.is_complex() for p in self.parameters.values())
        self._watched = self._writes_inputs = False
        self._changed: set[str] = set()  # names of buffers
        self._lent: list[tuple[Any, str, Tensor]] = []

    def __call__(self, theta: Params, inputs: Any) -> Any:
        """The outputs at θ; parameters that θ lacks are the module's own.

        Args:
            theta: Tensors by name.
            inputs: A tensor, a tuple of positional arguments, a dict of keyword arguments, or whatever the model takes,
                see `landscape.calling.Signature.arguments`.
        """
        if not self._watched and not torch._C._are_functorch_transforms_active():
            return self._first(theta, inputs)
        return self._called(theta, map_tensors(torch.clone, inputs) if self._writes_inputs else inputs)

    def _called(self, theta: Params, inputs: Any) -> Any:
        try:
            self._put(theta)
            if self._lent:
                _lend(self._lent)
            if isinstance(inputs, Tensor):
                return self.module(inputs)
            by_place, by_name = self.signature.arguments(inputs)
            return self.module(*by_place, **by_name)
        finally:
            self._put_back(theta)
            for owner, key, own in self._lent:
                owner[key] = own

    def _first(self, theta: Params, inputs: Any) -> Any:
        """A call on copies, which shows what the model writes on."""
        copies, given = {name: t.clone() for name, t in theta.items()}, map_tensors(torch.clone, inputs)
        held = {name: p._version for name, p in self.parameters.items() if name not in theta}
        buffers = dict(self.module.named_buffers())
        self._lent = _buffer_slots(self.module, set(buffers))
        lent: dict[str, Tensor] = {}
        try:
            self._put(copies)
            _lend(self._lent)
            lent = dict(self.module.named_buffers())
            by_place, by_name = self.signature.arguments(given)
            out = self.module(*by_place, **by_name)
            after = dict(self.module.named_buffers())
        finally:
            self._put_back(theta)
            for owner, key, own in self._lent:
                owner[key] = own
            self._lent = []
        written = [name for name, t in theta.items() if _differ(copies[name], t)]
        written += [name for name, version in held.items() if self.parameters[name]._version != version]
        if written:
            raise ValueError(
                f"`model` writes on its parameters {written} while it computes, so its outputs are no function of "
                "them: compute a new tensor instead, such as self.weight.clamp(min=0)."
            )
        made = [name for name, _ in self.module.named_parameters() if name not in self.parameters]
        if made:
            raise ValueError(f"`model` makes its parameters {made} at its first call: call it on a batch before.")
        self._changed = {
            name for name in buffers if after.get(name) is not lent[name] or _differ(lent[name], buffers[name])
        }
        self._lent = _buffer_slots(self.module, self._changed)
        pairs = zip(tensors(given), tensors(inputs), strict=True)
        self._writes_inputs = any(_differ(a, b) for a, b in pairs)
        self._watched = True
        return out

    def recalibrated(self, theta: Params, batches: Sequence[Batch]) -> "PureModel":
        """A copy in mode "eval" whose running statistics are those of θ on these batches, see `recalibrate`."""
        clone = copy.copy(self)
        clone.module, clone.mode = _shared_copy(self.module), "eval"
        clone._renew()
        try:
            clone._put(theta)
            recalibrate(clone.module, batches)
        finally:
            clone._put_back(theta)
        return clone

    def plain(self) -> "PureModel":
        """A copy whose BatchNorm layers compute as torch's do: slower to differentiate twice, in less memory."""
        clone = copy.copy(self)
        clone.module = _shared_copy(self.module)
        for child in clone.module.modules():
            if type(child) in BATCH_NORMS:
                child.__dict__.pop("forward", None)
        clone._renew()
        return clone

    def _renew(self) -> None:
        """Find the places in a new tree of modules."""
        self._slots = _slots(self.module, self.parameters)
        self._lent = _buffer_slots(self.module, self._changed)

    @property
    def normalised(self) -> bool:
        """Whether the model has layers with running statistics, so that the mode matters."""
        return bool(tracking_modules(self.module)) or self.mode in ("batch", "train")

    @property
    def random_layers(self) -> list[str]:
        """Names of the layers that draw random numbers: dropout in train mode."""
        return [n for n, m in self.module.named_modules() if isinstance(m, DROPOUTS) and m.training and m.p > 0]

    @property
    def prefers_channels_last(self) -> bool:
        """Whether dense 2-d convolutions do the work, which are faster with channels as the last axis in memory."""
        convolutions = [m for m in self.module.modules() if isinstance(m, nn.Conv2d)]
        return bool(convolutions) and all(m.groups == 1 for m in convolutions)

    def _put(self, theta: Params) -> None:
        for name, tensor in theta.items():
            if self._complex and self.parameters[name].is_complex() and not tensor.is_complex():
                tensor = torch.view_as_complex(tensor.contiguous())
            for owner, key in self._slots[name]:
                owner[key] = tensor

    def _put_back(self, names: Iterable[str]) -> None:
        for name in names:
            own: Tensor = self.parameters[name]
            for owner, key in self._slots[name]:
                owner[key] = own


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _shared_copy(model: nn.Module) -> nn.Module:
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


def _slots(module: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, list[Slot]]:
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


def _buffer_slots(module: nn.Module, names: set[str]) -> list[tuple[Any, str, Tensor]]:
    """Where buffers of these names are held, and they themselves."""
    prefixes = [(child._buffers, f"{path}." if path else "") for path, child in module.named_modules()]
    return [(held, k, b) for held, path in prefixes for k, b in held.items() if b is not None and path + k in names]


def _lend(slots: list[tuple[Any, str, Tensor]]) -> None:
    copies: dict[int, Tensor] = {}
    for owner, key, own in slots:
        owner[key] = copies[id(own)] if id(own) in copies else copies.setdefault(id(own), own.clone())


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.is_nested or a.shape != b.shape:
        return a.shape != b.shape if not a.is_nested else False
    a, b = a.detach(), b.detach()
    return not torch.equal(a, b) and not bool(((a == b) | ((a != a) & (b != b))).all())


def _affine_norm(layer: Any, usual: Any, x: Tensor) -> Tensor:
    """BatchNorm in evaluation as a product and a sum, where statistics, weights and input are of one dtype."""
    if layer.training or layer.running_mean is None or x.dtype != layer.running_mean.dtype:
        out: Tensor = usual(x)
        return out
    scale = torch.rsqrt(layer.running_var + layer.eps)
    if layer.weight is not None:
        scale = layer.weight * scale
    shift = -layer.running_mean * scale if layer.bias is None else layer.bias - layer.running_mean * scale
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))
