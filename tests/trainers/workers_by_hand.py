"""The methods by hand, in one process: a function of the batches of the circles that share a perturbation.

Each takes the step's `Situation` and returns the gradient for the base optimizer and what is added to the weights
besides. Nothing of the engine is used, but for the seed of a circle's noise.
"""

from dataclasses import dataclass, field

import torch
from workers_problem import F64, SHAPES, cut, gradient, start

from landscape.objectives import obf_loss
from trainers.sharpness_aware.ranks import Noise

SEED = 0


@dataclass
class Situation:
    """One step: weights, the circles' batches with their shares, and what earlier steps left."""

    w: torch.Tensor
    circles: list
    shares: list
    t: int
    lr: float
    rho: float
    kept: dict = field(default_factory=dict)

    def mean(self, of):
        """The weighted mean over circles of `of(number of the circle, batch)`."""
        return sum(share * of(i, batch) for i, (share, batch) in enumerate(zip(self.shares, self.circles, strict=True)))

    def grad(self, batch, at=None, **objective):
        return gradient(self.w if at is None else at, batch, **objective)[0]

    def loss(self, batch, at=None):
        return gradient(self.w if at is None else at, batch)[1]

    def generator(self, circle):
        """The circle's noise in this step; a new generator for each call, so ask once."""
        generator = torch.Generator()
        Noise(generator, SEED, circle).begin(self.t)
        return generator

    def normal(self, generator):
        return torch.cat([torch.randn(s, generator=generator, dtype=F64).reshape(-1) for s in SHAPES.values()])


def up(d, rho):
    return rho * d / d.norm()


def sam(s):
    return s.mean(lambda _, b: s.grad(b, s.w + up(s.grad(b), s.rho)))


def usam(s):
    return s.mean(lambda _, b: s.grad(b, s.w + s.rho * s.grad(b)))


def asam(s):
    weight = torch.cat([torch.full((12,), 1.0), torch.zeros(3), torch.full((9,), 1.0)]).to(F64)
    T = weight * (s.w.abs() + 0.01) + (1 - weight)

    def one(i, b):
        a = s.grad(b)
        return s.grad(b, s.w + s.rho * T**2 * a / (T * a).norm())

    return s.mean(one)


def gsam(s):
    def one(i, b):
        a = s.grad(b)
        g = s.grad(b, s.w + up(a, s.rho))
        unit = g / g.norm()
        return g - 0.4 * (a - (a @ unit) * unit)

    return s.mean(one)


def obf(s):
    return s.mean(lambda _, b: s.grad(b, s.w + up(s.grad(b, objective=obf_loss), s.rho)))


def fsam(s):
    old = s.kept.get("m")
    u = s.mean(lambda _, b: s.grad(b, s.w + up(s.grad(b) - (0 if old is None else old), s.rho)))
    mean = s.mean(lambda _, b: s.grad(b))
    s.kept["m"] = mean if old is None else 0.9 * old + 0.1 * mean
    return u


def looksam(s):
    if s.t % 2:
        g, v = s.mean(lambda _, b: s.grad(b)), s.kept["v"]
        return g + 0.7 * g.norm() / v.norm() * v

    def points(b):
        a = s.grad(b)
        return a, s.grad(b, s.w + up(a, s.rho))

    def orthogonal(i, b):
        a, g = points(b)
        return g - (g @ a) / (a @ a) * a

    s.kept["v"] = s.mean(orthogonal)
    return s.mean(lambda _, b: points(b)[1])


def wsam(s):
    s.kept["extra"] = s.mean(lambda _, b: 9 * (s.grad(b, s.w + up(s.grad(b), s.rho)) - s.grad(b)))
    return s.mean(lambda _, b: s.grad(b))


def crsam(s):
    def one(i, b):
        a = s.grad(b)
        plus, minus = (s.grad(b, s.w + sign * up(a, s.rho)) for sign in (1, -1))
        return plus + 0.1 * (plus + minus - 2 * a) + 0.01 * (plus - minus)

    return s.mean(one)


def stablesam(s):
    def one(i, b):
        a = s.grad(b)
        g = s.grad(b, s.w + up(a, s.rho))
        return g * a.norm() / g.norm()

    return s.mean(one)


def randsam(s):
    return s.mean(lambda i, b: s.grad(b, s.w + up(s.normal(s.generator(i)), s.rho)))


def rsam(s):
    def one(i, b):
        pieces = zip(cut(s.w), cut(s.normal(s.generator(i))), strict=True)
        noise = torch.cat([(0.1 * w.norm() * n / n.norm()).reshape(-1) for w, n in pieces])
        return s.grad(b, s.w + noise + up(s.grad(b, s.w + noise), s.rho))

    return s.mean(one)


