"""The script for a GPU: a part that fails in any way stops no other, and everything is written down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from on_device import DrawnOnTheCpu, close

from benchmarks.gpu.__main__ import main
from benchmarks.reads import counted

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from benchmarks.gpu.__main__ import main
from benchmarks.reads import counted
from benchmarks.gpu.script import Part
parts = [
    Part("raising", "made_parts:raising", 60),
    Part("dying", "made_parts:dying", 60),
    Part("hanging", "made_parts:hanging", {hanging}),
    Part("cuda", "made_parts:good", 60, about="never", cuda=True),
    Part("wrong", "made_parts:wrong", 60),
    Part("checks", "benchmarks.gpu.checks:run", 60, about="made_checks"),
    Part("good", "made_parts:good", 60, about="part"),
    Part("machine", "benchmarks.gpu.machine:run", 60),
    Part("methods", "benchmarks.gpu.checks:run", 60, about="test_methods"),
]
sys.exit(main(sys.argv[1:], parts, ["hidden", "benchmarks.gpu.place"]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The script with made-up parts, in a bare interpreter: what it printed, its JSON by part, its table."""
    out = tmp_path_factory.mktemp("gpu")
    paths = os.pathsep.join(str(p) for p in (ROOT, ROOT / "tests" / "gpu"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(hanging=1), "--device", "cpu", "--out", out],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    (written,) = out.glob("*.json")
    content = json.loads(written.read_text())
    return done.stdout, {part["part"]: part for part in content["parts"]}, written.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("part", "failure", "values"),
    [
        ("raising", "ValueError: one reason", [2.0]),
        ("dying", "its process died with exit code 7", [3.0]),
        ("hanging", "ended after 4 s, which was all its time", [4.0]),
        ("wrong", "1 of its rows failed", [None, 5.0]),
        ("checks", "2 of its rows failed", [None, None, None, 2]),
        ("good", "", [1.0]),
        ("cuda", "", [None]),
    ],
)
def test_how_a_part_ended_and_what_it_gave_before(run, part, failure, values):
    found = run[1][part]
    assert (found["failure"], [row["value"] for row in found["rows"]]) == (failure, values)


def test_reasons_are_kept(run):
    printed, parts, table = run
    assert "raise ValueError" in parts["raising"]["details"]
    assert parts["cuda"]["rows"][0]["unit"] == "not run: no CUDA"
    rows = parts["checks"]["rows"]
    assert {row["what"] for row in rows[:2]} == {"made_checks: test_equal[0-1-2]", "made_checks: test_equal[3-1-2]"}
    assert rows[0]["note"] == "AssertionError: 1 is not 2"
    assert rows[2]["unit"] == "not run: no such device"
    assert rows[3]["unit"] == "of 4 passed"
    assert "| hanging | FAILED: ended after 4 s" in table
    assert "| good part on cpu | 1 s |" in table
    assert "-- good: done" in printed


def test_torch_numpy_scipy_and_pandas_are_enough(run):
    parts = run[1]
    absent = next(row["unit"] for row in parts["machine"]["rows"] if "stand-ins" in row["what"])
    assert {"jaxtyping", "psutil", "pydantic", "safetensors", "yaml"} <= set(absent.split(", "))
    assert parts["methods"]["failure"] == ""
    assert parts["methods"]["rows"][-1]["value"] >= 50


def test_an_unknown_part_and_a_device_that_is_not_there_are_refused(capsys):
    assert main(["nothing"]) == 2
    assert "unknown part 'nothing'; there are ['machine', 'methods'" in capsys.readouterr().err
    assert main(["machine", "--device", "cuda:99"]) == 2
    assert "`device` 'cuda:99' is not there" in capsys.readouterr().err


def test_reads_are_counted():
    t, mask = torch.tensor(2.0), torch.tensor([True, False])
    with counted() as none:
        (t * 2 + t.sqrt()).clamp(max=1)
    with counted() as four:
        float(t)
        bool(t > 1)
        t.item()
        torch.ones(2)[mask]
    assert (none.count, four.count) == (0, 4)


def test_draws_of_a_device_are_those_of_the_cpu():
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    with DrawnOnTheCpu(lambda generator: generator is first):
        mine = [torch.randn(torch.Size([3]), generator=first), torch.empty(2).normal_(generator=first)]
        first.manual_seed(5)
        mine.append(torch.randint(9, (4,), generator=first, device="cpu"))
        mine.append(torch.bernoulli(torch.full((8,), 0.5), generator=first))
    expected = [torch.randn(3, generator=second), torch.empty(2).normal_(generator=second)]
    second.manual_seed(5)
    expected += [torch.randint(9, (4,), generator=second), torch.bernoulli(torch.full((8,), 0.5), generator=second)]
    close(mine, expected)
    assert torch.equal(first.get_state(), torch.Generator().manual_seed(5).get_state())  # nothing was drawn from it
