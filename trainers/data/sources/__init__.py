"""Where examples come from: built in, by name and path, or from a user's function."""

from trainers.data.sources.source import Shades, Source

__all__ = ["Shades", "Source"]
