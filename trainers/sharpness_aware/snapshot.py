"""Copies of random state, so that two passes over a batch can draw the same dropout masks."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of torch's default generators: the CPU's, and those of the CUDA devices in use."""

    cpu: Tensor
    cuda: dict[int, Tensor]

    @classmethod
    def take(cls, devices: Iterable[torch.device]) -> "RandomState":
        """Copy the states of the CPU and of the given devices."""
        cuda = {d.index or 0: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
        return cls(torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set the generators back to this state."""
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
