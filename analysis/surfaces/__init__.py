"""Loss surfaces of runs: drawn, computed, kept, explained and exported."""

from analysis.surfaces.files import read_surface, surface_table, write_surface

__all__ = ["read_surface", "surface_table", "write_surface"]
