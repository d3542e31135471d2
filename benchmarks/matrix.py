"""The smoke study on the oldest and the newest torch, with every Python from 3.11 to 3.13 that is at hand.

    make matrix
    python benchmarks/matrix.py 3.11-2.13.0      # one pair

Each pair gets a fresh environment with the wheel of this tree, in a folder that is thrown away. Builds of torch without
libraries for GPUs are taken where an index has them; TORCH_INDEX names another index, or none.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
PROBE = """
import platform, torch, analysis, landscape, trainers
g = torch.Generator().manual_seed(0)
H = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
assert abs(landscape.top_eigenpairs(H, generator=g).values[0] - 8) < 1e-6
print("python", platform.python_version(), "torch", torch.__version__)
"""


def torches() -> tuple[str, str]:
    """The oldest torch that is promised to work, and the one that the tests pass with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (least,) = (need for need in project["dependencies"] if need.startswith("torch>="))
    tested = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert tested is not None
    return f"{least.removeprefix('torch>=')}.0", tested[1]


def run(*command: object, folder: Path) -> str:
    """Run a command outside of this tree.

    Raises:
        RuntimeError: With the end of what it said, if it fails.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=folder, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f"{Path(str(command[0])).name} {' '.join(map(str, command[1:4]))}: {' / '.join(said)}")
    return done.stdout


def tried(python: str, torch: str, wheel: Path, folder: Path) -> str:
    """Install, and run the smoke study; what was run on."""
    run(python, "-m", "venv", folder / "environment", folder=folder)
    programs = folder / "environment" / "bin"
    pip = (programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    run(*pip, f"torch=={torch}", *(("--extra-index-url", INDEX) if INDEX else ()), folder=folder)
    run(*pip, wheel, f"torch=={torch}", folder=folder)
    found = run(programs / "python", "-c", PROBE, folder=folder).strip()
    run(programs / "landscape", "study", ROOT / "studies" / "smoke.yaml", folder=folder)
    assert (folder / "runs" / "smoke" / "report" / "report.html").exists()
    return found


def working(python: str) -> str | None:
    """A Python of this version that starts."""
    found = shutil.which(f"python{python}")
    ask = [found or "", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return found if said == python else None


def main() -> None:
    """Try every pair, or those that are named, and print a line for each; fails if one does."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="matrix-") as name:
        home = Path(name)
        run(sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", home, ROOT, folder=home)
        (wheel,) = home.glob("*.whl")
        for python in PYTHONS:
            found = working(python)
            if found is None:
                print(f"python {python}: not at hand")
                continue
            for torch in torches():
                if sys.argv[1:] and f"{python}-{torch}" not in sys.argv[1:]:
                    continue
                folder, begun = home / f"{python}-{torch}", time.monotonic()
                folder.mkdir()
                try:
                    said = f"passed: {tried(found, torch, wheel, folder)}"
                except (RuntimeError, AssertionError) as error:
                    said, failures = f"FAILED: {error}", failures + 1
                shutil.rmtree(folder, ignore_errors=True)
                print(f"python {python}, torch {torch}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
