"""The program `landscape`: one file a command, with the arguments of the library call behind it."""

from analysis.cli.program import main

__all__ = ["main"]
