"""The default study from nothing to report, and what one checkpoint costs to measure."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from analysis.measures.checkpoints import RunCheckpoint
from analysis.measures.plan import plan
from analysis.measures.taking import measure_subject
from trainers import list_runs

ROOT = Path(__file__).parents[1]


def run() -> list[dict[str, Any]]:
    """Seconds of the whole study, and of measuring a checkpoint of it with all measures and their defaults."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "analysis", "study", "studies/digits.yaml", "--out", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        torch.set_num_threads(1)
        spent = []
        for one in list_runs(folder)[:13]:
            start = time.perf_counter()
            measure_subject(RunCheckpoint(one.folder, max(one.checkpoints())).load(0), plan())
            spent.append(time.perf_counter() - start)
        first, *spent = spent  # the first also reads the data and imports what torch imports late
    return [
        {"what": "default study, from nothing to report", "value": whole, "unit": "s", "limit": 240.0},
        {
            "what": "all measures of one checkpoint of it, one core", "value": statistics.median(spent),
            "low": min(spent), "high": max(spent), "unit": "s", "limit": 5.0,
        },
        {"what": "the same for the first checkpoint of a process", "value": first, "unit": "s"},
    ]  # fmt: skip
