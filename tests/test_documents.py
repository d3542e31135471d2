"""What users read first must run as written: the README's Python, and every notebook, on the smoke study."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("smoke")


def test_the_readmes_python_runs_as_written(smoke, capsys):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    scope: dict = {}
    for block in blocks:
        exec(block.replace("runs/smoke", str(smoke)), scope)
    assert "±" in capsys.readouterr().out
    assert scope["pairs"].converged


def test_what_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`?((?:studies|notebooks|docs|benchmarks)/[\w./]+\w)`?", text):
        if not name.endswith("yours.yaml"):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("source", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py")), ids=lambda p: p.stem)
def test_notebooks_run_and_are_stored_with_their_outputs(source, smoke, tmp_path):
    out = tmp_path / source.with_suffix(".ipynb").name
    command = [sys.executable, "-m", "jupytext", "--to", "ipynb", "--execute", str(source), "-o", str(out)]
    environment = {**os.environ, "LANDSCAPE_STUDY": str(smoke), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    import nbformat

    stored = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    fresh = [cell for cell in nbformat.read(out, as_version=4).cells if cell.cell_type == "code"]
    assert [c.source for c in code] == [c.source for c in fresh], "run `make notebooks`: the source has changed"
    assert all(cell.execution_count for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
