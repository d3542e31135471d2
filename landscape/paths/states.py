"""A model's weights and running statistics as one point in weight space, and weighted sums of such points."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from landscape.functional import PureModel
from landscape.params import Params

VARIANCE = "running_var"


@dataclass(frozen=True, eq=False)
class ModelState:
    """Everything that decides a model's outputs: a point of a path.

    Attributes:
        parameters: All parameters by name, frozen ones included; tied ones once.
        buffers: All buffers by name, running statistics among them.
    """

    parameters: Params
    buffers: Params = field(default_factory=dict)

    @classmethod
    def of(cls, model: "nn.Module | ModelState") -> "ModelState":
        """The state of a model, as copies; a state is returned as it is.

        Names are those inside wrappers (torch.compile, DataParallel, DistributedDataParallel).
        """
        if isinstance(model, ModelState):
            return model
        pure = PureModel(model)
        parameters = {name: p.detach().clone() for name, p in pure.parameters.items()}
        return cls(parameters, {name: b.detach().clone() for name, b in pure.module.named_buffers()})


def check_same(first: ModelState, second: ModelState, names: tuple[str, str] = ("start", "end")) -> None:
    """Raise a ValueError that names the first tensor in which two states are not of one architecture."""
    for kind, a, b in (
        ("parameter", first.parameters, second.parameters),
        ("buffer", first.buffers, second.buffers),
    ):
        for name in [*a, *(n for n in b if n not in a)]:
            own, other = (_described(t.get(name)) for t in (a, b))
            if own != other:
                raise ValueError(
                    f"`{names[0]}` and `{names[1]}` are not of the same architecture: {kind} {name!r} is {own} in the "
                    f"first and {other} in the second. Give two checkpoints of one model."
                )


def combine(coefficients: Sequence[float], states: Sequence[ModelState]) -> ModelState:
    """Σ_i c_i s_i over parameters and running statistics.

    Where a coefficient is 1 and all others are 0, the state is returned itself, so that end points are exact to the
    bit. Sums are taken in the tensors' own precision. Running variances are cut off at 0, which matters only beyond
    the end points; whole numbers, such as counts of batches, are those of the state with the largest coefficient.
    """
    used = [(float(c), s) for c, s in zip(coefficients, states, strict=True) if c != 0]
    if len(used) == 1 and used[0][0] == 1:
        return used[0][1]
    leading = max(used, key=lambda pair: pair[0], default=(0.0, states[0]))[1]
    return ModelState(
        {name: _sum(used, name, t, "parameters") for name, t in leading.parameters.items()},
        {name: _sum(used, name, t, "buffers") for name, t in leading.buffers.items()},
    )


def _sum(used: list[tuple[float, ModelState]], name: str, like: Tensor, kind: str) -> Tensor:
    if not (like.is_floating_point() or like.is_complex()):
        return like
    total = torch.zeros_like(like)
    for i, (c, state) in enumerate(used):
        t = getattr(state, kind)[name]
        total = c * t if i == 0 else torch.add(total, t, alpha=c)
    return total.clamp_min_(0) if name.rpartition(".")[2] == VARIANCE else total


def _described(t: Tensor | None) -> str:
    return "missing" if t is None else f"{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}"
