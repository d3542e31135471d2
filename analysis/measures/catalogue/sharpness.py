"""Sharpness of the training loss at a checkpoint: how far the loss rises near the weights."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from analysis.measures.catalogue.checks import check_block_size, check_count, check_some
from analysis.measures.catalogue.curvature import context
from analysis.measures.measure import Measure, Rows
from analysis.measures.needs import Need
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape import (
    AbsWeight,
    AscentStep,
    EmpiricalRisk,
    Estimate,
    FilterNorm,
    Metric,
    Params,
    TensorNorm,
    ascent_sharpness,
)
from landscape import average_sharpness as average_over_noise
from landscape.sharpness import Radius, Sharpness, keskar_sharpness, logit_normalised
from landscape.sharpness import first_order_sharpness as first_order
from landscape.sharpness import noise_radius as radius_of_noise
from landscape.sharpness import relative_flatness as flatness_of_layer
from landscape.sharpness import surrogate_gap as gap_of
from landscape.sharpness import worst_case_radius as radius_of_box
from landscape.sharpness import worst_case_sharpness as worst_in_ball
from landscape.sharpness.ball import Norm
from landscape.sharpness.logits import constant_logits
from landscape.sharpness.search import Method

Unit = Literal["none", "element", "filter", "layer"]


def metric_of(unit: Unit, eta: float = 0.0) -> Metric | None:
    """T of an adaptive measure: |w|, the norm of the filter or that of the tensor, each + η."""
    if unit == "element":
        return AbsWeight(eta)
    if unit == "filter":
        return FilterNorm(eta)
    return TensorNorm(eta) if unit == "layer" else None


# One step -------------------------------------------------------------------------------------------------------------


def one_step_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.05, 0.5)) -> Rows:
    """L(w + ρ g/‖g‖) - L(w)."""
    check_some("rho", rho)
    return [_ascent_row(subject, "ascent_sharpness", AscentStep(r)) for r in rho]


def linf_ascent_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.001,)) -> Rows:
    """L(w + ρ sign g) - L(w): one step in the box."""
    check_some("rho", rho)
    return [_ascent_row(subject, "linf_ascent_sharpness", AscentStep(r, p=math.inf)) for r in rho]


def adaptive_ascent_sharpness(
    subject: Subject,
    *,
    rho: tuple[float, ...] = (0.5,),
    eta: float = 0.0,
    unit: Literal["element", "filter", "layer"] = "element",
) -> Rows:
    """L(w + ρ T²g/‖Tg‖) - L(w): ASAM's step, T = |w| + η, or by `unit` the norm of the filter or of the tensor, + η."""
    check_some("rho", rho)
    steps = [AscentStep(r, metric=metric_of(unit, eta)) for r in rho]
    return [_ascent_row(subject, "adaptive_ascent_sharpness", step, unit=unit, eta=eta) for step in steps]


def adaptive_linf_ascent_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.002,), eta: float = 0.0) -> Rows:
    """L(w + ρ T sign g) - L(w) with T = |w| + η."""
    check_some("rho", rho)
    steps = [AscentStep(r, p=math.inf, metric=AbsWeight(eta)) for r in rho]
    return [_ascent_row(subject, "adaptive_linf_ascent_sharpness", s, unit="element", eta=eta) for s in steps]


def surrogate_gap(subject: Subject, *, rho: tuple[float, ...] = (0.05,)) -> Rows:
    """The rise h after one step of ascent read as a curvature: 2h/ρ², and 2(h - ρ‖g‖)/ρ², about gᵀHg/‖g‖².

    The first is about λ_max only where ρ‖g‖ is much smaller than h; a warning tells where it is not.
    """
    check_some("rho", rho)
    rows = []
    for r in rho:
        curvature = gap_of(subject.risk, r)
        options = {**context(subject), "rho": r, "norm": "l2", "steps": 1}
        part = r * curvature.gap.gradient_norm / curvature.gap.value if curvature.gap.value > 0 else math.inf
        note = "" if part < 0.1 else f"rho ‖g‖ is {part:.0%} of the gap: this is no curvature"
        rows += [
            Row("surrogate_gap_curvature", curvature.curvature, options=options, warnings=note),
            Row("surrogate_gap_directional", curvature.directional, options=options),
        ]
    return rows


