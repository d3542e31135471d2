"""Peak memory of one Hessian product, in a process of its own: `python -m benchmarks.peak SUBJECT WHAT [--quick]`.

The kernel's high-water mark of resident memory is reset after a warm-up gradient and a warm-up product; the answer is
the mark after one more product, less what was resident before it. torch's own profiler counts tensors only; this also
counts the workspaces of convolutions. malloc is told to hand freed blocks back at once (see `measured`), because blocks
that it keeps would be reused unseen. Linux only.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.library import DoubleBackward, Landscape, Library
from benchmarks.peers import Curvlinops, PyHessian
from benchmarks.problems import SUBJECTS
from benchmarks.subjects import Subject

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MAKERS: dict[str, Callable[[Subject], Library]] = {
    "landscape, path afresh": lambda s: Landscape(s, path="afresh"),
    "landscape, path kept": lambda s: Landscape(s, path="kept"),
    "double backward afresh": DoubleBackward,
    "PyHessian, dataloader": lambda s: PyHessian(s, afresh=True),
    "curvlinops": Curvlinops,
}
RESET_PEAK = "5"  # what /proc/[pid]/clear_refs takes to set the high-water mark to the present resident size
NEEDS: dict[str, type[Library]] = {
    "PyHessian, dataloader": PyHessian, "curvlinops": Curvlinops,
}  # fmt: skip


def memory(field: str) -> float:
    """A field of this process's status, "VmRSS" (now) or "VmHWM" (peak), in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def measure(subject: Subject, what: str) -> dict[str, float]:
    """MiB of one product above what is resident before it, and what the library holds between products."""
    DoubleBackward(subject).gradient()
    gc.collect()
    empty = memory("VmRSS")
    step = MAKERS[what](subject).stepper(subject.vector())
    step()
    gc.collect()
    before = memory("VmRSS")
    CLEAR.write_text(RESET_PEAK)
    step()
    # what is resident may shrink between its reading and the reset of the mark
    return {"peak": max(0.0, memory("VmHWM") - before), "held": before - empty}


def measured(subject: str, what: str, *, quick: bool) -> dict[str, float]:
    """The same, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.peak", subject, what, *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=fresh(), check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def fresh() -> dict[str, str]:
    """The environment of a process whose memory is measured: one thread, and freed blocks go back at once."""
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        "MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**18), "MALLOC_ARENA_MAX": "1",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("what", choices=list(MAKERS))
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(SUBJECTS[asked.subject](asked.quick, untrained=True), asked.what)))


if __name__ == "__main__":
    main()
