"""Models by name: built-in ones sized by options, those of libraries, or a user's own by reference."""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from landscape.naming import nearest
from trainers.data.graphs import Graph
from trainers.models.gcn import gcn
from trainers.models.gpt import gpt
from trainers.models.libraries import LIBRARIES, in_library, library_model
from trainers.models.resnet import resnet18, resnet20, wide_resnet
from trainers.models.vit import vit
from trainers.options import checked
from trainers.randomness import check_seed, seeded
from trainers.reference import call, is_reference, load_reference, well_formed


def mlp(
    shape: tuple[int, ...],
    classes: int,
    *,
    width: Annotated[int, Field(ge=1)] = 256,
    depth: Annotated[int, Field(ge=0)] = 2,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Fully connected network on the flattened input; on digits 64-256-256-10 by default.

    Args:
        shape: Shape of one input.
        classes: Number of logits.
        width: Units of a hidden layer.
        depth: Number of hidden layers, each followed by ReLU; 0 is softmax regression.
        dropout: Probability of dropping a hidden unit, after ReLU.
    """
    sizes = [math.prod(shape), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def cnn(shape: tuple[int, ...], classes: int, *, width: Annotated[int, Field(ge=1)] = 16) -> nn.Module:
    """Three convolutions with ReLU and a linear layer, without normalisation, for images or signals.

    Channels are `width`, twice and four times that; the second and third convolution halve each side. Kernels are
    3 x 3 on images and of 5 points on signals. The linear layer sees every position (no pooling).

    Args:
        shape: (c, h, w) of one image, or (c, length) of one signal.
        classes: Number of logits.
        width: Channels of the first convolution.

    Raises:
        ValueError: If inputs are neither images nor signals.
    """
    if len(shape) not in (2, 3):
        raise ValueError(
            f"`shape` must be (c, h, w) for images or (c, length) for signals with model 'cnn', got {shape}; try 'mlp'."
        )
    convolution, kernel = (nn.Conv2d, 3) if len(shape) == 3 else (nn.Conv1d, 5)
    channels = [shape[0], width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(itertools.pairwise(channels), (1, 2, 2), strict=True):
        layers += [convolution(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU()]
    positions = math.prod(-(-side // 4) for side in shape[1:])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * positions, classes))


@dataclass(frozen=True)
class ModelEntry:
    """A model that is built in.

    Attributes:
        build: Called as build(shape, classes, **options); its keyword-only parameters are the options.
        help: One line on what it is.
        graph: Whether it is built from a graph too, where examples are its nodes: build(shape, classes, graph).
        tokens: Whether inputs are tokens.
    """

    build: Callable[..., nn.Module]
    help: str
    graph: bool = False
    tokens: bool = False


MODELS: dict[str, ModelEntry] = {
    "mlp": ModelEntry(mlp, "Fully connected, ReLU; options width, depth, dropout."),
    "cnn": ModelEntry(cnn, "Three convolutions, no normalisation; images or signals; option width."),
    "resnet20": ModelEntry(resnet20, "Residual network with BatchNorm, for images; options width, blocks."),
    "resnet18": ModelEntry(resnet18, "Residual network of four stages, 11 million parameters; options stem, width."),
    "wide_resnet": ModelEntry(wide_resnet, "Wide residual network, WRN-28-10; options depth, widen_factor, dropout."),
    "vit": ModelEntry(vit, "Vision transformer (attention, LayerNorm); options patch, dim, depth, heads, dropout."),
    "gcn": ModelEntry(gcn, "Graph convolutions, of nodes or of graphs; options width, depth, dropout.", graph=True),
    "gpt": ModelEntry(gpt, "Transformer of text; options width, depth, heads, dropout, tied, causal.", tokens=True),
}


def model_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a built-in model: those given, checked, and the defaults of the others.

    Raises:
        ValueError: If the model or an option is unknown, or a value has the wrong type or range.
    """
    return checked(_entry(name).build, options, owner=f"model {name!r}")


def build_model(
    name: str,
    *,
    shape: tuple[int, ...],
    classes: int,
    generator_seed: int,
    options: Mapping[str, Any] | None = None,
    graph: Graph | None = None,
    trust: bool = True,
) -> nn.Module:
    """Build a model, on the CPU and in train mode, with an initialisation that the seed alone decides.

    The global random state of torch is as it was afterwards.

    Args:
        name: A name in `MODELS`; one of a library, `timm:NAME`, `torchvision:NAME` or `hf:NAME-or-FOLDER`; or
            `module:function`: a function that is called by keyword with `options` and with those of `shape`,
            `classes` and `graph` that it accepts, and returns a module.
        shape: Shape of one input, without the batch axis.
        classes: Number of logits.
        generator_seed: Seed of the initialisation.
        options: Options of the model; those left out have their defaults.
        graph: Whose nodes the examples are (`DataBundle.graph`); None for other data.
        trust: False refuses references, for names that come out of a file.

    Raises:
        ValueError: If the model or an option is unknown, a value has the wrong type or range, sizes do not fit, or a
            user's function returns something other than a module with parameters.
        PermissionError: If the name is a reference and `trust` is False.
        ImportError: If a library is not installed, naming the extra.
    """
    check_seed(generator_seed, "generator_seed")
    shape = tuple(shape)
    if not shape or any(side < 1 for side in shape):
        raise ValueError(f"`shape` must be the sizes of one input, without the batch axis, got {shape}.")
    if classes < 1:
        raise ValueError(f"`classes` must be at least 1, got {classes!r}.")
    if in_library(name):
        with seeded(generator_seed):
            return library_model(name, shape, classes, options or {})
    if is_reference(name) and well_formed(name):
        function = load_reference(name, trust=trust, key="model")
        arguments = _accepted(function, {"shape": shape, "classes": classes, "graph": graph}) | dict(options or {})
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise ValueError(f"`options` of model {name!r} do not fit its function: {error}.") from error
        with seeded(generator_seed):
            model = call(f"`model` {name!r}", function, **arguments)
        if not isinstance(model, nn.Module):
            raise ValueError(f"`model` {name!r} must return a torch.nn.Module, got {type(model).__name__}.")
        if next(model.parameters(), None) is None:
            raise ValueError(
                f"`model` {name!r} has no parameters to train: give it layers as attributes, in a ModuleList where "
                f"they are several (a plain list hides them)."
            )
        return model
    resolved = model_options(name, options or {})
    entry = _entry(name)
    with seeded(generator_seed):
        return entry.build(shape, classes, *([graph] if entry.graph else []), **resolved)


def takes_graph(name: str, *, trust: bool = True) -> bool:
    """Whether a model by name is built from the graph whose nodes are the examples.

    Raises:
        PermissionError: If the name is a reference and `trust` is False.
    """
    if is_reference(name) and well_formed(name) and not in_library(name):
        return "graph" in inspect.signature(load_reference(name, trust=trust, key="model")).parameters
    return name in MODELS and MODELS[name].graph


def check_inputs(x: Tensor, *, name: str, graph: bool = False) -> None:
    """Check that inputs are numbers, as built-in models take them, or nodes where the model takes those.

    Args:
        x: A few inputs.
        name: Of the model.
        graph: Whether they are the nodes of a graph.

    Raises:
        ValueError: If they are whole numbers, such as tokens, or nodes for a model that does not take them.
    """
    if graph:
        if not takes_graph(name):
            able = [other for other, entry in MODELS.items() if entry.graph]
            raise ValueError(
                f"`model` {name!r} takes no nodes of a graph, which the examples are: take {' or '.join(able)}, or a "
                f"model of your own, module:function with the argument `graph`."
            )
    elif name in MODELS and MODELS[name].tokens:
        if x.is_floating_point():
            raise ValueError(
                f"`model` {name!r} takes tokens, and inputs of the data are {x.dtype}: take another model."
            )
    elif not x.is_floating_point() and not in_library(name):
        raise ValueError(
            f"`model` {name!r} takes floating-point inputs, and those of the data are {x.dtype}, such as tokens: take "
            "gpt or hf:FOLDER for text, a model of your own that embeds them, as module:function, or let the data have "
            "float32."
        )


def check_outputs(model: nn.Module, x: Tensor, *, outputs: int, name: str, more: bool = True) -> None:
    """Check, on a few examples in evaluation mode, how many outputs a user's model gives; it stays as it was.

    Args:
        model: To be checked.
        x: A few inputs, on its device.
        outputs: How many the task needs: of labels, the number of classes.
        name: Of the model, for messages.
        more: Whether there may be more of them, as of logits.

    Raises:
        ValueError: If it fails, or gives something else than (n, k) numbers with k as many.
    """
    training = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    try:
        with torch.no_grad(), seeded(0):
            given = call(f"`model` {name!r}, called on {len(x)} examples,", model.eval(), x)
    finally:
        for module, mode in training.items():
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
    called = "logits" if more else "numbers"
    wanted = f"`model` {name!r} must return {called}, a tensor of shape (n, {outputs})"
    if not isinstance(given, Tensor):
        names = f" with {sorted(map(str, given))[:5]}" if isinstance(given, Mapping) else ""
        raise ValueError(f"{wanted}, got {type(given).__name__}{names}: return the tensor alone.")
    if given.ndim != 2 or len(given) != len(x) or not given.is_floating_point():
        raise ValueError(f"{wanted}, got {given.dtype} of shape {tuple(given.shape)} for {len(x)} examples.")
    count = given.shape[1]
    if count < outputs or (count > outputs and not more):
        need = f"the data have labels up to {outputs - 1}" if more else f"the task needs {outputs} an example"
        raise ValueError(
            f"`model` {name!r} gives {count} {called}, and {need}: make it {outputs}; a function that takes `classes` "
            f"is told how many."
        )


def _entry(name: str) -> ModelEntry:
    if name not in MODELS:
        raise ValueError(
            f"`model` {name!r} is unknown; there are {', '.join(MODELS)}, those of libraries "
            f"({', '.join(f'{library}:NAME' for library in LIBRARIES)}), or your own as `module:function`."
            + (nearest(name.partition(":")[0], LIBRARIES) if ":" in name else nearest(name, MODELS))
        )
    return MODELS[name]


def _accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in arguments.items() if key in parameters or everything}
