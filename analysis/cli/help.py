"""The help of the program and of its commands, without loading what they need."""

import argparse
import shutil
import textwrap
from functools import partial
from typing import Any

from analysis.cli.commands import COMMANDS
from analysis.cli.reading import OWN, Option, usage

ABOUT = "Loss landscapes, sharpness and perturbed forgetting."
FIRST, FURTHER = "options that matter most", "further options"
WIDEST = 110  # longer lines are hard to read
NAMES = 30  # columns for options before what is said of them


def of_program() -> str:
    """The commands."""
    wide = max(map(len, COMMANDS))
    lines = [f"  {name:<{wide}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([
        "usage: landscape COMMAND [OPTIONS]", "", ABOUT, "", "commands:", *lines, "",
        "examples:", *(f"  {COMMANDS[name].examples[0]}" for name in ("study", "init", "measure")), "",
        "`landscape COMMAND --help` shows the options of a command, `landscape --version` the version.",
    ])  # fmt: skip


def of_command(name: str) -> str:
    """What a command does, its options in groups, those that matter most first, and examples."""
    command = COMMANDS[name]
    read = usage(command.place)
    arguments = [option for option in read.options if option.positional]
    words = [f"{option.name} [{option.name} ...]" if "..." in option.takes else option.name for option in arguments]
    usual = " ".join(["landscape", name, *words, *(["[OPTIONS]"] if len(arguments) < len(read.options) else [])])
    wide = min(WIDEST, shutil.get_terminal_size().columns)
    about = "\n\n".join(textwrap.fill(" ".join(part.split()), wide - 2) for part in read.about.split("\n\n"))
    parser = argparse.ArgumentParser(
        prog=f"landscape {name}", usage=usual, add_help=False, description=about,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=NAMES, width=wide),
        epilog="\n".join(["examples:", *(f"  {line}" for line in command.examples)]),
    )  # fmt: skip
    for title, options in _grouped(read.options, command.first).items():
        group = parser.add_argument_group(title)
        for option in options:
            names, shown = _shown(option)
            group.add_argument(*names, **shown)
    return parser.format_help().rstrip()


def _grouped(options: tuple[Option, ...], first: tuple[str, ...]) -> dict[str, list[Option]]:
    """Options by heading; no heading is empty."""
    named = {option.name.split()[0].removeprefix("--"): option for option in options if not option.positional}
    groups = {"arguments": [option for option in options if option.positional], FIRST: [named[name] for name in first]}
    for name, option in named.items():
        if name not in first:
            groups.setdefault(FURTHER if option.group == OWN else option.group, []).append(option)
    if FURTHER in groups:  # after those that belong to something
        groups[FURTHER if first else "options"] = groups.pop(FURTHER)
    return {title: found for title, found in groups.items() if found}


def _shown(option: Option) -> tuple[list[str], dict[str, Any]]:
    """What argparse is told of an option."""
    default = f" (default: {option.default})" if option.default else ""
    told = f"{option.help.rstrip('.')}.{default}".replace("%", "%%")
    if option.positional:
        choices = f" One of {option.takes.replace('|', ', ')}." if "|" in option.takes else ""
        return [option.name], {"help": told + choices}
    if not option.takes:
        return option.name.split(" / "), {"help": told, "action": "store_true"}
    return [option.name], {"help": told, "metavar": option.takes}
