"""The measures by name: a literal registry of functions from a checkpoint to rows of the table.

A new measure is one function and one entry. Keyword-only arguments are its options, with their defaults. Every value is
stored raw; `sign` is the sign of correlation with the generalisation gap that the measure's own theory predicts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from analysis import curvature
from analysis.curvature import context
from analysis.example_forgetting import example_forgetting as count_forgetting
from analysis.output_bias import output_bias as bias_of
from analysis.perturbed_forgetting import perturbed_forgetting as measure_forgetting
from analysis.subject import Subject
from analysis.table import Row
from analysis.targets import TARGETS, target_rows
from landscape import AbsWeight, AscentStep, ascent_sharpness, flatten, norm
from landscape import average_sharpness as average_over_noise

Rows = list[Row]
Family = Literal["sharpness", "forgetting", "norm", "bias", "target"]


@dataclass(frozen=True)
class Measure:
    """An entry of the registry.

    Attributes:
        function: Takes a `Subject` and its options, returns rows.
        rows: Names of the measures its rows carry.
        help: One line.
        family: What kind of quantity it is.
        higher_means: What a larger value says.
        sign: Expected sign of correlation with the generalisation gap; 0 where theory has none.
        invariant: Transformations T1 to T5 under which it does not change.
        cost: In gradients over the training data.
        usual: Whether it is taken where no measures are named; False for those that cost more, or say less, than the
            others.
    """

    function: Callable[..., Rows]
    rows: tuple[str, ...]
    help: str
    family: Family
    higher_means: str
    sign: int
    invariant: str
    cost: str
    usual: bool = True


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


def norms(subject: Subject) -> Rows:
    """‖∇L‖ on the training set, ‖w‖ and ‖w - w_init‖, all over the trainable parameters jointly."""
    theta = subject.risk.theta
    rows = [
        Row("gradient_norm", float(norm(subject.gradient)), options=context(subject)),
        Row("parameter_norm", float(norm(theta))),
    ]
    if subject.initial is None:
        return [*rows, Row("distance_from_init", math.nan, math.nan, warnings="the initial weights are not known")]
    start = {name: subject.initial[name] for name in theta}
    moved = float(torch.linalg.vector_norm(flatten(theta, subject.risk.names) - flatten(start, subject.risk.names)))
    return [*rows, Row("distance_from_init", moved)]


def example_forgetting(
    subject: Subject, *, protocols: tuple[Literal["presentation", "sweep"], ...] = ("presentation", "sweep")
) -> Rows:
    """Example forgetting (Toneva et al. 2019): mean events, shares of unforgettable and never learned examples."""
    return [row for p in protocols for row in count_forgetting(subject.correctness(p)).rows(protocol=p)]


def perturbed_forgetting(
    subject: Subject,
    *,
    providers: tuple[str, ...] = ("sam", "asam", "obf", "random", "zero"),
    radii: tuple[Literal["own", "iso-loss"], ...] = ("own", "iso-loss"),
    m: int | None = 64,
    batches: int = 20,
    iso_loss: float = 0.1,
    C: float | None = None,
    gamma: float = 1.0,
    eta: float = 0.0,
) -> Rows:
    """Information, loss and decisions before and after a perturbation, see `analysis.perturbed_forgetting`."""
    size = None if m is None else min(m, len(subject.data.train))
    return measure_forgetting(
        subject.risk,
        _pair(subject.data.validation),
        providers=providers,
        radii=radii,
        own=subject.own,
        m=size,
        batches=batches,
        iso_loss=iso_loss,
        C=C,
        gamma=gamma,
        eta=eta,
        generator=subject.generator("forgetting"),
    )


def output_bias(subject: Subject) -> Rows:
    """Bias and confidence of the outputs on held-out examples: marginal bias, confidence, entropy."""
    held_out = subject.data.validation
    probs = subject.risk.on(_pair(held_out)).outputs().double().softmax(-1).numpy()
    return bias_of(probs, held_out.y.numpy(), split="held_out")


def targets(subject: Subject) -> Rows:
    """What is to be explained: errors, losses and gaps on train, test and shifted data, and calibration."""
    data = subject.data
    ood = {name: _pair(split) for name, split in data.ood.items()}

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([subject.risk.on((part, part)).outputs() for part in x.split(1024)])

    splits = {"train": _pair(data.train), "test": _pair(data.test), "ood": ood}
    return target_rows(predict, splits, train_clean_labels=data.train.clean)


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


def _pair(split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return split.x, split.y


FORGETTING_ROWS = (
    "F_cmi", "F_mi", "F_use", "selectivity", "dH", "KL", "dCE", "cw", "wc", "F_bias",
    "M_gap_F_cmi", "M_gap_F_mi", "M_gap_dCE", "M_gap_cw", "eps_norm", "eps_rho",
)  # fmt: skip

MEASURES: dict[str, Measure] = {
    "targets": Measure(
        targets,
        TARGETS,
        "errors, losses, gaps and calibration on train, test and shifted data",
        "target",
        "worse",
        0,
        "T1 T2 T3 T5",
        "1/3 per data set",
    ),
    "hessian_eigenvalues": Measure(
        curvature.hessian_eigenvalues,
        ("top_eigenvalue", "bottom_eigenvalue", "lambda_ratio", "stability_ratio"),
        "largest and smallest Hessian eigenvalue with residuals; their ratio; the largest against 2/lr (SGD runs)",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "2 a product, 10 to 60 products",
    ),
    "hessian_trace": Measure(
        curvature.hessian_trace,
        ("hessian_trace", "layerwise_trace"),
        "Hessian trace, and the traces of its blocks times the squared norms of their weights",
        "sharpness",
        "sharper",
        +1,
        "T3 T5 (trace); T1 T2 T5 (layerwise)",
        "2 a product, 20 products",
    ),
    "adaptive_curvature": Measure(
        curvature.adaptive_curvature,
        ("adaptive_eigenvalue", "adaptive_trace"),
        "largest eigenvalue and trace of the Hessian in units of the weights",
        "sharpness",
        "sharper",
        +1,
        "T1 T2 T5",
        "2 a product, 30 to 60 products",
        usual=False,
    ),
    "gauss_newton": Measure(
        curvature.gauss_newton,
        ("gauss_newton_eigenvalue", "gauss_newton_trace"),
        "largest eigenvalue and trace of the Gauss-Newton matrix, for cross-entropy the Fisher matrix",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "2 a product, 30 to 60 products",
        usual=False,
    ),
    "empirical_fisher": Measure(
        curvature.gradient_moment,
        ("empirical_fisher_trace",),
        "mean squared norm of the gradients of single examples",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "1 to 3",
        usual=False,
    ),
    "effective_dimension": Measure(
        curvature.model_dimension,
        ("effective_dimension",),
        "directions that the data determine, from the Gauss-Newton matrix",
        "sharpness",
        "more complex",
        +1,
        "T3 T5",
        "2 a product, 160 products",
        usual=False,
    ),
    "spectrum": Measure(
        curvature.spectrum,
        ("negative_mass", "bulk_width", "spectral_entropy"),
        "share of negative Hessian eigenvalues, width and entropy of the spectrum",
        "sharpness",
        "less converged (mass), sharper (width), flatter spectrum (entropy)",
        0,
        "T3 T5",
        "2 a product, 240 products",
        usual=False,
    ),
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
    "norms": Measure(
        norms,
        ("gradient_norm", "parameter_norm", "distance_from_init"),
        "norms of the gradient, of the weights and of the way from the initial weights",
        "norm",
        "more complex",
        +1,
        "T3 T5 (gradient)",
        "1",
    ),
    "example_forgetting": Measure(
        example_forgetting,
        ("forgetting_events", "fraction_unforgettable", "fraction_never_learned"),
        "examples that went from right to wrong during training",
        "forgetting",
        "forgets more",
        +1,
        "function",
        "0",
    ),
    "perturbed_forgetting": Measure(
        perturbed_forgetting,
        FORGETTING_ROWS,
        "what a perturbation of the weights makes the model forget",
        "forgetting",
        "forgets more",
        -1,
        "function, inherits the perturbation's",
        "about 150",
    ),
    "output_bias": Measure(
        output_bias,
        (
            "b_marg",
            "b_tv",
            "b_prior",
            "b_marg_count",
            "b_tv_count",
            "b_prior_count",
            "mean_confidence",
            "overconfidence",
            "mean_entropy",
        ),
        "bias and confidence of the outputs on held-out data",
        "bias",
        "more biased",
        +1,
        "T1 T2 T3 T5",
        "1/3",
    ),
}

# Rows whose expected sign is not that of their registry entry; 0 where theory predicts none.
SIGNS = {
    "bottom_eigenvalue": 0,
    "lambda_ratio": 0,
    "stability_ratio": 0,
    "bulk_width": +1,
    "fraction_unforgettable": -1,
    "F_use": 0,
    "KL": 0,
    "dCE": 0,
    "dH": 0,
    "cw": 0,
    "wc": 0,
    "F_bias": -1,
    "eps_norm": -1,
    "eps_rho": 0,
    "mean_entropy": 0,
}


def entry_of(name: str) -> str | None:
    """The registry key of a row's measure name; None where no entry makes it."""
    if name in MEASURES:
        return name
    return next((key for key, entry in MEASURES.items() if name in entry.rows), None)


def expected_sign(row_name: str) -> int:
    """Expected sign of a row's correlation with the generalisation gap."""
    key = entry_of(row_name)
    return SIGNS.get(row_name, MEASURES[key].sign if key else 0)


def failed_rows(key: str, reason: str) -> Rows:
    """What stands in the table for a measure that failed: its rows, without values and with the reason."""
    return [Row(name, math.nan, math.nan, 0, converged=False, warnings=reason) for name in MEASURES[key].rows]


def names() -> Sequence[str]:
    """All names that a user may ask for."""
    return [*MEASURES, *(row for entry in MEASURES.values() for row in entry.rows)]
