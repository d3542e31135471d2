"""Execute notebook sources (NN_name.py) and store them with their outputs: `python notebooks/build.py [NN_name ...]`.

Without names, all are built. Those that name LANDSCAPE_STUDY need the study in runs/digits.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    """Build the named notebooks, or all; returns the exit code."""
    sources = {path.stem: path for path in sorted(HERE.glob("[0-9][0-9]_*.py"))}
    unknown = [name for name in names if name not in sources]
    if unknown:
        print(f"there is no notebook {unknown[0]!r}; there are {list(sources)}", file=sys.stderr)
        return 2
    chosen = [sources[name] for name in names or sources]
    needed = [path.stem for path in chosen if "LANDSCAPE_STUDY" in path.read_text(encoding="utf-8")]
    if needed and not (HERE.parent / "runs" / "digits" / "study.json").exists():
        print(f"{needed[0]} needs runs/digits: make it with `make study` first", file=sys.stderr)
        return 2
    for source in chosen:
        command = [
            sys.executable,
            "-P",
            "-m",
            "jupytext",
            "--to",
            "ipynb",
            "--execute",
            "--run-path",
            str(HERE),
            str(source),
        ]
        subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
