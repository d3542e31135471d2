"""Run the script for a GPU: `python -m benchmarks.gpu [parts] [--device cuda]`; see docs/gpu.md."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.script import PRELOADED, Outcome, Part, outcomes
from benchmarks.table import line, markdown

PARTS = (
    Part("machine", "benchmarks.gpu.machine:run", 15),
    Part("methods", "benchmarks.gpu.checks:run", 30, about="test_methods"),
    Part("functions", "benchmarks.gpu.checks:run", 60, about="test_functions"),
    Part("precision", "benchmarks.gpu.checks:run", 20, about="test_precision"),
    Part("ranks", "benchmarks.gpu.checks:run", 20, about="test_ranks"),
    Part("reads", "benchmarks.gpu.small:reads", 20),
    Part("images", "benchmarks.gpu.large:images", 70),
    Part("curvature", "benchmarks.gpu.large:curvature", 70),
    Part("surface", "benchmarks.gpu.large:surface", 45),
    Part("populations", "benchmarks.gpu.populations:run", 30),
    Part("graphs", "benchmarks.gpu.small:graphs", 20, cuda=True),
    Part("compile", "benchmarks.gpu.small:compiled", 60),
)
RESULTS = Path(__file__).parents[1] / "results"
SECONDS = 480
PATIENCE = 4  # how much longer parts may take on a CPU, whose cores others may use too


def environment(device: str) -> dict[str, Any]:
    """Where and of what; the device itself is described by the part "machine"."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "machine": platform.node(), "platform": platform.platform(), "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)), "commit": commit.stdout.strip() or "unknown", "device": device,
    }  # fmt: skip


def main(arguments: list[str], parts: Sequence[Part] = PARTS, preloaded: Sequence[str] = PRELOADED) -> int:
    """Run parts, print their rows, and write them as JSON and as a table.

    Args:
        arguments: Of the command line.
        parts: All there are.
        preloaded: See `outcomes`.

    Returns:
        0; 1 if a part failed; 2 for a bad argument.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {[part.name for part in parts]}; all by default")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu (small sizes), or auto")
    parser.add_argument("--quick", action="store_true", help="small sizes on a GPU too, which show only that it runs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together, on a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file and the table")
    asked = parser.parse_args(arguments)
    known = {part.name: part for part in parts}
    unknown = [name for name in asked.parts if name not in known]
    if unknown:
        print(f"unknown part {unknown[0]!r}; there are {list(known)}.", file=sys.stderr)
        return 2
    longer = PATIENCE if asked.device == "cpu" else 1
    chosen = [replace(known[name], seconds=longer * known[name].seconds) for name in asked.parts or known]
    where, done = environment(asked.device), list[Outcome]()
    print(f"{where['machine']}, {where['platform']}, commit {where['commit']}", flush=True)
    place = {"device": asked.device, "quick": asked.quick}
    for one in outcomes(chosen, **place, seconds=longer * asked.seconds, preloaded=preloaded):
        if isinstance(one, Outcome):
            done.append(one)
            print(f"-- {one.part}: {one.failure or 'done'} ({one.seconds:.0f} s)\n{one.details}", flush=True)
        else:
            print(f"{line(one)}{'  ' if one.get('note') else ''}{one.get('note') or ''}", flush=True)
    written(asked.out, where, done)
    return int(any(outcome.failure for outcome in done))


def written(folder: Path, where: dict[str, Any], done: list[Outcome]) -> None:
    """Write what came out as JSON and as a table for docs/benchmarks.md."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}.json"
    content = {"environment": where, "parts": [outcome.as_json() for outcome in done]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    rows = [row for outcome in done for row in outcome.rows]
    rows += [{"what": o.part, "value": None, "unit": f"FAILED: {o.failure}"} for o in done if o.failure]
    path.with_suffix(".md").write_text(markdown(rows) + "\n")
    print(f"results: {path}, table: {path.with_suffix('.md')}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
