"""Time of a step of every sharpness-aware method in units of an SGD step, beside what its equations imply.

Both are timed in mirrored order in one run. The implied cost is (forward passes) · f + (backward passes) · (1 - f),
with f the share of a forward pass in an SGD step, measured in the same run; for gated methods the passes are those of
the share of steps that were perturbed.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.many import many_models
from benchmarks.pairing import Step, mirrored, ratio
from benchmarks.reads import counted
from trainers import Objective, build_model, make_optimizer


@dataclass(frozen=True)
class Problem:
    """A model, a batch, and how often a step is timed."""

    what: str
    model: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    batch: int
    inner: int
    rounds: int
    allowance: float  # times the implied cost

    def made(self) -> tuple[nn.Module, Tensor, Tensor]:
        model = build_model(self.model, shape=self.shape, classes=10, generator_seed=0, options=self.options).train()
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *self.shape, generator=draw)
        return model, x, torch.randint(10, (self.batch,), generator=draw)


MLP = Problem("mlp, batch 32", "mlp", {}, (1, 8, 8), 32, 60, 15, 1.15)
SMALL = Problem("resnet20 width 16, batch 128, 8 x 8", "resnet20", {"width": 16}, (1, 8, 8), 128, 1, 5, 1.05)
LARGE = Problem("resnet20 width 16, batch 128, 32 x 32", "resnet20", {"width": 16}, (3, 32, 32), 128, 1, 3, 1.05)


@dataclass(frozen=True)
class Cost:
    """Forward and backward passes a step, in full batches, as the equations have them.

    `period` is the number of steps that must be timed together; `fixed` a limit that was set for the method by itself.
    """

    forward: float
    backward: float
    settings: dict[str, Any] = field(default_factory=dict)
    period: int = 1
    fixed: float | None = None


TWO = Cost(2, 2)
COSTS: dict[str, Cost] = {
    "sam": TWO,
    "usam": TWO,
    "asam": TWO,
    "gsam": TWO,
    "randsam": Cost(2, 1),
    "stablesam": TWO,
    "functionalsam": TWO,
    "sam_on": TWO,
    "ssam_d": TWO,
    "rsam": TWO,
    "fsam": TWO,
    "vasso": TWO,
    "deltasam": Cost(3, 2),
    "wsam": TWO,
    "gnp": TWO,
    "crsam": Cost(3, 3),
    "tracesam": Cost(3, 3),
    "detsam": Cost(3, 3, {"rho": 1.0}),
    "frobsam": Cost(3, 3),
    "bsam": Cost(2, 2, {"examples": 1000}),
    "msam": Cost(1, 1, fixed=1.1),
    "s2sam": Cost(1, 1, fixed=1.1),
    "looksam": Cost(1.2, 1.2, {"k": 5}, 5, fixed=1.35),
    "look_layersam": Cost(1.2, 1.2, {"k": 5}, 5),
    "sampa": TWO,
    "egsam": TWO,
    "ogsam": TWO,
    "lookbehind": Cost(3, 3),
    # the first backward spares the weight gradients, half of a backward pass, of two tensors in five
    "esam": Cost(2 + 0.5, 0.5 * (1 + 0.6) + 0.5),
    "sssam": Cost(1.5, 1.5, period=10),
    "aesam": Cost(1.5, 1.5, period=10),
}
GATED = ("sssam", "aesam")
FEW = ("sam", "gsam", "asam", "randsam", "msam", "s2sam", "looksam")


def stepper(problem: Problem, method: str, settings: dict[str, Any]) -> tuple[Step, Any]:
    """A step of a fresh model on fixed random data, as the training loop takes it, and its optimizer."""
    model, x, y = problem.made()
    optimizer = make_optimizer(
        method, model, lr=0.01, momentum=0.9, weight_decay=5e-4, total_steps=1000, steps_per_epoch=50, **settings
    )
    parameters = list(model.parameters())
    return lambda: optimizer.step(Objective(model, F.cross_entropy, x, y, parameters=parameters)), optimizer


def forward_of(problem: Problem) -> Step:
    """The forward pass and loss alone, with the graph, as the first half of an SGD step."""
    model, x, y = problem.made()
    return lambda: F.cross_entropy(model(x), y)


def methods(problem: Problem, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each method against our SGD step."""
    base, _ = stepper(problem, "sgd", {})
    seconds = mirrored({"base": base, "forward": forward_of(problem)}, rounds=problem.rounds, inner=problem.inner)
    share = ratio(seconds, "forward", "base")["value"]
    for name in names:
        cost = COSTS[name]
        step, optimizer = stepper(problem, name, cost.settings)
        perturbed: list[bool] = []

        def one(step: Step = step, optimizer: Any = optimizer, perturbed: list[bool] = perturbed) -> None:
            step()
            perturbed.append(optimizer.last.perturbed)

        inner = -(-problem.inner // cost.period) * cost.period
        seconds = mirrored(
            {"base": base, "method": one}, rounds=problem.rounds, inner=inner, warm_up=max(2, cost.period)
        )
        f, b = cost.forward, cost.backward
        if name in GATED:
            f = b = 1 + sum(perturbed) / len(perturbed)
        implied = f * share + b * (1 - share)
        found = ratio(seconds, "method", "base")
        limit = cost.fixed if cost.fixed is not None else problem.allowance * implied
        yield {
            "what": f"{name} step / SGD step, {problem.what} (equations: {implied:.2f})", **found, "unit": "ratio",
            "limit": round(limit, 3),
        }  # fmt: skip


def plain_recipe(problem: Problem) -> Step:
    """SAM as the widely copied two-call recipe has it: per-tensor loops, `p.data` rebound, two closures by hand."""
    model, x, y = problem.made()
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    old: dict[nn.Parameter, Tensor] = {}

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            scale = 0.05 / (torch.norm(torch.stack([g.norm(p=2) for g in grads]), p=2) + 1e-12)
            for p in model.parameters():
                if p.grad is not None:
                    old[p] = p.data.clone()
                    p.add_(p.grad * scale)
        base.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p, value in old.items():
            p.data = value
        base.step()
        base.zero_grad()

    return step


def library_sam(problem: Problem) -> Step | None:
    """pytorch_optimizer's SAM, where it is installed."""
    if importlib.util.find_spec("pytorch_optimizer") is None:
        return None
    library = importlib.import_module("pytorch_optimizer")
    model, x, y = problem.made()
    optimizer = library.SAM(
        list(model.parameters()), torch.optim.SGD, rho=0.05, lr=0.01, momentum=0.9, weight_decay=5e-4
    )

    def closure() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    def step() -> None:
        closure()
        optimizer.step(closure)
        optimizer.zero_grad()

    return step


def peers(problem: Problem) -> Iterator[dict[str, Any]]:
    """Our SAM against others', in one run; the limit says never slower."""
    steps: dict[str, Step] = {"ours": stepper(problem, "sam", {})[0], "the two-call recipe": plain_recipe(problem)}
    other = library_sam(problem)
    if other is not None:
        steps["pytorch_optimizer"] = other
    seconds = mirrored(steps, rounds=problem.rounds, inner=problem.inner, warm_up=2)
    for name in steps:
        if name != "ours":
            yield {
                "what": f"our SAM step / {name}, {problem.what}", **ratio(seconds, "ours", name), "unit": "ratio",
                "limit": 1.0,
            }  # fmt: skip


def reads() -> Iterator[dict[str, Any]]:
    """Numbers that a step of each method reads back: the most of five steps after the first, all of them perturbed."""
    always: dict[str, dict[str, Any]] = {"looksam": {"k": 1}, "look_layersam": {"k": 1}}
    for name in ("sgd", *(n for n in COSTS if n != "sam_on")):
        settings = COSTS[name].settings if name in COSTS else {}
        step, _ = stepper(MLP, name, {**settings, **always.get(name, {})})
        step()
        found = []
        for _ in range(5):
            with counted() as seen:
                step()
            found.append(seen.count)
        yield {
            "what": f"numbers read back in a {name} step", "value": float(max(found)), "unit": "reads",
            "limit": 0 if name in ("sgd", "sam", "asam") else 2,
        }  # fmt: skip


GROUPS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "mlp": lambda: methods(MLP, [n for n in COSTS if n != "sam_on"]),  # it has no normalisation layer
    "resnet20": lambda: methods(SMALL, list(COSTS)),
    "resnet20-32": lambda: methods(LARGE, FEW),
    "peers": lambda: (row for problem in (MLP, SMALL) for row in peers(problem)),
    "many": many_models,
    "reads": reads,
}


def run(*, groups: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """All ratios: median, quartiles, and the limit."""
    torch.set_num_threads(1)
    for group in groups or GROUPS:
        yield from GROUPS[group]()
