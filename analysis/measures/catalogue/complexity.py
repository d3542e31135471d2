"""Complexity of a checkpoint: norms of its layers, margin, paths, PAC-Bayes and worst-case bounds, how it was trained.

BatchNorm is folded into the layers before it. Values are "adjusted", as the literature compares them: (v - ln n)/2 for
logarithms ("log_..."), √(v / n) for all others, with n training examples; `form="raw"` gives v itself.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from analysis.measures.catalogue.calibration import mean_of
from analysis.measures.catalogue.curvature import context
from analysis.measures.measure import Measure, Rows
from analysis.measures.needs import no_probabilities
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape import EmpiricalRisk, Estimate
from landscape.complexity import (
    Complexity,
    Network,
    layer_norms,
    log_path_norm,
    low_margin,
    margin_measures,
    margins,
    norm_measures,
    pacbayes_measures,
    path_measures,
    sharpness_measures,
    vc_count,
)
from landscape.sharpness import gradient_moments, noise_radius, worst_case_radius
from trainers.tasks.task import example_weights

Form = Literal["adjusted", "raw"]

NORM_ROWS = (
    "params", "vc_count", "log_spec_init_main", "log_spec_orig_main", "log_prod_of_spec_over_margin",
    "log_prod_of_spec", "fro_over_spec", "log_sum_of_spec_over_margin", "log_sum_of_spec",
    "log_prod_of_fro_over_margin", "log_prod_of_fro", "log_sum_of_fro_over_margin", "log_sum_of_fro", "fro_dist",
    "dist_spec_init", "param_norm", "l2", "l2_dist",
)  # fmt: skip
FFT_ROWS = tuple(
    f"{name}_fft" for name in NORM_ROWS if "spec" in name
)  # those in which the spectral norm of a convolution has a part
PATH_ROWS = ("path_norm", "path_norm_over_margin")
LEVELS = {"steps_to_ce_0.1": 0.1, "steps_to_ce_0.01": 0.01}


def weight_norms(subject: Subject, *, form: Form = "adjusted") -> Rows:
    """Norms of the weight matrices, of their way from the start, products, sums and ratios, some over the margin.

    Spectral norms of convolutions are those of the kernel as a matrix (out, rest). `vc_count` is p d ln p, from all
    parameters and the number of layers.
    """
    try:
        network = subject.network
    except ValueError as error:
        return _undefined(subject, NORM_ROWS, form, error)
    norms = _norms(subject, "reshaped")
    p = sum(t.numel() for t in subject.model.parameters())
    count = Complexity("vc_count", vc_count(p, len(network.layers)), subject.n)
    return _rows(subject, {**norms, "vc_count": count}, NORM_ROWS, form)


def spectral_norms_fft(subject: Subject, *, form: Form = "adjusted") -> Rows:
    """The measures of spectral norms with the exact norm of each convolution on its inputs, circular at the border.

    The convolution before its stride is meant. For networks without convolutions they equal those of `weight_norms`.
    """
    try:
        norms = {f"{name}_fft": value for name, value in _norms(subject, "circular").items()}
    except ValueError as error:
        return _undefined(subject, FFT_ROWS, form, error)
    return _rows(subject, norms, FFT_ROWS, form, spectrum="circular")


def path_norm(subject: Subject, *, form: Form = "adjusted") -> Rows:
    """Sum over all paths of the products of squared weights, and the same over the squared margin."""
    try:
        log_path = log_path_norm(subject.network, subject.data.shape)
    except ValueError as error:
        return _undefined(subject, PATH_ROWS, form, error)
    return _rows(subject, path_measures(log_path, m=subject.n, margin=_margin(subject)), PATH_ROWS, form)


def train_outputs(subject: Subject, *, form: Form = "adjusted") -> Rows:
    """What the outputs on the training set say: the inverse margin, the cross-entropy, the mean entropy in nats.

    The margin is the k-th smallest of the n margins, k = n // 10. The other two are as they are, whatever `form` says.
    """
    rows = _rows(subject, margin_measures(m=subject.n, margin=_margin(subject)), ("inverse_margin",), form)
    log_probs = subject.train_outputs.double().log_softmax(1)
    labels = subject.data.train.y.cpu().long()
    weights = example_weights(subject.task, labels)
    entropies = -(log_probs.exp() * log_probs.clamp(min=-1e300)).sum(1)
    for name, values in (
        ("cross_entropy", subject.task.each(subject.train_outputs.double(), labels)),
        ("output_entropy", entropies),
    ):
        estimate = mean_of(values, weights if name == "cross_entropy" else None)
        value, stderr = estimate.value, estimate.stderr
        warning = "" if math.isfinite(value) else "the outputs are not all finite"
        value, stderr = (math.nan, math.nan) if warning else (value, stderr)
        options = {**context(subject), "n": subject.n}
        rows.append(Row(name, value, stderr, len(values), options=options, warnings=warning))
    return rows


def pacbayes(
    subject: Subject, *, draws: int = 32, drop: float = 0.1, tol: float = 1e-2, form: Form = "adjusted"
) -> Rows:
    """PAC-Bayes measures from the Gaussian noise at which the training accuracy drops by `drop`.

    One bisection for noise of one size and one for noise in proportion to the weights serve all six rows. Noise is on
    all parameters of the folded network, its biases included; norms are of the weights. The standard error is that of
    the noise level, carried through the formula.
    """
    if (draws, drop, tol) == (32, 0.1, 1e-2) and not subject.network.folded:
        plain, scaled = subject.noise_radius, subject.magnitude_noise_radius  # which others share
    else:
        risk = _folded_risk(subject)
        plain, scaled = (
            noise_radius(
                risk, magnitude=magnitude, drop=drop, draws=draws, tol=tol, generator=subject.noise("noise radius")
            )
            for magnitude in (False, True)
        )

    def formulas(s: float, t: float) -> dict[str, Complexity]:
        return pacbayes_measures(*_weights(subject), m=subject.n, sigma=s, sigma_magnitude=t)

    about = {"drop": drop, "tol": tol, "noise_on": "all parameters"}
    return _bound_rows(subject, formulas, plain, scaled, form, **about)


def worst_case_bounds(
    subject: Subject, *, steps: int = 20, drop: float = 0.1, tol: float = 1e-2, form: Form = "adjusted"
) -> Rows:
    """The same from the largest |displacement| of any weight, found by PGD, before the training accuracy drops."""
    risk = _folded_risk(subject)
    plain, scaled = (
        worst_case_radius(
            risk, magnitude=magnitude, drop=drop, steps=steps, tol=tol, generator=subject.noise("worst case")
        )
        for magnitude in (False, True)
    )

    def formulas(a: float, b: float) -> dict[str, Complexity]:
        return sharpness_measures(*_weights(subject), m=subject.n, alpha=a, alpha_magnitude=b)

    options = {"drop": drop, "tol": tol, "norm": "linf", "steps": steps, "on": "all parameters"}
    return _bound_rows(subject, formulas, plain, scaled, form, **options)


def training_speed(subject: Subject) -> Rows:
    """Optimizer steps to the first evaluation, at the end of an epoch, of a training cross-entropy at most a level."""
    reason, reached, every = "", dict[str, float](), "epoch"
    config = None if subject.config is None else subject.config.resolved()
    if subject.run is None or config is None:
        reason = "the record of training is not known"
    elif not subject.trained_plainly:
        reason = "the recorded loss is not the plain cross-entropy"
    else:
        history = subject.run.history()
        history = history[history["step"] <= subject.step]
        if history["train_error"].isna().any():  # NaN where an epoch was not evaluated, as no diverged loss makes it
            every = f"{config.evaluate_every} epochs"
        for name, level in LEVELS.items():
            steps = history.loc[history["train_loss"] <= level, "step"]
            if len(steps):
                reached[name] = float(steps.iloc[0])
    rows = []
    for name, level in LEVELS.items():
        why = reason or ("" if name in reached else f"the training loss did not reach {level:g} by this checkpoint")
        value = reached.get(name, math.nan)
        rows.append(Row(name, value, math.nan if why else 0.0, options={"every": every}, warnings=why))
    return rows


def gradient_noise(subject: Subject) -> Rows:
    """Trace of the covariance of single examples' gradients, before training and at this checkpoint.

    At the checkpoint it is the number that `gradient_covariance_trace` gives, under the name that goes with the other.
    """
    end = subject.gradient_moments.covariance_trace()
    options, start = context(subject), subject.initial_model
    rows = [Row("gradient_noise_end", end.value, end.stderr, end.draws, options=options)]
    if start is None:
        reason = "the initial weights are not known"
        return [*rows, Row("gradient_noise_start", math.nan, math.nan, 0, options=options, warnings=reason)]
    risk = subject.risk_of(start, list(subject.risk.batches))
    first = gradient_moments(risk).covariance_trace()
    return [*rows, Row("gradient_noise_start", first.value, first.stderr, first.draws, options=options)]


def _norms(subject: Subject, spectrum: Literal["reshaped", "circular"]) -> dict[str, Complexity]:
    norms = layer_norms(
        subject.network, subject.initial_network, spectrum=spectrum, generator=subject.generator("norms")
    )
    values = norm_measures(norms, m=subject.n, margin=_margin(subject))
    if norms.converged:
        return values
    reason = "the iteration for a spectral norm did not converge"
    return {
        name: replace(value, raw=math.nan, reason=value.reason or reason) if "spec" in name else value
        for name, value in values.items()
    }


def _margin(subject: Subject) -> float:
    """The low margin of the training examples; NaN where there are no classes."""
    if no_probabilities(subject.task):
        return math.nan
    values = margins(subject.train_outputs, subject.data.train.y.cpu())
    return low_margin(values) if bool(values.isfinite().all()) else math.nan


def _rows(subject: Subject, values: dict[str, Complexity], names: Iterable[str], form: Form, **options: Any) -> Rows:
    network: Network | None = None if "inverse_margin" in values else subject.network
    about = {"form": form, "n": subject.n, **options}
    note = ""
    if network is not None:
        about |= {"layers": len(network.layers), "folded": len(network.folded)}
        if network.left_out:
            note = f"not among the layers: {', '.join(network.left_out)}"
    rows = []
    for name in names:
        value = values[name]
        more = {"margin": _margin(subject)} if "margin" in name and not value.reason else {}
        number = value.value(form)
        reason = value.reason
        if reason and "margin" in reason:  # which only classes have
            reason = no_probabilities(subject.task) or reason
        why = reason or ("" if math.isfinite(number) else f"the {form} value is beyond the range of numbers")
        rows.append(
            Row(
                name,
                math.nan if why else number,
                math.nan if why else 0.0,
                options={**about, **more},
                warnings="; ".join(filter(None, [why, note])),
            )
        )
    return rows


def _undefined(subject: Subject, names: Iterable[str], form: Form, why: ValueError) -> Rows:
    """Rows of measures that have no meaning for this model, with the reason."""
    options = {"form": form, "n": subject.n}
    return [Row(name, math.nan, math.nan, options=options, warnings=str(why)) for name in names]


def _bound_rows(
    subject: Subject,
    formulas: Callable[[float, float], dict[str, Complexity]],
    plain: Estimate,
    scaled: Estimate,
    form: Form,
    **options: Any,
) -> Rows:
    """Rows of bounds at two noise levels, with the levels' standard errors carried through to first order."""
    bounds = formulas(plain.value, scaled.value)
    rows = _rows(subject, bounds, bounds, form, **options)
    high, low = (formulas(*(max(e.value + sign * _error(e), 0.0) for e in (plain, scaled))) for sign in (1, -1))
    ready = []
    for row in rows:
        level = scaled if "_mag_" in row.measure else plain
        upper, value, lower = (t[row.measure].value(form) for t in (high, bounds, low))
        spread = abs(upper - lower) / 2 if math.isfinite(lower) else abs(upper - value)
        stderr = math.nan if math.isnan(level.stderr) else spread
        ready.append(
            replace(
                row,
                stderr=row.stderr if math.isnan(row.value) else stderr,
                draws=level.draws,
                converged=level.converged,
                options={**row.options, "level": level.value if math.isfinite(level.value) else None},
            )
        )
    return ready


