"""The distribution: one version, whole archives, and a program that works where it is installed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from analysis import version as versions
from analysis.version import DISTRIBUTION, version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("landscape", "trainers", "analysis")

needs_hatchling = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed: pip install hatchling"
)


def run(*command, folder, **more):
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env={**clean, **more}, capture_output=True, text=True, check=False)


def sources(*tops):
    """Files of the repository that belong into the archives."""
    found = (path for top in tops for path in (ROOT / top).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the sdist of a copy of the repository."""
    place = tmp_path_factory.mktemp("built")
    done = run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-d",
        place,
        folder=ROOT,
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
    )
    assert done.returncode == 0, done.stderr
    return next(place.glob("*.whl")), next(place.glob("*.tar.gz"))


def test_one_version_everywhere():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert version() == heading
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == heading
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert re.compile(PROJECT["tool"]["hatch"]["version"]["pattern"]).pattern.startswith("^## ")


def test_a_source_tree_that_is_not_installed_has_the_changelogs_version(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "DISTRIBUTION", "no-such-distribution")
    monkeypatch.setattr(versions, "CHANGELOG", tmp_path / "CHANGELOG.md")
    assert version() == "unknown"
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 7.8.9 — soon\n\n## 7.8.8\n")
    assert version() == "7.8.9"


def test_no_message_or_page_names_the_extras_of_another_package():
    """`pip install 'landscape[ray]'` would install a stranger's package."""
    extra = re.compile(r"(?<![\w-])landscape\[(?:[a-z0-9,]+|\{extra\})\]")
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "studies").rglob("*.md"),
    ]
    code = [path for top in PACKAGES for path in (ROOT / top).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in (*pages, *code) if extra.search(path.read_text(encoding="utf-8"))}
    assert found == set()


@needs_hatchling
def test_the_archives_hold_every_file_of_the_packages(archives, tmp_path):
    wheel, sdist = archives
    assert wheel.name == f"landscape_lab-{version()}-py3-none-any.whl"
    inside = zipfile.ZipFile(wheel).namelist()
    info = f"landscape_lab-{version()}.dist-info"
    assert {name for name in inside if not name.startswith(info)} == sources(*PACKAGES)
    metadata = zipfile.ZipFile(wheel).read(f"{info}/METADATA").decode()
    assert f"Name: {DISTRIBUTION}\nVersion: {version()}\n" in metadata
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    of_sdist = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert sources(*PACKAGES) | {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"} <= of_sdist


@needs_hatchling
def test_an_installed_wheel_works_beside_folders_of_its_packages_names(archives, tmp_path):
    place = tmp_path / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--quiet",
    )
    done = run(*pip, str(archives[0]), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    site = next((place / "lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch and the others, after ours
    work = tmp_path / "work"
    for name in PACKAGES:
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("raise RuntimeError('another')\n")
    program = place / "bin" / "landscape"
    assert run(program, "--version", folder=work).stdout == f"landscape {version()}\n"
    listed = run(program, "list", "tasks", folder=work)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith("classification\t")

    shutil.rmtree(work / "analysis")  # one called analysis is all that Python sees of ours under -m
    assert run(python, "-m", "analysis", "--version", folder=work).stdout == f"landscape {version()}\n"
    shadowed = run(program, "--version", folder=work, PYTHONPATH=str(work)).stderr.splitlines()[-1]
    assert shadowed.startswith(
        f"ImportError: Python finds another `trainers` before that of Landscape: {work}/trainers."
    )
    for name in ("landscape", "trainers"):
        (work / name / "__init__.py").unlink()  # folders of data, say
    assert run(program, "--version", folder=work, PYTHONPATH=str(work)).returncode == 0
