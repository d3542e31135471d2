"""Sharpness of the training loss at a checkpoint: how far the loss rises near the weights."""

import torch

from analysis.measures.curvature import context
from analysis.measures.measure import Measure, Rows
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape import AbsWeight, AscentStep, ascent_sharpness
from landscape import average_sharpness as average_over_noise


def one_step_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.05, 0.5)) -> Rows:
    """L(w + ρ g/‖g‖) - L(w)."""
    return [_ascent_row(subject, "ascent_sharpness", AscentStep(r), None) for r in rho]


def m_sharpness(
    subject: Subject, *, m: tuple[int | None, ...] = (1, 16, 128, None), rho: float = 0.05, blocks: int = 128
) -> Rows:
    """Mean over blocks of m examples of each block's own one-step sharpness; m = None is all examples together.

    At most `blocks` blocks of one fixed random partition are taken; the standard error is over blocks.
    """
    return [_ascent_row(subject, "m_sharpness", AscentStep(rho), size, blocks) for size in m]


def adaptive_ascent_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.5,), eta: float = 0.0) -> Rows:
    """L(w + ρ T²g/‖Tg‖) - L(w) with T = |w| + η: one step of ASAM."""
    metric = AbsWeight(eta)
    return [_ascent_row(subject, "adaptive_ascent_sharpness", AscentStep(r, metric=metric), None) for r in rho]


def average_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.01,), draws: int = 10) -> Rows:
    """E L(w + e) - L(w) with e ~ N(0, ρ²): ρ is a standard deviation per coordinate. Antithetic pairs."""
    return [_average_row(subject, "average_sharpness", r, draws, None) for r in rho]


def adaptive_average_sharpness(
    subject: Subject, *, rho: tuple[float, ...] = (0.1,), draws: int = 10, eta: float = 0.0
) -> Rows:
    """E L(w + e) - L(w) with e_i ~ N(0, ρ² (|w_i| + η)²)."""
    return [_average_row(subject, "adaptive_average_sharpness", r, draws, AbsWeight(eta)) for r in rho]


def _ascent_row(subject: Subject, name: str, step: AscentStep, m: int | None, blocks: int = 1) -> Row:
    """One-step sharpness; with m, over the most examples that m divides, in one fixed random partition."""
    risk = subject.risk
    if m is not None and m < risk.n:
        order = torch.randperm(risk.n, generator=subject.generator("partition"))[: min(risk.n // m, blocks) * m]
        x, y = torch.cat([b[0] for b in risk.batches])[order], torch.cat([b[1] for b in risk.batches])[order]
        risk = risk.on((x, y))
    elif m is not None:
        m = None
    found = ascent_sharpness(risk, step, m)
    options = {**context(subject), "rho": step.rho, "norm": "l2", "steps": 1, "n": risk.n}
    if name == "m_sharpness":
        options["m"] = "all" if m is None else m
    return Row(name, found.value, found.stderr, found.draws, options=options)


def _average_row(subject: Subject, name: str, rho: float, draws: int, metric: AbsWeight | None) -> Row:
    found = average_over_noise(subject.risk, rho, draws=draws, metric=metric, generator=subject.generator("noise"))
    return Row(name, found.value, found.stderr, found.draws, options={**context(subject), "rho": rho})


MEASURES = {
    "ascent_sharpness": Measure(
        one_step_sharpness,
        ("ascent_sharpness",),
        "loss increase after one SAM step on the training set",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "1.3",
    ),
    "m_sharpness": Measure(
        m_sharpness,
        ("m_sharpness",),
        "the same for blocks of m examples, each with its own step",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "1.3 a value of m",
    ),
    "adaptive_ascent_sharpness": Measure(
        adaptive_ascent_sharpness,
        ("adaptive_ascent_sharpness",),
        "loss increase after one ASAM step",
        "sharpness",
        "sharper",
        +1,
        "T1 T2 T5",
        "1.3",
    ),
    "average_sharpness": Measure(
        average_sharpness,
        ("average_sharpness",),
        "mean loss increase under Gaussian noise on the weights",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "7",
    ),
    "adaptive_average_sharpness": Measure(
        adaptive_average_sharpness,
        ("adaptive_average_sharpness",),
        "the same with noise in proportion to |w|",
        "sharpness",
        "sharper",
        +1,
        "T1 T2 T5",
        "7",
    ),
}
