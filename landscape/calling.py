"""How a module takes the inputs of a batch: by position, by name, or as they are; and a look at what it computes."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

KINDS = inspect.Parameter


@dataclass(frozen=True)
class Signature:
    """What the forward function of a module takes.

    Attributes:
        names: What can be given by name; None means anything.
        positional: How many arguments it takes by position, at most.
        required: How many of these have no default.
    """

    names: tuple[str, ...] | None = None
    positional: float = math.inf
    required: int = 0

    @classmethod
    def of(cls, module: nn.Module) -> "Signature":
        """Read it; a module that does not tell takes anything."""
        try:
            found = list(inspect.signature(module.forward).parameters.values())
        except (TypeError, ValueError):
            return cls()
        kinds = {p.kind for p in found}
        places = [p for p in found if p.kind in (KINDS.POSITIONAL_ONLY, KINDS.POSITIONAL_OR_KEYWORD)]
        names = [p.name for p in found if p.kind in (KINDS.POSITIONAL_OR_KEYWORD, KINDS.KEYWORD_ONLY)]
        return cls(
            None if KINDS.VAR_KEYWORD in kinds else tuple(names),
            math.inf if KINDS.VAR_POSITIONAL in kinds else len(places),
            sum(p.default is KINDS.empty for p in places),
        )

    def arguments(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs as arguments by position and by name.

        A dict is given by name, a tuple by position, anything else as it is; so are a dict of names that the module
        has not, and a tuple, where the module takes one argument only.

        Raises:
            ValueError: If a dict has some names that the module takes and others that it does not.
        """
        if isinstance(inputs, dict):
            strange = [] if self.names is None else [key for key in inputs if key not in self.names]
            if not strange:
                return (), inputs
            if len(strange) == len(inputs) and self.positional >= 1 and self.required <= 1:
                return (dict(inputs),), {}  # which the model may change
            raise ValueError(
                f"`data` has a dict batch with {strange}, which the model's forward does not take (it takes "
                f"{list(self.names or ())}): give pairs (inputs, targets), such as ({{'x': x}}, y)."
            )
        if isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence) and not self._takes_whole(inputs):
            return tuple(inputs), {}
        return (_own(inputs),), {}

    def _takes_whole(self, inputs: tuple[Any, ...]) -> bool:
        return self.positional == 1 and len(inputs) > 1


def _own(inputs: Any) -> Any:
    """One argument that the module may change without changing the data: containers and objects are copied once."""
    if isinstance(inputs, list):
        return list(inputs)
    if isinstance(inputs, Tensor | PackedSequence | tuple | str | int | float | None):
        return inputs
    try:
        return copy.copy(inputs)
    except Exception:  # an object that cannot be copied is handed over itself
        return inputs


def call(module: nn.Module, inputs: Any) -> Any:
    """The outputs of a module on the inputs of a batch, see `Signature.arguments`."""
    by_place, by_name = Signature.of(module).arguments(inputs)
    return module(*by_place, **by_name)


@contextmanager
def hooked(modules: Iterable[nn.Module], note: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """A block in which each call of a module is noted: note(module, arguments, output)."""
    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
