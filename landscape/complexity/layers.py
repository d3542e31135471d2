"""A network's weight matrices, with BatchNorm folded in and the folding checked by what the network computes."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from landscape.batches import map_tensors
from landscape.calling import call, hooked
from landscape.functional import BATCH_NORMS, PureModel
from landscape.precision import in_own_precision

LAYERS = (nn.Linear, _ConvNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)
FOLDING_ERROR = 1e-8  # of the largest output, in float64: what rounding leaves is about 1e-14 a layer


@dataclass(frozen=True)
class Layer:
    """One tensor of weights.

    Attributes:
        name: Of the parameter, such as "stages.0.conv1.weight".
        weight: Its entries in float64, outputs on the first axis, BatchNorm folded in; for a convolution
            (out, in / groups, *kernel).
        convolution: The module, for a convolution that is not transposed; None for any other layer.
        sizes: The sizes of the inputs that the convolution met.
    """

    name: str
    weight: Tensor
    convolution: nn.Module | None = None
    sizes: tuple[tuple[int, ...], ...] = ()

    @property
    def matrix(self) -> Float[Tensor, "out rest"]:
        """The weights as a matrix W of shape (out, rest)."""
        return self.weight.reshape(len(self.weight), -1)


@dataclass(frozen=True)
class Network:
    """A model whose BatchNorm layers are folded into the layers before them, with its layers of weights.

    Attributes:
        model: The folded copy: float64, on the CPU, in evaluation mode. It computes what the original does.
        layers: In `named_parameters()` order; tied weights count once.
        folded: Name of each BatchNorm layer, and of the layer that it went into.
        left_out: Parameters of two or more axes whose role is not known, such as learned positions: no layers here.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    folded: dict[str, str]
    left_out: tuple[str, ...]

    @property
    def weights(self) -> Float[Tensor, " omega"]:
        """All weights as one vector: biases and BatchNorm have no part in it."""
        return torch.cat([layer.weight.reshape(-1) for layer in self.layers])


@in_own_precision
def fold(model: nn.Module, inputs: Any) -> Network:
    """Fold every BatchNorm layer of a model into the layer before it, and list the layers of weights.

    A BatchNorm layer with statistics m, v and parameters γ, β computes γ (z - m)/√(v + ε) + β, so behind z = W x + b it
    is the layer with weights s W and bias s (b - m) + β, s = γ/√(v + ε), row by row. Which layer stands before which is
    not read from names or their order: the model runs once, and a pair is a layer whose output, unchanged, is what the
    BatchNorm layer receives. Afterwards the folded copy must give the original's outputs. LayerNorm, GroupNorm and
    InstanceNorm depend on the example and stay as they are; their parameters are no weights.

    Layers are linear, bilinear, convolution, embedding, recurrent and attention layers; each of their parameters with
    two or more axes is one, with the outputs on the first axis. Parametrised weights count as what they compute.

    Args:
        model: Any module; it is not changed.
        inputs: A few examples (a tensor, a tuple of arguments or a dict of them) to run it on. Random ones are best:
            where the inputs are all zero, a check of outputs sees little.

    Returns:
        The folded copy with its layers.

    Raises:
        ValueError: If a BatchNorm layer does not directly follow one layer, normalises by the batch's statistics, or
            the folded copy computes something else; if the model has no layer of weights, or cannot run in float64.

    Source:
        The rule is elementary; that norms are taken after it: Jiang et al. (2020), ICLR.
    """
    own = copy.deepcopy(PureModel(model).plain().module).cpu().double().eval()
    for child in list(own.modules()):
        if parametrize.is_parametrized(child):
            _settle(child)
    own.requires_grad_(False)
    names = {child: name for name, child in own.named_modules()}
    with torch.no_grad():
        trace = _Trace()
        before = trace.run(own, inputs, names)
        pairs = _pairs(own, trace, names)
        for norm, layer in pairs.items():
            _absorb(layer, norm, names)
        if pairs:
            _compare(before, _tensors(_call(own, inputs)), [names[norm] for norm in pairs])
    layers, left_out = _layers(own, trace)
    if not layers:
        raise ValueError("`model` has no layer of weights: there is nothing to take a norm of.")
    return Network(own, layers, {names[norm]: names[layer] for norm, layer in pairs.items()}, left_out)


def _settle(module: Any) -> None:
    """Replace parametrised tensors by what they are computed to be.

    Not by `remove_parametrizations`, which changes the module's class, and copies share it with the caller's model.
    """
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


class _Trace:
    """What one run shows: the layer before each BatchNorm layer, and the sizes that convolutions meet."""

    def __init__(self) -> None:
        self.sizes: dict[nn.Module, list[tuple[int, ...]]] = {}
        self.before: dict[nn.Module, list[nn.Module | None]] = {}
        self._made: dict[int, tuple[nn.Module, Tensor, int]] = {}  # outputs are held, so that no id is used twice

    def run(self, model: nn.Module, inputs: Any, names: dict[nn.Module, str]) -> list[Tensor]:
        """The model's outputs; the hooks are off again afterwards."""
        watched = [m for m in names if isinstance(m, (nn.Linear, _ConvNd, *BATCH_NORMS))]
        with hooked(watched, self._note):
            try:
                return _tensors(_call(model, inputs))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"`model` cannot run on the `inputs` in float64, which norms need: {reason}"
                ) from error

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, BATCH_NORMS):
            layer, made, version = self._made.get(id(args[0]), (None, args[0], -1))
            found = layer if made._version == version else None  # a new version: changed in place since
            self.before.setdefault(module, []).append(found)
            return
        if isinstance(module, _ConvNd):
            self.sizes.setdefault(module, []).append(tuple(args[0].shape[2:]))
        self._made[id(output)] = (module, output, output._version)


