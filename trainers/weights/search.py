"""Which mappings of names to tensors a file holds, and which of them are averages of weights."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEEPEST = 5  # levels of nesting
AVERAGE = re.compile(r"(^|_)(ema|swa|avg|averaged?)(_|$)")
# What is kept beside weights: state of optimizers and of the rest of the loop.
BESIDE = re.compile(
    r"^(optim|sched|lr_|scaler|grad_scaler|loss_scaler|amp|loops|callbacks|rng|random|hparams|hyper_parameters|args"
    r"|config|cfg|averaging_state|metrics|history)"
)
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # anywhere in a name
COUNTER = "n_averaged"  # of torch's AveragedModel
LIGHTNING = ("state_dict", "current_model_state", "averaging_state")  # as its WeightAveraging leaves them


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, as they lie in a file.

    Attributes:
        place: The keys that lead to it, joined by dots; empty for the file itself.
        tensors: By name, without what torch.compile, FSDP and checkpointing of activations put into names.
        average: Whether it is an average of weights over training.
    """

    place: str
    tensors: Mapping[str, Tensor]
    average: bool = False


def state_dicts(content: Any, where: str = "the file") -> list[StateDict]:
    """All mappings from names to tensors in what a file holds, in its order, those of optimizers left out.

    Args:
        content: What was read.
        where: The file, for messages.

    Raises:
        ValueError: If names that differ in a wrapper alone have different tensors.
    """
    found = list(_search(content, (), where))
    if isinstance(content, Mapping) and all(name in content for name in LIGHTNING):
        own, average = LIGHTNING[1], LIGHTNING[0]
        return [StateDict(s.place, s.tensors, s.place == average) for s in found if s.place in (own, average)]
    return found


def is_average(place: str) -> bool:
    """Whether the keys that lead to weights, or the beginning of their names, say that they are an average."""
    return any(AVERAGE.search(part) for part in place.split("."))


def _search(content: Any, keys: tuple[str, ...], where: str) -> Iterator[StateDict]:
    if not isinstance(content, Mapping) or len(keys) > DEEPEST or not all(isinstance(key, str) for key in content):
        return
    tensors = {name: t.detach() for name, t in content.items() if isinstance(t, Tensor)}
    if tensors:
        place = ".".join(keys)
        average = is_average(place) or COUNTER in tensors
        yield StateDict(place, _bared({name: t for name, t in tensors.items() if name != COUNTER}, where), average)
    for key, value in content.items():
        if not BESIDE.match(key):
            yield from _search(value, (*keys, key), where)


def _bared(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors by names without wrappers; those that are there under several names must be equal."""
    first: dict[str, str] = {}
    for name, tensor in tensors.items():
        other = first.setdefault(bare(name), name)
        same = other == name or (tensors[other].dtype == tensor.dtype and torch.equal(tensors[other], tensor))
        if not same:
            raise ValueError(
                f"{where} has different weights for `{other}` and `{name}`, which are one parameter, compiled or "
                f"wrapped: save the names of one kind alone."
            )
    return {short: tensors[name] for short, name in first.items()}


def bare(name: str) -> str:
    """A name without what torch.compile, FSDP and checkpointing of activations put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
