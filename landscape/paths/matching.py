"""Weight matching: the permutations of hidden units that bring one model's weights closest to another's."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from landscape.params import Params
from landscape.paths.groups import PermutationGroups
from landscape.paths.layout import Layout, moved
from landscape.randomness import source_of

MOST_SHIFTS = 256  # tried for groups that must be matched together
TINY = 1e-12  # relative gain below which a permutation counts as no better


@dataclass(frozen=True, eq=False)
class Matching:
    """Permutations found by weight matching.

    Attributes:
        permutations: By group: unit i of the aligned model is unit π(i) of the other one.
        distance: ‖reference - aligned‖₂ over all parameters that are compared.
        distance_before: ‖reference - other‖₂.
        start: Where the best descent began: "layers", "identity" or "random".
        passes: Passes of that descent over all groups.
        converged: Whether its last pass changed nothing, so that no single group can be improved.
    """

    permutations: dict[str, Tensor]
    distance: float
    distance_before: float
    start: str
    passes: int
    converged: bool


def weight_matching(
    groups: PermutationGroups,
    reference: Params,
    other: Params,
    *,
    restarts: int = 0,
    passes: int = 100,
    generator: Generator | None = None,
) -> Matching:
    """Find permutations π that make ‖A - πB‖ small, group by group.

    Minimising the distance is maximising ⟨A, πB⟩. With all groups but one held, that is a linear assignment problem in
    the remaining one, which is solved exactly; passes over all groups are made until none improves. The whole problem
    is NP-hard, so the result is a local optimum. Besides the identity, the descent begins from "layers": groups are
    first matched one after the other, each by the weights that connect it to the input and to groups matched before
    it, which finds a permuted copy of a model wherever its units differ. The best end is returned.

    Args:
        groups: What may be permuted.
        reference: A: the tensors to compare, by name. Leave running statistics out: they are moved along, not compared.
        other: B, with the same names.
        restarts: Further descents from random permutations.
        passes: Most passes of one descent.
        generator: Decides the order of groups within a pass, and the restarts. None keeps the order in which the
            groups were found, and draws the restarts from seed 0.

    Raises:
        ValueError: If names or shapes differ, tensors are not finite, or an argument is out of range.

    Source:
        Ainsworth, Hayase and Srinivasa (2023), "Git Re-Basin", ICLR, algorithm 1; the start "layers" is ours.
    """
    source = source_of(generator)
    if restarts < 0 or passes < 1:
        raise ValueError(f"`restarts` must be at least 0 and `passes` at least 1, got {restarts!r} and {passes!r}.")
    for name, t in reference.items():
        if name not in other or other[name].shape != t.shape:
            raise ValueError(f"`other` has no {name!r} of shape {tuple(t.shape)}: give two models of one architecture.")
        if not bool(t.isfinite().all() & other[name].isfinite().all()):
            raise ValueError(f"`reference` and `other` must be finite, {name!r} is not: a diverged model has no match.")
    problem = _Problem(groups, reference, other)
    starts = [("layers", problem.by_layers()), ("identity", groups.identity())]
    starts += [("random", groups.random(source)) for _ in range(restarts)]
    best: tuple[float, Matching] | None = None
    before = problem.distance(groups.identity())
    for name, start in starts:
        permutations, used, converged = problem.descend(start, passes, generator)
        distance = problem.distance(permutations)
        if best is None or distance < best[0] * (1 - TINY):
            best = distance, Matching(permutations, distance, before, name, used, converged)
    assert best is not None
    if best[0] > before:  # only where the identity start was cut short
        return replace(best[1], permutations=groups.identity(), distance=before)
    return best[1]


class _Problem:
    """Two models' tensors in float64, and which axes of which of them each group moves."""

    def __init__(self, groups: PermutationGroups, reference: Params, other: Params) -> None:
        self.groups = groups
        self.layouts = {name: groups.layouts[name] for name in reference if name in groups.layouts}
        self.a = {name: reference[name].detach().cpu().double() for name in reference}
        self.b = {name: other[name].detach().cpu().double() for name in reference}
        self.places: dict[str, list[tuple[str, int]]] = {g: [] for g in groups.sizes}
        for name, layouts in self.layouts.items():
            for axis, layout in enumerate(layouts):
                for group in dict.fromkeys(layout.groups):
                    self.places[group].append((name, axis))
        self.entries = {
            (group, name, axis): self.layouts[name][axis].entries(group)
            for group, places in self.places.items()
            for name, axis in places
        }
        # a group on two axes of one tensor, or twice on one, makes the problem quadratic in it
        self.quadratic = {
            group
            for group, places in self.places.items()
            if len({name for name, _ in places}) < len(places)
            or any(self.layouts[name][axis].groups.count(group) > 1 for name, axis in places)
        }

    def distance(self, permutations: dict[str, Tensor]) -> float:
        """‖A - πB‖₂."""
        return math.sqrt(
            math.fsum(
                float((a - moved(self.b[name], self.layouts.get(name, ()), permutations)).square().sum())
                for name, a in self.a.items()
            )
        )

    def overlap(self, permutations: dict[str, Tensor], names: Iterable[str]) -> float:
        """⟨A, πB⟩ over some tensors."""
        return math.fsum(
            float((self.a[name] * moved(self.b[name], self.layouts[name], permutations)).sum()) for name in names
        )

    def gains(
        self, group: str, permutations: dict[str, Tensor], places: Iterable[tuple[str, int]]
    ) -> Float[Tensor, "n n"]:
        """Entry (i, j): what ⟨A, πB⟩ has of it if unit i of the result is unit j of B, other groups as they are."""
        n = self.groups.sizes[group]
        table = torch.zeros(n, n, dtype=torch.float64)
        others = {g: p for g, p in permutations.items() if g != group}
        for name, axis in places:
            b = self.b[name]
            for d, layout in enumerate(self.layouts[name]):
                b = _moved_along(b, d, layout, others if d == axis else permutations)
            entries = self.entries[group, name, axis]
            left, right = (t.movedim(axis, 0)[entries].flatten(1) for t in (self.a[name], b))
            table.addmm_(left, right.T)
        return table

    def solve(
        self, group: str, permutations: dict[str, Tensor], places: Iterable[tuple[str, int]]
    ) -> tuple[Tensor, float]:
        """The best permutation of one group, and by how much it is better than the present one."""
        table = self.gains(group, permutations, places)
        rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
        found = torch.as_tensor(columns)
        gain = float(table[rows, columns].sum() - table[torch.arange(len(table)), permutations[group]].sum())
        return found, gain / max(float(table.abs().max()), 1e-300)

    def descend(
        self, start: dict[str, Tensor], passes: int, generator: Generator | None
    ) -> tuple[dict[str, Tensor], int, bool]:
        """Passes over all groups, in which each takes its best permutation, until none gains."""
        permutations, names = dict(start), list(self.groups.sizes)
        for used in range(1, passes + 1):
            changed = False
            if generator is not None:
                order = torch.randperm(len(names), generator=generator, device=generator.device).tolist()
            else:
                order = list(range(len(names)))
            for group in (names[i] for i in order):
                found, gain = self.solve(group, permutations, self.places[group])
                if gain <= TINY or torch.equal(found, permutations[group]):
                    continue
                if group in self.quadratic:
                    touched = {name for name, _ in self.places[group]}
                    trial = {**permutations, group: found}
                    now, then = self.overlap(permutations, touched), self.overlap(trial, touched)
                    if then <= now + TINY * abs(now):
                        continue
                permutations[group], changed = found, True
            if not changed:
                return permutations, used, True
        return permutations, passes, False

    def by_layers(self) -> dict[str, Tensor]:
        """Match groups one after the other, the best connected to what is matched already first."""
        permutations, todo = self.groups.identity(), set(self.groups.sizes)
        while todo:
            shares = {}
            for group in self.groups.sizes:
                if group in todo:
                    together = self._together(group) & todo
                    shares[group] = self._share(group, together, todo)
            group = max(shares, key=lambda g: shares[g])
            together = (self._together(group) & todo) | {group}
            self._solve_together(sorted(together, key=lambda g: self.groups.sizes[g]), permutations, todo)
            todo -= together
        return permutations

    def _together(self, group: str) -> set[str]:
        """The groups that act on the very entries of this one."""
        return set[str]().union(*(self.layouts[name][axis].beside(group) for name, axis in self.places[group]))

    def _anchored(self, group: str, together: set[str], todo: set[str]) -> list[tuple[str, int]]:
        """Places where only this group, and those together with it, are still to be matched."""
        found = []
        for name, axis in self.places[group]:
            elsewhere = {g for d, layout in enumerate(self.layouts[name]) if d != axis for g in layout.groups}
            here = self.layouts[name][axis].beside(group)
            if not ((elsewhere | here) & todo) - together:
                found.append((name, axis))
        return found

    def _share(self, group: str, together: set[str], todo: set[str]) -> float:
        """The part of a group's weights that connects it to what is matched."""
        size = {place: self.b[place[0]].numel() for place in self.places[group]}
        anchored = self._anchored(group, together, todo)
        return sum(size[place] for place in anchored) / max(sum(size.values()), 1)

    def _solve_together(self, members: list[str], permutations: dict[str, Tensor], todo: set[str]) -> None:
        """Match a group, or several that act on the same entries, such as heads and the units within every head.

        Of those, none can be matched before the others. Among all cyclic shifts of one, some shift has any given unit
        right, which is enough to match another by, and then the first: so all shifts of all but the largest are tried.
        """
        places = {g: self._anchored(g, set(members) - {g}, todo) or self.places[g] for g in members}
        names = {name for g in members for name, _ in places[g]}
        *small, last = members
        shifts = itertools.product(*(range(self.groups.sizes[g]) for g in small))
        best: tuple[float, dict[str, Tensor]] | None = None
        for shift in itertools.islice(shifts, MOST_SHIFTS):
            trial = dict(permutations)
            for group, by in zip(small, shift, strict=True):
                trial[group] = torch.arange(self.groups.sizes[group]).roll(by)
            for group in [last, *small, last] if small else [last]:
                trial[group], _ = self.solve(group, trial, places[group])
            value = self.overlap(trial, names) if small else 0.0
            if best is None or value > best[0]:
                best = value, trial
        assert best is not None
        permutations.update({g: best[1][g] for g in members})


def _moved_along(t: Tensor, axis: int, layout: Layout, permutations: dict[str, Tensor]) -> Tensor:
    if not any(group in permutations for group in layout.groups):
        return t
    return t.index_select(axis, layout.index(permutations))
