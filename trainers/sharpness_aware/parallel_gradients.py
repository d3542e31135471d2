"""SAMPa on two processes: each takes one of the step's two gradients, at the same time.

Both processes hold the same weights and get the same batches. Rank 0 takes the gradient at the perturbed point, on the
previous batch; rank 1 the one at the point ahead, on this one. Then each sends the other what it has, byte for byte,
and both go on as one process would that has taken both gradients.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.params import Params, real
from landscape.ranks import Ranks
from trainers.sharpness_aware.chunks import Unit
from trainers.sharpness_aware.snapshot import RandomState


@dataclass
class Exchanged:
    """What both processes know after an exchange.

    Attributes:
        perturbed: The gradient at the perturbed point.
        perturbed_loss: The loss there.
        ahead: The gradient at the point ahead.
        loss: The loss there.
    """

    perturbed: Params
    perturbed_loss: Tensor
    ahead: Params
    loss: Tensor


class Pair:
    """The two processes.

    Args:
        model: The model; its buffers follow rank 1, whose pass is the one that updates running statistics.
        named: Its trainable parameters.
        group: Their process group; None is the default one.

    Raises:
        ValueError: If there are not exactly two processes, or a layer mixes activations of both.
    """

    def __init__(self, model: nn.Module, named: dict[str, nn.Parameter], group: Any = None) -> None:
        self.ranks = Ranks.of(group)
        if self.ranks.count != 2:
            raise ValueError(
                f"`parallel_gradients` needs two processes, which take one gradient each, got {self.ranks.count}: "
                f"start them with `torchrun --nproc-per-node 2` and torch.distributed.init_process_group, or pass a "
                f"`group` of two."
            )
        if any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
            raise ValueError(
                "SyncBatchNorm mixes activations of two processes whose weights differ under `parallel_gradients`: use "
                "BatchNorm."
            )
        self.model, self.named = model, named
        self.perturbs = self.ranks.leads

    def agree(self, loss: Tensor) -> None:
        """Check that both processes got the same first loss.

        Raises:
            ValueError: If they did not: on both.
        """
        losses = [piece[0].item() for piece in self._gather([loss.detach().reshape(1).double()])]
        if losses[0] != losses[1] and losses[0] == losses[0]:
            raise ValueError(
                f"`parallel_gradients` needs the same weights, batches and random state on both processes, and their "
                f"first losses differ: {losses[0]!r} and {losses[1]!r}."
            )

    @torch.no_grad()
    def exchange(
        self, unit: Unit, grads: Params, loss: Tensor, devices: set[torch.device], *, same_rng: bool
    ) -> Exchanged:
        """Send this process's gradient and get the other's; rank 0 also takes over buffers and random state.

        Args:
            unit: This step's batch; it is marked as seen on rank 0, where it was not.
            grads: This process's gradient.
            loss: The loss of its pass.
            devices: CUDA devices whose random state counts.
            same_rng: Whether the passes over a batch see the same random numbers.
        """
        device = next(iter(self.named.values())).device
        present = torch.tensor([name in grads for name in self.named], device=device)
        buffers = list(self.model.buffers())
        states = [state or RandomState.take(devices) for state in unit.states] + [RandomState.take(devices)]
        parts = [grads[n] if n in grads else real(torch.zeros_like(p)) for n, p in self.named.items()]
        random = [t for state in states for t in (state.cpu, *state.cuda.values())]
        sent = [present, loss.detach().double().reshape(1), *parts, *buffers, *random]
        received = self._gather(sent)
        first, second = (self._gradient(tensors) for tensors in received)
        losses = [tensors[1][0].to(loss.dtype) for tensors in received]
        if self.perturbs:
            rest = received[1][2 + len(parts) :]
            for buffer, other in zip(buffers, rest, strict=False):
                buffer.copy_(other)
            replaced = _states(rest[len(buffers) :], states)
            if same_rng:
                unit.states = list(replaced[:-1])
            unit.tracked = True
            replaced[-1].restore()
        return Exchanged(first, losses[0], second, losses[1])

    def _gradient(self, tensors: list[Tensor]) -> Params:
        present = tensors[0].tolist()
        rows = zip(self.named, present, tensors[2:], strict=False)
        return {name: grad for name, there, grad in rows if there}

    def _gather(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """Both processes' tensors, bit for bit, rank 0's first; in one message."""
        device = next(iter(self.named.values())).device
        flat = torch.cat([_bytes(t).to(device) for t in tensors])
        return [_cut(held, tensors) for held in self.ranks.gather(flat)]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _cut(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Bytes as tensors of the types and shapes of `like`."""
    pieces = flat.split([t.numel() * t.element_size() for t in like])
    return [
        piece.clone().view(t.dtype).view(t.shape).to(t.device)  # the copy aligns it
        for piece, t in zip(pieces, like, strict=True)
    ]


def _states(tensors: list[Tensor], like: list[RandomState]) -> list[RandomState]:
    """Random states from tensors in the order in which they were sent; devices keep the numbers they have here."""
    out, rest = [], list(tensors)
    for state in like:
        cpu, *cuda = (rest.pop(0) for _ in range(1 + len(state.cuda)))
        out.append(RandomState(cpu, dict(zip(state.cuda, cuda, strict=True))))
    return out
