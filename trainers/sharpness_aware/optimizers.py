"""Optimizers from names: the base optimizer, its weight-decay groups, and a sharpness-aware method around it."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from landscape.perturbation import check_radius
from landscape.ranks import Ranks
from landscape.spread import spread
from trainers.naming import nearest
from trainers.options import checked, validated
from trainers.sharpness_aware.arguments import (
    check_base,
    check_counts,
    check_flags,
    check_given_base,
    check_known,
    check_model,
    check_numbers,
)
from trainers.sharpness_aware.bsam import BSAM
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sharpness_aware.gates import AdaptiveNorm, Bernoulli, EveryK, Gate, Window, joined
from trainers.sharpness_aware.hooks import ShrinkPerturb
from trainers.sharpness_aware.methods import METHODS, Setting
from trainers.sharpness_aware.radii import (
    ConstantRadius,
    CosineRadius,
    LinearRamp,
    LrMultiple,
    ProportionalRadius,
    Radius,
    StartJump,
)
from trainers.sharpness_aware.ranks import Noise, Sharing, bare, circle_index
from trainers.sharpness_aware.trained import Trained

Base = Literal["sgd", "adamw", "bsam"]
RadiusSchedule = Literal["constant", "lr", "lr_multiple", "linear", "start_jump", "cosine"]
GateName = Literal["periodic", "random", "adaptive"]
GATES: dict[str, type[Gate]] = {"periodic": EveryK, "random": Bernoulli, "adaptive": AdaptiveNorm}
SHARINGS = ("chunk", "batch", "group", "global")


def decay_groups(model: nn.Module, weight_decay: float, *, exclude_small: bool = True) -> list[dict[str, Any]]:
    """Parameter groups of a model: weight decay for weights, none for tensors of at most one dimension.

    Args:
        model: Frozen parameters are left out; those it names in a method `no_weight_decay()` get no decay.
        weight_decay: Decay of the first group.
        exclude_small: False puts every parameter in one group.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not exclude_small or weight_decay == 0:
        return [{"params": [p for _, p in named], "weight_decay": weight_decay}]
    listing: Any = getattr(model, "no_weight_decay", None)
    listed = set(listing()) if callable(listing) else set()
    small = [n for n, p in named if p.ndim <= 1 or n.endswith(".bias") or n in listed]
    groups = [
        {"params": [p for n, p in named if n not in set(small)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n in set(small)], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def make_base(
    base: Base,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    **more: Any,
) -> Optimizer:
    """The base optimizer by name.

    Raises:
        ValueError: For an unknown name, or a learning rate or momentum out of range.
    """
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"`lr` must be finite and >= 0, got {lr!r}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be in [0, 1), got {momentum!r}.")
    fused = _fusable(groups)
    if base == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    if base == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if base == "bsam":
        if more.get("examples") is None:
            raise ValueError("method 'bsam' weighs its prior against the data: pass `examples=`, their number.")
        return BSAM(groups, lr, betas=betas, **more)
    names = ("sgd", "adamw", "bsam")
    raise ValueError(f"`base` must be one of {names}, got {base!r}.{nearest(str(base), names)}")


def _fusable(groups: list[dict[str, Any]]) -> bool | None:
    """True where torch has one kernel for the whole update (several times faster for small models on a CPU)."""
    parameters = [p for group in groups for p in group["params"]]
    fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and not spread(p) for p in parameters)
    return True if fits else None


