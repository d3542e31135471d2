"""What a checkpoint has forgotten, what a perturbation makes it forget, and the bias of its outputs."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.divergences import METRICS as MOVES
from analysis.forgetting.divergences import divergence_forgetting
from analysis.forgetting.examples import SUMMARIES
from analysis.forgetting.examples import example_forgetting as count_forgetting
from analysis.forgetting.features import feature_forgetting as forget_features
from analysis.forgetting.information import Correction
from analysis.forgetting.membership import membership_forgetting
from analysis.forgetting.metrics import BIAS_METRICS, DISTANCES, METRICS
from analysis.forgetting.output_bias import output_bias as bias_of
from analysis.forgetting.perturbed import GAPS, measure_displacements
from analysis.forgetting.spurious import DROPS, VALUES, SpuriousData
from analysis.forgetting.spurious import spurious_forgetting as forget_shortcut
from analysis.measures.catalogue.baselines import CONFIDENCE
from analysis.measures.catalogue.checks import check_some
from analysis.measures.measure import Family, Measure, Rows
from analysis.measures.needs import no_probabilities
from analysis.measures.subject import Subject, pair
from analysis.table import Row
from landscape import Params
from trainers.data.spurious import stamp
from trainers.runs.checkpoint import read_weights

Providers = tuple[str, ...]
Radii = tuple[Literal["own", "relative", "iso-loss"], ...]

OTHERS = 512  # examples of a draw that stand for those outside a batch; they are as many as the usual held-out ones
DISTANCE_GAPS = ("cw", "cw_correct", "F_mi", "JS")


@dataclass(frozen=True, kw_only=True)
class Perturbing:
    """The options that measures of a perturbation share, see `Displacements`."""

    providers: Providers = ("sam", "obf")
    radii: Radii = ("own", "iso-loss")
    m: int | None = 64
    batches: int | None = None
    iso_loss: float = 0.1
    relative: float = 0.05

    def of(self, subject: Subject, **more: Any) -> Displacements:
        """What is to be applied to a subject, whose own perturbation and weights go with it."""
        return Displacements(
            **{**vars(self), "m": None if self.m is None else min(self.m, subject.risk.n)},
            own=subject.own,
            initial=subject.initial,
            batch_size=subject.batch_size,
            last_update=last_update(subject) if "last_update" in self.providers else None,
            **more,
        )


def perturbing(**defaults: Any) -> Callable[[Callable[..., Rows]], Callable[..., Rows]]:
    """Give a measure, whose second argument is a `Perturbing`, that one's fields as options before its own."""
    shared = inspect.signature(Perturbing).parameters.values()
    fields = {p.name: p.replace(default=defaults.get(p.name, p.default)) for p in shared}

    def with_options(measure: Callable[..., Rows]) -> Callable[..., Rows]:
        @wraps(measure)
        def call(subject: Subject, **given: Any) -> Rows:
            asked = Perturbing(**{name: given.pop(name, p.default) for name, p in fields.items()})
            return measure(subject, asked, **given)

        first, _, *own = inspect.signature(measure).parameters.values()
        call.__signature__ = inspect.Signature([first, *fields.values(), *own])  # type: ignore[attr-defined]
        return call

    return with_options


def example_forgetting(
    subject: Subject, *, protocols: tuple[Literal["presentation", "sweep"], ...] = ("presentation", "sweep")
) -> Rows:
    """Example forgetting (Toneva et al. 2019): mean events, shares of unforgettable and never learned examples."""
    check_some("protocols", protocols)
    rows: Rows = []
    for protocol in protocols:
        if protocol == "presentation" and subject.config is not None and subject.config.mixes and len(protocols) > 1:
            why = "examples were mixed when they were presented, and none had a label of its own"
            rows += [Row(name, math.nan, math.nan, options={"protocol": protocol}, warnings=why) for name in SUMMARIES]
            continue
        correct = subject.correctness(protocol)
        if protocol == "sweep" and subject.epoch and not len(correct):
            why = "`evaluate_every` left out the sweep over the training data up to this checkpoint"
            rows += [Row(name, math.nan, math.nan, options={"protocol": protocol}, warnings=why) for name in SUMMARIES]
        else:
            rows += count_forgetting(correct).rows(protocol=protocol)
    return rows


