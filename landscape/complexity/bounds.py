"""Complexity measures as numbers of norms, margins and noise levels: the formulas, and nothing else.

Names and the numbers of equations are those of Dziugaite et al. (2020), NeurIPS, who follow Jiang et al. (2020), ICLR.
F_l and S_l are squared Frobenius and spectral norms of the d weight matrices, DF_l and DS_l those of their way
from the start, γ the low margin, m the number of training examples, ω the number of weights.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from landscape.complexity.norms import LayerNorms

EPS = 1e-3  # e, the least noise on a weight in the magnitude-aware bounds
DELTA = 0.05  # probability with which the worst-case bounds may fail

Form = Literal["adjusted", "raw"]


@dataclass(frozen=True)
class Complexity:
    """One measure of complexity.

    Attributes:
        name: In the literature's spelling.
        raw: The formula's value; NaN where it is not defined.
        m: Number of training examples.
        reason: Why it is not defined; empty where it is.
        log_raw: ln raw where raw itself may leave the range of floating-point numbers; None elsewhere.
    """

    name: str
    raw: float
    m: int
    reason: str = ""
    log_raw: float | None = None

    @property
    def adjusted(self) -> float:
        """What is compared between models: √(raw / m), or (raw - ln m) / 2 where raw is a logarithm ("log_...")."""
        if self.log_raw is not None:
            return math.exp((self.log_raw - math.log(self.m)) / 2)
        if math.isnan(self.raw):
            return math.nan
        return (self.raw - math.log(self.m)) / 2 if self.name.startswith("log_") else math.sqrt(self.raw / self.m)

    def value(self, form: Form) -> float:
        """The adjusted or the raw value."""
        return self.adjusted if form == "adjusted" else self.raw


def norm_measures(norms: LayerNorms, *, m: int, margin: float | None) -> dict[str, Complexity]:
    """The measures of weights and norms, some over the margin (eq. 20, 29 to 42).

    Args:
        norms: Of the layers.
        m: Number of training examples.
        margin: γ, see `low_margin`; measures over the margin need γ > 0, and those of the way from the start need it
            to be known. Measures without what they need are NaN, with the reason.

    Returns:
        One entry a measure, by name.

    Raises:
        ValueError: If `m` is below 1.
    """
    kit = _Kit(m, norms, margin)
    d = norms.depth
    fro, spec = sum(norms.fro), norms.spec
    log_spec, no_spec = _log_product(spec)
    log_fro, no_fro = _log_product(norms.fro)
    ratio = math.nan if no_spec else sum(f / s for f, s in zip(norms.fro, spec, strict=True))
    moved_ratio = moved_fro = moved_spec = math.nan
    if norms.fro_moved is not None and norms.spec_moved is not None:
        moved_fro, moved_spec = sum(norms.fro_moved), sum(norms.spec_moved)
        moved_ratio = math.nan if no_spec else sum(f / s for f, s in zip(norms.fro_moved, spec, strict=True))
    start, over = kit.no_start, kit.no_margin
    still = no_spec or ("the weights have not moved from their start" if moved_ratio == 0 else "")
    g = kit.log_margin
    return kit.table(
        ("params", float(norms.weights), ""),
        ("log_spec_init_main", log_spec - g + _log(moved_ratio), start or over or still),
        ("log_spec_orig_main", log_spec - g + _log(ratio), over or no_spec),
        ("log_prod_of_spec_over_margin", log_spec - g, over or no_spec),
        ("log_prod_of_spec", log_spec, no_spec),
        ("fro_over_spec", ratio, no_spec),
        ("log_sum_of_spec_over_margin", math.log(d) + (log_spec - g) / d, over or no_spec),
        ("log_sum_of_spec", math.log(d) + log_spec / d, no_spec),
        ("log_prod_of_fro_over_margin", log_fro - g, over or no_fro),
        ("log_prod_of_fro", log_fro, no_fro),
        ("log_sum_of_fro_over_margin", math.log(d) + (log_fro - g) / d, over or no_fro),
        ("log_sum_of_fro", math.log(d) + log_fro / d, no_fro),
        ("fro_dist", moved_fro, start),
        ("dist_spec_init", moved_spec, start),
        ("param_norm", fro, ""),
        ("l2", math.sqrt(fro), ""),
        ("l2_dist", math.sqrt(moved_fro), start),
    )


def margin_measures(*, m: int, margin: float | None) -> dict[str, Complexity]:
    """The inverse margin 1/γ² (eq. 22); NaN with the reason where γ > 0 does not hold.

    Raises:
        ValueError: If `m` is below 1.
    """
    kit = _Kit(m, None, margin)
    return kit.table(("inverse_margin", math.exp(-kit.log_margin), kit.no_margin))


def path_measures(log_path: float, *, m: int, margin: float | None) -> dict[str, Complexity]:
    """The path norm and the same over the squared margin (eq. 43, 44), from ln PN of `log_path_norm`.

    Raises:
        ValueError: If `m` is below 1.
    """
    kit = _Kit(m, None, margin)
    table = {}
    for name, log_raw, reason in (
        ("path_norm_over_margin", log_path - kit.log_margin, kit.no_margin),
        ("path_norm", log_path, ""),
    ):
        raw = math.exp(log_raw) if log_raw < 709 else math.inf
        table[name] = kit.nothing(name, reason) if reason else Complexity(name, raw, m, log_raw=log_raw)
    return table


def pacbayes_measures(
    weights: Float[Tensor, " omega"],
    initial: Float[Tensor, " n"] | None,
    *,
    m: int,
    sigma: float,
    sigma_magnitude: float,
    denominator: str = "w",
) -> dict[str, Complexity]:
    """The PAC-Bayes measures (eq. 48 to 61) from the noise that a network withstands.

        pacbayes_orig          ‖w‖² / (4 s²) + ln(m / s) + 10
        pacbayes_mag_orig      ¼ Σ_i ln[(e² + (t² + 1) ‖w‖²/ω) / (e² + t² w_i²)] + ln(m / t) + 10
        pacbayes_flatness      1 / s², pacbayes_mag_flatness 1 / t²

    `_init` stands for w - w⁰ in place of w. s and t are standard deviations: of the noise on every weight, and in units
    of the weights' magnitudes; e = 1e-3.

    Args:
        weights: w, all layers.
        initial: w⁰; None leaves the `_init` measures NaN.
        m: Number of training examples.
        sigma: s.
        sigma_magnitude: t.
        denominator: In pacbayes_mag_orig: "w" is the paper's; "w - w0" is what the code of Dziugaite et al. computes.

    Raises:
        ValueError: If `m` is below 1, shapes do not match or `denominator` is unknown.
    """
    kit = _Kit(m, None, None)
    w, moved, start = _ways(weights, initial)
    if denominator not in ("w", "w - w0"):
        raise ValueError(f"`denominator` must be 'w' (the paper's) or 'w - w0' (public code), got {denominator!r}.")
    below = w if denominator == "w" else moved
    s, t = sigma, sigma_magnitude
    no_s, no_t = _no_level("sigma", s), _no_level("sigma_magnitude", t)

    def flat(way: Tensor | None) -> float:
        return math.nan if way is None or no_s else _ratio(_square(way), 4 * s * s) + math.log(m / s) + 10

    def scaled(above: Tensor | None, under: Tensor | None) -> float:
        if above is None or under is None or no_t:
            return math.nan
        return _spread(above, under, t * t + 1, t) + math.log(m / t) + 10

    return kit.table(
        ("pacbayes_init", flat(moved), no_s or start),
        ("pacbayes_orig", flat(w), no_s),
        ("pacbayes_flatness", math.nan if no_s else 1 / s**2, no_s),
        ("pacbayes_mag_init", scaled(moved, moved), no_t or start),
        ("pacbayes_mag_orig", scaled(w, below), no_t or (start if below is None else "")),
        ("pacbayes_mag_flatness", math.nan if no_t else 1 / t**2, no_t),
    )


def sharpness_measures(
    weights: Float[Tensor, " omega"],
    initial: Float[Tensor, " n"] | None,
    *,
    m: int,
    alpha: float,
    alpha_magnitude: float,
    delta: float = DELTA,
) -> dict[str, Complexity]:
    """The worst-case analogues of `pacbayes_measures`, from the largest displacement that a network withstands.

        sharpness_orig         ‖w‖² ln(2ω) / (4 a²) + ln(m / a) + 10
        sharpness_mag_orig     ¼ Σ_i ln[(e² + (a'² + 4 ln(2ω/δ)) ‖w‖²/ω) / (e² + a'² w_i²)] + ln(m / a') + 10
        sharpness_flatness     1 / a², sharpness_mag_flatness 1 / a'²

    `_init` stands for w - w⁰ in place of w.

    Args:
        weights: w, all layers.
        initial: w⁰; None leaves the `_init` measures NaN.
        m: Number of training examples.
        alpha: a, the largest |u_i|.
        alpha_magnitude: a', the same in units of the weights' magnitudes.
        delta: δ, the probability with which the bound may fail.

    Raises:
        ValueError: If `m` is below 1 or shapes do not match.
    """
    kit = _Kit(m, None, None)
    w, moved, start = _ways(weights, initial)
    a, b = alpha, alpha_magnitude
    no_a, no_b = _no_level("alpha", a), _no_level("alpha_magnitude", b)
    omega = w.numel()

    def flat(way: Tensor | None) -> float:
        if way is None or no_a:
            return math.nan
        return _ratio(_square(way) * math.log(2 * omega), 4 * a * a) + math.log(m / a) + 10

    def scaled(way: Tensor | None) -> float:
        if way is None or no_b:
            return math.nan
        return _spread(way, way, b * b + 4 * math.log(2 * omega / delta), b) + math.log(m / b) + 10

    return kit.table(
        ("sharpness_init", flat(moved), no_a or start),
        ("sharpness_orig", flat(w), no_a),
        ("sharpness_flatness", math.nan if no_a else 1 / a**2, no_a),
        ("sharpness_mag_init", scaled(moved), no_b or start),
        ("sharpness_mag_orig", scaled(w), no_b),
        ("sharpness_mag_flatness", math.nan if no_b else 1 / b**2, no_b),
    )


def vc_count(parameters: int, depth: int) -> float:
    """The count p d ln p for p parameters, biases included, in d layers: how the VC dimension of ReLU networks grows.

    Source:
        Bartlett et al. (2019), JMLR 20(63): the dimension is between constants times p d ln(p/d) and p d ln p.
    """
    return parameters * depth * math.log(parameters)


class _Kit:
    """What all measures share: m, the margin, and what is missing."""

    def __init__(self, m: int, norms: LayerNorms | None, margin: float | None) -> None:
        if m < 1:
            raise ValueError(f"`m` must be the number of training examples, at least 1, got {m!r}.")
        self.m = m
        known = norms is not None and norms.fro_moved is not None
        self.no_start = "" if known else "the initial weights are not known"
        self.no_margin, self.log_margin = "", math.nan
        if margin is None or math.isnan(margin):
            self.no_margin = "the margin is not known"
        elif margin <= 0:
            self.no_margin = f"the margin is {margin:.3g}, not above 0: too many training examples are wrong"
        else:
            self.log_margin = 2 * math.log(margin)  # ln γ²

    def nothing(self, name: str, reason: str) -> Complexity:
        return Complexity(name, math.nan, self.m, reason)

    def table(self, *rows: tuple[str, float, str]) -> dict[str, Complexity]:
        found = {}
        for name, raw, reason in rows:
            why = reason or ("" if math.isfinite(raw) else "the weights are not finite")
            found[name] = self.nothing(name, why) if why else Complexity(name, raw, self.m)
        return found


def _log_product(squares: tuple[float, ...]) -> tuple[float, str]:
    if min(squares) <= 0:
        return math.nan, "a layer's weights are all zero"
    return math.fsum(math.log(s) for s in squares), ""


def _log(x: float) -> float:
    return math.log(x) if x > 0 else math.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf


def _square(way: Tensor) -> float:
    return float(way.square().sum())


def _spread(above: Tensor, under: Tensor, factor: float, level: float) -> float:
    """¼ Σ_i ln[(e² + factor ‖above‖²/ω) / (e² + level² under_i²)]."""
    omega = above.numel()
    top = math.log(EPS**2 + factor * _square(above) / omega)
    return (omega * top - float((EPS**2 + level**2 * under.square()).log().sum())) / 4


def _no_level(name: str, level: float) -> str:
    return "" if 0 < level < math.inf else f"{name} is {level:.3g}: no noise level was found"


def _ways(weights: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor | None, str]:
    w = weights.double()
    if initial is None:
        return w, None, "the initial weights are not known"
    if initial.shape != w.shape:
        raise ValueError(f"`initial` must have the shape {tuple(w.shape)} of `weights`, got {tuple(initial.shape)}.")
    return w, w - initial.double(), ""