def _pairs(model: nn.Module, trace: _Trace, names: dict[nn.Module, str]) -> dict[nn.Module, nn.Module]:
    """Each BatchNorm layer with the one layer before it."""
    pairs: dict[nn.Module, nn.Module] = {}
    for norm in (m for m in model.modules() if isinstance(m, BATCH_NORMS)):
        if norm.running_mean is None:
            raise ValueError(
                f"`model` cannot be folded: {names[norm]!r} has no running statistics, so its outputs depend on the "
                "batch; give it track_running_stats=True and train, or recalibrate."
            )
        found = trace.before.get(norm, [])
        if not found:
            raise ValueError(f"`model` cannot be folded: {names[norm]!r} is not used on these `inputs`.")
        layer = found[0]
        if layer is None or any(other is not layer for other in found) or layer in pairs.values():
            raise ValueError(
                f"`model` cannot be folded: {names[norm]!r} does not directly follow one linear or convolution layer "
                "of its own, as after an activation, a sum of branches or a reshape; norms of its layers are not "
                "defined without a choice that we do not make."
            )
        pairs[norm] = layer
    return pairs


def _absorb(layer: nn.Module, norm: nn.Module, names: dict[nn.Module, str]) -> None:
    """Put what BatchNorm computes into the layer; the BatchNorm layer itself becomes the identity."""
    module: Any = layer
    batch_norm: Any = norm
    scale = torch.rsqrt(batch_norm.running_var + batch_norm.eps)
    if batch_norm.weight is not None:
        scale = scale * batch_norm.weight
    shift = -batch_norm.running_mean * scale
    if batch_norm.bias is not None:
        shift = shift + batch_norm.bias
    if not isinstance(module.weight, nn.Parameter):
        raise ValueError(
            f"`model` cannot be folded: the weight of {names[layer]!r} is computed by a hook; use "
            "torch.nn.utils.parametrizations instead."
        )
    rows = _rows(module, module.weight)
    if len(scale) != len(rows):
        raise ValueError(
            f"`model` cannot be folded: {names[norm]!r} has {len(scale)} features and {names[layer]!r} before it "
            f"{len(rows)} outputs."
        )
    weight = _rows_back(module, rows * scale.view(-1, *[1] * (rows.ndim - 1)))
    bias = shift if module.bias is None else module.bias * scale + shift
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.bias = nn.Parameter(bias, requires_grad=False)
    # not Identity: subclasses of BatchNorm have an activation in them. With ε = 0 it is exact.
    batch_norm.weight = batch_norm.bias = None
    batch_norm.eps = 0.0
    batch_norm.running_mean.zero_()
    batch_norm.running_var.fill_(1.0)


def _rows(module: nn.Module, weight: Tensor) -> Tensor:
    """Weights with outputs on the first axis: as they are, but for transposed convolutions, (in, out / groups, ...)."""
    if not isinstance(module, _ConvTransposeNd):
        return weight
    g = module.groups
    parts = weight.reshape(g, weight.shape[0] // g, *weight.shape[1:]).transpose(1, 2)
    return parts.reshape(g * weight.shape[1], weight.shape[0] // g, *weight.shape[2:])


def _rows_back(module: nn.Module, rows: Tensor) -> Tensor:
    if not isinstance(module, _ConvTransposeNd):
        return rows
    g = module.groups
    parts = rows.reshape(g, rows.shape[0] // g, *rows.shape[1:]).transpose(1, 2)
    return parts.reshape(g * rows.shape[1], rows.shape[0] // g, *rows.shape[2:])


def _compare(before: list[Tensor], after: list[Tensor], folded: list[str]) -> None:
    largest = max((float(t.abs().max()) for t in before if t.numel()), default=0.0)
    apart = max((float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()), default=0.0)
    if not apart <= FOLDING_ERROR * largest:
        raise ValueError(
            f"`model` cannot be folded: with {', '.join(map(repr, folded))} in the layers before them its outputs "
            f"differ by {apart:.3g}, of at most {largest:.3g}; is such a layer's output used elsewhere too?"
        )


def _layers(model: nn.Module, trace: _Trace) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    layers: list[Layer] = []
    left_out: list[str] = []
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in _tensors_of(module):
            if id(parameter) in seen or parameter.ndim < 2:
                continue
            seen.add(id(parameter))
            full = f"{prefix}.{name}" if prefix else name
            if not isinstance(module, LAYERS) or "bias" in name:
                left_out.append(full)
                continue
            plain = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
            sizes = tuple(dict.fromkeys(trace.sizes.get(module, []))) if plain else ()
            layers.append(Layer(full, _rows(module, parameter.detach()), module if plain else None, sizes))
    return tuple(layers), tuple(left_out)


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters, and a weight that a hook computes from them in their place."""
    own = dict(module.named_parameters(recurse=False))
    made = getattr(module, "weight", None) if isinstance(module, LAYERS) else None
    if isinstance(made, Tensor) and "weight" not in own:
        yield "weight", made
        own = {name: p for name, p in own.items() if not name.startswith("weight_")}
    yield from own.items()


def _call(model: nn.Module, inputs: Any) -> Any:
    return call(model, map_tensors(lambda t: t.cpu().double() if t.is_floating_point() else t.cpu(), inputs))


def _tensors(outputs: Any) -> list[Tensor]:
    """The floating-point tensors in a model's outputs, as copies."""
    if isinstance(outputs, Tensor):
        return [outputs.clone()] if outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    if isinstance(outputs, tuple | list):
        return [t for part in outputs for t in _tensors(part)]
    return []
