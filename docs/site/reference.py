"""Pages of the reference: the public names of each package, and the command line as its parser shows it."""

import ast
import contextlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
PACKAGES = ("landscape", "trainers", "analysis")


def pages() -> dict[str, str]:
    """The text of each page, by its place in the site."""
    packages = {f"reference/{package}.md": _package(package) for package in PACKAGES}
    return {**packages, "reference/commands.md": _commands(), "reference/names.md": _names()}


def _package(package: str) -> str:
    """The public names of a package, by the module of it that they are taken from."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    (public,) = (
        ast.literal_eval(node.value) for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )  # fmt: skip
    rooms: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            room = " ".join((node.module or "").split(".")[1:2]).replace("_", " ")
            kept = [f"{node.module}.{alias.name}" for alias in node.names if alias.name in public]
            rooms.setdefault(room, []).extend(kept)
    parts = [f"# {package}\n\n{ast.get_docstring(tree)}\n"]
    for room in sorted(name for name, kept in rooms.items() if kept):
        parts.append(f"## {room.capitalize()}\n")
        parts.extend(f"::: {path}\n" for path in sorted(rooms[room], key=str.lower))
    return "\n".join(parts)


def _commands() -> str:
    from analysis.cli.commands import COMMANDS
    from analysis.cli.help import ABOUT

    parts = [f"# Command line\n\n{ABOUT} This is what `--help` shows.\n\n```text\n{_shown(['--help'])}\n```\n"]
    for name, command in COMMANDS.items():
        parts.append(f"## landscape {name}\n\n{command.help}\n\n```text\n{_shown([name, '--help'])}\n```\n")
    return "\n".join(parts)


def _names() -> str:
    from analysis.cli.listing import KINDS, entries

    parts = ["# What there is, by name\n\nAs `landscape list` shows it.\n"]
    for what in KINDS:
        columns, rows = entries(what)
        lines = [columns, ["---"] * len(columns), *([f"`{name}`", *map(_cell, told)] for name, *told in rows)]
        parts.append(f"## {what.capitalize()}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Text as a cell of a table in Markdown shows it."""
    return re.sub(r"([|*_<>\[\]`])", r"\\\1", text)


def _shown(arguments: Sequence[str]) -> str:
    """What the program prints at 100 columns, without colours."""
    from analysis.cli import main

    printed = io.StringIO()
    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    with patch.dict(os.environ, plain), contextlib.redirect_stdout(printed):
        try:
            main(arguments)
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"`landscape {' '.join(arguments)}` ended with {end.code}.") from end
    return "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())
