"""Execute every notebook source (NN_name.py) on the study in runs/digits and store it with its outputs."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    if not (HERE.parent / "runs" / "digits" / "study.json").exists():
        print("runs/digits is missing: make it with `make study` first", file=sys.stderr)
        return 2
    for source in sorted(HERE.glob("[0-9][0-9]_*.py")):
        command = [sys.executable, "-m", "jupytext", "--to", "ipynb", "--execute", "--run-path", str(HERE), str(source)]
        subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
