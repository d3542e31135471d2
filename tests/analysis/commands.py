"""The command line, called as a program would be."""

import pytest

from analysis.cli import main


def command(*arguments):
    """`landscape` with these arguments; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return stopped.value.code
