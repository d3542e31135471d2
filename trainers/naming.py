"""Names that were not found: see `landscape.naming`."""

from landscape.naming import nearest

__all__ = ["nearest"]
