"""Run the benchmarks: `python -m benchmarks [steps] [memory] [study]`; all if none is named."""

import json
import sys
import time
from pathlib import Path

from analysis.study import environment
from benchmarks import memory, steps, study

PARTS = {"steps": steps.run, "memory": memory.run, "study": study.run}
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    unknown = [n for n in names if n not in PARTS]
    if unknown:
        print(f"unknown benchmark {unknown}; there are {list(PARTS)}", file=sys.stderr)
        return 2
    rows = []
    for name in names or PARTS:
        for row in PARTS[name]():
            rows.append({"part": name, **row})
            limit = row.get("limit")
            verdict = "" if limit is None else f"  limit {limit:g}: {'met' if row['value'] <= limit else 'MISSED'}"
            spread = f"  [{row['low']:.2f}, {row['high']:.2f}]" if "low" in row else ""
            print(f"{row['what']:75s} {row['value']:8.2f} {row['unit']}{spread}{verdict}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"environment": environment(), "results": rows}, indent=1) + "\n")
    print(f"results: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
