"""Problems Q, M and Z: small models whose sharpness-aware steps have closed forms, in float64."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from trainers import Objective, make_optimizer, obf_loss
from trainers.sharpness_aware.ascent import AscentSource
from trainers.sharpness_aware.bsam import BSAM
from trainers.sharpness_aware.masks import Mask
from trainers.sharpness_aware.offsets import Smoothed

F64 = torch.float64
NEAR = {"rtol": 1e-7, "atol": 1e-9}
LAYOUTS = ["one", "two", "groups"]  # of Q: one tensor, two tensors, two tensors in two parameter groups


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

    def curved(self, index, w=None):
        """Another loss of the same examples, whose Hessian is neither the identity nor the same everywhere."""
        w = self.w if w is None else w
        return (((w - self.centres[index]) * tensor(1.0, 2.0)) ** 2).sum(-1).add(1).log().mean()


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


def objective_of(model, loss, x, y, **settings):
    """The trainer's own closure over fixed data."""
    return Objective(model=model, parameters=list(model.parameters()), loss=loss, x=x, y=y, **settings)


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


class Rich:
    """A closure that also knows a forward pass alone and its examples' losses."""

    def __init__(self, model, losses):
        self.model, self.each = model, losses

    def __call__(self):
        self.model.zero_grad()
        value = self.losses().mean()
        value.backward()
        return value.detach()

    def forward(self):
        return self.losses().mean()

    def losses(self, index=None):
        losses = self.each()
        return losses if index is None else losses[index]


def examples_of(model, rows):
    """The rich closure of some examples of problem M."""
    return Rich(model, lambda: 0.5 * ((model.w - model.centres[rows]) ** 2).sum(-1))


def cut(vector, theta):
    """A flat vector as a dict like `theta`."""
    pieces = vector.split([t.numel() for t in theta.values()])
    return {name: piece.clone().view_as(t) for (name, t), piece in zip(theta.items(), pieces, strict=True)}


class FixedDraw(AscentSource):
    """A source without a gradient that gives one vector after another."""

    needs_gradient = False

    def __init__(self, *vectors):
        self.vectors = list(vectors)

    def direction(self, moment, grad):
        self.vectors.append(self.vectors.pop(0))
        return cut(tensor(*self.vectors[-1]), moment.theta)


class FixedNoise(Smoothed):
    """R-SAM's source with a given Δ."""

    def __init__(self, vector, keep):
        super().__init__(torch.Generator(), 1.0, keep)
        self.vector = tensor(*vector)

    def start(self, moment):
        self.delta = cut(self.vector, moment.theta)
        return self.delta


class FixedMask(Mask):
    """A given mask."""

    def __init__(self, vector, *, in_norm, scale=1.0):
        self.vector, self.in_norm, self.scale = tensor(*vector), in_norm, scale

    def __call__(self, moment, direction):
        held = cut(self.vector, moment.theta)
        return {name: t * held[name] for name, t in direction.items()}


def with_part(optimizer, **parts):
    """Put parts in the place of an optimizer's own."""
    for name, part in parts.items():
        object.__setattr__(optimizer.parts, name, part)


@dataclass
class Walk:
    """Some steps on Q.

    Attributes:
        us: For each step what it took off the weights, divided by the learning rate: with plain SGD the gradient u.
        ws: The weights after each step.
        visited: The weights at each closure call.
        losses: What each step returned.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    us: list = field(default_factory=list)
    ws: list = field(default_factory=list)
    visited: list = field(default_factory=list)
    losses: list = field(default_factory=list)

    @property
    def w(self):
        return self.model.w.detach().clone()

    def displacement(self, call=1):
        """The displacement at a closure call of the first step, the clean weights being (3, 1)."""
        return self.visited[call] - tensor(3.0, 1.0)


def on_q(method, layout="one", *, lr=0.1, scale=1.0, momentum=0.0, base=None, **options):
    """The model and the optimizer of a walk on Q."""
    model = Quadratic(layout != "one", scale)
    if layout == "groups":
        groups = [{"params": [p]} for p in model.parameters()]
        if method == "bsam":
            settings = {key: options.pop(key) for key in ("examples", "prior_precision", "damping") if key in options}
            base = BSAM(groups, lr, **settings)
        else:
            base = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    return Walk(model, make_optimizer(method, model, base or "sgd", lr=lr, momentum=momentum, **options))


def walk(held, count=1):
    """Take some steps."""
    model, optimizer = held.model, held.optimizer

    def losses():
        held.visited.append(held.w)
        return model()[None]

    for _ in range(count):
        before = held.w
        held.losses.append(optimizer.step(Rich(model, losses)))
        held.us.append((before - held.w) / optimizer.param_groups[0]["lr"])
        held.ws.append(held.w)
    return held


def q_walk(method, layout="one", count=1, **options):
    """Make a walk and take it."""
    return walk(on_q(method, layout, **options), count)
