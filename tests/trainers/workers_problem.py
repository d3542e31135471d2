"""The problem on which ranks are tested: a small network, its data split over ranks, and its gradient as a vector."""

import torch
import torch.nn.functional as F
from torch import nn

F64 = torch.float64
SHAPES = {"first.weight": (3, 4), "first.bias": (3,), "second.weight": (3, 3)}
SIZES = (3, 5, 2, 6)  # examples of each rank: unequal, so that a plain mean over ranks is wrong
TEMPERATURE = 3.0  # keeps gradients large enough for all terms to matter


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3, dtype=F64)
        self.second = nn.Linear(3, 3, bias=False, dtype=F64)
        with torch.no_grad():
            for p, values in zip(self.parameters(), cut(start()), strict=True):
                p.copy_(values)

    def forward(self, x):
        return TEMPERATURE * self.second(torch.tanh(self.first(x)))


def start():
    """The first weights, as one vector."""
    return torch.randn(24, generator=torch.Generator().manual_seed(5), dtype=F64) / 2


def cut(vector):
    pieces = vector.split([12, 3, 9])
    return [piece.view(shape) for piece, shape in zip(pieces, SHAPES.values(), strict=True)]


def data(steps, sizes=SIZES, seed=9):
    """data()[t][r] is the batch (x, y) of rank r in step t."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            (torch.randn(n, 4, generator=generator, dtype=F64), torch.randint(3, (n,), generator=generator))
            for n in sizes
        ]
        for _ in range(steps)
    ]


def joined(batches):
    """Several batches as one."""
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def gradient(w, batch, objective=F.cross_entropy):
    """The objective's gradient at the weights `w`, and its value; no module, no optimizer."""
    w = w.detach().requires_grad_(True)
    first, bias, second = cut(w)
    x, y = batch
    value = objective(TEMPERATURE * torch.tanh(x @ first.T + bias) @ second.T, y)
    return torch.autograd.grad(value, w)[0], value.detach()


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
