"""Permutation alignment of two models, checked, with the barrier before and after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from landscape.batches import as_batches, tensors
from landscape.functional import PureModel
from landscape.paths.barrier import Barrier, Definition, barrier
from landscape.paths.evaluation import Statistics
from landscape.paths.groups import PermutationGroups
from landscape.paths.interpolation import interpolate
from landscape.paths.matching import Matching, weight_matching
from landscape.paths.profile import PathProfile
from landscape.paths.states import ModelState, check_same
from landscape.precision import in_own_precision

TOLERANCE = {torch.float64: 1e-9}  # relative to the largest output
SINGLE_TOLERANCE = 1e-3  # in float32 and below: another order of summation, through many layers


@dataclass(frozen=True, eq=False)
class Alignment:
    """A model with its units permuted to be close to another one.

    Attributes:
        state: The permuted model, parameters and running statistics: it computes the same function.
        matching: The permutations, and the distance before and after.
        groups: What could be permuted; `groups.left` says what was left and why.
        difference: Largest difference of outputs before and after, relative to the largest output: rounding only.
    """

    state: ModelState
    matching: Matching
    groups: PermutationGroups
    difference: float


@in_own_precision
def align(
    model: nn.Module,
    reference: nn.Module | ModelState,
    other: nn.Module | ModelState,
    data: Any,
    *,
    groups: PermutationGroups | None = None,
    restarts: int = 0,
    generator: Generator | None = None,
    tolerance: float | None = None,
) -> Alignment:
    """Permute the hidden units of one model so that its weights come close to those of another.

    Args:
        model: The architecture; its own weights do not matter, and nothing is changed.
        reference: What to come close to; it stays as it is.
        other: What to permute.
        data: Some inputs with targets, as for `EmpiricalRisk.from_model`. Two examples serve to find the groups, and
            the first batch to check that outputs stay the same.
        groups: What may be permuted; None means all that `PermutationGroups.of_model` finds.
        restarts: Further descents from random permutations.
        generator: See `weight_matching`.
        tolerance: Largest relative difference of outputs allowed; None means 1e-9 in float64, else 1e-3.

    Raises:
        ValueError: If the two are not of one architecture, no unit can be permuted, or outputs do not stay the same.

    Source:
        Ainsworth, Hayase and Srinivasa (2023), "Git Re-Basin", ICLR.
    """
    first, second = ModelState.of(reference), ModelState.of(other)
    check_same(first, second, ("reference", "other"))
    inputs = as_batches(data)[0][0]
    found = PermutationGroups.of_model(model, inputs) if groups is None else groups
    matching = weight_matching(found, first.parameters, second.parameters, restarts=restarts, generator=generator)
    state = ModelState(
        found.permuted(second.parameters, matching.permutations), found.permuted(second.buffers, matching.permutations)
    )
    difference, dtype = _difference(model, second, state, inputs)
    allowed = TOLERANCE.get(dtype, SINGLE_TOLERANCE) if tolerance is None else tolerance
    if not difference <= allowed:
        raise ValueError(
            f"`groups` change what the model computes: outputs differ by {difference:.1e} of the largest one, "
            f"more than {allowed:.0e}. An axis is missing from a group, or units meet where they may not be permuted: "
            "leave `groups` out to have them found, or correct them."
        )
    return Alignment(state, matching, found, difference)


@dataclass(frozen=True, eq=False)
class AlignedInterpolation:
    """The straight line between two models, as they are and after alignment.

    Attributes:
        before: Values along w1 to w2.
        after: Values along w1 to the permuted w2.
        alignment: How w2 was permuted, and the distances.
    """

    before: PathProfile
    after: PathProfile
    alignment: Alignment

    def barriers(
        self, subset: str, mode: str = "eval", metric: str = "loss", *, definition: Definition = "B_lin"
    ) -> tuple[Barrier, Barrier]:
        """The barrier before and after."""
        before, after = (
            barrier(p.coordinates, p.table(subset, mode, metric), definition=definition)
            for p in (self.before, self.after)
        )
        return before, after


def interpolate_aligned(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    start: nn.Module | ModelState,
    end: nn.Module | ModelState,
    data: Mapping[str, Any],
    *,
    coordinates: Sequence[float] | Tensor | None = None,
    modes: Sequence[Statistics] | None = None,
    calibration: Any = None,
    groups: PermutationGroups | None = None,
    restarts: int = 0,
    generator: Generator | None = None,
) -> AlignedInterpolation:
    """`interpolate` between two models twice: as they are, and with the second one permuted towards the first.

    Arguments and errors are those of `interpolate` and `align`; the first subset's first batch serves for the latter.
    """
    first, second = ModelState.of(start), ModelState.of(end)
    before = interpolate(
        model, loss, first, second, data, coordinates=coordinates, modes=modes, calibration=calibration
    )
    some = next(iter(data.values()))
    alignment = align(model, first, second, some, groups=groups, restarts=restarts, generator=generator)
    after = interpolate(
        model, loss, first, alignment.state, data, coordinates=coordinates, modes=modes, calibration=calibration
    )
    return AlignedInterpolation(before, after, alignment)


def _difference(model: nn.Module, a: ModelState, b: ModelState, inputs: Any) -> tuple[float, torch.dtype]:
    """The largest difference of two states' outputs, relative to the largest output."""
    outputs = []
    pure = PureModel(model)
    for state in (a, b):
        with torch.no_grad():
            for name, own in pure.module.named_buffers():  # of the private copy
                if name in state.buffers:
                    own.copy_(state.buffers[name])
            outputs.append([t for t in tensors(pure(state.parameters, inputs)) if t.is_floating_point()])
    largest = max((float(t.abs().max()) for t in outputs[0] if t.numel()), default=0.0)
    gap = max((float((s - t).abs().max()) for s, t in zip(*outputs, strict=True) if s.numel()), default=0.0)
    dtype = outputs[0][0].dtype if outputs[0] else torch.float32
    return gap / largest if largest else gap, dtype
