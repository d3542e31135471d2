"""The weights of a model: kept, displaced, and put back bit for bit."""

from typing import Any

import torch
from torch import Tensor, nn

from landscape.params import Params, add_, real
from landscape.spread import held_here
from trainers.sharpness_aware.sharded import forget_gathered, gathering_modules
from trainers.sharpness_aware.trained import Trained


class Weights:
    """The weights of the parameters that a step concerns, by name; complex ones as pairs of real numbers.

    The clean weights are copied before the first displacement and copied back afterwards: undoing a displacement by
    subtraction would drift by rounding. The memory of the copy is kept from step to step. Call without gradients.

    Args:
        trained: The parameters; of weights that are sharded over processes each process moves its own part.
        model: Their model: whatever it has gathered of sharded weights is dropped when they move.
    """

    def __init__(self, trained: Trained, model: nn.Module | None = None) -> None:
        self._trained, self.parameters = trained, trained.parameters
        self._gathering = gathering_modules(model) if model is not None else []
        self._seen: list[Any] = []
        self._kinds: dict[str, Any] = {}
        self._views: Params = {}
        self._here: list[Tensor] = []
        self._copy: Params = {}
        self._copy_here: list[Tensor] = []
        self._places: list[tuple[int, torch.dtype]] = []
        self._held = False
        self._moved = False
        self.begin()

    def begin(self) -> bool:
        """Look where the weights are; returns whether they have another type or device than at the last look."""
        each = self.parameters.values()
        # the views keep their memory from being used for anything else, so that the same place is the same tensor
        seen: list[Any] = [
            [*map(id, each)],
            [p.data_ptr() for p in each],
            [p.shape for p in each],
            [p.is_contiguous() for p in each],
        ]
        if seen == self._seen and not self._gathering:
            return False
        self._seen = seen
        kinds = {name: (p.dtype, p.device) for name, p in self.parameters.items()}
        moved = any(self._kinds.get(name, kind) != kind for name, kind in kinds.items())
        self._kinds = kinds
        self._trained.has_complex = any(p.is_complex() for p in each)
        self._views = {name: p.detach() for name, p in self.parameters.items()}
        if self._trained.has_complex:
            self._views = {name: real(v) for name, v in self._views.items()}
        self._here = [held_here(v) for v in self._views.values()]
        return moved

    def clean(self) -> Params:
        """The clean weights, as views or as the copy; not to be written to."""
        return self._copy if self._held else self._views

    def displace(self, delta: Params, times: Tensor | float = 1.0) -> None:
        """Set the weights to the clean ones plus `times` the displacement."""
        if not self._held:
            self._keep()
        elif self._moved:
            torch._foreach_copy_(self._here, self._copy_here)
        self._moved = True
        if self._gathering:
            forget_gathered(self._gathering)
        if delta:
            add_([self._views[name] for name in delta], list(delta.values()), times)

    def _keep(self) -> None:
        places = [(v.data_ptr(), v.dtype) for v in self._here]
        if places != self._places:  # the first time, and after a move to another device or type
            self._places = places
            self._copy = {name: torch.empty_like(v) for name, v in self._views.items()}
            self._copy_here = [held_here(c) for c in self._copy.values()]
        torch._foreach_copy_(self._copy_here, self._here)
        self._held = True

    def restore(self) -> None:
        """Put the clean weights back, and let go of the copy; does nothing where they are in place."""
        if self._held and self._moved:
            torch._foreach_copy_(self._here, self._copy_here)
            if self._gathering:
                forget_gathered(self._gathering)
        self._held = self._moved = False
