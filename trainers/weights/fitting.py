"""How the names in a file fit those of a model: prefixes, tied tensors, what may be missing, what does not fit."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from landscape.naming import nearest
from trainers.weights.search import StateDict, bare, is_average

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"  # of BatchNorm, which files of old versions of torch lack
# Left in files by counters of operations, or by versions that kept what others compute.
LEFTOVERS = (COUNTER, "total_ops", "total_params", "inv_freq", "attn_mask", "relative_coords_table", "position_ids")
HEADS = ("classifier", "fc", "head", "heads", "head_dist", "lm_head")  # what libraries call a classifier
STATISTICS = ("running_mean", "running_var")  # of BatchNorm
POSITIONS = re.compile(r"pos(ition)?_embed")  # one vector for each patch of an image
SHOWN = 3  # names in a message
FIRST = ("", "module.", "model.", "net.", "network.")  # beginnings of names, the usual ones first


@dataclass(frozen=True)
class Fit:
    """One way of laying the names of a file over those of a model.

    Attributes:
        source: The tensors.
        cut: What the file's names begin with and the model's do not.
        put: What the model's names begin with and the file's do not.
        names: Names that both have.
        shapes: Those of them with one shape.
    """

    source: StateDict
    cut: str = ""
    put: str = ""
    names: int = 0
    shapes: int = 0

    @property
    def average(self) -> bool:
        """Whether these are an average of weights."""
        return self.source.average or is_average(self.cut)

    @property
    def said(self) -> str:
        """Where the weights lie in the file, in words."""
        where = f"`{self.source.place}`" if self.source.place else "the file itself"
        cut = self.cut.removeprefix("module.") if self.cut.removeprefix("module.") else ""
        return f"{where}, names that begin with `{cut}`" if cut else where

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the model's names, without those that lie beside them."""
        given = self.source.tensors.items()
        return {self.put + name.removeprefix(self.cut): t for name, t in given if name.startswith(self.cut)}

    def beside(self) -> list[str]:
        """Names in the file that do not begin like the others."""
        return [name for name in self.source.tensors if not name.startswith(self.cut)]


@dataclass(frozen=True)
class Outline:
    """The tensors of a model that weights are to fill, by names without wrappers.

    Attributes:
        tensors: By name, tied ones once.
        others: Further names of tied tensors, by the name they have in `tensors`.
        real: The model's own names.
        spared: Names that need no weights, such as those of a head that stays new.
    """

    tensors: Mapping[str, Tensor]
    others: Mapping[str, Sequence[str]]
    real: Mapping[str, str]
    spared: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module, without: Iterable[str] = ()) -> "Outline":
        """The parameters and persistent buffers of a model.

        Args:
            model: It.
            without: Modules and parameters that need no weights.
        """
        every = model.state_dict(keep_vars=True)
        named = [*model.named_parameters(), *model.named_buffers()]
        real = {bare(name): name for name, _ in named if name in every}
        tensors = {short: every[name] for short, name in real.items()}
        first = {id(t): name for name, t in tensors.items()}
        others: dict[str, list[str]] = {}
        for name, t in every.items():
            if id(t) in first and first[id(t)] != bare(name):
                others.setdefault(first[id(t)], []).append(bare(name))
        left = [bare(name) for name in without]
        spared = frozenset(name for name in tensors for one in left if name == one or name.startswith(f"{one}."))
        return cls(tensors, others, real, spared)

    @property
    def needed(self) -> dict[str, Tensor]:
        """Those that need weights."""
        return {name: t for name, t in self.tensors.items() if name not in self.spared}

    def named(self, *, spared: bool) -> dict[str, Tensor]:
        """All names that weights may have, those of tied tensors too."""
        kept = self.tensors if spared else self.needed
        return {**kept, **{more: kept[name] for name in kept for more in self.others.get(name, ())}}


