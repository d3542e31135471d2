"""Lines out of planes and planes out of volumes: the points at one coordinate of the other axes."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from landscape.surfaces import Grid, Surface


def section(surface: Surface, held: Mapping[int, float]) -> Surface:
    """The part of a surface where some coordinates are held, at the grid's nearest ones.

    Args:
        surface: A plane or a volume.
        held: Coordinates by the number of the axis, from 0.

    Returns:
        The surface of the other axes. It keeps the value at the centre only if it passes through it; `context` says
        under "section" where it was taken.

    Raises:
        ValueError: If an axis does not exist, or none would be left.
    """
    k = len(surface.grid.shape)
    if not held or not set(held) <= set(range(k)) or len(held) >= k:
        raise ValueError(f"`held` must name 1 to {k - 1} of the axes 0 to {k - 1}, got {sorted(held)}.")
    places = {i: int((surface.grid.coordinates[i] - a).abs().argmin()) for i, a in held.items()}
    where = tuple(places.get(i, slice(None)) for i in range(k))
    left = [i for i in range(k) if i not in held]
    at = {i: float(surface.grid.coordinates[i][j]) for i, j in places.items()}
    through = all(a == 0 for a in at.values())
    return replace(
        surface,
        grid=Grid(tuple(surface.grid.coordinates[i] for i in left)),
        values={name: t[where] for name, t in surface.values.items()},
        stderr={name: t[where] for name, t in surface.stderr.items()},
        computed=surface.computed[where],
        centre=dict(surface.centre) if through else {},
        axes=tuple(surface.axes[i] for i in left),
        gram=surface.gram[torch.tensor(left)][:, torch.tensor(left)],
        context={**surface.context, "section": {str(surface.axes[i]["name"]): a for i, a in at.items()}},
    )
