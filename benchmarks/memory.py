"""Memory over 200 runs in one process: trained, measured, and gone."""

import gc
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch

from analysis.measures.collect import measure_run
from analysis.measures.plan import plan
from trainers import fit

CONFIG = {
    "train_size": 100, "validation_size": 100, "test_size": 100, "label_noise": 0.2, "epochs": 2, "method": "sam",
    "model_options": {"width": 256},
}  # fmt: skip
MEASURES = {
    "targets": None, "hessian_eigenvalues": None, "hessian_trace": {"draws": 8}, "m_sharpness": {"m": [1, None]},
    "perturbed_forgetting": {"batches": 2},
}  # fmt: skip


def resident() -> float:
    """Memory of this process now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def run() -> list[dict[str, Any]]:
    """Growth of resident memory from run 50 to run 200."""
    torch.set_num_threads(1)
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1, 201):
            measure_run(fit({**CONFIG, "seed": i}, out=folder).folder, plan(MEASURES))
            if i in (50, 200):
                gc.collect()
                seen[i] = resident()
    return [{
        "what": "resident memory after 200 runs less that after 50", "value": seen[200] - seen[50], "unit": "MiB",
        "limit": 30.0, "low": seen[50], "high": seen[200],
    }]  # fmt: skip
