"""Loss surfaces: directions in weight space, grids over them, and scans of a model along them."""

from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.grid import Grid
from landscape.surfaces.surface import Surface

__all__ = ["Axes", "Axis", "Grid", "Surface"]