# Blocks ---------------------------------------------------------------------------------------------------------------


def m_sharpness(
    subject: Subject, *, m: tuple[int | None, ...] = (1, 16, 128, None), rho: float = 0.05, blocks: int = 128
) -> Rows:
    """Mean over blocks of m examples of each block's own one-step sharpness; m = None is all examples together.

    At most `blocks` blocks of one fixed random partition are taken, of the most examples that m divides; the standard
    error is over blocks. `m_sharpness_excess` is S_m - S_n on the same examples: what comes of the sampling alone.
    """
    check_count("blocks", blocks)
    rows = []
    for size in _block_sizes(m, subject.risk.n):
        step = AscentStep(rho)
        if size is None:
            rows.append(_ascent_row(subject, "m_sharpness", step, m="all"))
            continue
        risk, kept = partitioned(subject, size, blocks)
        sharpness = ascent_sharpness(risk, step, size)
        more = {**kept, "m": size}
        rows.append(_row(subject, "m_sharpness", sharpness, rho=rho, norm="l2", steps=1, **more))
        excess = replace(sharpness, value=sharpness.value - ascent_sharpness(risk, step).value)
        rows.append(_row(subject, "m_sharpness_excess", excess, rho=rho, norm="l2", steps=1, **more))
    return rows


def first_order_sharpness(
    subject: Subject, *, m: tuple[int | None, ...] = (1, 16, 128, None), rho: float = 0.05, norm: Norm = "l2"
) -> Rows:
    """Mean over blocks of m examples of ρ ‖∇L_B‖ (of ρ ‖∇L_B‖₁ in the box): the first-order part of m-sharpness.

    It takes gradients only, so all blocks of one fixed random partition are taken, of the most examples m divides.
    """
    rows = []
    for size in _block_sizes(m, subject.risk.n):
        given = {"rho": rho, "norm": norm, "steps": 0}
        if size == 1 and norm == "l2":
            norms = rho * torch.from_numpy(subject.gradient_moments.squares).sqrt()
            error = float(norms.std()) / math.sqrt(len(norms)) if len(norms) > 1 else math.nan
            sharpness: Estimate = Estimate(float(norms.mean()), error, len(norms))
            rows.append(_row(subject, "first_order_sharpness", sharpness, m=1, **given))
            continue
        risk, kept = (subject.risk, {}) if size is None else partitioned(subject, size, None)
        sharpness = first_order(risk, rho, size, p=2.0 if norm == "l2" else math.inf)
        rows.append(_row(subject, "first_order_sharpness", sharpness, m=size or "all", **given, **kept))
    return rows


def _block_sizes(m: Sequence[int | None], n: int) -> list[int | None]:
    """Each size once; None for all examples together, as which sizes of n and more count."""
    check_some("m", m)
    for size in m:
        check_block_size(size)
    return list(dict.fromkeys(None if size is None or size >= n else size for size in m))