def forgetting_counts(
    subject: Subject, *, protocols: tuple[Literal["presentation", "sweep"], ...] = ("presentation",)
) -> Rows:
    """Share of the training examples by the number of times they were forgotten; never learned is apart."""
    check_some("protocols", protocols)
    rows: Rows = []
    for protocol in protocols:
        counted = count_forgetting(subject.correctness(protocol))
        n = len(counted.events)
        by_events: dict[int | str, int] = {
            int(k): int(c)
            for k, c in zip(*np.unique(counted.events[~counted.never_learned], return_counts=True), strict=True)
        }
        by_events["never"] = int(counted.never_learned.sum())
        rows += [
            Row(
                "share_forgotten",
                c / n,
                math.sqrt(c / n * (1 - c / n) / n),
                n,
                options={"protocol": protocol, "events": k},
            )
            for k, c in by_events.items()
        ]
    return rows


def perturbed_forgetting(
    subject: Subject,
    *,
    providers: Providers = ("sam", "asam", "obf", "random", "zero"),
    radii: Radii = ("own", "iso-loss"),
    m: int | tuple[int | None, ...] | None = 64,
    batches: int | None = None,
    iso_loss: float = 0.1,
    relative: float = 0.05,
    C: float | None = None,
    gamma: float = 1.0,
    eta: float = 0.0,
    scope: Literal["all", "weights"] = "all",
    outputs: Literal["softmax", "sigmoid"] = "softmax",
    correction: Literal["plug-in", "first-order", "jackknife"] = "first-order",
    resamples: int = 0,
) -> Rows:
    """Information, loss and decisions before and after a perturbation, see `analysis.forgetting.perturbed`.

    Several sizes m of the perturbation batch may be given; each has rows of its own. Of a task without classes it is
    how far predictions move, and how much the loss rises, see `analysis.forgetting.divergences`; rows of classes are
    marked.
    """
    sizes = m if isinstance(m, tuple) else (m,)
    check_some("m", sizes)
    tokens = hasattr(subject.task, "tokens")
    labelled = tokens or not no_probabilities(subject.task)
    if (tokens or not labelled) and (resamples or outputs != "softmax"):
        raise ValueError(
            f"`resamples` and `outputs` are for classes, got {resamples} and {outputs!r} for the task with loss "
            f"{subject.task.name!r}: leave them out."
        )
    shared: dict[str, Any] = {
        "providers": providers, "radii": radii, "batches": batches, "iso_loss": iso_loss, "relative": relative,
    }  # fmt: skip
    own: dict[str, Any] = {"C": C, "gamma": gamma, "eta": eta, "scope": scope, "outputs": outputs}
    asked = [Perturbing(m=size, **shared).of(subject, **own) for size in sizes]
    if not labelled:
        return [*_moved(subject, asked), *_without_classes(subject)]
    measured = [_measure(subject, each, METRICS, GAPS, ("held_out",), correction, resamples) for each in asked]
    return [row for rows in measured for row in rows]


def _moved(subject: Subject, asked: Sequence[Displacements]) -> Rows:
    """How far predictions without classes move."""
    rows: Rows = []
    for each in asked:
        rows += divergence_forgetting(
            subject.risk, pair(subject.held_out), replace(each, loss=subject.task.loss), subject.task,
            others=OTHERS if subject.drawn else None, generator=subject.generator("forgetting"),
        )  # fmt: skip
    return rows


def _without_classes(subject: Subject) -> Rows:
    """The rows that only classes have, with the reason."""
    why = no_probabilities(subject.task)
    names = [name for name in (*METRICS, *(f"M_gap_{gap}" for gap in GAPS)) if name not in MOVED]
    return [Row(name, math.nan, math.nan, 0, warnings=why) for name in names]


@perturbing()
def forgetting_distances(subject: Subject, asked: Perturbing, *, resamples: int = 0) -> Rows:
    """How far outputs and decisions moved: F_rel, divergences, decisions; exposed against other training data too."""
    return _measure(subject, asked.of(subject), DISTANCES, DISTANCE_GAPS, ("other_train",), "first-order", resamples)


@perturbing()
def forgetting_of_bias(subject: Subject, asked: Perturbing, *, resamples: int = 0) -> Rows:
    """How much of each output bias a perturbation takes away; positive means that the bias is reduced."""
    return _measure(subject, asked.of(subject), BIAS_METRICS, (), (), "first-order", resamples)


