"""Measuring a ResNet-20 trained on 10,000 images: `python -m benchmarks large`.

A process of its own trains it for an epoch, says what measuring is expected to cost, and takes the usual measures on
one core; seconds are those of the processor, and the peak is of resident memory.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from analysis.measures.budget import budget
from analysis.measures.collect import to_measure
from analysis.measures.plan import plan
from analysis.measures.taking import measures_of
from trainers import fit
from trainers.runtime import Runtime

CONFIG = {
    "dataset": "fashion_mnist", "model": "resnet20", "model_options": {"width": 16}, "train_size": 10_000, "epochs": 1,
    "method": "sam", "rho": 0.05, "lr": 0.05, "batch_size": 128,
}  # fmt: skip
LONGEST, MOST = 1200.0, 2.5  # seconds of one core, and GB
FACTOR = 2.0  # what is expected may be off by


def run() -> list[dict[str, Any]]:
    """Seconds, memory, and what was expected over what was taken."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.large", folder]
        said = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(said.stdout.splitlines()[-1])
    what = "the usual measures of ResNet-20 width 16, 10,000 images of 28 x 28, one core"
    rows = [
        {"what": what, "value": found["seconds"], "unit": "s", "limit": LONGEST},
        {"what": f"{what}: peak memory", "value": found["peak"], "unit": "GB", "limit": MOST},
        {
            "what": f"{what}: expected / taken", "value": found["expected"] / found["seconds"], "unit": "x",
            "limit": FACTOR,
        },
    ]  # fmt: skip
    return [*rows, *({"what": f"- {key}", "value": took, "unit": "s"} for key, took in found["by measure"].items())]


def measure(folder: str) -> dict[str, Any]:
    """Train, and measure."""
    torch.set_num_threads(1)
    trained = fit(CONFIG, out=folder)
    calls, _ = to_measure([trained], plan())
    expected = budget(calls, Runtime(jobs=1)).duration(1)
    checkpoint, chosen, seed = calls[0]
    spent, begun = dict[str, float](), time.process_time()
    for key, _ in measures_of(checkpoint.load(seed), chosen):
        spent[key], begun = time.process_time() - begun, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"expected": expected, "seconds": sum(spent.values()), "peak": peak, "by measure": spent}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
