"""Models whose weights are sharded over processes (torch's `fully_shard`): what works with them, and what does not.

Every process holds a part of each weight. Each pass ends with the mean gradient over processes, so that all of them
share each perturbation; norms and inner products are summed over the parts. What treats entries one by one goes on as
it is; what must see whole tensors, single examples or one process's data is refused.
"""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from landscape.perturbation import AbsWeight, Constant
from landscape.spread import spread
from trainers.sharpness_aware.ascent import Gradient, IteratedGradient
from trainers.sharpness_aware.combiners import Curvature
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.masks import Chosen, Live
from trainers.sharpness_aware.memory import Ahead, Averaged, Components, EmaResidual, Momentum, PreviousGradient
from trainers.sharpness_aware.offsets import Extrapolated

SOURCES = (
    Gradient,
    IteratedGradient,
    Momentum,
    PreviousGradient,
    EmaResidual,
    Averaged,
    Components,
    Extrapolated,
    Ahead,
)


def gathering_modules(model: nn.Module) -> list[Any]:
    """The modules that gather sharded weights before their forward pass, and may keep them."""
    if not any(spread(p) for p in model.parameters()):
        return []
    return [m for m in model.modules() if hasattr(m, "reshard")]


def forget_gathered(modules: list[Any]) -> None:
    """Drop gathered weights: after a pass without backward they would outlive a change of the parts they came from."""
    for module in modules:
        module.reshard()


def check_sharded(
    model: nn.Module, named: dict[str, nn.Parameter], base: Optimizer, parts: Composition, sharing: str
) -> bool:
    """Whether the model's weights are sharded.

    Raises:
        ValueError: If they are and the method, or its sharing, does not go with it.
    """
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError(
            "`model` is a FullyShardedDataParallel, which hides the weights in flat tensors: shard it with "
            "torch.distributed.fsdp.fully_shard (FSDP2), or use DistributedDataParallel."
        )
    whole = [name for name, p in named.items() if not spread(p)]
    if len(whole) == len(named):
        return False
    if whole:
        raise ValueError(f"`model` is sharded in part: {whole} are not; apply fully_shard to the whole model.")
    meshes: list[Any] = list(named.values())
    if any(p.device_mesh != meshes[0].device_mesh or _kinds(p) != _kinds(meshes[0]) for p in meshes):
        raise ValueError("`model` must be sharded over one device mesh, all weights alike, for norms over all of them.")
    why = unsuited(parts)
    if why:
        raise ValueError(f"`model` is sharded over processes, and this method {why}: use DistributedDataParallel.")
    if sharing != "global":
        raise ValueError(
            f"`model` is sharded over processes, so that all of them move the same weights and share each "
            f"perturbation: `sharing` must be 'global', got {sharing!r}."
        )
    if any(group.get("fused") for group in base.param_groups) and type(base).__name__ == "SGD":
        raise ValueError("torch's fused SGD cannot step sharded weights: make `base` with fused=False.")
    return True


def unsuited(parts: Composition) -> str:
    """Why a method cannot work on sharded weights; "" if it can."""
    if not isinstance(parts.source, SOURCES):
        return f"draws random numbers for whole tensors ({type(parts.source).__name__})"
    if parts.mask is not None and not isinstance(parts.mask, Chosen | Live):
        return f"ranks entries or tensors against each other ({type(parts.mask).__name__})"
    if parts.weigh is not None or parts.select is not None or parts.functional:
        return "treats the examples of a batch apart, which each process would do differently"
    if isinstance(parts.combiner, Curvature) and parts.combiner.by_loss:
        return "divides by differences of losses, which each process sees its own of"
    if parts.scaler.p != 2:
        return f"takes the {parts.scaler.p}-norm, which is not summed over processes here (`p` must be 2)"
    if parts.scaler.over == "tensor" or not isinstance(parts.scaler.metric, AbsWeight | Constant | None):
        return "takes norms of whole tensors or filters"
    return ""


def _kinds(p: Any) -> list[bool]:
    return [bool(placement.is_shard()) for placement in p.placements]
