"""Measures of curvature: eigenvalues, traces and spectral sums of the Hessian and of the Gauss-Newton matrix.

Each function takes a `Subject` and keyword-only options, and returns rows. Iterations leave their residual in `stderr`,
a bound of the error; random probes leave their standard error. What an operator says of its products (such as finite
differences for kernels without second derivatives) goes into `warnings`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from analysis.measures.catalogue.checks import check_share, check_tolerance
from analysis.measures.measure import Family, Measure, Rows
from analysis.measures.subject import ENDS, Subject
from analysis.table import Row
from landscape import (
    Estimate,
    SymmetricOperator,
    effective_dimension,
    flatten,
    spectral_density,
    top_eigenpairs,
    trace,
)

FEWEST_PROBES = 8  # beside a subspace that is known, for a standard error


def hessian_eigenvalues(subject: Subject, *, tol: float = 1e-3, own_tol: float = 5e-2, max_products: int = 200) -> Rows:
    """Both ends of the Hessian's spectrum from one Krylov space, and what follows from them.

    The smallest eigenvalue is often a hundredth of the largest, so that a residual that is small beside that one may
    be as large as it: `own_tol` bounds each residual by a share of its own eigenvalue too (see `top_eigenpairs`).

    `lambda_ratio` is |λ_min|/λ_max. `stability_ratio` is λ_max over the largest curvature at which the run's optimizer
    is stable (see `Stability`); it is given only where that is known: for runs of SGD on the plain cross-entropy.
    """
    check_tolerance("tol", tol)
    check_tolerance("own_tol", own_tol)
    stability = Stability.of(subject)
    asked: dict[str, Any] = {"tol": tol, "own_tol": own_tol, "max_products": max_products}
    if subject.drawn and asked == ENDS:
        pairs = subject.hessian_ends
    else:
        pairs = top_eigenpairs(
            subject.hessian, k=1, which="both", **asked, vectors=False, progress=subject.progress,
            generator=subject.noise("eigen"),
        )  # fmt: skip
    options = {**context(subject), "tol": tol, "own_tol": own_tol}
    top, bottom = pairs.values.tolist()
    errors = pairs.residuals.tolist()

    def row(name: str, value: float, error: float, **more: Any) -> Row:
        return Row(
            name, value, error, options={**options, **more}, converged=pairs.converged, warnings=subject.hessian.note
        )

    rows = [row("top_eigenvalue", top, errors[0]), row("bottom_eigenvalue", bottom, errors[1])]
    if top > 0:
        ratio = abs(bottom) / top
        rows.append(row("lambda_ratio", ratio, (errors[1] + ratio * errors[0]) / top))
    else:
        reason = f"the largest eigenvalue is {top:.3g}, so there is no ratio to it"
        rows.append(replace(row("lambda_ratio", math.nan, math.nan), warnings=reason))
    if stability is not None:
        ratio = (top + stability.decay) / stability.threshold
        limits = {"lr": stability.lr, "threshold": stability.threshold, "full_batch": stability.full_batch}
        rows.append(row("stability_ratio", ratio, errors[0] / stability.threshold, **limits))
    return rows


def hessian_trace(subject: Subject, *, draws: int = 20) -> Rows:
    """tr(H), and Σ_l tr(H_ll) ‖w_l‖² over parameter tensors l, from the same products.

    The second does not change when the tensors are rescaled without changing the function (T1 tensor by tensor, T2).
    The errors of the parts depend on each other, so its standard error is the sum of theirs, an upper bound. On a draw
    of the training examples the products of the eigenvalues' search are among the draws, beside at least 8 probes.
    """
    H = subject.hessian
    known = subject.hessian_ends.space if subject.drawn else None
    if known is not None:
        draws = min(draws, max(FEWEST_PROBES, draws - known.products))
    total = trace(
        H, draws=draws, blocks=H.blocks, known=known, progress=subject.progress, generator=subject.noise("trace")
    )
    sizes = {name: float(t.double().square().sum()) for name, t in subject.risk.theta.items()}
    layerwise = replace(
        total,
        value=math.fsum(sizes[name] * part.value for name, part in total.parts.items()),
        stderr=math.fsum(sizes[name] * part.stderr for name, part in total.parts.items()),
    )
    return [
        _estimate(subject, name, e, H.note) for name, e in (("hessian_trace", total), ("layerwise_trace", layerwise))
    ]


def adaptive_curvature(subject: Subject, *, tol: float = 1e-3, max_products: int = 200, draws: int = 20) -> Rows:
    """Largest eigenvalue and trace Σ_i w_i² H_ii of diag(|w|) H diag(|w|), the Hessian in relative units.

    Times ρ²/2 they are the small-radius limits of adaptive worst-case and average sharpness.
    """
    H = subject.hessian.rescaled(flatten(subject.risk.theta, subject.risk.names).abs())
    return _top_and_trace(subject, H, "adaptive", tol, max_products, draws, subject.hessian.note)


def gauss_newton(subject: Subject, *, tol: float = 1e-3, max_products: int = 200, draws: int = 20) -> Rows:
    """Largest eigenvalue and trace of the Gauss-Newton matrix, for cross-entropy the Fisher matrix."""
    G = subject.gauss_newton
    return _top_and_trace(subject, G, "gauss_newton", tol, max_products, draws, G.note)


def gradient_moment(subject: Subject) -> Rows:
    """Trace of the empirical Fisher matrix, (1/n) Σ_i ‖∇ℓ_i‖², exact."""
    squares = subject.gradient_moments.squares
    error = subject.error_of_mean(squares)
    return [Row("empirical_fisher_trace", math.fsum(squares) / subject.risk.n, error, options=context(subject))]


def model_dimension(subject: Subject, *, z: float | None = None, runs: int = 4, steps: int = 40) -> Rows:
    """Effective dimension Σ_i λ_i / (λ_i + z) of the Gauss-Newton matrix; z = None is 1/n."""
    G = subject.gauss_newton
    dimension = effective_dimension(
        G,
        1 / subject.n if z is None else z,
        runs=runs,
        steps=steps,
        progress=subject.progress,
        generator=subject.noise("dimension"),
    )
    row = _estimate(subject, "effective_dimension", dimension, G.note)
    return [replace(row, options={**row.options, "z": "1/n" if z is None else z, "steps": steps})]


def spectrum(subject: Subject, *, runs: int = 4, steps: int = 60, level: float = 1e-3) -> Rows:
    """What the spectral density of the Hessian says of the bulk; the outliers are `hessian_eigenvalues`' matter.

    The share of eigenvalues below -`level` times the largest modulus, the length of the interval that holds the central
    95 %, and the entropy of |λ| / Σ|λ|, in nats. The standard errors are over runs. Many eigenvalues of a network are
    zero, and the quadrature's node for them falls on either side of it: a much smaller `level` would count them at
    random.
    """
    check_share("level", level)
    H = subject.hessian
    density = spectral_density(H, runs=runs, steps=steps, progress=subject.progress, generator=subject.noise("density"))
    values = {
        "negative_mass": density.negative_mass(level * float(density.nodes.abs().max())),
        "bulk_width": density.bulk_width(),
        "spectral_entropy": density.entropy(),
    }
    rows = [_estimate(subject, name, e, H.note) for name, e in values.items()]
    return [replace(row, options={**row.options, "steps": steps, "level": level}) for row in rows]


def context(subject: Subject) -> dict[str, Any]:
    """What decides every measure on the training loss."""
    return {"loss": subject.task.name, "mode": subject.risk.mode, "n": len(subject.sample)}


@dataclass(frozen=True)
class Stability:
    """Up to which curvature steps of SGD contract on a quadratic: the edge of stability.

    The threshold is 2/η for gradient descent, 2(1 + β)/η with heavy-ball momentum β and 2(1 + β)/(η(1 + 2β)) with
    Nesterov's. It is a statement about full-batch steps; with minibatches instability sets in below it. Weight decay
    adds to the curvature; where biases are not decayed, the sum is an upper bound, by at most the decay.

    Attributes:
        lr: η of the last step before the checkpoint.
        threshold: Largest stable curvature.
        decay: Weight decay, which SGD adds to the gradient and so to the curvature.
        full_batch: Whether each step saw all the data.

    Source:
        Cohen et al. (2021), ICLR, for the first two; the third is the same analysis for Nesterov's step.
    """

    lr: float
    threshold: float
    decay: float
    full_batch: bool

    @classmethod
    def of(cls, subject: Subject) -> "Stability | None":
        """That of the run a checkpoint is from; None where there is no such threshold, or it is not known."""
        if subject.config is None or subject.run is None or subject.step == 0 or subject.weights:
            return None
        config = subject.config.resolved()
        if config.method != "sgd" or not subject.trained_plainly:
            return None
        if config.grad_clip is not None or config.shrink_perturb:
            return None
        history = subject.run.history()
        lr = float(history.loc[history["step"] <= subject.step, "lr"].iloc[-1])
        if not lr > 0:
            return None
        beta = config.momentum
        bound = 2 * (1 + beta) / lr / (1 + 2 * beta if config.nesterov else 1)
        return cls(lr, bound, config.weight_decay, config.batch_size >= subject.n)


def _top_and_trace(
    subject: Subject, A: SymmetricOperator, name: str, tol: float, max_products: int, draws: int, note: str
) -> Rows:
    check_tolerance("tol", tol)
    pairs = top_eigenpairs(
        A,
        tol=tol,
        max_products=max_products,
        vectors=False,
        progress=subject.progress,
        generator=subject.noise("eigen"),
    )
    top = Row(
        f"{name}_eigenvalue",
        float(pairs.values[0]),
        float(pairs.residuals[0]),
        options={**context(subject), "tol": tol},
        converged=pairs.converged,
        warnings=note,
    )
    total = trace(A, draws=draws, progress=subject.progress, generator=subject.noise("trace"))
    return [top, _estimate(subject, f"{name}_trace", total, note)]


def _estimate(subject: Subject, name: str, e: Estimate, note: str) -> Row:
    options = {**context(subject), "method": e.method}
    return Row(name, e.value, e.stderr, e.draws, options=options, converged=e.converged, warnings=note)


MEASURES = {
    "hessian_eigenvalues": Measure(
        hessian_eigenvalues,
        ("top_eigenvalue", "bottom_eigenvalue", "lambda_ratio", "stability_ratio"),
        "largest and smallest Hessian eigenvalue with residuals; their ratio; the largest against 2/lr (SGD runs)",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "2 a product, 10 to 60 products",
        gradients=95,
        sampled=True,
        shared=True,
    ),
    "hessian_trace": Measure(
        hessian_trace,
        ("hessian_trace", "layerwise_trace"),
        "Hessian trace, and the traces of its blocks times the squared norms of their weights",
        "sharpness",
        "sharper",
        +1,
        "T3 T5 (trace); T1 T2 T5 (layerwise)",
        "2 a product, 20 products",
        gradients=60,
        sampled=True,
        shared=True,
    ),
    "adaptive_curvature": Measure(
        adaptive_curvature,
        ("adaptive_eigenvalue", "adaptive_trace"),
        "largest eigenvalue and trace of the Hessian in units of the weights",
        "sharpness",
        "sharper",
        +1,
        "T1 T2 T5",
        "2 a product, 30 to 60 products",
        usual=False,
        gradients=190,
        sampled=True,
        shared=True,
    ),
    "gauss_newton": Measure(
        gauss_newton,
        ("gauss_newton_eigenvalue", "gauss_newton_trace"),
        "largest eigenvalue and trace of the Gauss-Newton matrix, for cross-entropy the Fisher matrix",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "2 a product, 30 to 60 products",
        usual=False,
        gradients=80,
        sampled=True,
        shared=True,
    ),
    "empirical_fisher": Measure(
        gradient_moment,
        ("empirical_fisher_trace",),
        "mean squared norm of the gradients of single examples",
        "sharpness",
        "sharper",
        +1,
        "T3 T5",
        "1 to 3",
        usual=False,
        gradients=2,
        sampled=True,
    ),
    "effective_dimension": Measure(
        model_dimension,
        ("effective_dimension",),
        "directions that the data determine, from the Gauss-Newton matrix",
        "sharpness",
        "more complex",
        +1,
        "T3 T5",
        "2 a product, 160 products",
        usual=False,
        gradients=280,
        sampled=True,
        shared=True,
    ),
    "spectrum": Measure(
        spectrum,
        ("negative_mass", "bulk_width", "spectral_entropy"),
        "share of negative Hessian eigenvalues, width and entropy of the spectrum",
        "sharpness",
        "less converged (mass), sharper (width), flatter spectrum (entropy)",
        0,
        "T3 T5",
        "2 a product, 240 products",
        usual=False,
        gradients=500,
        sampled=True,
        shared=True,
    ),
}

# Rows whose expected sign is not that of their registry entry; 0 where theory predicts none.
SIGNS = {
    "bottom_eigenvalue": 0,
    "lambda_ratio": 0,
    "stability_ratio": 0,
    "bulk_width": +1,
}

# Rows of another family than their entry's: how far from a minimum a point is, and no sharpness.
FAMILIES: dict[str, Family] = dict.fromkeys(("bottom_eigenvalue", "lambda_ratio", "negative_mass"), "diagnostic")
