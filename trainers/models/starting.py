"""Where training starts: weights from elsewhere, a new classifier on top of them, parameters that stay as they are."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from landscape.naming import nearest
from trainers.weights.foreign import ForeignWeights, place, read_foreign

CLASSIFIERS = ("classifier", "fc", "head", "heads", "lm_head", "score")  # what libraries call it
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
SHOWN = 8  # names in a message


def start_from(
    model: nn.Module,
    path: str | Path,
    *,
    ema: bool = False,
    reset_head: bool = False,
    head: str | None = None,
    classes: int | None = None,
) -> ForeignWeights:
    """Give a model weights from elsewhere, in place; all but a new classifier must be there and fit.

    Args:
        model: As it was built, with a classifier from its seed, which `reset_head` keeps.
        path: As of `read_foreign`.
        ema: Take the average of weights in the file.
        reset_head: Take all but the classifier.
        head: Its name, where it is not found by itself.
        classes: Number of logits that it must have; None takes any.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `read_foreign` and `head_of`, if the classifier shares weights with another layer, or
            if weights are not finite.
    """
    without = head_of(model, classes=classes, name=head) if reset_head else ()
    for name in without:
        _check_alone(model, name)
    weights = read_foreign(path, ema=ema, model=model, without=without)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, t in weights.tensors.items():  # buffers may hold infinities, such as those of masks
        if not t.isfinite().all() if name in parameters else t.isnan().any():
            raise ValueError(
                f"`init` {path} has numbers that are not finite in `{name}`, so that no step can train it: take "
                f"weights from before the training diverged."
            )
    place(model, weights.tensors)
    return weights


def head_of(model: nn.Module, *, classes: int | None = None, name: str | None = None) -> list[str]:
    """The names of a model's classifiers: layers that make logits.

    Found by `get_classifier()` as of timm (two of them in distilled models), else as the last layer of the module that
    is called classifier, fc, head, heads or score, else as the last linear layer or convolution.

    Args:
        model: The model.
        classes: Number of logits; another number is refused, as then it is not what makes them.
        name: The name of the module, where the user gives it.

    Raises:
        ValueError: If there is none, it has another number of outputs, or no module has the name.
    """
    modules = dict(model.named_modules())
    if name is not None:
        if not name or name not in modules:
            raise ValueError(f"`head` {name!r} is no module of the model.{nearest(name, modules)}{_last(modules)}")
        if not any(True for _ in modules[name].parameters()):
            raise ValueError(
                f"`head` {name!r} has no parameters: name the layer that makes the logits.{_last(modules)}"
            )
        return [name]
    found = _by_method(modules) or _by_name(modules)[:1] or [n for n, m in modules.items() if _layer(m)][-1:]
    outputs = {n: _outputs(modules[n]) for n in found}
    if not found or (classes is not None and any(n != classes for n in outputs.values())):
        said = ", ".join(f"{n!r} with {k} outputs" for n, k in outputs.items()) or "no linear layer"
        raise ValueError(
            f"`reset_head` found {said} where a classifier of {classes} classes should be: name its module with "
            f"`head`.{_last(modules)}"
        )
    return found


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Keep parameters as they are: they get no gradient, no decay and no perturbation. Returns their names.

    Buffers are no parameters: running statistics of BatchNorm in frozen layers go on following the data in training
    mode, as everywhere in torch.

    Args:
        model: The model.
        patterns: Names, modules (all parameters in them) or globs such as "patch_embed.*"; `*` also stands for dots.

    Raises:
        ValueError: If one of them means no parameter, with the nearest, or none is left to train.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        chosen = [n for n in names if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)]
        if not chosen:
            modules = [n for n, _ in model.named_modules() if n]
            hint = nearest(pattern.rstrip(".*"), [*names, *modules])
            tops = list(dict.fromkeys(n.partition(".")[0] for n in names))[:SHOWN]
            raise ValueError(f"`freeze` has {pattern!r}, which means no parameter; they begin with {tops}.{hint}")
        for name in chosen:
            names[name].requires_grad_(False)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    if patterns and len(frozen) == sum(1 for _ in model.parameters()):
        raise ValueError(f"`freeze` {list(patterns)} means every parameter: leave some to be trained.")
    return frozen


def _by_method(modules: dict[str, nn.Module]) -> list[str]:
    """The layers that a model of timm, or a wrapper's inner model, says are its classifiers."""
    for prefix, module in modules.items():
        getter: Any = getattr(module, "get_classifier", None)
        if not callable(getter):
            continue
        try:
            told = getter()
        except (AttributeError, NotImplementedError, TypeError):
            continue
        every = told if isinstance(told, tuple | list) else [told]
        inside = [n for n, m in modules.items() if any(m is one for one in every) and n.startswith(prefix)]
        return [layer for name in inside for layer in _layers(modules, name)[-1:]]
    return []


def _by_name(modules: dict[str, nn.Module]) -> list[str]:
    """The last layer of each module with the name of a classifier, the outermost first."""
    named = sorted((n for n in modules if n.rpartition(".")[2] in CLASSIFIERS), key=lambda n: n.count("."))
    return [layer for name in named for layer in _layers(modules, name)[-1:]]


def _layers(modules: dict[str, nn.Module], name: str) -> list[str]:
    """The layers in a module, itself included."""
    return [n for n, m in modules.items() if (n == name or n.startswith(f"{name}.")) and _layer(m)]


def _layer(module: nn.Module) -> bool:
    return isinstance(module, LAYERS)


def _outputs(module: nn.Module) -> int:
    sizes: Any = module
    return int(sizes.out_features if isinstance(module, nn.Linear) else sizes.out_channels)


def _check_alone(model: nn.Module, head: str) -> None:
    """Refuse a classifier that shares a parameter with another layer."""
    inside = {id(p) for p in model.get_submodule(head).parameters()}
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) in inside and not name.startswith(f"{head}."):
            raise ValueError(
                f"`reset_head` would also renew `{name}`, whose weights the classifier `{head}` shares: leave it out."
            )


def _last(modules: dict[str, nn.Module]) -> str:
    names: Iterator[str] = (n for n, m in modules.items() if _layer(m))
    return f" Its last layers are {list(names)[-3:]}."
