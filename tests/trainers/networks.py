"""Small networks with normalisation and dropout, and every method of the family on them with what it needs."""

import math

import torch
import torch.nn.functional as F
from quadratics import F64, closure_of
from torch import nn

from trainers import METHODS, AscentObjective, Objective, make_optimizer, obf_loss
from trainers.randomness import seeded

SHARPNESS_AWARE = [name for name, method in METHODS.items() if method.rho is not None]
NO_CLEAN_PASS = {"msam", "s2sam"}  # one gradient a step, at displaced weights
ELSEWHERE = {"rsam", "bsam", "sampa"}  # the first pass is at displaced weights
PLAIN_CLOSURES = [m for m in sorted(METHODS) if m not in ("esam", "deltasam", "functionalsam")]  # those need more
OWN_BASE = {"bsam": "bsam", "sampa": "sgd"}
PASSES = {  # closure calls of a step, methods.md section 5; what is not named here costs two
    "sgd": 1, "adamw": 1, "msam": 1, "s2sam": 1, "crsam": 3, "tracesam": 3, "detsam": 3, "frobsam": 3, "lookbehind": 3,
    "deltasam": 3, "esam": 3,
}  # fmt: skip

_ALWAYS = {"lambda1": -math.inf, "lambda2": -math.inf}
PERTURBED = {  # options that make every step a perturbed one
    "aesam": _ALWAYS, "aosam": _ALWAYS, "sssam": {"p": 1.0}, "grst": {"p": 1.0, "c": 0.5}, "looksam": {"k": 1},
    "look_layersam": {"k": 1},
}  # fmt: skip


def network(dropout=0.0, norm=nn.BatchNorm1d, dtype=F64):
    with seeded(1):
        middle = norm(8) if norm is not None else nn.Identity()
        layers = [nn.Linear(6, 8), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
        return nn.Sequential(*layers).to(dtype).train()


def data(count=4, size=12, dtype=F64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, size, 6, generator=g, dtype=dtype)
    return [(part, torch.randint(3, (size,), generator=g)) for part in x]


def needed(method, model):
    """What a method cannot be made without."""
    options = {"total_steps": 40, "steps_per_epoch": 2}
    if method == "bsam":
        options["examples"] = 60
    if method == "mup2":
        options["base_shapes"] = {n: p.shape for n, p in model.named_parameters()}
    if method in ("ssam_f", "ssam_d"):
        options["update_epochs"] = 1.0
    if method == "sam_on" and not any(isinstance(m, nn.BatchNorm1d | nn.LayerNorm) for m in model.modules()):
        options["layers"] = "*"
    return options


def make(method, model, base="sgd", **options):
    """The optimizer of any method on a network, with reference data."""
    given = {"lr": 0.05, "momentum": 0.9} | needed(method, model) | options
    if METHODS[method].rho is not None:
        given.setdefault("rho", 0.3)
    optimizer = make_optimizer(method, model, OWN_BASE.get(method, base), **given)
    (x, y), *_ = data(1)
    size = 1 if optimizer.needs_reference == "squares" else 4
    if optimizer.needs_reference:
        like = next(model.parameters())
        pieces = list(zip(x.to(like).split(size), y.to(like.device).split(size), strict=True))[: 5 if size == 1 else 3]
        frozen = size == 1  # single examples cannot pass BatchNorm in train mode

        def one(a, b):
            def loss():
                if not frozen:
                    return F.cross_entropy(model(a), b)
                model.eval()
                try:
                    return F.cross_entropy(model(a), b)
                finally:
                    model.train()

            return closure_of(model, loss)

        optimizer.reference = lambda: ([one(a, b) for a, b in pieces], [len(a) for a, _ in pieces])
    return optimizer


def closures_of(optimizer, model, x, y, *, m=None, scale=1.0):
    """The chunks of a batch as the trainer's own closures: descents, sizes, ascents or None."""

    def loss(logits, targets):
        return scale * F.cross_entropy(logits, targets)

    def ascent(logits, targets):
        return scale * obf_loss(logits, targets)

    chunks = list(zip(x.split(m or len(x)), y.split(m or len(y)), strict=True))
    given = {"model": model, "parameters": list(model.parameters())}
    descents = [Objective(**given, loss=F.cross_entropy if scale == 1 else loss, x=a, y=b) for a, b in chunks]
    ascents = None
    if optimizer.parts.ascent == "obf":
        ascents = [
            AscentObjective(**given, loss=F.cross_entropy if scale == 1 else loss, x=a, y=b, ascent=ascent)
            for a, b in chunks
        ]
    return descents, [len(a) for a, _ in chunks], ascents


def train(model, optimizer, batches, *, m=None, scale=1.0, how="step"):
    """Steps over batches; returns the losses."""
    losses = []
    for x, y in batches:
        descents, sizes, ascents = closures_of(optimizer, model, x, y, m=m, scale=scale)
        if how == "step":
            losses.append(float(optimizer.step(descents, sizes=sizes, ascent=ascents)))
            continue
        parts = zip(descents, sizes, ascents or [None] * len(sizes), strict=True)
        losses.append(sum(float(optimizer.accumulate(d, size=n, ascent=a)) * n for d, n, a in parts) / sum(sizes))
        optimizer.step()
    return losses


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
