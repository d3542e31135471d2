"""The hidden units of a model that can change places without changing what it computes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from landscape.batches import as_batches, batch_size, map_tensors, slice_batch
from landscape.functional import PureModel
from landscape.params import Params
from landscape.paths.calls import KERNEL
from landscape.paths.layout import Layout, Permutations, moved
from landscape.paths.structure import Units, resolved, units
from landscape.paths.tracing import INPUT, OUTPUT, trace
from landscape.randomness import source_of

EXAMPLES = 2  # of the pass that finds the groups
ORDINARY = (INPUT, OUTPUT, KERNEL, "one entry", "an entry picked out")  # reasons to stay put that need no mention


@dataclass(frozen=True, eq=False)
class PermutationGroups:
    """Groups of hidden units, and the axes of tensors on which each acts.

    Attributes:
        sizes: Units of each group, by name; a group is named after the layer that makes its units.
        layouts: For each tensor on which a group acts, the layout of each axis.
        left: For axes that stay put although they belong to hidden units: why, by "tensor, axis i".
    """

    sizes: Mapping[str, int]
    layouts: Mapping[str, tuple[Layout, ...]]
    left: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_model(cls, model: nn.Module, inputs: Any) -> "PermutationGroups":
        """Find all groups of a model by following the operations of one forward pass.

        Works for whatever the model is made of: linear and convolutional layers, normalisation, residual sums, padding
        and concatenation, flattening, attention (heads; within heads, one permutation that all heads share; the
        residual stream), tied weights. Units that meet an operation which is not known are left where they are.

        Args:
            model: Any module; it is not changed.
            inputs: Some inputs, or data as `EmpiricalRisk.from_model` accepts them; two examples are used.

        Raises:
            ValueError: If there is nothing to permute, naming the operation and module that stood in the way.
        """
        pure = PureModel(model)
        named: dict[str, Tensor] = {**pure.parameters, **dict(pure.module.named_buffers())}
        labels, unknown = trace(pure.module, _few(inputs), named)
        found = _named_groups(labels, list(pure.parameters))
        if not found.sizes:
            reason = "; ".join(f"operation {op!r} {where}" for op, where in unknown.items())
            raise ValueError(
                "`model` has no hidden units that can be permuted"
                + (f", for it goes through what is not understood: {reason}" if unknown else "")
                + ". Pass `groups` made by PermutationGroups.of_axes if there are some."
            )
        return found

    @classmethod
    def of_axes(
        cls, groups: Mapping[str, Sequence[tuple[str, int]]], tensors: Mapping[str, Tensor]
    ) -> "PermutationGroups":
        """Groups named by hand, for models that cannot be followed.

        Args:
            groups: By name of the group: the tensors and axes on which it acts, such as
                {"hidden": [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]}. It acts on a whole axis.
            tensors: The model's parameters and buffers, for their shapes.

        Raises:
            ValueError: If a tensor or axis is unknown or named twice, or a group's axes differ in length.
        """
        sizes: dict[str, int] = {}
        axes: dict[str, list[Layout]] = {}
        for group, places in groups.items():
            for name, axis in places:
                if name not in tensors or not 0 <= axis < tensors[name].ndim:
                    raise ValueError(
                        f"`groups` has {(name, axis)} in {group!r}, which is no axis of the model's tensors."
                    )
                size = tensors[name].shape[axis]
                if sizes.setdefault(group, size) != size:
                    raise ValueError(
                        f"`groups` has axes of {sizes[group]} and {size} entries ({(name, axis)}) in {group!r}: the "
                        "axes of one group must have one length."
                    )
                row = axes.setdefault(name, [Layout(n) for n in tensors[name].shape])
                if row[axis].kind == "group":
                    raise ValueError(f"`groups` has {(name, axis)} twice: in {row[axis].group!r} and in {group!r}.")
                row[axis] = Layout(size, "group", group)
        return cls(sizes, {name: tuple(row) for name, row in axes.items()})

    def permuted(self, tensors: Params, permutations: Permutations) -> Params:
        """Tensors with their units in new places; those on which no group acts are returned themselves.

        Raises:
            ValueError: If a permutation is of an unknown group, or is none of its units.
        """
        for group, order in permutations.items():
            if group not in self.sizes:
                raise ValueError(f"`permutations` has {group!r}, which is none of the groups {list(self.sizes)}.")
            if not torch.equal(order.sort().values, torch.arange(self.sizes[group])):
                raise ValueError(f"`permutations` of {group!r} must hold 0 to {self.sizes[group] - 1} once each.")
        out = dict(tensors)
        for name, layouts in self.layouts.items():
            if name in out:
                out[name] = moved(out[name], layouts, permutations)
        return out

    def identity(self) -> dict[str, Tensor]:
        """Everything where it is."""
        return {name: torch.arange(n) for name, n in self.sizes.items()}

    def random(self, generator: Generator | None = None) -> dict[str, Tensor]:
        """Uniformly random permutations; a generator of None means a fresh one from seed 0."""
        generator = source_of(generator)
        return {
            name: torch.randperm(n, generator=generator, device=generator.device).cpu()
            for name, n in self.sizes.items()
        }

    @staticmethod
    def inverse(permutations: Permutations) -> dict[str, Tensor]:
        """What takes everything back."""
        return {name: order.argsort() for name, order in permutations.items()}


def _few(inputs: Any) -> Any:
    """The first examples of inputs or data, without targets."""
    is_data = isinstance(inputs, list) or (
        isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], Tensor) and inputs[1].ndim == 1
    )
    if is_data or not isinstance(inputs, Tensor | tuple | dict):
        inputs = as_batches(inputs)[0][0]
    few: Any = map_tensors(lambda t: t, inputs)
    return slice_batch((few, few), 0, min(EXAMPLES, batch_size((few, few))))[0]


def _named_groups(labels: Mapping[str, Sequence[Units]], parameters: Sequence[str]) -> PermutationGroups:
    """Give the free units names, and turn trees into layouts."""
    names: dict[int, str] = {}
    sizes: dict[str, int] = {}
    left: dict[str, str] = {}
    for name in sorted(labels, key=lambda n: (n not in parameters,)):
        for axis, node in enumerate(labels[name]):
            for unit in units(node):
                if unit.why is None and unit.number not in names:
                    base = name.rpartition(".")[0] or name
                    taken = sum(other == base or other.startswith(f"{base}#") for other in sizes)
                    names[unit.number] = base if not taken else f"{base}#{taken + 1}"
                    sizes[names[unit.number]] = unit.size
                elif unit.why is not None and unit.size > 1 and not unit.why.startswith(ORDINARY):
                    left.setdefault(f"{name}, axis {axis}", unit.why)
    layouts = {name: tuple(_layout(node, names) for node in nodes) for name, nodes in labels.items()}
    acting = {name: found for name, found in layouts.items() if any(layout.groups for layout in found)}
    return PermutationGroups(sizes, acting, left)


def _layout(node: Units, names: Mapping[int, str]) -> Layout:
    node = resolved(node)
    if node.kind == "unit":
        return Layout(node.size) if node.why is not None else Layout(node.size, "group", names[node.number])
    parts = tuple(_layout(part, names) for part in node.parts)
    if not any(part.groups for part in parts):
        return Layout(node.size)
    return Layout(node.size, node.kind, parts=parts)