def partitioned(subject: Subject, m: int, blocks: int | None) -> tuple[EmpiricalRisk, dict[str, Any]]:
    """The risk on at most `blocks` blocks of m examples of the training set, in the order of the measures' partition.

    Examples that do not fill a block are left out, which the options say: n, and the seed of the partition.
    """
    risk = subject.risk
    count = risk.n // m if blocks is None else min(risk.n // m, blocks)
    order = torch.randperm(risk.n, generator=subject.generator("partition"))[: count * m]
    x, y = subject.sample.take(order.to(subject.sample.device))
    cut = max(1, 1024 // m) * m  # in batches, for memory
    part = risk.on(list(zip(x.split(cut), y.split(cut), strict=True)))
    return part, {"n": part.n, "partition_seed": subject.seed}


# Worst case -----------------------------------------------------------------------------------------------------------


def worst_case_sharpness(
    subject: Subject,
    *,
    rho: tuple[float, ...] = (0.05, 0.5),
    m: int | None = None,
    steps: int = 20,
    restarts: int = 0,
    examples: int | None = 1024,
    method: Method = "apgd",
) -> Rows:
    """The largest L(w + e) - L(w) that APGD finds over ‖e‖ ≤ ρ, in blocks of m examples, or all together for m = None.

    Radii are taken in ascending order, and for m = None each offers its maximiser to the next, so that the value does
    not fall. `examples` fixed random ones are used. In `stderr` is the first-order gap to the maximum over the ball for
    m = None, an iteration's residual, and the standard error over blocks otherwise; `converged` is about the gap.
    """
    return _worst(subject, "worst_case_sharpness", rho, m, steps, restarts, examples, method)


def linf_worst_case_sharpness(
    subject: Subject,
    *,
    rho: tuple[float, ...] = (0.001,),
    m: int | None = None,
    steps: int = 20,
    restarts: int = 0,
    examples: int | None = 1024,
    method: Method = "apgd",
) -> Rows:
    """The same over |e_i| ≤ ρ."""
    return _worst(subject, "linf_worst_case_sharpness", rho, m, steps, restarts, examples, method, norm="linf")


def adaptive_worst_case_sharpness(
    subject: Subject,
    *,
    rho: tuple[float, ...] = (0.5,),
    m: int | None = None,
    steps: int = 20,
    restarts: int = 0,
    examples: int | None = 1024,
    method: Method = "apgd",
    unit: Literal["element", "filter", "layer"] = "element",
    norm: Norm = "l2",
) -> Rows:
    """The same over ‖e / T‖ ≤ ρ, with T = |w|, or by `unit` the norm of the filter or of the tensor."""
    name = "adaptive_worst_case_sharpness" if norm == "l2" else "adaptive_linf_worst_case_sharpness"
    return _worst(subject, name, rho, m, steps, restarts, examples, method, norm=norm, unit=unit)


def adaptive_linf_worst_case_sharpness(
    subject: Subject,
    *,
    rho: tuple[float, ...] = (0.002,),
    m: int | None = None,
    steps: int = 20,
    restarts: int = 0,
    examples: int | None = 1024,
    method: Method = "apgd",
) -> Rows:
    """The same over |e_i| ≤ ρ |w_i|."""
    name = "adaptive_linf_worst_case_sharpness"
    return _worst(subject, name, rho, m, steps, restarts, examples, method, norm="linf", unit="element")


def normalised_worst_case_sharpness(
    subject: Subject,
    *,
    rho: tuple[float, ...] = (0.5,),
    m: int | None = None,
    steps: int = 20,
    restarts: int = 0,
    examples: int | None = 1024,
    method: Method = "apgd",
    unit: Unit = "element",
    norm: Norm = "l2",
) -> Rows:
    """The same for the loss of normalised logits, adaptive: what no rescaling of the weights changes.

    It is not defined where the logits of an example are constant.
    """
    name = "normalised_worst_case_sharpness"
    return _worst(subject, name, rho, m, steps, restarts, examples, method, norm=norm, unit=unit, normalise=True)


def _worst(
    subject: Subject,
    name: str,
    rho: Sequence[float],
    m: int | None,
    steps: int,
    restarts: int,
    examples: int | None,
    method: Method,
    *,
    norm: Norm = "l2",
    unit: Unit = "none",
    normalise: bool = False,
) -> Rows:
    check_some("rho", rho)
    check_block_size(m)
    check_count("examples", examples)
    size = subject.risk.n if examples is None else min(examples, subject.risk.n)
    whole = m is None or m >= size
    risk, kept = subject.risk, {"n": subject.risk.n}
    if not whole and m is not None:
        risk, kept = partitioned(subject, m, size // m)
    elif size < risk.n:
        risk, kept = partitioned(subject, 1, size)
    options: dict[str, Any] = {"norm": norm, "steps": steps, "restarts": restarts, "method": method, **kept}
    if unit != "none":
        options["unit"] = unit
    if normalise:
        options["logit_normalise"] = True
        dead = constant_logits(risk)
        if dead:
            note = f"the logits of {dead} of {risk.n} examples are constant: a dead model has no normalised loss"
            given = {**context(subject), **options}
            return [Row(name, math.nan, math.nan, 0, options={**given, "rho": r}, warnings=note) for r in rho]
        risk = logit_normalised(risk)
    rows: Rows = []
    offered: list[Params] = []
    for r in sorted(rho):
        worst = worst_in_ball(
            risk,
            r,
            None if whole else m,
            norm=norm,
            metric=metric_of(unit),
            method=method,
            steps=steps,
            restarts=restarts,
            candidates=offered,
            generator=subject.noise("restarts") if whole else None,
        )
        offered = [worst.displacement] if worst.displacement is not None else []
        if whole:
            worst = replace(worst, stderr=worst.residual)
        rows.append(_row(subject, name, worst, rho=r, **({} if m is None else {"m": m}), **options))
    return rows


def keskar(
    subject: Subject,
    *,
    eps: tuple[float, ...] = (5e-4, 1e-3),
    dimension: int | None = None,
    draws: int = 3,
    steps: int = 10,
) -> Rows:
    """100 (max L(w + z) - L(w)) / (1 + L(w)) over the box |z_i| ≤ ε (|w_i| + 1); its ε stands in the rows as rho.

    With a `dimension`, such as 100, over the box of a random subspace, whose standard error is over `draws` of them.
    """
    check_some("eps", eps)
    check_count("draws", draws)
    rows = []
    for e in eps:
        source = subject.noise("subspace")
        count = 1 if dimension is None else draws
        sharpness = keskar_sharpness(subject.risk, e, dimension=dimension, draws=count, steps=steps, generator=source)
        if dimension is None:
            sharpness = replace(sharpness, stderr=100 * sharpness.residual / (1 + sharpness.base))
        name = "keskar_sharpness" if dimension is None else "keskar_subspace_sharpness"
        rows.append(_row(subject, name, sharpness, rho=e, norm="linf", steps=steps, dimension=dimension))
    return rows


def keskar_subspace(
    subject: Subject,
    *,
    eps: tuple[float, ...] = (1e-3,),
    dimension: int = 100,
    draws: int = 3,
    steps: int = 10,
) -> Rows:
    """Keskar's sharpness over the boxes of random subspaces."""
    size = min(dimension, sum(t.numel() for t in subject.risk.theta.values()))
    return keskar(subject, eps=eps, dimension=size, draws=draws, steps=steps)


# Average case ---------------------------------------------------------------------------------------------------------


def average_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.01,), draws: int = 10) -> Rows:
    """E L(w + e) - L(w) with e ~ N(0, ρ²): ρ is a standard deviation per coordinate. Antithetic pairs."""
    check_some("rho", rho)
    return [_average_row(subject, "average_sharpness", r, draws) for r in rho]


