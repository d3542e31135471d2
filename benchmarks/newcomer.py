"""A newcomer's path, from nothing to a figure for a paper, with the time that each step takes.

    make newcomer

It needs Python with venv and pip, an index of packages, and for the last two steps a Chromium and pdflatex; without
them these steps are left out. Everything happens in a folder that is thrown away.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 15 * 60  # seconds
ICML = 3.25  # inches
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

MINE = '''
"""Data and a measure of my own."""
import torch
from torch.utils.data import TensorDataset


def moons(seed: int):
    """Two interleaved half circles in the plane."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(800) % 2
    angle = torch.pi * torch.rand(800, generator=g)
    x = torch.stack([angle.cos() + y, (angle.sin() - 0.5 * y) * (1 - 2 * y)], dim=1)
    x, order = x + 0.25 * torch.randn(800, 2, generator=g), torch.randperm(800, generator=g)
    train, test = order[:500], order[500:]
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def largest_weight(subject):
    """Largest absolute weight."""
    return max(p.abs().max() for p in subject.model.parameters())
'''

EXPLORE = """
import sys
from playwright.sync_api import sync_playwright
with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox", "--disable-gpu"])
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    ready = "document.documentElement.dataset.ready === 'yes'"
    page.goto(sys.argv[2])
    page.wait_for_function(ready)
    for menu in ("x", "colour"):
        values = page.locator(f"#{menu} option").evaluate_all("(all) => all.map((one) => one.value)")
        page.select_option(f"#{menu}", values[-1])
        page.wait_for_function(ready)
    assert page.locator("#coefficients tbody tr").count() > 0, "no coefficients"
    assert not said, said
    browser.close()
"""

PAPER = r"""
\documentclass{article}\usepackage{graphicx}
\begin{document}\includegraphics{forest.pdf}\end{document}
"""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what a step is, and how long it took."""
    begun = time.monotonic()
    print(f"{what} ...", flush=True)
    yield
    print(f"{time.monotonic() - begun:7.0f} s  {what}", flush=True)


def run(*command: object, folder: Path = ROOT, silent: bool = False) -> str:
    """Run a command outside of this tree; stop with its output where it fails."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=folder, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    if not silent:
        print("".join(f"         | {line}\n" for line in done.stdout.strip().splitlines()[-6:]), end="")
    return done.stdout


def install(place: Path) -> Path:
    """A fresh environment with the wheel of this tree and the versions that the tests pass with; where programs are."""
    run(sys.executable, "-m", "venv", place, silent=True)
    programs = place / "bin"
    pip = (programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", place / "wheel", ROOT, silent=True)
    (wheel,) = (place / "wheel").glob("*.whl")
    constraints = ROOT / "constraints.txt"
    torch = re.search(r"^torch==\S+", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    assert torch is not None
    run(*pip, "install", torch[0], "-c", constraints, silent=True)  # first: a range could pull gigabytes for GPUs
    run(*pip, "install", wheel, "-c", constraints, silent=True)
    if CHROMIUM:
        run(*pip, "install", "playwright", "-c", constraints, silent=True)
    return programs


def main() -> None:
    """Walk the path in a folder that is thrown away."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as name:
        home = Path(name)
        with step("fresh environment, install from the wheel"):
            programs = install(home / "environment")
        landscape, work = programs / "landscape", home / "first"
        with step("landscape init first"):
            run(landscape, "init", "first", folder=home)
        with step("own data and own measure, in ten lines each"):
            (work / "mine.py").write_text(MINE.lstrip(), encoding="utf-8")
            text = (work / "study.yaml").read_text(encoding="utf-8")
            for old, new in (("mine:rings", "mine:moons"), ("mine:kurtosis", "mine:largest_weight")):
                assert old in text, f"`landscape init` no longer writes {old}"
                text = text.replace(old, new)
            (work / "study.yaml").write_text(text, encoding="utf-8")
        with step("landscape study study.yaml --trust --dry-run"):
            run(landscape, "study", "study.yaml", "--trust", "--dry-run", folder=work)
        with step("landscape study study.yaml --trust"):
            run(landscape, "study", "study.yaml", "--trust", folder=work)
        (study,) = (work / "runs").iterdir()
        with step("what goes with the test error"):
            run(landscape, "correlate", study, "--targets", "test_error", "--top", 3, folder=work)
            own = run(landscape, "correlate", study, "--measures", "largest_weight", folder=work, silent=True)
            assert "largest_weight" in own
        with step("landscape report --figure forest --medium icml"):
            run(landscape, "report", study, "--figure", "forest", "--medium", "icml", folder=work)
            (figure,) = study.glob("**/icml/**/forest.pdf")
            box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", figure.read_bytes())
            assert box is not None
            assert abs(float(box[1]) / 72 - ICML) < 0.01, f"{figure} is {float(box[1]) / 72:.2f} in wide"
        pages = {path.name for path in (study / "report").iterdir()}
        assert {"report.html", "explorer.html"} <= pages, pages
        if CHROMIUM:
            with step("the explorer in a browser"):
                page = (study / "report" / "explorer.html").as_uri()
                run(programs / "python", "-c", EXPLORE, CHROMIUM, page, folder=work)
        if shutil.which("pdflatex"):
            with step("the figure in a paper"):
                shutil.copy(figure, work)
                (work / "paper.tex").write_text(PAPER, encoding="utf-8")
                run("pdflatex", "-interaction=nonstopmode", "paper.tex", folder=work, silent=True)
    spent = time.monotonic() - begun
    print(f"{spent:7.0f} s  in all; the limit is {LIMIT} s")
    sys.exit(spent > LIMIT)


if __name__ == "__main__":
    main()
