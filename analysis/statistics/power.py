"""How many models a claim needs, before it is made.

Planned on Fisher's z scale: atanh of the coefficient is about normal with variance c/(n - d), with (c, d) = (1, 3) for
Pearson's r, (1.06, 3) for Spearman's and (0.437, 4) for Kendall's tau. The unit is an independent configuration; seeds
of one configuration count by their design effect.
"""

import math

from scipy.special import ndtr, ndtri

from analysis.statistics.arguments import one_of
from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.evidence import Evidence, Rows, joined
from analysis.statistics.mixed import intraclass_correlation
from analysis.statistics.statistic import Statistic, number, whole

PLAN = "at the observed value, which is itself uncertain: plan with the end of the interval nearer to 0"
VARIANCE = {"pearson": (1.0, 3), "spearman": (1.06, 3), "kendall": (0.437, 4)}


def required_models(
    effect: float, *, coefficient: str = "kendall", power: float = 0.8, alpha: float = 0.05, design_effect: float = 1.0
) -> int:
    """Models needed to find a true correlation with a two-sided test: c ((q_{1-α/2} + q_power)/atanh r)² + d.

    Args:
        effect: The true coefficient, inside (-1, 1) and not 0, on its own scale: tau 0.2 is about r 0.31.
        coefficient: "kendall", "spearman" or "pearson".
        power: Chance to find it.
        alpha: Level of the test.
        design_effect: Factor for models that are not independent, see `design_effect`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Fisher (1921); Fieller, Hartley and Pearson (1957), Biometrika 44(3-4), for the rank coefficients.
    """
    c, d = _check(effect, coefficient, alpha)
    if not 0 < power < 1:
        raise ValueError(f"`power` must lie inside (0, 1), for example 0.8, got {power!r}.")
    if not design_effect >= 1:
        raise ValueError(f"`design_effect` must be at least 1, got {design_effect!r}.")
    if effect == 0:
        raise ValueError("`effect` must not be 0: no number of models shows a correlation that is not there.")
    z = float(ndtri(1 - alpha / 2) + ndtri(power)) / math.atanh(abs(effect))
    return math.ceil((c * z**2 + d) * design_effect - 1e-9)


def power(
    effect: float, n: float, *, coefficient: str = "kendall", alpha: float = 0.05, design_effect: float = 1.0
) -> float:
    """Chance that a two-sided test on n models finds a true correlation; NaN where n is too small for the formula.

    Raises:
        ValueError: If an argument is out of range.
    """
    c, d = _check(effect, coefficient, alpha)
    if not design_effect >= 1:
        raise ValueError(f"`design_effect` must be at least 1, got {design_effect!r}.")
    free = n / design_effect - d
    if free <= 0:
        return math.nan
    shift, q = math.atanh(abs(effect)) * math.sqrt(free / c), float(ndtri(1 - alpha / 2))
    return float(ndtr(shift - q) + ndtr(-shift - q))


def smallest_effect(n: float, *, coefficient: str = "kendall", power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true correlation that n independent models find with the given power; NaN where n is too small.

    Raises:
        ValueError: If an argument is out of range.
    """
    c, d = _check(0.0, coefficient, alpha)
    if not 0 < power < 1:
        raise ValueError(f"`power` must lie inside (0, 1), for example 0.8, got {power!r}.")
    if n <= d:
        return math.nan
    return math.tanh(float(ndtri(1 - alpha / 2) + ndtri(power)) * math.sqrt(c / (n - d)))


def design_effect(icc: float, seeds: float) -> float:
    """1 + (seeds - 1) ICC: how many runs are worth one independent one, when runs of a configuration are alike.

    Args:
        icc: Intra-class correlation; below 0 counts as 0.
        seeds: Runs of a configuration, on average.

    Raises:
        ValueError: If `seeds` is below 1 or `icc` above 1.

    Source:
        Kish (1965), Survey Sampling.
    """
    if not (seeds >= 1 and icc <= 1):
        raise ValueError(f"`seeds` must be at least 1 and `icc` at most 1, got {seeds!r} and {icc!r}.")
    return 1 + (seeds - 1) * max(icc, 0.0)


def _check(effect: float, coefficient: str, alpha: float) -> tuple[float, int]:
    one_of("coefficient", coefficient, COEFFICIENTS)
    if not -1 < effect < 1:
        raise ValueError(f"`effect` must lie inside (-1, 1), got {effect!r}.")
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must lie inside (0, 1), for example 0.05, got {alpha!r}.")
    return VARIANCE[coefficient]


def table(evidence: Evidence) -> Rows:
    """For each tau_b: what these configurations can show, and how many the observed value would need."""
    data, rows = evidence.data, []
    kendall = evidence.correlations[evidence.correlations["coefficient"] == "kendall"]
    groups = data.configuration.tolist()
    icc = {t: intraclass_correlation(data.values[t].to_numpy(), groups) for t in kendall["target"].unique()}
    columns = ("measure", "target", "value", "n_configurations", "n_runs", "warnings")
    for measure, target, value, n, runs, warned in zip(*(kendall[c].tolist() for c in columns), strict=True):
        known = math.isfinite(value) and 1e-6 < abs(value) < 1 - 1e-9
        needed = required_models(value) if known else math.nan
        shown = power(value, n) if math.isfinite(value) and abs(value) < 1 - 1e-9 else math.nan
        effect = design_effect(icc[target], runs / n) if n and math.isfinite(icc[target]) else math.nan
        rows.append((measure, target, value, n, smallest_effect(n), shown, needed, icc[target], effect,
                     needed * effect, joined(str(warned), PLAN if known else "")))  # fmt: skip
    return rows


STATISTIC = Statistic(
    name="power",
    columns=(
        "measure target value n_configurations smallest_effect power required_configurations icc design_effect "
        "required_runs warnings"
    ),
    table=table,
    title="How many models a claim needs",
    note=(
        "For `{target}`: the smallest |τ_b| that this many configurations detect with power 0.8 in a two-sided test at "
        "0.05; the power at the observed τ_b and the configurations it needs, both as uncertain as that τ_b."
    ),
    shown={
        "τ_b": number("value"),
        "n": whole("n_configurations"),
        "Smallest shown": number("smallest_effect"),
        "Power": number("power"),
        "n needed": whole("required_configurations"),
        "Design effect": number("design_effect"),
    },
)