def uniform_average_sharpness(subject: Subject, *, rho: tuple[float, ...] = (0.02,), draws: int = 10) -> Rows:
    """E L(w + e) - L(w) with e even over the box [-ρ, ρ]^p. Antithetic pairs."""
    check_some("rho", rho)
    return [_average_row(subject, "uniform_average_sharpness", r, draws, noise="uniform") for r in rho]


def adaptive_average_sharpness(
    subject: Subject, *, rho: tuple[float, ...] = (0.1,), draws: int = 10, eta: float = 0.0
) -> Rows:
    """E L(w + e) - L(w) with e_i ~ N(0, ρ² (|w_i| + η)²)."""
    check_some("rho", rho)
    return [_average_row(subject, "adaptive_average_sharpness", r, draws, eta=eta) for r in rho]


def noise_radius(subject: Subject, *, drop: float = 0.1, draws: int = 32, eps: float = 1e-3, tol: float = 1e-2) -> Rows:
    """1/σ², σ the noise that costs a tenth of training accuracy; and the same for noise in proportion to the weights.

    σ is found by bisection with the same draws throughout; the standard error is by bootstrap over them.
    """
    usual = (drop, draws, eps, tol) == (0.1, 32, 1e-3, 1e-2)
    rows = []
    for name, magnitude in (("inverse_noise_radius", False), ("inverse_magnitude_noise_radius", True)):
        if usual:
            radius = subject.magnitude_noise_radius if magnitude else subject.noise_radius
        else:
            source = subject.noise("noise radius")
            radius = radius_of_noise(
                subject.risk, magnitude=magnitude, drop=drop, draws=draws, eps=eps, tol=tol, generator=source
            )
        given = {"drop": drop, "tol": tol, **({"eps": eps} if magnitude else {})}
        rows.append(_inverse_square(subject, name, radius, given))
    return rows