def ways(source: StateDict, outline: Outline) -> list[Fit]:
    """The ways of laying a file's names over a model's that match anything, the best first."""
    own = outline.named(spared=False)
    counts: dict[tuple[str, str], Counter[str]] = {}

    def note(cut: str, put: str, ours: Tensor, theirs: Tensor) -> None:
        count = counts.setdefault((cut, put), Counter())
        count["names"] += 1
        count["shapes"] += ours.shape == theirs.shape

    common = [head for head in heads(next(iter(own), "")) if all(name.startswith(head) for name in own)]
    for put in common:
        for name, tensor in source.tensors.items():
            for cut in heads(name):
                if (ours := own.get(put + name.removeprefix(cut))) is not None:
                    note(cut, put, ours, tensor)
    for name, tensor in own.items():  # of a part of the model alone, such as all but its head
        for put in heads(name):
            if put not in common and (theirs := source.tensors.get(name.removeprefix(put))) is not None:
                note("", put, tensor, theirs)
    found = [Fit(source, cut, put, n["names"], n["shapes"]) for (cut, put), n in counts.items()]
    if all(name.removeprefix(common[-1]).count(".") == 0 for name in own):  # one layer is like many others in a file
        found = [fit for fit in found if not fit.beside()]
    return sorted(found, key=lambda fit: (-fit.shapes, -fit.names, rank(fit.cut), len(fit.put)))


def heads(name: str) -> list[str]:
    """The beginnings of a name that end with a dot, the empty one first."""
    parts = name.split(".")[:-1]
    return ["", *accumulate(f"{part}." for part in parts)]


def rank(cut: str) -> int:
    """How usual it is that names begin so; 0 is the most usual."""
    return FIRST.index(cut) if cut in FIRST else len(FIRST)


