"""Names, colours and markers that a user gives to methods, measures and targets, in place of our own."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.colors import is_color_like, to_hex
from matplotlib.lines import Line2D

PARTS = ("name", "colour", "marker")


@dataclass(frozen=True)
class Labels:
    """What a user calls things, for `labelled` and the option `--labels`.

    Attributes:
        methods: By label (`sam`, `sam+OBF`): a name, or a mapping with any of `name`, `colour` and `marker`.
        measures: Names of measures and targets by id (`top_eigenvalue`), or of one variant by its whole name.

    Raises:
        ValueError: If a method has another key, a colour that is none, or a marker that matplotlib does not know.
    """

    methods: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    measures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, given in self.methods.items():
            parts = {"name": given} if isinstance(given, str) else given
            if not isinstance(parts, Mapping) or set(parts) - set(PARTS):
                raise ValueError(f"`methods` must give {label!r} a name, or some of {list(PARTS)}, got {given!r}.")
            colour, marker = parts.get("colour", "black"), parts.get("marker", "o")
            if not is_color_like(colour):
                raise ValueError(f"`colour` of {label!r} must be a colour such as '#0072b2', got {colour!r}.")
            if marker not in Line2D.markers:
                raise ValueError(f"`marker` of {label!r} must be one of matplotlib's, such as 's', got {marker!r}.")
        if strange := {k: v for k, v in self.measures.items() if not isinstance(v, str)}:
            raise ValueError(f"`measures` must give each a name, got {strange!r}.")

    @classmethod
    def read(cls, path: str | Path) -> "Labels":
        """Those of a YAML file with the keys `methods` and `measures`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"`labels` names no file: {path}; write one with `methods:` and `measures:`.")
        given: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        if not isinstance(given, dict) or not all(isinstance(v, dict) for v in given.values()):
            raise ValueError(f"`labels` must be a file with `methods:` and `measures:`, each a mapping; see {path}.")
        if unknown := [key for key in given if key not in ("methods", "measures")]:
            near = difflib.get_close_matches(str(unknown[0]), ["methods", "measures"], n=1)
            raise ValueError(
                f"`labels` has the key {unknown[0]!r}; it takes methods and measures"
                + (f": did you mean {near[0]!r}?" if near else ".")
            )
        return cls(**given)

    def look(self, label: str, own: tuple[str, str, str]) -> tuple[str, str, str]:
        """Name, colour and marker of a method: those given here, else its own."""
        given = self.methods.get(label, {})
        parts = {"name": given} if isinstance(given, str) else given
        colour = to_hex(parts["colour"]) if "colour" in parts else own[1]
        return str(parts.get("name", own[0])), colour, parts.get("marker", own[2])


_IN_FORCE: ContextVar[Labels] = ContextVar("labels", default=Labels())  # noqa: B039 -- frozen


def in_force() -> Labels:
    """The labels that figures and tables are made with here."""
    return _IN_FORCE.get()


@contextmanager
def labelled(labels: Labels) -> Iterator[None]:
    """Make figures and tables with these labels, as matplotlib's `rc_context` does with its settings."""
    token = _IN_FORCE.set(labels)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)