def worst_case_radius(
    subject: Subject, *, drop: float = 0.1, steps: int = 20, restarts: int = 0, eps: float = 1e-3, tol: float = 1e-2
) -> Rows:
    """1/α², α the box where PGD finds weights that cost a tenth of accuracy; and for boxes in proportion to weights."""
    rows = []
    for name, magnitude in (("inverse_worst_case_radius", False), ("inverse_magnitude_worst_case_radius", True)):
        source = subject.noise("restarts")
        radius = radius_of_box(
            subject.risk,
            magnitude=magnitude,
            drop=drop,
            steps=steps,
            restarts=restarts,
            eps=eps,
            tol=tol,
            generator=source,
        )
        given = {"drop": drop, "tol": tol, "steps": steps, "norm": "linf", **({"eps": eps} if magnitude else {})}
        rows.append(_inverse_square(subject, name, radius, given))
    return rows


# One layer ------------------------------------------------------------------------------------------------------------


def relative_flatness(subject: Subject, *, layer: str | None = None, standardise: bool = True, draws: int = 32) -> Rows:
    """Σ ⟨w_s, w_s'⟩ tr H_ss' over the rows of one linear layer, the last one for layer = None."""
    check_count("draws", draws)
    flatness = flatness_of_layer(
        subject.risk, layer, standardise=standardise, draws=draws, generator=subject.noise("trace")
    )
    return [_row(subject, "relative_flatness", flatness, layer=layer, standardise=standardise, method=flatness.method)]


def relative_flatness_max(subject: Subject, *, layer: str | None = None, standardise: bool = True) -> Rows:
    """Σ_s ‖w_s‖² λ_max(H_ss) over the rows of one linear layer, the last one for layer = None."""
    flatness = flatness_of_layer(subject.risk, layer, kind="max", standardise=standardise)
    return [
        _row(subject, "relative_flatness_max", flatness, layer=layer, standardise=standardise, method=flatness.method)
    ]


# Rows -----------------------------------------------------------------------------------------------------------------


def _row(subject: Subject, name: str, estimate: Estimate, **options: Any) -> Row:
    given = {**context(subject), **{k: v for k, v in options.items() if v is not None}}
    return Row(name, estimate.value, estimate.stderr, estimate.draws, options=given, converged=estimate.converged)


def _ascent_row(subject: Subject, name: str, step: AscentStep, **options: Any) -> Row:
    """One-step sharpness on all data, from the gradient that is there."""
    sharpness: Sharpness = ascent_sharpness(subject.risk, step, known=subject.loss_and_gradient)
    norm = "linf" if math.isinf(step.p) else "l2"
    return _row(subject, name, sharpness, rho=step.rho, norm=norm, steps=1, **options)


