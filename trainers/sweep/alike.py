"""Which runs can be trained together as one population: by their methods, and by what they have in common."""

import itertools
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from landscape.perturbation import AbsWeight, AscentStep
from trainers.sharpness_aware.ascent import Gradient, Random
from trainers.sharpness_aware.combiners import Decoupled, Rescaled, SurrogateGap, TakePerturbed, Weighted
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.gates import Always, Bernoulli, EveryK, Mode, Never, Window
from trainers.sharpness_aware.methods import METHODS, Setting
from trainers.sharpness_aware.plans import Plan
from trainers.sharpness_aware.radii import ConstantRadius
from trainers.tasks.task import CLASSIFICATION

if TYPE_CHECKING:
    from trainers.config import TrainConfig

STACKABLE = ("mlp", "cnn", "resnet20", "resnet18", "wide_resnet")  # not vit, whose attention vmap takes one by one
SMALL = ("mlp", "cnn")  # which a GPU is too large for one at a time
OWN = (
    *("seed", "data_seed", "label_noise", "init", "init_digest"),
    *("lr", "lr_min", "lr_schedule", "lr_milestones", "lr_factor", "warmup_epochs", "weight_decay", "decay_all"),
    *("method", "method_options", "ascent", "obf_classes", "obf_gamma", "obf_link", "same_rng", "reference_size"),
    *("rho", "rho_schedule", "rho_min", "rho_warmup_epochs", "gate", "gate_options", "perturb_from", "perturb_until"),
    *("checkpoints", "evaluate_every", "early_stopping", "keep_best", "base_model_options"),
)  # what each run of a population may have as it likes


def why_alone(config: "TrainConfig") -> str:
    """Why a run cannot be one of a population; empty where it can.

    Args:
        config: Resolved.
    """
    other = {
        "model": config.model not in STACKABLE,
        "model_options": config.model_options.get("dropout", 0) != 0,  # drawn by each model for itself
        "task": config.task != CLASSIFICATION,
        "class_weights": config.class_weights is not None,
        "augment": bool(config.augment),
        "freeze": bool(config.freeze),
        "average": config.average is not None,
        "precision": config.precision not in ("float32", "float64"),
        "micro_batch": config.micro_batch is not None,
        "m": config.m is not None,
        "sharing": config.sharing is not None,
        "shrink_perturb": config.shrink_perturb != 0,
        "base": config.base != "sgd",
        "gate": config.gate == "adaptive",
    }
    for key, alone in other.items():
        if alone:
            return f"`{key}` {getattr(config, key)!r}"
    parts = _composed(config.method, tuple(config.method_options.items()))
    if parts is None or not stackable(parts):
        return f"`method` {config.method!r}"
    if config.ascent == "obf" and parts.combiner.needs_loss_gradient:
        return f"`ascent` 'obf' with `method` {config.method!r}"
    return ""


def stackable(parts: Composition) -> bool:
    """Whether the parts of a method are those that `trainers.sweep.stacked` computes for many models at once."""
    gate, source, step = parts.gate, parts.source, parts.scaler
    in_time = isinstance(gate, Always | Never | Window | Bernoulli) or (
        isinstance(gate, EveryK) and gate.otherwise is Mode.PLAIN
    )
    drawn = isinstance(source, Random) and source.law == "gaussian" and source.clean_forward
    taken = type(source) is Gradient and source.data == "batch"
    combined = (TakePerturbed, SurrogateGap, Weighted, Decoupled, Rescaled) if taken else (TakePerturbed,)
    return (
        in_time
        and (drawn or taken)
        and type(parts.combiner) in combined
        and isinstance(step, AscentStep)
        and (step.p, step.over) == (2.0, "all")
        and (step.metric is None or type(step.metric) is AbsWeight)
        and parts.plan == Plan()
        and not parts.functional
        and all(part is None for part in (parts.mask, parts.weigh, parts.select))
    )


def passes(config: "TrainConfig") -> str:
    """What passes the steps of a resolved run that is not alone take: "plain", "drawn" or "ascent"."""
    if METHODS[config.method].rho is None:
        return "plain"
    parts = _composed(config.method, tuple(config.method_options.items()))
    return "drawn" if parts is not None and isinstance(parts.source, Random) else "ascent"


def populations(configs: Iterable["TrainConfig"], pieces: int = 1) -> list[tuple["TrainConfig", ...]]:
    """Runs sorted into what is trained together: a population, or one that is alone.

    Runs of a population have one model, one size of data and batch, and the same passes; they differ in `OWN`.

    Args:
        configs: Runs.
        pieces: Into how many parts of about the same size a population is cut, for as many processes.
    """
    groups: dict[str, list[TrainConfig]] = {}
    for config in configs:
        groups.setdefault(group_of(config.resolved()), []).append(config)
    return [tuple(part) for group in groups.values() for part in _cut(group, pieces)]


def group_of(config: "TrainConfig") -> str:
    """What the runs of one population have in common; of a run that is alone, its id.

    Args:
        config: Resolved.
    """
    if config.executor == "alone":
        return config.run_id
    common = {key: value for key, value in config.model_dump(mode="json").items() if key not in OWN}
    return repr([passes(config), sorted(common.items())])


def _cut(group: Sequence["TrainConfig"], pieces: int) -> list[Sequence["TrainConfig"]]:
    count = max(1, min(pieces, len(group)))
    edges = [len(group) * i // count for i in range(count + 1)]
    return [group[a:b] for a, b in itertools.pairwise(edges)]


@cache
def _composed(method: str, options: tuple[tuple[str, Any], ...]) -> Composition | None:
    """The parts of a method; None for one that must know the model."""
    setting = Setting(radius=ConstantRadius(0.0), total_steps=1, steps_per_epoch=1)
    try:
        return METHODS[method].compose(setting, **dict(options))
    except (ValueError, AttributeError, AssertionError, KeyError, TypeError):
        return None
