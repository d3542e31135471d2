"""A module as a pure function of its parameters, with little to pay for each call."""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.batches import Batch, batch_size, slice_batch, tensors
from landscape.batchnorm import recalibrate, tracking_modules
from landscape.params import Params

Mode = Literal["eval", "batch", "recalibrate", "train"]
Slot = tuple[Any, Any]  # a container that holds a parameter, and the key or index where

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
EXAMPLES = 8  # on which `look` looks
REENTRANT = (
    "`model` checkpoints its activations with use_reentrant=True, which torch differentiates by .backward() alone: "
    "use use_reentrant=False, or switch checkpointing off."
)
DROPOUTS = nn.modules.dropout._DropoutNd


class ReentrantError(Exception):
    """Activations are checkpointed in the old way of torch."""


class PureModel:
    """Calls a module with given parameters in place of its own; the module itself is never touched.

    Works on a copy of the tree of modules that shares every parameter, so that modes can differ. `torch.func`'s
    functional_call does the same for any module, but looks the parameters up anew at each call, which for small models
    costs as much as the forward pass. Parameters that a module also keeps elsewhere (in a list, as recurrent layers do)
    are replaced there too. Wrappers by torch.compile, DataParallel and DistributedDataParallel are taken off: compiled
    code has no second derivatives.

    A model that computes activations again in the backward pass (checkpointing) would then meet its own parameters, put
    back long ago; where `look` has seen that it does, every call with gradients has a copy of the tree of its own.

    BatchNorm with running statistics is computed as x · k + b, k = γ/√(v + ε), b = β - m k: the same function, whose
    second derivative takes a third of the time of the fused kernel's.

    Args:
        model: Any module; tied parameters count once.
        mode: "eval" fixes BatchNorm statistics and switches dropout off; "batch" normalises with the statistics of
            each batch, without updating any, dropout off; "recalibrate" is "eval", for a caller that asks for
            `recalibrated` copies; "train" leaves everything as in training, dropout included.

    Raises:
        ValueError: If the mode is unknown, or the model cannot be copied.
    """

    def __init__(self, model: nn.Module, *, mode: Mode = "eval") -> None:
        if mode not in ("eval", "batch", "recalibrate", "train"):
            raise ValueError(f"`mode` must be 'eval', 'batch', 'recalibrate' or 'train', got {mode!r}.")
        self.mode = mode
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
        self.recomputes: bool | None = None  # whether the backward pass calls the module again; None: not looked yet
        self._slots = _slots(self.module, self.parameters)

    def __call__(self, theta: Params, inputs: Any) -> Any:
        """The outputs at θ; parameters that θ lacks are the module's own.

        Args:
            theta: Tensors by name.
            inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        """
        if self.recomputes and torch.is_grad_enabled():
            return self._apart()._called(theta, inputs)
        try:
            return self._called(theta, inputs)
        finally:
            self._put_back(theta)

    def look(self, inputs: Any) -> None:
        """Find out, once, whether the backward pass calls the module again: with NaN in place of its parameters.

        It costs a gradient of a few examples.

        Args:
            inputs: Of a batch.

        Raises:
            ValueError: If it does so in a way that has no gradient by `torch.autograd.grad`.
        """
        if self.recomputes is not None:
            return
        self.recomputes = False
        few = slice_batch((inputs, None), 0, EXAMPLES)[0] if batch_size((inputs, None)) > EXAMPLES else inputs
        for some in (few, inputs):  # there are models for batches of one size only
            try:
                self.recomputes = self._tripped(some, poison=True)
            except ReentrantError as error:
                self.recomputes = None
                raise ValueError(REENTRANT) from error
            except Exception:
                try:
                    self._tripped(some, poison=False)
                except Exception:
                    continue
                self.recomputes = True  # it fails without its parameters alone
            return

    def _tripped(self, inputs: Any, *, poison: bool) -> bool:
        """Whether a gradient has NaN when the parameters are NaN after the forward pass."""
        leaves = {n: p.detach().requires_grad_() for n, p in self.parameters.items() if p.is_floating_point()}
        nothing = {n: torch.full((), math.nan).to(p).expand(p.shape) for n, p in leaves.items()}
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices), torch.enable_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                out = self(leaves, inputs)
                live = [t for t in tensors(out) if t.is_floating_point() and t.requires_grad]
                if poison:
                    self._put(nothing)
                total = torch.stack([t.sum() for t in live]).sum() if live else None
                grads = () if total is None else torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            except RuntimeError as error:
                if "use_reentrant" in str(error):
                    raise ReentrantError from error
                raise
            finally:
                self._put_back(leaves)
        if any("None of the inputs have requires_grad" in str(w.message) for w in caught):
            raise ReentrantError
        return any(g is not None and bool(g.isnan().any()) for g in grads)

    def recalibrated(self, theta: Params, batches: Sequence[Batch]) -> "PureModel":
        """A copy in mode "eval" whose running statistics are those of θ on these batches, see `recalibrate`."""
        clone = self._apart()
        clone.mode = "eval"
        try:
            clone._put(theta)
            recalibrate(clone.module, batches)
        finally:
            clone._put_back(theta)
        return clone

    def plain(self) -> "PureModel":
        """A copy whose BatchNorm layers compute as torch's do: slower to differentiate twice, in less memory."""
        clone = self._apart()
        for child in clone.module.modules():
            if type(child) in BATCH_NORMS:
                child.__dict__.pop("forward", None)
        return clone

    @contextmanager
    def in_double(self) -> Iterator[None]:
        """A block in which buffers are in float64; parameters are as θ gives them, so it must give all of them."""
        before: list[tuple[Any, str, Tensor]] = []
        try:
            for child in self.module.modules():
                for place in (child._buffers, child.__dict__):
                    held = [(k, v) for k, v in place.items() if isinstance(v, Tensor) and v.is_floating_point()]
                    for key, value in held:
                        if not isinstance(value, nn.Parameter):
                            before.append((place, key, value))
                            place[key] = value.double()
            yield
        finally:
            for place, key, value in before:
                place[key] = value

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

    def _called(self, theta: Params, inputs: Any) -> Any:
        self._put(theta)
        if isinstance(inputs, dict):
            return self.module(**inputs)
        return self.module(*inputs) if isinstance(inputs, tuple) else self.module(inputs)

    def _apart(self) -> "PureModel":
        """A copy with a tree of modules of its own."""
        clone = copy.copy(self)
        clone.module = _shared_copy(self.module)
        clone._slots = _slots(clone.module, self.parameters)
        return clone

    def _put(self, theta: Params) -> None:
        for name, tensor in theta.items():
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
