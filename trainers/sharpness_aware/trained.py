"""Which parameters a step concerns: exactly those that the base optimizer trains, read anew each step."""

import math
from collections.abc import ValuesView
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.sharpness_aware.arguments import check_trainable
from trainers.sharpness_aware.ranks import bare

_requires_grad = attrgetter("requires_grad")


class Trained:
    """The parameters of a base optimizer's groups that require a gradient, by name.

    Those of the model keep its names and its order. Others, such as weights of a criterion, follow under the names that
    their group has for them, or one made of their place. A parameter keeps the name that it had first.

    Args:
        model: The model.
        base: The base optimizer; it must train some parameter of the model.

    Attributes:
        parameters: The parameters by name: one dict throughout, which `look` brings up to date.
        held: All that the groups hold, also what is frozen: what a step clears.
        joined: Parameters that the last change has brought.
        others: Parameters of the model that no group holds: neither moved nor cleared.
        outside: Names of those that are not the model's.
        uphill: Names whose group has `maximize=True`.
        radii: `rho` of the parameters whose group has one.
        has_complex: Whether some are complex, which `Weights` finds; the engine then works on pairs of real numbers.

    Raises:
        ValueError: If there is nothing to train.
    """

    def __init__(self, model: nn.Module, base: Optimizer) -> None:
        self.model, self.base = bare(model), base
        self.parameters: dict[str, nn.Parameter] = {}
        self.held: list[nn.Parameter] = []
        self.joined: list[nn.Parameter] = []
        self.others: list[nn.Parameter] = []
        self.outside: list[str] = []
        self.uphill: frozenset[str] = frozenset()
        self.radii: dict[str, float] = {}
        self.has_complex = False
        self._contents: list[ValuesView[Any]] = []  # of each module, its parts and parameters
        self._tree: list[int] = []
        self._groups: list[Any] = []
        self._names: dict[nn.Parameter, str] = {}  # what the groups hold and the model has, or had at the last look
        self._known: set[nn.Parameter] = set()  # all of the model's, at the last look
        self._orphans: set[nn.Parameter] = set()  # what the groups hold of layers that the model has no more
        check_trainable(self.model)
        self.look()

    @property
    def sign(self) -> float:
        """-1 where all is maximised: what the base optimizer minimises is then the loss times -1."""
        return -1.0 if len(self.uphill) == len(self.parameters) else 1.0

    def look(self) -> bool:
        """Read groups and model again; returns whether anything has changed.

        Raises:
            ValueError: If nothing is left to train, weights of the model were replaced by others that the base
                optimizer does not hold, or a group has an impossible `rho` or `maximize`.
        """
        tree, groups = self._edges(), self._state_of_groups()
        if tree == self._tree and groups == self._groups:
            return False
        self._read()
        self._contents = [c.values() for m in self.model.modules() for c in (m._modules, m._parameters)]
        self._tree, self._groups = self._edges(), groups
        return True

    def _edges(self) -> list[int]:
        """What each module holds, as numbers that are quick to compare; the model's parts stay alive meanwhile."""
        return [*map(id, chain.from_iterable(self._contents))]

    def _state_of_groups(self) -> list[Any]:
        """All that matters of the groups, likewise."""
        groups = self.base.param_groups
        held: list[Any] = []
        state: list[Any] = []
        for g in groups:
            held += g["params"]
            state += len(g["params"]), g.get("maximize"), g.get("rho")
        state += map(id, held)
        state += map(_requires_grad, held)
        return state

    def _read(self) -> None:
        groups = self.base.param_groups
        named = {p: name for name, p in self.model.named_parameters()}
        held = [p for group in groups for p in group["params"]]
        holding = set(held)
        gone = {p: name for p, name in self._names.items() if p in holding and p not in named}
        strangers = [n for p, n in named.items() if p.requires_grad and p not in holding and p not in self._known]
        if gone and strangers:
            lost = next(iter(gone.values()))
            raise ValueError(
                f"`model` has new weights, such as {strangers[0]!r}, in place of some that the base optimizer trains, "
                f"such as {lost!r} (`load_state_dict(assign=True)`, or an assignment): a step would not move them. "
                f"Make the optimizer after that, or add them by `add_param_group`, or freeze them."
            )
        orphans = gone.keys() | {p for p in self._orphans if p in holding and p not in named}
        names = self._named(named, holding)
        if not names:
            raise ValueError(
                f"`base` trains no parameter of `model`: its {len(held)} belong to another model, or were replaced. "
                f"Make the base optimizer over the parameters of the model that is passed, or pass the module that "
                f"holds them all."
            )
        kept, used = dict(names), set(names.values())
        maximised, radii = set(), {}
        for i, group in enumerate(groups):
            maximise, rho = self._checked(i, group)
            given = group.get("param_names") or [None] * len(group["params"])
            for j, (p, name) in enumerate(zip(group["params"], given, strict=True)):
                if p in orphans:
                    continue
                if p not in kept:  # not the model's
                    fallback = f"param_groups.{i}.{'weight' if p.ndim > 1 else 'bias'}.{j}"
                    kept[p] = fallback if name is None or name in used else name
                    used.add(kept[p])
                if maximise:
                    maximised.add(kept[p])
                if rho is not None:
                    radii[kept[p]] = rho
        live = {name: p for p, name in kept.items() if p.requires_grad}
        if not live:
            raise ValueError("all parameters of the base optimizer are frozen: there is nothing to train.")
        before = set(self.parameters.values())
        self.joined = [p for p in live.values() if p not in before]
        self.parameters.clear()
        self.parameters.update(live)
        self._names, self._known, self._orphans = names, set(named), set(orphans)
        self.held, self.others = held, [p for p in named if p not in holding]
        self.outside = [name for name, p in live.items() if p not in named]
        self.uphill = frozenset(maximised & live.keys())
        self.radii = {name: rho for name, rho in radii.items() if name in live}

    def _named(self, named: dict[nn.Parameter, str], holding: set[nn.Parameter]) -> dict[nn.Parameter, str]:
        """The names of what the groups hold of the model, in the model's order; a name once given stays."""
        found = {p: self._names.get(p, name) for p, name in named.items() if p in holding}
        return found if len(set(found.values())) == len(found) else {p: named[p] for p in found}

    def _checked(self, i: int, group: dict[str, Any]) -> tuple[bool, float | None]:
        """Whether a group is maximised, and its radius."""
        maximise = bool(group.get("maximize"))
        rho = None if "rho" in self.base.defaults else group.get("rho")  # Adadelta's is a decay
        if maximise and "maximize" not in self.base.defaults:
            raise ValueError(
                f"parameter group {i} has `maximize`, which {type(self.base).__name__} does not know and would "
                f"minimise: leave it out, or change the sign of the loss."
            )
        radius = None if rho is None else float(rho) if hasattr(rho, "__float__") else math.nan
        if radius is not None and not (math.isfinite(radius) and radius >= 0):
            raise ValueError(f"`rho` of parameter group {i} must be a finite radius >= 0, got {rho!r}.")
        return maximise, radius