def _error(level: Estimate) -> float:
    return level.stderr if math.isfinite(level.stderr) else 0.0


def _folded_risk(subject: Subject) -> EmpiricalRisk:
    """The risk of the folded network in the model's own precision and place."""
    like = next(iter(subject.risk.theta.values()))
    model = copy.deepcopy(subject.network.model).to(like.device, like.dtype)
    names = [name for name, p in model.named_parameters() if p.is_floating_point()]
    return subject.risk_of(model, list(subject.risk.batches), parameters=names)


def _weights(subject: Subject) -> tuple[Tensor, Tensor | None]:
    start = subject.initial_network
    return subject.network.weights, None if start is None else start.weights


MEASURES = {
    "weight_norms": Measure(
        weight_norms,
        NORM_ROWS,
        "norms of the layers, of their way from the start, products, sums and ratios of them, some over the margin",
        "complexity",
        "more complex",
        +1,
        "T1 (a layer: all but *init*, *dist*, param_norm, l2) T2 T5",
        "1/3",
        gradients=0.5,
    ),
    "spectral_norms_fft": Measure(
        spectral_norms_fft,
        FFT_ROWS,
        "the same with the exact norms of convolutions as linear maps (circular)",
        "complexity",
        "more complex",
        +1,
        "T1 (a layer: all but *init*) T2 T5",
        "1/3",
        gradients=0.3,
        usual=False,
    ),
    "path_norm": Measure(
        path_norm,
        PATH_ROWS,
        "sum over all paths of the products of squared weights; also over the margin",
        "complexity",
        "more complex",
        +1,
        "T1 T2 T5",
        "1/3",
        gradients=0.2,
    ),
    "train_outputs": Measure(
        train_outputs,
        ("inverse_margin", "cross_entropy", "output_entropy"),
        "inverse margin, cross-entropy and entropy of the outputs on the training set",
        "complexity",
        "more complex",
        +1,
        "T1 T2 T3 T5",
        "1/3",
        gradients=0.4,
        needs=("probabilities",),
    ),
    "pacbayes": Measure(
        pacbayes,
        (
            "pacbayes_init", "pacbayes_orig", "pacbayes_flatness", "pacbayes_mag_init", "pacbayes_mag_orig",
            "pacbayes_mag_flatness",
        ),
        "PAC-Bayes bounds from the noise at which the training accuracy drops by a tenth",
        "complexity",
        "more complex",
        +1,
        "T5; T1 about (pacbayes_mag_flatness)",
        "200",
        gradients=200,
        usual=False,
        needs=("probabilities",),
        sampled=True,
    ),
    "worst_case_bounds": Measure(
        worst_case_bounds,
        (
            "sharpness_init", "sharpness_orig", "sharpness_flatness", "sharpness_mag_init", "sharpness_mag_orig",
            "sharpness_mag_flatness",
        ),
        "the same from the largest displacement of the weights that costs a tenth of the accuracy",
        "complexity",
        "more complex",
        +1,
        "T5; T1 about (sharpness_mag_flatness)",
        "400",
        gradients=400,
        usual=False,
        needs=("probabilities",),
        sampled=True,
    ),
    "training_speed": Measure(
        training_speed,
        tuple(LEVELS),
        "optimizer steps to a training cross-entropy of 0.1 and of 0.01",
        "complexity",
        "slower to train",
        +1,
        "T1 T2 T3 T5",
        "0",
        needs=("cross-entropy",),
    ),
    "gradient_noise": Measure(
        gradient_noise,
        ("gradient_noise_end", "gradient_noise_start"),
        "trace of the covariance of single examples' gradients, at the checkpoint and before training",
        "complexity",
        "noisier",
        +1,
        "T3 T5",
        "4",
        gradients=4,
        usual=False,
        sampled=True,
    ),
}  # fmt: skip
# Rows whose expected sign is not that of their registry entry; 0 where theory predicts none.
SIGNS = {"cross_entropy": 0, "output_entropy": 0}
