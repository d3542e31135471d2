"""Weights from elsewhere: read from a file of whatever kind, chosen, and laid over a model."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.weights.fitting import Fit, Outline, laid, nothing_fits, rank, ways
from trainers.weights.pickles import conversion
from trainers.weights.places import is_own, read_content
from trainers.weights.search import StateDict, state_dicts

USUAL = ("", "state_dict", "model", "model_state_dict", "module", "net", "state_dict_ema", "model_ema")


@dataclass(frozen=True)
class ForeignWeights:
    """Weights that were taken from a file.

    Attributes:
        tensors: By name: the model's, if one was given.
        taken: Where they lay in the file, in words.
        average: Whether they are an average of weights over training.
        notes: What has to be said of them beside the numbers; empty for a plain file that fits as it is.
    """

    tensors: dict[str, Tensor]
    taken: str = "the file itself"
    average: bool = False
    notes: tuple[str, ...] = field(default=())


def read_foreign(
    path: str | Path, *, ema: bool = False, model: nn.Module | None = None, without: Iterable[str] = ()
) -> ForeignWeights:
    """Read weights that were saved elsewhere; no code of the file is run.

    `.safetensors`, and what torch saved (`.pt`, `.pth`, `.bin`, `.ckpt`, `.pth.tar`): a `state_dict`, at the top or
    under keys such as `state_dict`, `model` or `model_ema`, of timm, torchvision's references, Lightning or a script of
    one's own; a Hugging Face folder, in one file or in shards, also with the names of older versions; a run or
    checkpoint of ours. Names may begin with `module.`, `model.` or another attribute, and pass through torch.compile or
    FSDP; tied tensors may be there once.

    Args:
        path: The file or folder.
        ema: Take an average of weights (EMA, SWA) instead of the weights themselves.
        model: The model that they are for: it decides which of several fit, and all of it must be there. Without one
            the largest set is taken, under its own names.
        without: Modules and parameters of the model that need no weights, such as a head that stays new.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, cannot be read without running code, holds no weights or no average, several sets
            that fit equally well, or weights of another model.
    """
    found = [source for source in state_dicts(read_content(path, ema=ema), str(path)) if source.tensors]
    if ema and is_own(path):
        found = [replace(source, average=True) for source in found]
    if not found:
        raise ValueError(f"{path} holds no `state_dict`, that is names with tensors. {conversion(Path(path))}")
    if model is None:
        chosen = _largest(found, ema=ema, path=path)
        names = chosen.tensors
        cut = "module." if all(name.startswith("module.") for name in names) else ""
        fit = Fit(chosen, cut)
        return ForeignWeights(fit.tensors(), fit.said, fit.average, tuple(_others(fit, [Fit(s) for s in found])))
    outline = Outline.of(model, without)
    rename = _of_its_library(model)
    fits = [fit for source in found for fit in _ways(source, rename(source), outline)]
    if not fits:
        raise ValueError(nothing_fits(str(path), found, outline))
    fit = _best(fits, ema=ema, path=path)
    if 2 * fit.names < len(outline.needed):  # which names those are is chance
        raise ValueError(nothing_fits(str(path), found, outline, fit.names))
    tensors, notes = laid(fit, outline, str(path))
    return ForeignWeights(tensors, fit.said, fit.average, (*_others(fit, fits), *notes))


def _ways(source: StateDict, other: StateDict, outline: Outline) -> list[Fit]:
    """The ways of laying a source over a model, under other names where more of those fit."""
    offered = [ways(one, outline) for one in ((source,) if other is source else (source, other))]
    return max(offered, key=lambda fits: (fits[0].shapes, fits[0].names) if fits else (-1, -1))


def _of_its_library(model: nn.Module) -> Callable[[StateDict], StateDict]:
    """Gives tensors the names that they have in a model of Hugging Face, whose files keep those of older versions."""
    library: Any = sys.modules.get("transformers")
    asked = getattr(sys.modules.get("transformers.conversion_mapping"), "get_model_conversion_mapping", None)
    if library is None or asked is None or not isinstance(model, library.PreTrainedModel):
        return lambda source: source

    def renamed(source: StateDict) -> StateDict:
        tensors: dict[str, Tensor] = {}
        steps = [step for step in asked(model) if hasattr(step, "rename_source_key")]  # some remember what they saw
        for name, tensor in source.tensors.items():
            new = name
            for step in steps:
                new, _ = step.rename_source_key(new)
            tensors[new] = tensor
        several = len(tensors) < len(source.tensors)  # some are joined to one, which is more than a name
        return source if several else replace(source, tensors=tensors)

    return renamed


def place(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model, in place, in the precision of the model."""
    own = dict(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def _pool(fits: Sequence[Fit], *, ema: bool, path: str | Path) -> list[Fit]:
    """Those that are averages, or those that are not; an average is all there is in some files."""
    wanted = [fit for fit in fits if fit.average == ema]
    if ema and not wanted:
        raise ValueError(f"{path} holds no average of weights (EMA, SWA): leave out `--ema`.")
    return wanted or list(fits)


def _largest(found: Sequence[StateDict], *, ema: bool, path: str | Path) -> StateDict:
    pool = _pool([Fit(source) for source in found], ema=ema, path=path)
    return max(pool, key=lambda fit: (len(fit.source.tensors), -_rank(fit))).source


def _rank(fit: Fit) -> int:
    return USUAL.index(fit.source.place) if fit.source.place in USUAL else len(USUAL)


def _best(fits: Sequence[Fit], *, ema: bool, path: str | Path) -> Fit:
    """The one that fits best.

    Raises:
        ValueError: If others fit as well, hold other weights, and are not less usual.
    """
    pool = _pool(fits, ema=ema, path=path)
    most = max((fit.shapes, fit.names) for fit in pool)
    best = sorted((fit for fit in pool if (fit.shapes, fit.names) == most), key=_usual)
    rivals = [fit for fit in best[1:] if _usual(fit) == _usual(best[0]) and not _equal(fit, best[0])]
    if rivals:
        raise ValueError(
            f"{path} holds several weights that fit the model: {best[0].said}; and {rivals[0].said}. "
            f"{conversion(Path(path))}"
        )
    return best[0]


def _usual(fit: Fit) -> tuple[int, int]:
    return _rank(fit), rank(fit.cut)


def _equal(one: Fit, other: Fit) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def _others(fit: Fit, fits: Sequence[Fit]) -> list[str]:
    """What else the file holds that fits, and where these were where that is not plain."""
    kind = "an average of weights, " if fit.average else ""
    plain = not kind and not fit.source.place and not fit.said.startswith("the file itself,")
    said = [] if plain else [f"{kind}{fit.said}"]
    taken = {id(t) for t in fit.tensors().values()}
    rest = [other for other in fits if not taken.issuperset(id(t) for t in other.tensors().values())]
    rest = [other for other in rest if 2 * len(other.tensors()) > len(fit.tensors())]
    averages = [other for other in rest if other.average and not fit.average]
    own = [other for other in rest if not other.average]
    if averages:
        said.append(f"the file also holds an average of weights ({averages[0].said}), which `--ema` takes")
    elif own:
        also = "the weights themselves" if fit.average else "other weights"
        said.append(f"the file also holds {also} ({own[0].said})")
    elif fit.average:
        said.append("the file holds no others")
    return said
