"""On a device that is not the CPU: no operation mixes devices, and the numbers are those of the CPU."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__)


def test_operators_and_measures_of_a_point_keep_to_the_device():
    """In a process of its own, in which the made-up device is there before anything is differentiated."""
    paths = {"PYTHONPATH": f"{HERE.parents[2]}{os.pathsep}{HERE.parents[1]}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "elsewhere"]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("\n15 compared\n")