@perturbing()
def membership(subject: Subject, asked: Perturbing) -> Rows:
    """How well the loss tells training from held-out examples, and how much of that a perturbation undoes."""
    held_out, generator = pair(subject.held_out), subject.generator("forgetting")
    return membership_forgetting(subject.risk, held_out, asked.of(subject), generator=generator)


@perturbing()
def feature_forgetting(
    subject: Subject,
    asked: Perturbing,
    *,
    noise: float = 0.1,
    draws: int = 1,
    leave_one_out: bool = False,
    layer: str | None = None,
) -> Rows:
    """Information of noisy features about the input within a class, and how much of it a perturbation takes away."""
    return forget_features(
        subject.risk, pair(subject.held_out), asked.of(subject), noise=noise, draws=draws, leave_one_out=leave_one_out,
        layer=layer, generator=subject.generator("forgetting"),
    )  # fmt: skip


@perturbing(providers=("sam", "obf", "random"))
def spurious_forgetting(subject: Subject, asked: Perturbing) -> Rows:
    """What a perturbation forgets of a planted shortcut, and what of the class; needs data with a patch."""
    if "spurious" not in subject.data.ood:
        why = "the data have no planted shortcut: train with `spurious`"
        return [Row(name, math.nan, math.nan, 0, split="ood", warnings=why) for name in (*VALUES, *DROPS)]
    shifted, classes = subject.data.ood["spurious"], subject.data.classes
    codes, low, high = read_patch(shifted.x, classes=classes)
    dark = stamp(shifted.x, torch.full_like(codes, -1), classes=classes, low=low, high=high)
    data = SpuriousData(shifted.x, shifted.y, codes, kept=subject.data.test.x, removed=dark)
    return forget_shortcut(subject.risk, data, asked.of(subject), generator=subject.generator("forgetting"))


