"""Optimizers from names: the base optimizer, its weight-decay groups, and a sharpness-aware method around it."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from landscape.ranks import Ranks
from landscape.spread import spread
from trainers.sharpness_aware.arguments import check_known, check_model, check_trainable
from trainers.sharpness_aware.bsam import BSAM
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sharpness_aware.gates import EveryK, joined
from trainers.sharpness_aware.methods import Setting
from trainers.sharpness_aware.methods.own import import_methods
from trainers.sharpness_aware.ranks import Noise, bare, circle_index
from trainers.sharpness_aware.spec import Base, MethodSpec
from trainers.sharpness_aware.trained import Trained


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


def make_base(spec: MethodSpec, model: nn.Module) -> Optimizer:
    """The base optimizer that a specification names, over a model's parameters; or the one that it holds.

    Raises:
        ValueError: If it is not the one that the method needs, or there is nothing to train.
    """
    base: Any = spec.base
    if isinstance(base, str):
        check_trainable(model)
        groups = decay_groups(bare(model), spec.weight_decay, exclude_small=not spec.decay_all)
        name, lr, fused = spec.entry.base or base, spec.lr, _fusable(groups)
        assert lr is not None
        if name == "sgd":
            base = torch.optim.SGD(groups, lr=lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=fused)
        elif name == "adamw":
            base = torch.optim.AdamW(groups, lr=lr, betas=spec.betas, fused=fused)
        elif spec.examples is None:
            raise ValueError("method 'bsam' weighs its prior against the data: pass `examples=`, their number.")
        else:
            prior = {"prior_precision": spec.prior_precision, "damping": spec.damping}
            base = BSAM(groups, lr, betas=spec.betas, examples=spec.examples, **prior)
    if spec.entry.base == "sgd" and spec.entry.rho is not None and not isinstance(base, torch.optim.SGD):
        raise ValueError(f"method {spec.method!r} needs `base` 'sgd': it foresees the base optimizer's own step.")
    made: Optimizer = base
    return made


def device_of_draws(base: Optimizer) -> torch.device:
    """Where a method draws its random vectors: on the device of the weights, so that none travels.

    Kinds of device draw different numbers from the same seed.
    """
    device: torch.device = base.param_groups[0]["params"][0].device
    return device if device.type in ("cuda", "mps", "xpu") else torch.device("cpu")


def _fusable(groups: list[dict[str, Any]]) -> bool | None:
    """True where torch has one kernel for the whole update (several times faster for small models on a CPU)."""
    parameters = [p for group in groups for p in group["params"]]
    fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and not spread(p) for p in parameters)
    return True if fits else None


def optimizer_of(spec: MethodSpec, model: nn.Module) -> SharpnessAware:
    """The optimizer that a specification describes.

    Args:
        spec: The method, its base optimizer, and what it is told of the run.
        model: The model to train; with several processes the DistributedDataParallel model.

    Raises:
        ValueError: If the method and the model do not go together, or a knob is out of range.
    """
    base = make_base(spec, model)
    generator = torch.Generator(device_of_draws(base)).manual_seed(spec.seed)
    setting = Setting(
        radius=spec.radius(float(base.param_groups[0]["lr"])),
        model=bare(model),
        base=base,
        trained=Trained(model, base),
        generator=generator,
        seed=spec.seed,
        total_steps=spec.total_steps,
        steps_per_epoch=spec.steps_per_epoch,
        base_shapes=spec.base_shapes,
    )
    entry = spec.entry
    parts = entry.compose(setting, **spec.options)
    check_known(rho_min=spec.rho_min, lr_min=spec.lr_min, **spec.options)
    if spec.window is not None and isinstance(parts.gate, EveryK):
        parts = replace(parts, gate=replace(parts.gate, offset=spec.window[0]))
    parts = replace(
        parts,
        ascent=spec.ascent or entry.ascent,
        other_ascent=entry.other_ascent or entry.rho is None,  # a plain optimizer may be handed closures it ignores
        gate=joined(*spec.gates(), parts.gate),
    )
    circle = circle_index(spec.sharing, Ranks.of(spec.group).rank, spec.group_size)
    return SharpnessAware(model, base, parts, spec, noise=Noise(generator, spec.seed, circle))


def make_optimizer(method: str, model: nn.Module, base: Base | Optimizer = "sgd", **settings: Any) -> SharpnessAware:
    """Make an optimizer of the SAM family around a base optimizer.

    Args:
        method: A name of `METHODS` (`landscape list methods`), or your own as module:function, which is imported.
        model: The model to train; with several processes the DistributedDataParallel model.
        base: "sgd", "adamw", or a torch optimizer over the model's parameters, or some of them: those are perturbed,
            clipped and cleared, and no others.
        **settings: The fields of `MethodSpec`, such as `lr`, `momentum`, `rho` and `sharing`, and the method's knobs.

    Raises:
        ValueError: For an unknown method or option (with the nearest name), or a value out of range.
    """
    import_methods({"method": method}, trust=True)
    if isinstance(method, str):  # else `MethodSpec` says in which order they are given
        check_model(model)
    return optimizer_of(MethodSpec.of(method, base, settings), model)


_FIRST = list(inspect.signature(make_optimizer).parameters.values())[:3]
_KEYWORDS = [p for n, p in inspect.signature(MethodSpec).parameters.items() if n not in ("method", "base", "options")]
make_optimizer.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # for `help` and completion
    [*_FIRST, *_KEYWORDS, inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)], return_annotation=SharpnessAware
)