def _average_row(
    subject: Subject,
    name: str,
    rho: float,
    draws: int,
    *,
    eta: float | None = None,
    noise: Literal["gaussian", "uniform"] = "gaussian",
) -> Row:
    metric = None if eta is None else AbsWeight(eta)
    source = subject.noise("noise")
    average = average_over_noise(subject.risk, rho, draws=draws, metric=metric, noise=noise, generator=source)
    return _row(subject, name, average, rho=rho, noise=noise, eta=eta)


def _inverse_square(subject: Subject, name: str, radius: Radius, options: dict[str, Any]) -> Row:
    """1/r² with the error that r's gives it; not defined where r is 0, and unknown where r is infinite."""
    given = {**context(subject), **options, "radius_low": radius.low, "train_error": radius.base}
    r = radius.value
    if not 0 < r < math.inf:
        reason = "the floor of the noise costs too much" if r == 0 else f"no radius up to {radius.low:.3g} costs enough"
        note = f"{reason} accuracy, at a training error of {radius.base:.3g}"
        return Row(name, math.nan, math.nan, radius.draws, options=given, converged=False, warnings=note)
    return Row(name, r**-2, 2 * radius.stderr * r**-3, radius.draws, options=given, converged=radius.converged)


def _entry(
    function: Any,
    rows: tuple[str, ...],
    help: str,
    invariant: str,
    cost: str,
    *,
    gradients: float,
    usual: bool = False,
    needs: tuple[Need, ...] = (),
) -> Measure:
    return Measure(
        function,
        rows,
        help,
        "sharpness",
        "sharper",
        +1,
        invariant,
        cost,
        gradients=gradients,
        usual=usual,
        needs=needs,
        sampled=True,
    )


PLAIN, ADAPTIVE = "T3 T5", "T1 T2 T5"

