"""`landscape init`: a folder to start from."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import tyro

STARTER = {"study.yaml": "study.yaml", "mine.py": "mine.py.txt", "explore.ipynb": "explore.py.txt"}

EMPTY: dict[str, Any] = {"execution_count": None, "outputs": []}  # of a cell that was not run


def init(folder: tyro.conf.Positional[Path]) -> int:
    """Write a study file, a module with data and a measure of one's own, and a notebook, to start from.

    Args:
        folder: Where; files of these names that are there already are left alone, with an error.
    """
    there = [name for name in STARTER if (folder / name).exists()]
    if there:
        raise FileExistsError(f"{folder / there[0]} is there already: choose another folder, or move it away.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in STARTER.items():
        text = files("analysis.starter").joinpath(source).read_text(encoding="utf-8")
        (folder / name).write_text(_notebook(text) if name.endswith(".ipynb") else text, encoding="utf-8")
    print(f"written: {', '.join(str(folder / name) for name in STARTER)}")
    print(f"next: cd {folder} && landscape study study.yaml --trust")
    return 0


def _notebook(text: str) -> str:
    """A notebook from cells that begin with %%."""
    cells: list[dict[str, Any]] = []
    for part in text.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        marked = "markdown" in head
        lines = [line.removeprefix("# ") if marked else line for line in body.strip().splitlines(keepends=True)]
        cell = {"id": f"cell-{len(cells)}", "metadata": {}, "source": lines}
        cells.append(cell | ({"cell_type": "markdown"} if marked else {"cell_type": "code", **EMPTY}))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
