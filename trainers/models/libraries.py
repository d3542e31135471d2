"""Models of timm, torchvision and Hugging Face by name, with random weights; nothing is downloaded."""

import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape.naming import nearest
from trainers.files.reading import read_json
from trainers.models.resnet import images

Options = Mapping[str, bool | int | float | str]

T = TypeVar("T")

UNEXPECTED = re.compile(r"(?P<owner>\w+)(\.__init__)?\(\) got an unexpected keyword argument '(?P<option>\w+)'")

# of a configuration of Hugging Face: what names code, and what sets the type of numbers
LEFT_OUT = (
    "auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "dtype", "torch_dtype",
)  # fmt: skip


def timm_model(name: str, shape: tuple[int, ...], classes: int, options: Options) -> nn.Module:
    """`timm.create_model`, with `num_classes`, `in_chans` and, where the input size is fixed, `img_size` of the data.

    Raises:
        ValueError: If there is no such model, or it has no such option.
    """
    timm = _import("timm", "vision")
    base = name.partition(".")[0]  # what follows the dot names pretrained weights
    if not timm.is_model(base):
        raise ValueError(_unknown("timm", name, timm.list_models()))
    fixed: dict[str, Any] = {"num_classes": classes, "in_chans": shape[0]}
    known = timm.get_pretrained_cfg(base)
    if known is not None and known.fixed_input_size:
        fixed["img_size"] = shape[1:]

    def make() -> nn.Module:
        made: nn.Module = timm.create_model(base, pretrained=False, **{**fixed, **options})
        return made

    return _made(make, f"timm:{name}", options)


def torchvision_model(name: str, shape: tuple[int, ...], classes: int, options: Options) -> nn.Module:
    """`torchvision.models.get_model`, with `num_classes`, and `image_size` for vision transformers.

    Raises:
        ValueError: If there is no such classifier, it has no such option, or images have not three channels.
    """
    models = _import("torchvision.models", "vision")
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(_unknown("torchvision", name, known))
    if shape[0] != 3:
        raise ValueError(
            f"`model` 'torchvision:{name}' takes images of 3 channels, and those of the data have {shape[0]}: take "
            f"the model from timm (timm:{name} if it is there), which takes any number, or resnet18."
        )
    fixed: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit_"):
        fixed["image_size"] = shape[1]
    if name in ("googlenet", "inception_v3"):  # which else return several tensors
        fixed |= {"aux_logits": False, "init_weights": True}

    def make() -> nn.Module:
        made: nn.Module = models.get_model(name, weights=None, **{**fixed, **options})
        return made

    return _made(make, f"torchvision:{name}", options)


def hugging_face_model(name: str, shape: tuple[int, ...], classes: int, options: Options) -> nn.Module:
    """An image classifier of Hugging Face from the configuration in a folder, or a type of model's own, such as vit.

    `num_labels`, `num_channels` and `image_size` are those of the data. The model returns its logits alone; its
    parameters have their names in Hugging Face's files.

    Raises:
        FileNotFoundError: If a folder has no configuration.
        ValueError: If there is no such type, it is no classifier of images, or it has no such setting.
    """
    transformers = _import("transformers", "text")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    kind, values = configuration(name, "vit")
    if kind not in known:
        raise ValueError(
            f"`model` 'hf:{name}' is of type {kind!r}, which is no image classifier of Hugging Face."
            f"{nearest(kind, known)}"
        )
    config = config_of(name, kind, values, options)
    side = shape[1] if shape[1] == shape[2] else list(shape[1:])
    settings = {"num_labels": classes, "num_channels": shape[0], "image_size": side}

    def make() -> nn.Module:
        for key, value in {**{k: v for k, v in settings.items() if hasattr(config, k)}, **options}.items():
            setattr(config, key, value)
        config.architectures = config.architectures or []  # some read it without asking whether it is set
        made: nn.Module = transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        return made

    model = _made(make, f"hf:{name}", options)
    model.register_forward_hook(_logits)
    return model


