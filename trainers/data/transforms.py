"""Random transforms of inputs as they are stored: of whole batches on their device, or of one image by torchvision."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from pydantic import Field
from torch import Generator, Tensor

from trainers.randomness import ExampleDraws
from trainers.reference import call

Pad = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
Ops = Annotated[int, Field(ge=0)]
Magnitude = Annotated[int, Field(ge=0, le=30)]


@runtime_checkable
class BatchTransform(Protocol):
    """Transforms whole batches of images (n, c, h, w) or signals (n, c, length), by draws of each example."""

    def __call__(self, stored: Tensor, draws: ExampleDraws, fill: float) -> Tensor:
        """The batch transformed; `fill` is what is put where nothing was."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Pads every side with the fill value, and cuts the size it had out at a random place; signals are shifted.

    `pad` is the padding in pixels; None is an eighth of each side, rounded down and at least 1: 4 at 32, 3 at 28.
    """

    pad: Pad | None = None

    def __call__(
        self, stored: Shaped[Tensor, "n c *size"], draws: ExampleDraws, fill: float
    ) -> Shaped[Tensor, "n c *size"]:
        """Each example from a place of its own."""
        size = stored.shape[2:]
        pads = [max(1, side // 8) if self.pad is None else self.pad for side in size]
        around = [p for pad in reversed(pads) for p in (pad, pad)]
        windows = F.pad(stored, around, value=int(fill) if stored.dtype == torch.uint8 else fill)
        for axis, side in enumerate(size, 2):
            windows = windows.unfold(axis, side, 1)
        places = [draws.below(2 * pad + 1, axis) for axis, pad in enumerate(pads)]
        index: list[Any] = [torch.arange(len(stored), device=stored.device), slice(None), *places]
        cut: Tensor = windows[tuple(index)]
        return cut


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirrors the last axis of every second example, at random: left and right of images, the time of signals."""

    def __call__(
        self,
        stored: Shaped[Tensor, "n c *size"],
        draws: ExampleDraws,
        fill: float,  # noqa: ARG002 - which mirroring does not need
    ) -> Shaped[Tensor, "n c *size"]:
        """Each example as it is or mirrored."""
        chosen = draws.below(2, 0).bool().view(-1, *(1 for _ in stored.shape[1:]))
        return torch.where(chosen, stored.flip(-1), stored)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Puts the fill value in a square around a random pixel, where it lies within the image; in a stretch of signals.

    `size` is its side in pixels; None is half of the shortest side, as on CIFAR-10.

    Source:
        DeVries and Taylor (2017), arXiv:1708.04552.
    """

    size: Size | None = None

    def __call__(
        self, stored: Shaped[Tensor, "n c *size"], draws: ExampleDraws, fill: float
    ) -> Shaped[Tensor, "n c *size"]:
        """Each example with a hole of its own."""
        side = max(1, min(stored.shape[2:]) // 2) if self.size is None else self.size
        hole = torch.ones((), dtype=torch.bool, device=stored.device)
        for axis, length in enumerate(stored.shape[2:]):
            first = draws.below(length, axis)[:, None] - side // 2
            places = torch.arange(length, device=stored.device)
            within = (places >= first) & (places < first + side)
            hole = hole & within.view(len(stored), 1, *(length if a == axis else 1 for a in range(stored.ndim - 2)))
        return stored.masked_fill(hole, fill)


@dataclass(frozen=True)
class ImageTransform:
    """A transform of one image that draws from torch's global random state, as torchvision's do, and a user's own.

    Attributes:
        name: As it was given, for messages.
        function: Maps a stored image (c, h, w), or other input, to one of the same kind.
    """

    name: str
    function: Callable[[Tensor], Any]

    def __call__(self, stored: Tensor) -> Tensor:
        """The image transformed, from the random states as they are.

        Raises:
            ValueError: If it fails, or gives something of another kind.
        """
        found = call(f"`augment` {self.name!r}", self.function, stored)
        if not isinstance(found, Tensor) or found.shape != stored.shape or found.dtype != stored.dtype:
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"`augment` {self.name!r} must give what it takes, {stored.dtype} {tuple(stored.shape)} as the data "
                f"are stored, got {got}."
            )
        return found


Transform = BatchTransform | ImageTransform


@dataclass(frozen=True)
class Chain:
    """Transforms of one example after another, all decided by the seed of a generator.

    The global random states of torch, NumPy and Python are left as the transforms leave them: who reads puts them back.
    """

    transforms: tuple[Transform, ...]
    fill: float

    def __call__(self, stored: Tensor, generator: Generator) -> Tensor:
        """The example transformed."""
        seed = generator.initial_seed()
        torch.default_generator.manual_seed(seed)
        if any(isinstance(t, ImageTransform) and not t.name.startswith(TORCHVISION) for t in self.transforms):
            np.random.seed(seed % 2**32)  # noqa: NPY002 - users draw from the global one
            random.seed(seed)
        for place, transform in enumerate(self.transforms):
            if isinstance(transform, ImageTransform):
                stored = transform(stored)
            else:
                draws = ExampleDraws(seed, torch.tensor([place]))
                stored = transform(stored[None], draws, self.fill)[0]
        return stored


TORCHVISION = "torchvision.transforms.v2:"


def torchvision_transform(name: str, **options: Any) -> Callable[[Tensor], Any]:
    """A transform of torchvision's by the name of its class.

    Raises:
        ImportError: If torchvision is not installed.
        ValueError: If it has no such transform, or not these options.
    """
    v2 = torchvision_v2(f"{TORCHVISION}{name}")
    kind = getattr(v2, name, None)
    if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
        raise ValueError(f"`augment` {TORCHVISION}{name}: torchvision.transforms.v2 has no transform {name!r}.")
    return call(f"`augment` {TORCHVISION}{name}", kind, **options)  # type: ignore[no-any-return]


def torchvision_v2(needed_by: str) -> Any:
    """The module.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError(f"`augment` {needed_by!r} needs torchvision: pip install 'landscape-lab[vision]'.") from error
    return v2
