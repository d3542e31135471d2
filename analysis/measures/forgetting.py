"""What a checkpoint has forgotten, what a perturbation makes it forget, and the bias of its outputs."""

from typing import Literal

from analysis.forgetting.examples import example_forgetting as count_forgetting
from analysis.forgetting.output_bias import output_bias as bias_of
from analysis.forgetting.perturbed import perturbed_forgetting as measure_forgetting
from analysis.measures.measure import Measure, Rows
from analysis.measures.subject import Subject, pair


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
    """Information, loss and decisions before and after a perturbation, see `analysis.forgetting.perturbed`."""
    size = None if m is None else min(m, len(subject.data.train))
    return measure_forgetting(
        subject.risk,
        pair(subject.data.validation),
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
    probs = subject.risk.on(pair(held_out)).outputs().double().softmax(-1).numpy()
    return bias_of(probs, held_out.y.numpy(), split="held_out")


FORGETTING_ROWS = (
    "F_cmi", "F_mi", "F_use", "selectivity", "dH", "KL", "dCE", "cw", "wc", "F_bias",
    "M_gap_F_cmi", "M_gap_F_mi", "M_gap_dCE", "M_gap_cw", "eps_norm", "eps_rho",
)  # fmt: skip

MEASURES = {
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