def configuration(name: str, example: str) -> tuple[str, dict[str, Any]]:
    """The type of a model of Hugging Face, and its settings where a folder has them.

    Args:
        name: A folder with a config.json, or the type itself.
        example: Of a type, for messages.

    Raises:
        FileNotFoundError: If a folder has no configuration, or is not there.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"`model` 'hf:{name}' has no config.json: give a folder that Hugging Face wrote.")
        values = {k: v for k, v in read_json(folder / "config.json").items() if k not in LEFT_OUT}
        return str(values.get("model_type")), values
    if "/" in name or "\\" in name:
        raise FileNotFoundError(
            f"`model` 'hf:{name}' is no folder here, and nothing is downloaded: give the folder of a model, as "
            f"`save_pretrained` writes it, or a type of model such as hf:{example}."
        )
    return name, {}


def config_of(name: str, kind: str, values: dict[str, Any], options: Options) -> Any:
    """The configuration of a model of Hugging Face, which has all the options.

    Raises:
        ValueError: If it has not, or values do not fit.
    """
    transformers = _import("transformers", "text")
    config: Any = _made(lambda: type(transformers.AutoConfig.for_model(kind)).from_dict(values), f"hf:{name}", options)
    for key in options:
        if not hasattr(config, key):
            own = [setting for setting in config.to_dict() if not setting.startswith("_")]
            raise ValueError(f"model 'hf:{name}' has no option `{key}`.{nearest(key, own)}")
    return config


def _logits(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def language_model(name: str, context: int, vocabulary: int, options: Options) -> nn.Module:
    """A language model of Hugging Face with random weights: of the next token, or of hidden ones if it is no decoder.

    A type of model's own is as large in vocabulary as the text; that of a folder stays as it is, if it is large enough.
    The model returns its logits alone, the vocabulary on the second axis.

    Raises:
        FileNotFoundError: If a folder has no configuration.
        ValueError: If the type has no language model (it gives no logits of tokens), the vocabulary is too small, or
            sequences are longer than its context.
    """
    transformers = _import("transformers", "text")
    auto = transformers.models.auto.modeling_auto
    kind, values = configuration(name, "gpt2")
    hidden, following = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in hidden and kind not in following:
        raise ValueError(
            f"`model` 'hf:{name}' is of type {kind!r}, which gives no logits of tokens in Hugging Face, and so nothing "
            f"that labels could be compared with: take a type such as hf:gpt2.{nearest(kind, [*following, *hidden])}"
        )
    config = config_of(name, kind, values, options)
    for key, value in {**({} if values else {"vocab_size": vocabulary}), **options}.items():
        setattr(config, key, value)
    config.use_cache = False
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):  # which may lie outside of a small vocabulary
        if (getattr(config, key, None) or 0) >= config.vocab_size:
            setattr(config, key, None)
    if config.vocab_size < vocabulary:
        raise ValueError(
            f"`model` 'hf:{name}' has a vocabulary of {config.vocab_size} tokens, and the text {vocabulary}: raise "
            f"vocab_size by `model_options`, or take another `tokenizer`."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < context:
        raise ValueError(
            f"`model` 'hf:{name}' has a context of {longest} tokens, and sequences have {context}: take --task-options "
            f"context {longest}, or raise max_position_embeddings (n_positions of gpt2) by `model_options`."
        )
    decoder = kind not in hidden or getattr(config, "is_decoder", False)
    made_by = transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForMaskedLM
    model: nn.Module = _made(lambda: made_by.from_config(config, trust_remote_code=False), f"hf:{name}", options)
    model.register_forward_hook(_token_logits)
    return model.train()


def _token_logits(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
    return _logits(_module, _inputs, output).transpose(1, 2)


LIBRARIES: dict[str, Callable[[str, tuple[int, ...], int, Options], nn.Module]] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
    "hf": hugging_face_model,
}
HELP = {
    "timm:NAME": "A model of timm, such as timm:vit_small_patch16_224; options are those of timm.create_model.",
    "torchvision:NAME": "A classifier of torchvision, such as torchvision:resnet50, for images of three channels.",
    "hf:NAME-or-FOLDER": "An image classifier of Hugging Face, or of text a language model: a type, such as hf:vit or "
    "hf:gpt2, or a folder with a config.json; "
    "options are those of its configuration.",
    "module:function": "Your own: a function that returns a torch.nn.Module, see docs/your_model.md.",
}


def in_library(name: str) -> bool:
    """Whether a model's name is one of a library, such as timm:resnet18."""
    return name.partition(":")[0] in LIBRARIES and ":" in name


