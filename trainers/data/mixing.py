"""Mixing the examples of a batch with each other, and their labels with them.

torchvision has `MixUp` and `CutMix`, which draw from torch's global random state, take hard labels and images only, and
would make torchvision a need of signals and tables: these few lines do the same from a generator of their own.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor

from trainers.randomness import derive

Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SWITCH = 0.5  # timm's probability of cutmix where there is mixup too


@dataclass(frozen=True, kw_only=True)
class MixUp:
    """x_i becomes λ x_i + (1 - λ) x_(i-1), with one λ ~ Beta(α, α) for the batch.

    Source:
        Zhang et al. (2018), "mixup: Beyond empirical risk minimization", ICLR.
    """

    alpha: Alpha = 0.2

    def __call__(self, x: Shaped[Tensor, "n ..."], draw: np.random.Generator) -> tuple[Shaped[Tensor, "n ..."], float]:
        """The batch mixed with itself, rolled by one, and λ."""
        share = float(draw.beta(self.alpha, self.alpha))
        return x * share + x.roll(1, 0) * (1 - share), share


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """A box of x_i is that of x_(i-1): 1 - λ of the area, λ ~ Beta(α, α), around a random pixel, one box for the batch.

    Where the box leaves the image, λ is what is left of the area. Of signals a stretch takes the place of the box.

    Source:
        Yun et al. (2019), "CutMix", ICCV.
    """

    alpha: Alpha = 1.0

    def __call__(
        self, x: Shaped[Tensor, "n c *size"], draw: np.random.Generator
    ) -> tuple[Shaped[Tensor, "n c *size"], float]:
        """The batch with boxes of itself, rolled by one, and λ."""
        size = x.shape[2:]
        reach = 0.5 * (1 - float(draw.beta(self.alpha, self.alpha))) ** (1 / len(size))
        box, area = [slice(None), slice(None)], 1.0
        for side in size:
            middle, half = int(draw.integers(side)), int(reach * side)
            box.append(slice(max(0, middle - half), min(side, middle + half)))
            area *= (box[-1].stop - box[-1].start) / side
        mixed = x.clone()
        mixed[tuple(box)] = x.roll(1, 0)[tuple(box)]
        return mixed, 1 - area


@dataclass(frozen=True)
class Mixing:
    """Mixes batches, decided by (seed, epoch, number of the batch) alone.

    Attributes:
        ways: MixUp, CutMix or both, of which one is drawn for each batch.
        classes: Number of classes.
        seed: Of the run.
    """

    ways: tuple[MixUp | CutMix, ...]
    classes: int
    seed: int

    def __call__(
        self, x: Shaped[Tensor, "n ..."], y: Int[Tensor, " n"], *, epoch: int, batch: int
    ) -> tuple[Shaped[Tensor, "n ..."], Float[Tensor, "n k"]]:
        """The batch mixed, and its soft targets λ e_(y_i) + (1 - λ) e_(y_(i-1)), in the precision of the inputs."""
        draw = np.random.default_rng(derive(self.seed, f"mixing {epoch} {batch}"))
        way = self.ways[int(draw.random() < SWITCH) if len(self.ways) > 1 else 0]
        x, share = way(x, draw)
        labels = F.one_hot(y, self.classes).to(x.dtype)
        return x, labels * share + labels.roll(1, 0) * (1 - share)