def laid(fit: Fit, outline: Outline, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights by the model's own names, all that it needs, and what is to be said of them.

    Raises:
        ValueError: If something is missing, left over, of another shape or kind, naming it with the nearest.
    """
    given, own, known = fit.tensors(), outline.needed, outline.named(spared=True)
    taken: dict[str, Tensor] = {}
    missing, absent = [], []
    for name, ours in own.items():
        written = [given[n] for n in (name, *outline.others.get(name, ())) if n in given]
        if any(not torch.equal(written[0], t) for t in written[1:]):
            tied = ", ".join(f"`{n}`" for n in (name, *outline.others[name]))
            raise ValueError(f"{where} has different weights for {tied}, which are one tensor in the model.")
        if written:
            taken[name] = written[0]
        elif name.endswith(COUNTER) or not ours.is_floating_point():
            absent.append(name)
        else:
            missing.append(name)
    extra = [name for name in given if name not in known]
    left = [name for name in extra if _harmless(name, given[name], outline)]
    extra = [name for name in extra if name not in left]
    wrong = {name: t for name, t in taken.items() if t.shape != own[name].shape}
    if missing or extra or wrong:
        raise ValueError(_unfit(where, fit, outline, missing, extra, wrong))
    _check_kinds(taken, own, where)
    notes = []
    if absent:
        notes.append(f"{_some(absent)} are not in the file and stay as the model has them")
    if left:
        notes.append(f"{_some(left)} of the file are not in the model and were left out")
    if beside := fit.beside():
        notes.append(f"{_some(beside)} lie beside the model in the file and were left out")
    return {outline.real[name]: t for name, t in taken.items()}, [*notes, *_rounded(taken, own)]


def _harmless(name: str, tensor: Tensor, outline: Outline) -> bool:
    """Whether a tensor that the model lacks says nothing of its function: tables, counters, the head of another."""
    head = bool(outline.spared) and bool(set(name.split(".")[:2]) & set(HEADS))
    return head or name.rpartition(".")[2] in LEFTOVERS or not (tensor.is_floating_point() or tensor.is_complex())


def _check_kinds(taken: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    for name, t in taken.items():
        same = t.dtype == own[name].dtype
        floats = t.dtype in FLOATS and own[name].dtype in FLOATS
        whole = not (t.is_floating_point() or t.is_complex() or own[name].is_floating_point() or own[name].is_complex())
        if not (same or floats or whole):
            raise ValueError(
                f"`{name}` is {_plain(t.dtype)} in {where} and {_plain(own[name].dtype)} in the model: quantised or "
                f"complex weights mean another number than they are; save the model in float32 or a half precision."
            )


def _rounded(taken: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What is to be said of another precision."""
    pairs = Counter(
        (t.dtype, own[n].dtype) for n, t in taken.items() if t.is_floating_point() and t.dtype != own[n].dtype
    )
    said = []
    for (theirs, ours), count in pairs.items():
        how = "rounded to" if theirs.itemsize > ours.itemsize else "taken into"
        said.append(f"{count} tensors are stored in {_plain(theirs)} and {how} {_plain(ours)}")
    return said


def _unfit(
    where: str, fit: Fit, outline: Outline, missing: list[str], extra: list[str], wrong: Mapping[str, Tensor]
) -> str:
    """What does not fit, in words."""
    own = outline.needed
    counts = f"{fit.names} of its {len(fit.source.tensors)} names are among the model's {len(own)}"
    parts = [f"{where} does not fit the model ({counts}, {fit.shapes} of them with its shape):"]
    if extra:
        hint = nearest(extra[0], missing or own)
        parts.append(f"the weights hold {_some(extra)}, which the model lacks.{hint}")
    if missing:
        hint = nearest(missing[0], fit.source.tensors) if not extra else ""
        why = f"is it another model or size?{hint}"
        if all(name.endswith(STATISTICS) for name in missing):
            why = (
                "these are running statistics of BatchNorm, which are no parameters, and without them it computes "
                "something else. Save the whole `model.state_dict()`."
            )
        parts.append(f"the weights lack {_some(missing)}, which the model has: {why}")
    parts += [
        f"`{name}` has shape {tuple(t.shape)} in the file and {tuple(own[name].shape)} in the model."
        for name, t in list(wrong.items())[:SHOWN]
    ]
    if len(wrong) > SHOWN:
        parts.append(f"{len(wrong) - SHOWN} more have another shape.")
    heads = {name.rpartition(".")[0] for name in wrong}
    if wrong and not (missing or extra) and all(POSITIONS.search(name) for name in wrong):
        parts.append(_other_size(wrong, own))
    elif len(heads) == 1 and not (missing or extra) and all(t.shape[1:] == own[n].shape[1:] for n, t in wrong.items()):
        parts.append(
            f"All else fits: `{heads.pop()}` has another number of classes. To train from these weights with a new "
            f"classifier, add `--reset-head`; to measure them, name data with as many classes."
        )
    return " ".join(parts)


def _other_size(wrong: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What is to be said where position embeddings alone have another shape; the side of the images if it is known."""
    theirs = next(iter(wrong.values()))
    patches = [t.shape for name, t in own.items() if t.ndim == 4 and ("patch" in name or "conv_proj" in name)]
    count = theirs.shape[-2] if theirs.ndim in (2, 3) else 0
    # beside the patches there is mostly one token more, of the class; two where a model is distilled
    sides = [math.isqrt(n) for n in (count - 1, count, count - 2) if n > 0 and math.isqrt(n) ** 2 == n]
    known = len(patches) == 1 and patches[0][0] == theirs.shape[-1] and patches[0][2] == patches[0][3]
    size = f"`--input-size {sides[0] * patches[0][2]}`" if sides and known else "their size by `--input-size`"
    return f"All else fits: the weights are for another image size: {size}."


def nothing_fits(where: str, sources: Sequence[StateDict], outline: Outline, names: int = 0) -> str:
    """The message where no name, or only a few, are in the model."""
    what, verb = (f"only {names} of the names", "fit") if names else ("nothing", "fits")
    theirs: list[str] = [name for source in sources for name in source.tensors]
    return (
        f"{what} in {where} {verb} the model: it holds {_some(theirs)}, and the model {_some(list(outline.tensors))}. "
        f"Is it another architecture? Name the one that was trained with `--model`."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _plain(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