@torch.no_grad()
def bring_state(base: Optimizer) -> None:
    """Bring an optimizer's state to the device and type that its parameters have now.

    As `load_state_dict` of torch does; but SGD keeps its momentum in the type that it has, as it does without fused
    kernels, which alone cannot and are left. So are those that are wrong, see `leave_fused`.
    """
    adds = isinstance(base, torch.optim.SGD)
    leave_fused(base)
    for group in base.param_groups:
        for p in group["params"]:
            state = base.state.get(p, {})
            for key, value in state.items():
                if not isinstance(value, Tensor) or (key == "step" and value.device.type == "cpu"):
                    continue
                kind = value.dtype
                if value.is_complex() and p.is_complex():
                    kind = p.dtype
                elif value.is_floating_point() and key != "step":
                    kind = p.dtype.to_real()
                state[key] = value.to(p.device, value.dtype if adds else kind)
                if adds and kind != value.dtype and group.get("fused"):
                    group["fused"] = None


def leave_fused(base: Optimizer) -> None:
    """Take SGD's kernels that are not fused where weights are half precision and on the CPU.

    There torch's fused one (2.6 to 2.13) gives other momenta, and other decayed gradients, from 24 entries on.
    """
    for group in base.param_groups if isinstance(base, torch.optim.SGD) else ():
        if group.get("fused") and any(p.is_cpu and p.dtype in (torch.float16, torch.bfloat16) for p in group["params"]):
            group["fused"] = None
