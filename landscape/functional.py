"""A module as a pure function of its parameters, with little to pay for each call."""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.batches import Batch, batch_size, can_be_cut, slice_batch
from landscape.batchnorm import recalibrate, tracking_modules
from landscape.calling import Signature
from landscape.embeddings import bound_embeddings
from landscape.modules import buffer_slots, shared_copy, slots, unwrapped
from landscape.params import Params
from landscape.trees import map_tensors, tensors

Mode = Literal["eval", "batch", "recalibrate", "train"]

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
        self.module = shared_copy(unwrapped(model))
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
        self._slots = slots(self.module, self.parameters)
        bound_embeddings(self.module, {id(p) for name, p in self.parameters.items() if len(self._slots[name]) > 1})
        self.signature = Signature.of(self.module)
        self._complex = any(p.is_complex() for p in self.parameters.values())
        self._watched = self._writes_inputs = False
        self._changed: set[str] = set()  # names of buffers
        self._lent: list[tuple[Any, str]] = []  # where these are
        self._owed: list[tuple[Any, str, Tensor]] = []
        self._loans: dict[int, Tensor] = {}

    def __call__(self, theta: Params, inputs: Any) -> Any:
        """The outputs at θ; parameters that θ lacks are the module's own.

        Args:
            theta: Tensors by name.
            inputs: A tensor, a tuple of positional arguments, a dict of keyword arguments, or whatever the model takes,
                see `landscape.calling.Signature.arguments`.
        """
        if not self._watched and not torch._C._are_functorch_transforms_active():
            return self._first(theta, inputs)
        if self._writes_inputs:
            inputs = map_tensors(torch.clone, inputs)
        if self.recomputes and torch.is_grad_enabled():
            return self._apart()._called(theta, inputs)
        try:
            return self._called(theta, inputs)
        finally:
            self._put_back(theta)

    def _first(self, theta: Params, inputs: Any) -> Any:
        """A call on copies, which shows what the model writes on."""
        copies, given = {name: t.clone() for name, t in theta.items()}, map_tensors(torch.clone, inputs)
        held = {name: p._version for name, p in self.parameters.items() if name not in theta}
        buffers = dict(self.module.named_buffers())
        self._lent = buffer_slots(self.module, set(buffers))
        try:
            out, loans = self._called(copies, given), self._loans
            after = dict(self.module.named_buffers())
        finally:
            self._put_back(theta)
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
        lent = {name: loans[id(b)] for name, b in buffers.items()}
        self._changed = {n for n, b in buffers.items() if after.get(n) is not lent[n] or _differ(lent[n], b)}
        self._lent = buffer_slots(self.module, self._changed)
        pairs = zip(tensors(given), tensors(inputs), strict=True)
        self._writes_inputs = any(_differ(a, b) for a, b in pairs)
        self._watched = True
        return out

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
        many = can_be_cut((inputs, None)) and batch_size((inputs, None)) > EXAMPLES
        few = slice_batch((inputs, None), 0, EXAMPLES)[0] if many else inputs
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

    def recalibrated(self, theta: Params, batches: Iterable[Batch]) -> "PureModel":
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
        if self._lent:
            self._lend()
        if isinstance(inputs, Tensor):
            return self.module(inputs)
        by_place, by_name = self.signature.arguments(inputs)
        return self.module(*by_place, **by_name)

    def _lend(self) -> None:
        """Copies in the place of the buffers that a call changes; `_put_back` takes them away."""
        self._loans = {}
        for owner, key in self._lent:
            own = owner[key]
            self._owed.append((owner, key, own))
            owner[key] = self._loans.setdefault(id(own), own.clone())

    def _apart(self) -> "PureModel":
        """A copy with a tree of modules of its own."""
        clone = copy.copy(self)
        clone.module = shared_copy(self.module)
        clone._slots = slots(clone.module, self.parameters)
        clone._lent, clone._owed = buffer_slots(clone.module, self._changed), []
        return clone

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
        while self._owed:
            owner, key, own = self._owed.pop()
            owner[key] = own


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
