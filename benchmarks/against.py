"""Another commit against this one: `python -m benchmarks.against COMMIT [--only PATTERN] [--seconds S]`.

Two processes, one of each commit, take turns at the same work and report their own processor time, so that a drift of
the machine's speed and other work on it strike both alike. A row is one kind of work: the ratio new to old of the
smallest times, and the median of the ratios of single rounds with its quartiles. What is timed needs nothing but names
that every commit has: `landscape.EmpiricalRisk`, `landscape.Hessian`, `trainers.make_optimizer` and the like.
"""

import argparse
import fnmatch
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[], object]
HERE = Path(__file__).resolve()
SHAPES = {"mlp": (1, 8, 8), "resnet20": (1, 8, 8), "tiny": (20,)}
METHODS = ("sgd", "sam", "asam", "gsam", "esam", "deltasam", "looksam", "msam", "fsam", "aesam")
ROUND = 0.05  # seconds of a turn, at least


def names() -> list[str]:
    """What can be timed."""
    steps = [f"step {method}, {model}" for model in ("mlp", "resnet20") for method in METHODS]
    steps += [f"step {method}, {form}" for form in ("tiny", "closure, tiny") for method in ("sgd", "sam", "gsam")]
    operators = [
        f"{what}, {model}"
        for model in ("mlp", "resnet20")
        for what in ("H v", "H v afresh", "making H", "3 eigenpairs", "trace of 20 draws", "value", "gradient")
    ]
    return steps + operators + ["ascent sharpness, mlp"]


def _model(name: str) -> Any:
    from torch import nn

    from trainers import build_model

    if name == "tiny":
        return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return build_model(name, shape=SHAPES[name], classes=10, generator_seed=0, options={})


def work(name: str) -> Work:
    """What one call of the named work does."""
    import torch
    import torch.nn.functional as F

    import landscape
    from trainers import Objective, make_optimizer

    what, _, last = name.rpartition(", ")
    torch.manual_seed(0)  # noqa: TID251 - a process of its own
    model = _model(last)
    size = 32 if what.startswith("step") else 128
    x, y = torch.randn(size, *SHAPES[last]), torch.randint(10, (size,))

    if what.startswith("step "):
        method, *form = what.removeprefix("step ").split(", ")
        settings: dict[str, Any] = {"total_steps": 100_000, "steps_per_epoch": 50} if method != "sgd" else {}
        optimizer = make_optimizer(method, model.train(), lr=0.01, momentum=0.9, weight_decay=5e-4, **settings)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if form:
            return lambda: optimizer.step(closure)
        return lambda: optimizer.step(Objective(model, F.cross_entropy, x, y))

    risk = landscape.EmpiricalRisk.from_model(model.eval(), F.cross_entropy, (x, y))
    if what in ("value", "gradient"):
        return getattr(risk, what)
    if what == "ascent sharpness":
        return lambda: landscape.ascent_sharpness(risk, landscape.AscentStep(0.05))
    if what == "making H":
        return lambda: landscape.Hessian(risk)
    H = landscape.Hessian(risk, path="afresh") if what == "H v afresh" else landscape.Hessian(risk)
    if what.startswith("H v"):
        v = torch.randn(H.shape[0])
        return lambda: H @ v
    draw = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    if what == "3 eigenpairs":
        return lambda: landscape.top_eigenpairs(H, 3, generator=draw())
    return lambda: landscape.trace(H, method="hutchinson", draws=20, generator=draw())


def serve() -> None:
    """One of the two processes: a line in names the work and how often; a line out is the seconds of each call."""
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    last, call = "", lambda: None
    for line in sys.stdin:
        name, times = json.loads(line)
        if name != last:
            last, call = name, work(name)
            for _ in range(3):
                call()
        gc.collect()
        gc.disable()
        seconds = []
        for _ in range(times):
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
        gc.enable()
        print(json.dumps(seconds), flush=True)


class Side:
    """A process that works with the packages of one tree."""

    def __init__(self, tree: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
        code = f"import runpy; runpy.run_path({str(HERE)!r})['serve']()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tree, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def time(self, name: str, times: int) -> list[float]:
        """Seconds of each call.

        Raises:
            RuntimeError: If the process has ended, with what it was asked for.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([name, times]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{name!r} failed; see above.")
        seconds: list[float] = json.loads(answer)
        return seconds


def compare(old: Side, new: Side, name: str, seconds: float) -> dict[str, float]:
    """Times of both, in turns."""
    longest = max(min(side.time(name, 3)) for side in (old, new))
    times = max(1, min(300, int(ROUND / longest)))
    rounds = max(5, int(seconds / (2 * times * longest)))
    best = {old: float("inf"), new: float("inf")}
    ratios = []
    for i in range(rounds):
        medians = {}
        for side in (old, new) if i % 2 else (new, old):
            taken = side.time(name, times)
            best[side] = min(best[side], *taken)
            medians[side] = statistics.median(taken)
        ratios.append(medians[new] / medians[old])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"milliseconds": 1e3 * best[old], "least": best[new] / best[old], "low": low, "median": middle, "high": high}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("commit", help="the other commit; it is checked out beside, and removed at the end")
    parser.add_argument("--only", action="append", metavar="PATTERN", help=f"some of {names()}, as * patterns")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each row, for both together")
    asked = parser.parse_args(arguments)
    root = HERE.parents[1]
    git = ["git", "-C", str(root), "worktree"]
    chosen = [n for n in names() if not asked.only or any(fnmatch.fnmatch(n, p) for p in asked.only)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "other"
        subprocess.run([*git, "add", "-q", "--detach", str(tree), asked.commit], check=True)
        try:
            old, new = Side(tree), Side(root)
            print("| work | old, ms | new / old, least | median [quartiles] |\n|---|---|---|---|", flush=True)
            for name in chosen:
                r = compare(old, new, name, asked.seconds)
                print(
                    f"| {name} | {r['milliseconds']:.3f} | {r['least']:.3f} | "
                    f"{r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}] |", flush=True,
                )  # fmt: skip
            for side in (old, new):
                side.process.communicate()
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