def library_model(name: str, shape: tuple[int, ...], classes: int, options: Options) -> nn.Module:
    """A model of a library, which takes images of this shape.

    Raises:
        ImportError: If the library is not installed, naming the extra.
        ValueError: If there is no such model or option, or the shape does not fit it.
    """
    library, _, rest = name.partition(":")
    if library == "hf" and len(shape) == 1:
        return language_model(rest, shape[0], classes, options)
    model = LIBRARIES[library](rest, images(shape, name), classes, options)
    return _checked(model, name, shape, classes)


def _made(make: Callable[[], T], name: str, options: Options) -> T:
    """What a library makes; what it says of options or sizes becomes one clear error."""
    try:
        return make()
    except Exception as error:  # libraries raise many kinds here
        unexpected = UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
        if unexpected is not None and (option := unexpected["option"]) in options:
            hint = nearest(option, _keywords(error, unexpected["owner"]))
            raise ValueError(f"`model` {name!r} has no option `{option}`.{hint}") from error
        raise ValueError(
            f"`model` {name!r} could not be built with options {dict(options)}: {_said(error)}; choose sizes that fit "
            f"the data by `model_options`."
        ) from error


def _keywords(error: Exception, owner: str) -> list[str]:
    """The keywords of a class or function that refused one, as far as it can be found."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in (*frame.f_locals.values(), frame.f_globals.get(owner)):
            if callable(value) and getattr(value, "__name__", None) == owner:
                return list(inspect.signature(value).parameters)
    return []


def _checked(model: nn.Module, name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The model, after one image went through it, whole: pixels beyond the last patch would be left out in silence."""
    fit = "choose sizes that fit by `model_options` (a smaller patch_size, say), or resize images by `input_size`"
    sides = _patch(model)
    if sides is not None and any(side % patch for side, patch in zip(shape[1:], sides, strict=True)):
        raise ValueError(
            f"`model` {name!r} cuts images into patches of {sides[0]} x {sides[1]}, which do not divide images of "
            f"shape {shape}: {fit}."
        )
    try:
        with torch.no_grad():
            output: Any = model.eval()(torch.zeros(1, *shape))
    except Exception as error:  # libraries raise many kinds here
        raise ValueError(f"`model` {name!r} does not take images of shape {shape}: {_said(error)}; {fit}.") from error
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != (1, classes):
        raise ValueError(
            f"`model` {name!r} must give logits of shape (1, {classes}) for one image, got {found}: leave out options "
            f"that change what it gives."
        )
    return model.train()


def _patch(model: Any) -> tuple[int, int] | None:
    """The sides of a patch, where a model of timm or Hugging Face cuts images into patches without filling them up."""
    embed = getattr(model, "patch_embed", None)
    if getattr(embed, "dynamic_img_pad", False):
        return None
    found = getattr(embed, "patch_size", None) or getattr(getattr(model, "config", None), "patch_size", None)
    if isinstance(found, int):
        return found, found
    sides = tuple(found) if isinstance(found, tuple | list) else ()
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _said(error: Exception) -> str:
    """The first line of what a library says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0].rstrip('.')[:200]}"


def _unknown(library: str, name: str, known: Any) -> str:
    return (
        f"`model` '{library}:{name}' is unknown to {library}; its `list_models()` names those there are."
        f"{nearest(name, known)}"
    )


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"models of {package} need the package {package}: pip install 'landscape-lab[{extra}]' ({error})."
        ) from error
