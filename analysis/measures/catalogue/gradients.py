"""Measures of the gradients of single training examples, and of the weights in the metric that they give."""

import math
from typing import Literal

from analysis.measures.catalogue.curvature import context
from analysis.measures.measure import Measure, Rows
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape.sharpness import fisher_rao_norm as norm_in_fisher_metric
from landscape.sharpness import gradient_moments


def gradient_covariance(subject: Subject, *, unbiased: bool = True) -> Rows:
    """The trace of the covariance of per-example gradients, the noise scale, and the median of their norms.

    The noise scale is tr Σ / ‖G‖². With `unbiased`, ‖G‖² is ‖∇L‖² - tr Σ / n, for the gradient over the population; it
    is not defined where that is not positive, as near a minimum it often is not. Standard errors are by jackknife.
    """
    moments = subject.gradient_moments
    options = context(subject)
    trace = moments.covariance_trace()
    scale = moments.noise_scale(unbiased=unbiased)
    square = scale.parts["squared_gradient"]
    note = ""
    if math.isnan(scale.value):
        note = f"the squared norm of the gradient is estimated as {square}, beside a trace of {trace}: no ratio"
    half = moments.quantiles((0.5,))[0.5]
    return [
        Row("gradient_covariance_trace", trace.value, trace.stderr, trace.draws, options=options),
        Row(
            "gradient_noise_scale",
            scale.value,
            scale.stderr,
            scale.draws,
            options={**options, "unbiased": unbiased},
            warnings=note,
        ),
        Row("example_gradient_median", half, options={**options, "quantile": 0.5}),
    ]


def gradient_quantiles(subject: Subject) -> Rows:
    """The lower and upper decile of the norms of per-example gradients: the easy and the hard examples."""
    low, high = subject.gradient_moments.quantiles((0.1, 0.9)).values()
    options = context(subject)
    return [
        Row("example_gradient_lower", low, options={**options, "quantile": 0.1}),
        Row("example_gradient_upper", high, options={**options, "quantile": 0.9}),
    ]


def gradient_signal(subject: Subject) -> Rows:
    """The mean over weights of the squared mean of the per-example gradients over their variance (GSNR)."""
    value = gradient_moments(subject.risk, elementwise=True).signal_to_noise()
    note = "no entry of the gradient varies" if math.isnan(value) else ""
    return [Row("gradient_signal_to_noise", value, options=context(subject), warnings=note)]


def fisher_rao(subject: Subject) -> Rows:
    """√(wᵀ E w), with the empirical Fisher matrix: √ of the mean over examples of ⟨∇ℓ_i, w⟩²; exact for these data."""
    values = subject.gradient_moments.radial**2
    root = math.sqrt(float(values.mean())) if len(values) else math.nan
    error = subject.error_of_mean(values) / (2 * root) if root > 0 else 0.0
    return [Row("fisher_rao_norm", root, error, options=_fisher(subject, "empirical"))]


def true_fisher_rao(subject: Subject) -> Rows:
    """√(wᵀ F w), with the Fisher matrix of the model's own labels; exact for these data."""
    value = norm_in_fisher_metric(subject.risk, kind="true")
    return [Row("true_fisher_rao_norm", value, options=_fisher(subject, "true"))]


def _fisher(subject: Subject, kind: Literal["empirical", "true"]) -> dict[str, object]:
    return {**context(subject), "matrix": kind}


MEASURES = {
    "gradient_covariance": Measure(
        gradient_covariance,
        ("gradient_covariance_trace", "gradient_noise_scale", "example_gradient_median"),
        "trace of the covariance of per-example gradients, the noise scale, and the median of their norms",
        "sharpness",
        "noisier",
        +1,
        "T3 T5",
        "1 to 3",
        gradients=3,
        sampled=True,
    ),
    "gradient_quantiles": Measure(
        gradient_quantiles,
        ("example_gradient_lower", "example_gradient_upper"),
        "lower and upper decile of the norms of per-example gradients",
        "sharpness",
        "noisier",
        +1,
        "T3 T5",
        "1 to 3, shared with gradient_covariance",
        gradients=1,
        usual=False,
        sampled=True,
    ),
    "gradient_signal": Measure(
        gradient_signal,
        ("gradient_signal_to_noise",),
        "mean over weights of the squared mean of per-example gradients over their variance",
        "sharpness",
        "less noisy",
        -1,
        "T1 T2 T3 T5",
        "1 to 4",
        gradients=3,
        usual=False,
        sampled=True,
    ),
    "fisher_rao": Measure(
        fisher_rao,
        ("fisher_rao_norm",),
        "length of the weights in the metric of the empirical Fisher matrix",
        "sharpness",
        "more complex",
        +1,
        "T1 T2 T3 T5",
        "1 to 3, shared with gradient_covariance",
        gradients=1,
        sampled=True,
    ),
    "true_fisher_rao": Measure(
        true_fisher_rao,
        ("true_fisher_rao_norm",),
        "the same with the Fisher matrix of the model's own labels",
        "sharpness",
        "more complex",
        +1,
        "T1 T2 T3 T5",
        "2",
        gradients=2,
        usual=False,
        sampled=True,
        needs=("probabilities",),
    ),
}

# Rows whose expected sign is not that of their registry entry; 0 where theory predicts none.
SIGNS: dict[str, int] = {}