MEASURES = {
    "ascent_sharpness": _entry(
        one_step_sharpness,
        ("ascent_sharpness",),
        "loss increase after one SAM step on the training set",
        PLAIN,
        "1.3",
        gradients=1.7,
        usual=True,
    ),
    "m_sharpness": _entry(
        m_sharpness,
        ("m_sharpness", "m_sharpness_excess"),
        "the same for blocks of m examples, each with its own step; and less that of all their examples together",
        PLAIN,
        "2.6 a value of m; 10 for m = 1",
        gradients=18,
        usual=True,
    ),
    "adaptive_ascent_sharpness": _entry(
        adaptive_ascent_sharpness,
        ("adaptive_ascent_sharpness",),
        "loss increase after one ASAM step",
        ADAPTIVE + " (by element; T1 layer by layer for others)",
        "1.3",
        gradients=1.3,
        usual=True,
    ),
    "linf_ascent_sharpness": _entry(
        linf_ascent_sharpness,
        ("linf_ascent_sharpness",),
        "loss increase after one step of the signs of the gradient",
        PLAIN,
        "1.3",
        gradients=1.3,
    ),
    "adaptive_linf_ascent_sharpness": _entry(
        adaptive_linf_ascent_sharpness,
        ("adaptive_linf_ascent_sharpness",),
        "the same in proportion to |w|",
        ADAPTIVE,
        "1.3",
        gradients=1.3,
    ),
    "first_order_sharpness": _entry(
        first_order_sharpness,
        ("first_order_sharpness",),
        "rho times the mean norm of the gradients of blocks of m examples",
        PLAIN,
        "1 to 3 a value of m",
        gradients=6,
    ),
    "surrogate_gap": _entry(
        surrogate_gap,
        ("surrogate_gap_curvature", "surrogate_gap_directional"),
        "GSAM's gap read as a curvature, whole and without the linear part",
        PLAIN,
        "1.3",
        gradients=1.3,
    ),
    "average_sharpness": _entry(
        average_sharpness,
        ("average_sharpness",),
        "mean loss increase under Gaussian noise on the weights",
        PLAIN,
        "7",
        gradients=7,
        usual=True,
    ),
    "adaptive_average_sharpness": _entry(
        adaptive_average_sharpness,
        ("adaptive_average_sharpness",),
        "the same with noise in proportion to |w|",
        ADAPTIVE,
        "7",
        gradients=7,
        usual=True,
    ),
    "uniform_average_sharpness": _entry(
        uniform_average_sharpness,
        ("uniform_average_sharpness",),
        "mean loss increase under noise that is even over a box",
        PLAIN,
        "7",
        gradients=7,
    ),
    "worst_case_sharpness": _entry(
        worst_case_sharpness,
        ("worst_case_sharpness",),
        "largest loss increase that 20 steps of APGD find in a ball",
        PLAIN,
        "21 a radius",
        gradients=42,
    ),
    "linf_worst_case_sharpness": _entry(
        linf_worst_case_sharpness,
        ("linf_worst_case_sharpness",),
        "the same in a box",
        PLAIN,
        "21 a radius",
        gradients=21,
    ),
    "adaptive_worst_case_sharpness": _entry(
        adaptive_worst_case_sharpness,
        ("adaptive_worst_case_sharpness",),
        "the same in an ellipsoid in proportion to |w|",
        ADAPTIVE,
        "21 a radius",
        gradients=21,
    ),
    "adaptive_linf_worst_case_sharpness": _entry(
        adaptive_linf_worst_case_sharpness,
        ("adaptive_linf_worst_case_sharpness",),
        "the same in a box in proportion to |w|",
        ADAPTIVE,
        "21 a radius",
        gradients=21,
    ),
    "normalised_worst_case_sharpness": _entry(
        normalised_worst_case_sharpness,
        ("normalised_worst_case_sharpness",),
        "the same, adaptive, for the loss of normalised logits",
        "T1 T2 T4 T5",
        "21 a radius",
        gradients=21,
        needs=("probabilities",),
    ),
    "keskar": _entry(
        keskar,
        ("keskar_sharpness",),
        "largest loss increase in a small box, in percent of one plus the loss",
        "T5",
        "11 a radius",
        gradients=22,
    ),
    "keskar_subspace": _entry(
        keskar_subspace,
        ("keskar_subspace_sharpness",),
        "the same in random subspaces of 100 directions",
        "T5 in distribution",
        "11 a subspace",
        gradients=33,
    ),
    "noise_radius": _entry(
        noise_radius,
        ("inverse_noise_radius", "inverse_magnitude_noise_radius"),
        "1/sigma^2 for the noise that costs a tenth of training accuracy, plain and in proportion to the weights",
        "T3 T5 (plain); about T1 T5 (magnitude)",
        "130 each",
        gradients=260,
        needs=("probabilities",),
    ),
    "worst_case_radius": _entry(
        worst_case_radius,
        ("inverse_worst_case_radius", "inverse_magnitude_worst_case_radius"),
        "1/alpha^2 for the box in which PGD finds a tenth of training accuracy lost",
        "T3 T5 (plain); about T1 T5 (magnitude)",
        "200 to 400 each",
        gradients=600,
        needs=("probabilities",),
    ),
    "relative_flatness": _entry(
        relative_flatness,
        ("relative_flatness",),
        "curvature of the last linear layer against the products of its rows",
        "T1 T5",
        "1 at the output; else 3 a probe",
        gradients=1,
        usual=True,
    ),
    "relative_flatness_max": _entry(
        relative_flatness_max,
        ("relative_flatness_max",),
        "the same with the largest eigenvalue of each row's block",
        "T1 T5",
        "2 at the output; else 3 a weight",
        gradients=2,
    ),
}