def make_optimizer(
    method: str,
    model: nn.Module,
    base: Base | Optimizer = "sgd",
    *,
    lr: float | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    decay_all: bool = False,
    rho: float | None = None,
    rho_schedule: RadiusSchedule = "constant",
    rho_min: float = 0.0,
    rho_steps: int = 0,
    lr_min: float = 0.0,
    ascent: Literal["loss", "obf"] | None = None,
    gate: GateName | Gate | None = None,
    gate_options: Mapping[str, Any] | None = None,
    window: tuple[int, int | None] | None = None,
    sharing: Sharing = "chunk",
    group: Any = None,
    group_size: int | None = None,
    same_rng: bool = True,
    shrink_perturb: float = 0.0,
    grad_clip: float | None = None,
    grad_scaler: GradScaler | None = None,
    skip_nonfinite: bool = False,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    base_shapes: Mapping[str, Sequence[int]] | None = None,
    examples: int | None = None,
    prior_precision: float = 40.0,
    damping: float = 0.1,
    diagnose: bool = False,
    parallel_gradients: bool = False,
    seed: int = 0,
    **options: Any,
) -> SharpnessAware:
    """Make an optimizer of the SAM family around a base optimizer.

    Weight decay belongs to the base optimizer and acts at the restored weights, so a perturbation depends on the data's
    loss alone. Clipping acts on the final gradient, after unscaling and the average over ranks.

    Args:
        method: A name of `METHODS` (`landscape list methods`).
        model: The model to train; with several processes the DistributedDataParallel model.
        base: "sgd", "adamw", or a torch optimizer over the model's parameters, or some of them: those are perturbed,
            clipped and cleared, and no others. Its groups may have `maximize`, and a `rho` of their own. Some methods
            fix it.
        lr: Learning rate of the base optimizer; its maximum, where a schedule follows.
        momentum: Of SGD.
        nesterov: Of SGD.
        betas: Of AdamW and bSAM.
        weight_decay: Of the base optimizer; biases and other tensors of one dimension get none.
        decay_all: Decay every parameter.
        rho: Radius; None takes the method's default. A parameter group's own `rho` goes before it.
        rho_schedule: "constant"; "lr" between `rho_min` at `lr_min` and `rho` at `lr`; "lr_multiple", rho times the
            learning rate; "linear" from `rho_min` to `rho` over `rho_steps` steps; "start_jump", zero for `rho_steps`
            steps; "cosine" from `rho` to `rho_min` over `total_steps`.
        rho_min: Smallest radius of a schedule.
        rho_steps: Steps of "linear" and "start_jump".
        lr_min: Smallest learning rate of the schedule, for "lr".
        ascent: "obf" makes the perturbation ascend the OBF objective; `step` then needs ascent closures.
        gate: Perturb only some steps: "periodic" (every `k`), "random" (probability `p`), "adaptive" (AE-SAM's rule),
            or a gate of your own; it acts besides the method's own gate.
        gate_options: Knobs of the gate, such as {"k": 5}.
        window: Perturb only steps from the first up to, not including, the second (late-phase SAM).
        sharing: Who shares a perturbation: each "chunk" (closure) its own, all chunks of this rank's "batch", a
            "group" of ranks, or all ("global").
        group: Process group of all ranks; None is the default.
        group_size: Ranks that share, for "group".
        same_rng: All passes of a step draw the same random numbers.
        shrink_perturb: f of `ShrinkPerturb`.
        grad_clip: Largest norm of the final gradient.
        grad_scaler: torch's scaler, for float16; closures multiply the loss by its scale.
        skip_nonfinite: Skip a step in which a loss or gradient of any pass is NaN or infinite; nothing moves, and
            `last.overflow` says where it was.
        total_steps: Length of the run, for schedules that need it.
        steps_per_epoch: Steps of an epoch, for methods that count epochs.
        base_shapes: Shapes of the base model's parameters, for muP².
        examples: Number of training examples, for bSAM.
        prior_precision: Of bSAM.
        damping: Of bSAM.
        parallel_gradients: Take SAMPa's two gradients on two processes that get the same batches (see
            `parallel_gradients.Pair`), instead of splitting batches over processes.
        diagnose: Also record the cosine of clean and perturbed gradient, and the final gradient's norm.
        seed: Of the method's own randomness.
        **options: The method's knobs.

    Raises:
        ValueError: For an unknown method or option (with the nearest name), or a value out of range.
    """
    if not isinstance(method, str):
        raise ValueError(
            f"`method` must be a name, such as 'sam', got a {type(method).__name__}; the order is "
            f"`make_optimizer(method, model, base)`."
        )
    if method not in METHODS:
        raise ValueError(f"`method` {method!r} is unknown; there are {sorted(METHODS)}.{nearest(method, METHODS)}")
    entry = METHODS[method]
    check_model(model)
    check_numbers(
        lr=lr, momentum=momentum, betas=betas, weight_decay=weight_decay, rho=rho, rho_min=rho_min, lr_min=lr_min,
        shrink_perturb=shrink_perturb, grad_clip=grad_clip, prior_precision=prior_precision, damping=damping,
    )  # fmt: skip
    check_counts(
        rho_steps=rho_steps, total_steps=total_steps, steps_per_epoch=steps_per_epoch, group_size=group_size, seed=seed,
        examples=examples, window=window,
    )  # fmt: skip
    check_flags(
        nesterov=nesterov, decay_all=decay_all, same_rng=same_rng, skip_nonfinite=skip_nonfinite, diagnose=diagnose,
        parallel_gradients=parallel_gradients,
    )  # fmt: skip
    if not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise ValueError(f"`betas` must be two numbers, got {betas!r}.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"`weight_decay` must be finite and >= 0, got {weight_decay!r}.")
    if grad_scaler is not None and not hasattr(grad_scaler, "is_enabled"):
        raise ValueError(f"`grad_scaler` must be a torch.amp.GradScaler, got {grad_scaler!r}.")
    if window is not None and not (isinstance(window, tuple | list) and len(window) == 2 and window[0] is not None):
        raise ValueError(f"`window` must be (first step, step after the last or None), got {window!r}.")
    own = [name for name in inspect.signature(make_optimizer).parameters if name != "options"]
    knob_values = checked(entry.compose, options, owner=f"method {method!r}", text=False, others=own)
    if ascent not in (None, "loss", "obf"):
        raise ValueError(f"`ascent` must be 'loss' or 'obf', got {ascent!r}.{nearest(str(ascent), ('loss', 'obf'))}")
    if ascent == "obf" and not entry.other_ascent:
        raise ValueError(
            f"`ascent` 'obf' has no meaning for method {method!r}: it does not ascend an objective's gradient."
        )
    if sharing not in SHARINGS:
        raise ValueError(f"`sharing` must be one of {SHARINGS}, got {sharing!r}.{nearest(str(sharing), SHARINGS)}")
    if not isinstance(base, str):
        check_base(base)
        given = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": betas, "weight_decay": weight_decay}
        check_given_base(base, given)
        inner_optimizer = base
    else:
        if lr is None:
            raise ValueError(f"`lr` is needed to make the base optimizer {base!r}.")
        inner_optimizer = make_base(
            entry.base or base,
            decay_groups(bare(model), weight_decay, exclude_small=not decay_all),
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            betas=betas,
            **_bayesian(entry.base, examples, prior_precision, damping),
        )
    if entry.base == "sgd" and entry.rho is not None and not isinstance(inner_optimizer, torch.optim.SGD):
        raise ValueError(f"method {method!r} needs `base` 'sgd': it foresees the base optimizer's own step.")
    generator = torch.Generator().manual_seed(seed)
    trained = Trained(model, inner_optimizer)
    setting = Setting(
        trained=trained,
        radius=_radius(
            method,
            rho,
            rho_schedule,
            rho_min,
            rho_steps,
            lr_min,
            float(inner_optimizer.param_groups[0]["lr"]),
            total_steps,
        ),
        model=bare(model),
        base=inner_optimizer,
        generator=generator,
        seed=seed,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        base_shapes=base_shapes,
    )
    parts = entry.compose(setting, **knob_values)
    check_known(rho_min=rho_min, lr_min=lr_min, **knob_values)
    gates: list[Gate] = [Window(*window)] if window is not None else []
    if gate_options and not isinstance(gate, str):
        raise ValueError(f"`gate_options` belong to a gate by name, got {dict(gate_options)!r} with gate {gate!r}.")
    if gate is not None:
        gates.append(gate if isinstance(gate, Gate) else _gate(gate, gate_options or {}, seed, total_steps, window))
    if window is not None and isinstance(parts.gate, EveryK):
        parts = replace(parts, gate=replace(parts.gate, offset=window[0]))
    parts = replace(
        parts,
        ascent=ascent or entry.ascent,
        other_ascent=entry.other_ascent or entry.rho is None,  # a plain optimizer may be handed closures it ignores
        gate=joined(*gates, parts.gate),
    )
    shrink = (
        ShrinkPerturb.of(model, shrink_perturb, float(inner_optimizer.param_groups[0]["lr"]))
        if shrink_perturb
        else None
    )
    return SharpnessAware(
        model,
        inner_optimizer,
        parts,
        same_rng=same_rng,
        shrink=shrink,
        grad_clip=grad_clip,
        sharing=sharing,
        group=group,
        group_size=group_size,
        grad_scaler=grad_scaler,
        skip_nonfinite=skip_nonfinite,
        diagnose=diagnose,
        parallel_gradients=parallel_gradients,
        noise=Noise(generator, seed, circle_index(sharing, Ranks.of(group).rank, group_size)),
    )


def _bayesian(base: str | None, examples: int | None, prior_precision: float, damping: float) -> dict[str, Any]:
    if base != "bsam":
        return {}
    return {"examples": examples, "prior_precision": prior_precision, "damping": damping}


def _radius(
    method: str,
    rho: float | None,
    schedule: str,
    rho_min: float,
    steps: int,
    lr_min: float,
    lr_max: float,
    total: int | None,
) -> Radius:
    default = METHODS[method].rho
    if default is None:
        if rho:
            raise ValueError(f"`rho` has no meaning for method {method!r}, got {rho!r}; leave it out.")
        return ConstantRadius(0.0)
    rho = default if rho is None else rho
    check_radius(rho)
    if schedule == "cosine":
        if total is None:
            raise ValueError("`rho_schedule` 'cosine' needs the length of the run: pass `total_steps=`.")
        return CosineRadius(rho, rho_min, total)
    if schedule in ("linear", "start_jump") and steps < 1:
        raise ValueError(
            f"`rho_schedule` {schedule!r} needs the steps that it takes: pass `rho_steps=`, got {steps!r}."
        )
    makers: dict[str, Radius] = {
        "constant": ConstantRadius(rho),
        "lr": ProportionalRadius(rho, rho_min, lr_max, lr_min),
        "lr_multiple": LrMultiple(rho),
        "linear": LinearRamp(rho, rho_min, steps),
        "start_jump": StartJump(rho, steps),
    }
    if schedule not in makers:
        names = [*makers, "cosine"]
        raise ValueError(f"`rho_schedule` must be one of {names}, got {schedule!r}.{nearest(str(schedule), names)}")
    return makers[schedule]


def _gate(
    name: str, options: Mapping[str, Any], seed: int, total_steps: int | None, window: tuple[int, int | None] | None
) -> Gate:
    """A gate by name with its options."""
    if name not in GATES:
        raise ValueError(f"`gate` must be one of {sorted(GATES)}, got {name!r}.{nearest(str(name), GATES)}")
    kind = GATES[name]
    given = {"total": total_steps, "seed": seed, "offset": window[0] if window else 0}
    known = [f.name for f in fields(kind) if f.init and f.name not in (*given, "otherwise")]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise ValueError(f"gate {name!r} has no option `{option}`; it has {known}.{nearest(option, known)}")
    accepted = inspect.signature(kind).parameters
    types = {f.name: f.type for f in fields(kind)}  # type: ignore[arg-type]
    options = {
        k: validated(v, types[k], f"option `{k}` of gate {name!r}", text=False) if types[k] in (int, float) else v
        for k, v in options.items()
    }
    return kind(**options, **{k: v for k, v in given.items() if k in accepted})
