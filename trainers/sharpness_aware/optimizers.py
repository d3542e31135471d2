"""Optimizers from names: the base optimizer, its weight-decay groups, and a sharpness-aware method around it."""

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from landscape.perturbation import check_radius
from trainers.naming import nearest
from trainers.options import checked
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sharpness_aware.hooks import ShrinkPerturb
from trainers.sharpness_aware.methods import METHODS, compose
from trainers.sharpness_aware.radii import ConstantRadius, ProportionalRadius, Radius

Base = Literal["sgd", "adamw"]


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
    raise ValueError(f"`base` must be 'sgd' or 'adamw', got {base!r}.{nearest(str(base), ('sgd', 'adamw'))}")


def _fusable(groups: list[dict[str, Any]]) -> bool | None:
    """True where torch has one kernel for the whole update (several times faster for small models on a CPU)."""
    parameters = [p for group in groups for p in group["params"]]
    return True if all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters) else None


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
    rho_schedule: Literal["constant", "lr"] = "constant",
    rho_min: float = 0.0,
    lr_min: float = 0.0,
    ascent: Literal["loss", "obf"] | None = None,
    same_rng: bool = True,
    shrink_perturb: float = 0.0,
    grad_clip: float | None = None,
    seed: int = 0,
    **options: Any,
) -> SharpnessAware:
    """Make an optimizer of the SAM family around a base optimizer.

    Weight decay belongs to the base optimizer and acts at the restored weights, so a perturbation depends on the data's
    loss alone.

    Args:
        method: A name of `METHODS` (`landscape list methods`).
        model: The model to train.
        base: "sgd", "adamw", or a torch optimizer over the model's parameters.
        lr: Learning rate of the base optimizer; its maximum, where a schedule follows.
        momentum: Of SGD.
        nesterov: Of SGD.
        betas: Of AdamW.
        weight_decay: Of the base optimizer; biases and other tensors of one dimension get none.
        decay_all: Decay every parameter.
        rho: Radius; None takes the method's default.
        rho_schedule: "constant", or "lr" for a radius that falls with the learning rate from `rho` to `rho_min`.
        rho_min: Radius at `lr_min`, for "lr".
        lr_min: Smallest learning rate of the schedule, for "lr".
        ascent: "obf" makes the perturbation ascend the OBF objective; `step` then needs ascent closures.
        same_rng: Both passes draw the same random numbers.
        shrink_perturb: f of `ShrinkPerturb`.
        grad_clip: Largest norm of the final gradient.
        seed: Of the method's own randomness.
        **options: The method's knobs.

    Raises:
        ValueError: For an unknown method or option (with the nearest name), or a value out of range.
    """
    if method not in METHODS:
        raise ValueError(f"`method` {method!r} is unknown; there are {sorted(METHODS)}.{nearest(method, METHODS)}")
    entry = METHODS[method]
    knob_values = checked(entry.compose, options, owner=f"method {method!r}")
    if isinstance(base, Optimizer):
        inner_optimizer = base
    else:
        if lr is None:
            raise ValueError(f"`lr` is needed to make the base optimizer {base!r}.")
        inner_optimizer = make_base(
            entry.base or base,
            decay_groups(model, weight_decay, exclude_small=not decay_all),
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            betas=betas,
        )
    lr_max = float(inner_optimizer.param_groups[0]["lr"])
    radius: Radius | None = None
    if entry.rho is None:
        if rho:
            raise ValueError(f"`rho` has no meaning for method {method!r}, got {rho!r}; leave it out.")
    else:
        rho = entry.rho if rho is None else rho
        check_radius(rho)
        if rho_schedule == "constant":
            radius = ConstantRadius(rho)
        elif rho_schedule == "lr":
            radius = ProportionalRadius(rho, rho_min, lr_max, lr_min)
        else:
            raise ValueError(f"`rho_schedule` must be 'constant' or 'lr', got {rho_schedule!r}.")
    if ascent not in (None, "loss", "obf"):
        raise ValueError(f"`ascent` must be 'loss' or 'obf', got {ascent!r}.{nearest(str(ascent), ('loss', 'obf'))}")
    generator = torch.Generator().manual_seed(seed)
    parts = compose(method, radius=radius, generator=generator, ascent=ascent, options=knob_values)
    shrink = ShrinkPerturb.of(model, shrink_perturb, lr_max) if shrink_perturb else None
    return SharpnessAware(model, inner_optimizer, parts, same_rng=same_rng, shrink=shrink, grad_clip=grad_clip)
