"""Problems Q, M and Z: small models whose sharpness-aware steps have closed forms, in float64."""

import torch
import torch.nn.functional as F
from torch import nn

from trainers import make_optimizer, obf_loss

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


class Quadratic(nn.Module):
    """L(w) = w'Aw/2 with A = diag(1, 4) at w = (3, 1); the coordinates in one tensor or in two."""

    def __init__(self, split=False, scale=1.0):
        super().__init__()
        w = tensor(3.0, 1.0)
        self.scale = scale
        self.parts = nn.ParameterList([w[:1].clone(), w[1:].clone()] if split else [w])

    @property
    def w(self):
        return torch.cat(list(self.parts))

    def forward(self):
        return self.scale * 0.5 * (tensor(1.0, 4.0) * self.w**2).sum()


class TwoExamples(nn.Module):
    """l_i(w) = |w - c_i|²/2 with c = (0, 0), (3, -3) at w = (3, 1)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(tensor(3.0, 1.0))
        self.centres = torch.tensor([[0.0, 0.0], [3.0, -3.0], [1.0, 2.0]], dtype=F64)

    def forward(self, index):
        return 0.5 * ((self.w - self.centres[index]) ** 2).sum(-1).mean()


class Linear(nn.Module):
    """Logits Wx of problem Z."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], dtype=F64))

    def forward(self, x):
        return x @ self.weight.T


def closure_of(model, objective):
    """A closure that clears the gradients, evaluates the objective and runs backward."""

    def closure():
        model.zero_grad()
        value = objective()
        value.backward()
        return value

    return closure


def step_of(method, *, split=False, scale=1.0, groups=False, lr=0.1, model=None, **options):
    """One step on Q; returns (u, w after, optimizer), with u recovered from a plain SGD step of size lr."""
    model = model or Quadratic(split, scale)
    base = "sgd"
    if groups:
        base = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=lr)
    optimizer = make_optimizer(method, model, base, lr=lr, **options)
    before = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
    optimizer.step(closure_of(model, model))
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return (before - after) / lr, after, optimizer


def z_step(method, *, link="softmax", objective="obf", gamma=1.0, C=3.0, lr=1.0, **options):
    """One step on Z; returns the vector that multiplies x' in the gradient."""
    model, x, y = Linear(), tensor(1.0, 2.0)[None], torch.tensor([0])
    optimizer = make_optimizer(method, model, lr=lr, rho=0.5, **options)

    def loss():
        z = model(x)
        if link == "softmax":
            return F.cross_entropy(z, y)
        return F.binary_cross_entropy_with_logits(z, F.one_hot(y, 3).to(F64), reduction="sum")

    descent = closure_of(model, loss)
    ascent = None
    if objective == "obf":
        ascent = closure_of(model, lambda: obf_loss(model(x), y, C=C, gamma=gamma, link=link))
    before = model.weight.detach().clone()
    optimizer.step(descent, ascent=ascent)
    gradient = (before - model.weight.detach()) / lr
    return gradient[:, 0]  # x has first entry 1
