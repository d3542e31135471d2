"""What processes of `torchrun` do in the test of the program: several commands, one after the other."""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from analysis.cli import main

for number, command in enumerate(Path(sys.argv[1]).read_text().splitlines()):
    with Path(f"{number}.{os.environ['RANK']}.txt").open("w") as file, redirect_stdout(file):
        try:
            main(command.split())
        except SystemExit as end:
            file.write(f"exit code {end.code}")
