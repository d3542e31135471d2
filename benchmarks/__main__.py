"""Run the benchmarks: `python -m benchmarks [steps[:group]] [epochs] [augmented] ...`; all by default."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from analysis.study import environment
from benchmarks import augmented, curvature, epochs, large, measures, memory, statistics, steps, study, surfaces
from benchmarks.table import line, markdown

PARTS: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
    "steps": steps.run, "epochs": epochs.run, "augmented": augmented.run, "memory": memory.run, "study": study.run,
    "curvature": curvature.run, "measures": measures.run, "statistics": statistics.run, "surfaces": surfaces.run,
    "large": large.run,
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def rows_of(name: str, *, quick: bool) -> Iterable[dict[str, Any]]:
    """The rows of a part, or of one group of "steps" or "curvature".

    Raises:
        ValueError: If there is no such part or group, or the part has no quick size.
    """
    part, _, group = name.partition(":")
    if part not in PARTS:
        raise ValueError(f"unknown benchmark {name!r}; there are {list(PARTS)}.")
    known = {"curvature": list(curvature.GROUPS), "steps": list(steps.GROUPS)}.get(part, [])
    if group and group not in known:
        raise ValueError(
            f"unknown group {group!r} of {part}; there are {known}." if known else f"{part!r} has no groups."
        )
    if part == "curvature":
        return curvature.run(quick=quick, groups=[group] if group else [])
    if part == "surfaces":
        return surfaces.run(quick=quick)
    if quick:
        raise ValueError(f"{part!r} has no quick size; only 'curvature' and 'surfaces' have.")
    if part == "steps":
        return steps.run(groups=[group] if group else [])
    return PARTS[part]()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {list(PARTS)}, or a part:group")
    parser.add_argument("--quick", action="store_true", help="small sizes, which show only that it runs (curvature)")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file")
    asked = parser.parse_args(arguments)
    names = asked.parts or list(PARTS)
    try:
        made = [(name, rows_of(name, quick=asked.quick)) for name in names]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    for name, some in made:
        for row in some:
            rows.append({"part": name.partition(":")[0], **row})
            print(line(row), flush=True)
    if asked.markdown:
        print(markdown(rows))
    asked.out.mkdir(exist_ok=True, parents=True)
    path = asked.out / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"environment": environment(), "quick": asked.quick, "results": rows}, indent=1) + "\n")
    print(f"results: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