def read_patch(x: Tensor, *, classes: int) -> tuple[Tensor, float, float]:
    """The class that each patch of `trainers.data.spurious.stamp` names, and the values of its dark and lit cells.

    The cells must show both values somewhere in x, as they do where patches name random classes.
    """
    bits = classes.bit_length()
    side = math.isqrt(bits - 1) + 1
    cells = [x[:, 0, -1 - b // side, b % side] if x.ndim == 4 else x[:, 0, b] for b in range(bits)]
    shown = torch.stack(cells, 1)
    low, high = float(shown.min()), float(shown.max())
    lit = (shown > (low + high) / 2).long()
    return (lit << torch.arange(bits, device=x.device)).sum(1) - 1, low, high


def last_update(subject: Subject) -> Params | None:
    """θ minus the weights one step before, where the run kept a checkpoint of that step; else None."""
    if subject.run is None or subject.step < 1 or subject.weights:
        return None
    folder = subject.run.checkpoints().get(subject.step - 1)
    if folder is None:
        return None
    before = read_weights(folder / "params.safetensors")
    return {name: t - before[name].to(t) for name, t in subject.risk.theta.items()}


def _measure(
    subject: Subject,
    asked: Displacements,
    metrics: tuple[str, ...],
    gaps: tuple[str, ...],
    contrasts: tuple[Literal["held_out", "other_train"], ...],
    correction: Correction,
    resamples: int,
) -> Rows:
    rows = measure_displacements(
        subject.risk, pair(subject.held_out), asked, metrics=metrics, gaps=gaps, contrasts=contrasts,
        correction=correction, resamples=resamples, others=OTHERS if subject.drawn else None,
        task=subject.task if hasattr(subject.task, "tokens") else None,
        generator=subject.generator("forgetting"),
    )  # fmt: skip
    # how far θ moved is said once, by the usual entry
    return rows if metrics == METRICS else [row for row in rows if row.measure not in SIZES]


def output_bias(subject: Subject) -> Rows:
    """Bias of the outputs on held-out examples; how sure and how spread they are is a baseline."""
    held_out = subject.held_out
    probs = subject.probabilities(subject.outputs_on(held_out)).numpy()
    rows = bias_of(probs, held_out.y.cpu().numpy(), split="held_out")
    return [row for row in rows if row.measure not in CONFIDENCE]


SIZES = ("eps_norm", "eps_rho")
MOVED = (*MOVES, "KL_entry", *(f"M_gap_{name}" for name in MOVES))
FORGETTING_ROWS = (*METRICS, *(f"M_gap_{name}" for name in GAPS), *SIZES)
ONLY_MOVED = tuple(name for name in MOVED if name not in FORGETTING_ROWS)
DISTANCE_ROWS = (*DISTANCES, *(f"M_gap_tr_{name}" for name in DISTANCE_GAPS))
INHERITS = "function, inherits the perturbation's"

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
        needs=("decisions",),
    ),
    "forgetting_counts": Measure(
        forgetting_counts,
        ("share_forgotten",),
        "share of the training examples by how often they were forgotten, those never learned apart",
        "forgetting",
        "more examples",
        0,
        "function",
        "0",
        usual=False,
        needs=("decisions",),
    ),
    "perturbed_forgetting": Measure(
        perturbed_forgetting,
        (*FORGETTING_ROWS, *ONLY_MOVED),
        "what a perturbation of the weights makes the model forget",
        "forgetting",
        "forgets more",
        -1,
        INHERITS,
        "about 90",
        gradients=90,
        needs=("divergence",),
        sampled=True,
        sometimes=ONLY_MOVED,
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
            "overconfidence",
            "classwise_bias",
        ),
        "bias of the outputs on held-out data",
        "bias",
        "more biased",
        +1,
        "T1 T2 T3 T5",
        "1/3",
        gradients=0.2,
        needs=("probabilities",),
        version=2,
    ),
    "forgetting_distances": Measure(
        forgetting_distances,
        DISTANCE_ROWS,
        "how far a perturbation moves outputs and decisions",
        "forgetting",
        "forgets more",
        0,
        INHERITS,
        "about 90",
        usual=False,
        gradients=90,
        needs=("predictions",),
        sampled=True,
    ),
    "forgetting_of_bias": Measure(
        forgetting_of_bias,
        BIAS_METRICS,
        "how much of each output bias a perturbation takes away",
        "forgetting",
        "forgets more",
        -1,
        INHERITS,
        "about 90",
        usual=False,
        gradients=90,
        needs=("predictions",),
        sampled=True,
    ),
    "membership": Measure(
        membership,
        ("membership_auc", "F_mem"),
        "how well the loss tells training from held-out data, and what a perturbation undoes of it",
        "forgetting",
        "forgets more",
        -1,
        INHERITS,
        "about 60",
        usual=False,
        gradients=60,
        needs=("probabilities",),
        sampled=True,
    ),
    "feature_forgetting": Measure(
        feature_forgetting,
        ("feature_information", "F_z"),
        "what a perturbation makes noisy features forget",
        "forgetting",
        "forgets more",
        -1,
        INHERITS,
        "about 60, and n² a class",
        usual=False,
        gradients=60,
        needs=("probabilities",),
        sampled=True,
    ),
    "spurious_forgetting": Measure(
        spurious_forgetting,
        (*VALUES, *DROPS),
        "what a perturbation forgets of a planted shortcut, and what of the class",
        "forgetting",
        "forgets more",
        -1,
        INHERITS,
        "about 200",
        usual=False,
        gradients=200,
        needs=("probabilities",),
        sampled=True,
    ),
}

# Rows whose expected sign is not that of their registry entry; 0 where theory predicts none.
SIGNS = {
    "fraction_unforgettable": -1,
    "F_use": 0,
    "KL": 0,
    "dCE": 0,
    "dloss": 0,
    "KL_entry": 0,
    "dH": 0,
    "cw": 0,
    "wc": 0,
    "F_bias": -1,
    "eps_norm": -1,
    "eps_rho": 0,
    "cw_correct": 0,
    "wc_wrong": 0,
    "membership_auc": +1,
    "feature_information": +1,
    "spurious_information": 0,
    "real_information": 0,
    "shortcut_followed": 0,
    "truth_followed": 0,
    "F_real": 0,
    "F_truth": 0,
    "F_without": 0,
}

# Rows of another family than their entry's: how far weights must move for a given rise of the loss is flatness.
FAMILIES: dict[str, Family] = dict.fromkeys(SIZES, "sharpness")

# Metrics of outputs that need the labels of the examples, or their classes; the others need the outputs alone.
LABELLED = (
    *("F_cmi", "F_use", "selectivity", "F_rel", "F_cmi_hard", "F_use_hard", "F_z", "feature_information"),
    *("dloss", "dCE", "cw", "wc", "ww", "cw_correct", "wc_wrong", "F_mem", "membership_auc"),
    *("b_prior", "b_prior_count", "overconfidence", "classwise_bias"),
    *("F_bias_prior", "F_bias_prior_count", "F_classwise", "F_overconfidence", "F_ece"),
)
