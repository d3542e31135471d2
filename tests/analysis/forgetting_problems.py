"""A small classifier with held-out data, and perturbed forgetting of it as a mapping."""

import torch
from problems import F64
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.forgetting.perturbed import perturbed_forgetting
from analysis.forgetting.providers import OwnPerturbation
from landscape import AscentStep, EmpiricalRisk

SAM = OwnPerturbation("sam", AscentStep(0.3))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def classifier(sizes=(90, 30), seed=0, dtype=F64):
    """A network fitted to 120 of 200 noisy points of 3 classes; the other 80 are held out."""
    g = rng(seed)
    y = torch.randint(3, (200,), generator=g)
    x = torch.randn(200, 6, generator=g, dtype=dtype) + 1.5 * nn.functional.one_hot(y, 6).to(dtype)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=dtype) * 0.3)
    risk = EmpiricalRisk.from_model(
        model, cross_entropy, list(zip(x[:120].split(sizes), y[:120].split(sizes), strict=True))
    )
    theta = risk.theta
    for _ in range(60):
        gradient = risk.gradient(theta)
        theta = {k: t - 0.5 * gradient[k] for k, t in theta.items()}
    return risk.at(theta), (x[120:], y[120:])


def measure(risk, held_out, *, seed=0, **options):
    rows = perturbed_forgetting(risk, held_out, generator=rng(seed), **options)
    return {(r.options["provider"], r.options["radius"], r.split, r.measure): r for r in rows}
