"""What processes of `torchrun` do in the test of the program: several commands, one after the other."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from analysis.cli import main

COMMANDS = [command.split() for command in Path(sys.argv[1]).read_text().splitlines()]

for number, command in enumerate(COMMANDS):
    with Path(f"{number}.{sys.argv[2]}.txt").open("w") as file, redirect_stdout(file):
        try:
            main(command)
        except SystemExit as end:
            file.write(f"exit code {end.code}")
