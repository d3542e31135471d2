"""The weights of a model: kept, displaced, and put back bit for bit."""

import torch
from torch import Tensor, nn

from landscape.params import Params
from landscape.spread import held_here
from trainers.sharpness_aware.sharded import forget_gathered, gathering_modules


class Weights:
    """The trainable parameters of a model, by name.

    The clean weights are copied before the first displacement and copied back afterwards: undoing a displacement by
    subtraction would drift by rounding. The memory of the copy is kept from step to step.

    Args:
        parameters: The parameters; of weights that are sharded over processes each process moves its own part.
        model: Their model: whatever it has gathered of sharded weights is dropped when they move.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], model: nn.Module | None = None) -> None:
        self.parameters = parameters
        self._gathering = gathering_modules(model) if model is not None else []
        self._copy: list[Tensor] = []
        self._held = False
        self._moved = False

    def clean(self) -> Params:
        """The clean weights, as views or as the copy; not to be written to."""
        if self._held:
            return dict(zip(self.parameters, self._copy, strict=True))
        return {name: p.detach() for name, p in self.parameters.items()}

    @torch.no_grad()
    def displace(self, delta: Params, times: float = 1.0) -> None:
        """Set the weights to the clean ones plus `times` the displacement."""
        views = {name: p.detach() for name, p in self.parameters.items()}
        if not self._held:
            self._keep(list(views.values()))
        elif self._moved:
            _copy(self._copy, list(views.values()))
        self._moved = True
        forget_gathered(self._gathering)
        if delta:
            torch._foreach_add_([views[name] for name in delta], list(delta.values()), alpha=times)

    def _keep(self, views: list[Tensor]) -> None:
        fits = len(self._copy) == len(views) and all(
            c.shape == v.shape and c.device == v.device and c.dtype == v.dtype
            for c, v in zip(self._copy, views, strict=True)
        )
        if not fits:
            self._copy = [torch.empty_like(v) for v in views]
        _copy(views, self._copy)
        self._held = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the clean weights back, and let go of the copy; does nothing where they are in place."""
        if self._held and self._moved:
            _copy(self._copy, [p.detach() for p in self.parameters.values()])
            forget_gathered(self._gathering)
        self._held = self._moved = False


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    torch._foreach_copy_([held_here(t) for t in target], [held_here(t) for t in source])