def tracesam(s):
    def one(i, b):
        n = s.normal(s.generator(i))
        ends = [s.w + sign * s.rho * n / n.norm() for sign in (1, -1)]
        return s.grad(b) + (sum(s.grad(b, end) for end in ends) / 2 - s.grad(b))

    return s.mean(one)


def frobsam(s):
    def one(i, b):
        generator = s.generator(i)
        ends = [s.w + s.rho * s.normal(generator) for _ in range(2)]
        first, second = (s.loss(b, end) for end in ends)
        covariance = (first - second) / 2 * (s.grad(b, ends[0]) - s.grad(b, ends[1]))
        return s.grad(b) + 0.005 / s.rho**2 * covariance

    return s.mean(one)


def ssam_f(s):
    mask = s.kept.get("mask", torch.zeros_like(s.w))
    return s.mean(lambda _, b: s.grad(b, s.w + mask * up(s.grad(b), s.rho)))


def after_ssam_f(s, reference):
    """The mask for the next steps, at the weights that the step left: the 12 entries of largest Σ (∂ℓ_i/∂w)²."""
    squares = sum(gradient(s.w, (x[None], y[None]))[0] ** 2 for x, y in zip(*reference, strict=True))
    s.kept["mask"] = torch.zeros_like(s.w).index_fill(0, squares.topk(12).indices, 1.0)


def ssam_d(s):
    if "mask" not in s.kept:
        s.kept["generator"] = torch.Generator().manual_seed(SEED)
        s.kept["mask"] = top(torch.rand(24, generator=s.kept["generator"]), 12)
    mask = s.kept["mask"]
    u = s.mean(lambda _, b: s.grad(b, s.w + mask * up(s.grad(b), s.rho)))
    a = s.mean(lambda _, b: s.grad(b)).abs()
    rate = 0.25 * (1 + torch.cos(torch.tensor(torch.pi * s.t / 3, dtype=F64)))  # three steps in all
    stay, revive = int(12 * (1 - rate)), int(12 * rate)
    stay += 12 - stay - revive
    kept = top(torch.where(mask > 0, a + 1, -1.0), stay)
    draw = torch.rand(24, generator=s.kept["generator"]).to(F64)
    s.kept["mask"] = kept + top(torch.where(mask > 0, -1.0, draw), revive)
    return u


def top(scores, count):
    chosen = torch.zeros(24, dtype=F64)
    chosen[scores.to(F64).topk(count).indices] = 1.0
    return chosen


def aesam(s):
    """AE-SAM with λ1 = λ2 = 0.2."""
    squared = float(s.mean(lambda _, b: s.grad(b).square().sum()))
    mu = 0.9 * s.kept.get("mu", 0.0) + 0.1 * squared
    var = 0.9 * s.kept.get("var", 0.0) + 0.1 * (squared - mu) ** 2
    s.kept.update(mu=mu, var=var)
    perturbed = squared >= mu + AE_THRESHOLD * var**0.5
    s.kept.setdefault("modes", []).append(perturbed)
    return sam(s) if perturbed else s.mean(lambda _, b: s.grad(b))


AE_THRESHOLD = 2.0


def bsam(s):
    """The step of the whole optimizer: bSAM is its own base."""
    precision = s.kept.get("precision", torch.ones_like(s.w))
    momentum = s.kept.get("momentum", torch.zeros_like(s.w))
    examples, delta, damping = 50, 40 / 50, 0.1

    def points(i, b):
        draw = s.w + s.normal(s.generator(i)) / (examples * precision).sqrt()
        g = s.grad(b, draw)
        return g, s.grad(b, s.w + s.rho * g / precision)

    h = s.mean(lambda i, b: precision.sqrt() * points(i, b)[0].abs())
    momentum = 0.9 * momentum + 0.1 * (s.mean(lambda i, b: points(i, b)[1]) + delta * s.w)
    s.kept["momentum"] = momentum
    s.kept["precision"] = 0.999 * precision + 0.001 * (h + delta + damping)
    return momentum / precision


def run(method, steps, *, rho, lr, momentum, reference=None):
    """The weights after each step; `steps[t]` is the list of the circles' batches."""
    w, buffer, kept, out = start(), None, {}, []
    for t, circles in enumerate(steps):
        sizes = [len(y) for _, y in circles]
        s = Situation(w, circles, [n / sum(sizes) for n in sizes], t, lr, rho, kept)
        u = method(s)
        buffer = u if buffer is None or method is bsam else momentum * buffer + u
        w = w - lr * (buffer + kept.pop("extra", 0))
        if method is ssam_f and t % 2 == 0:
            s.w = w
            after_ssam_f(s, reference)
        out.append(w)
    return out, kept
