"""Time of a sharpness-aware step in units of an SGD step, paired in the order A B B A, ratio by ratio."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.pairing import mirrored
from trainers import build_model, make_optimizer
from trainers.sharpness_aware.objective import Objective

PROBLEMS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, int, int]] = {
    "mlp, batch 32": ("mlp", {}, (1, 8, 8), 32, 60, 21),
    "resnet20 width 16, batch 128, 32 x 32": ("resnet20", {"width": 16}, (3, 32, 32), 128, 1, 7),
    "resnet20 width 16, batch 128, 8 x 8": ("resnet20", {"width": 16}, (1, 8, 8), 128, 3, 7),
}
LIMITS = {
    "mlp, batch 32": 2.2,
    "resnet20 width 16, batch 128, 32 x 32": 2.05,
    "resnet20 width 16, batch 128, 8 x 8": 2.05,
}
METHODS: dict[str, dict[str, float]] = {
    "sam": {"rho": 0.1},
    "asam": {"rho": 0.5},
    "gsam": {"rho": 0.1},
    "randsam": {"rho": 0.1},
}


def stepper(
    method: str, model_name: str, options: dict[str, Any], shape: tuple[int, ...], batch: int, **settings: Any
) -> Callable[[], None]:
    """A function that takes one training step of a fresh model on fixed random data, as the loop does."""
    model = build_model(model_name, shape=shape, classes=10, generator_seed=0, options=options).train()
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch, *shape, generator=draw), torch.randint(10, (batch,), generator=draw)
    optimizer = make_optimizer(method, model, lr=0.01, momentum=0.9, weight_decay=5e-4, **settings)
    parameters = list(model.parameters())

    def step() -> None:
        optimizer.step(Objective(model, parameters, F.cross_entropy, x, y))

    return step


def torch_stepper(model_name: str, options: dict[str, Any], shape: tuple[int, ...], batch: int) -> Callable[[], None]:
    """The same with torch's own SGD, with its defaults, and nothing of ours around it."""
    model = build_model(model_name, shape=shape, classes=10, generator_seed=0, options=options).train()
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch, *shape, generator=draw), torch.randint(10, (batch,), generator=draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def paired(one: Callable[[], None], other: Callable[[], None], inner: int, pairs: int) -> list[float]:
    """Ratios time(other) / time(one), each from A B B A, so that a steady drift cancels; a warm-up of each first."""
    seconds = mirrored({"one": one, "other": other}, rounds=pairs, inner=inner, warm_up=inner)
    return [b / a for a, b in zip(seconds["one"], seconds["other"], strict=True)]


def run() -> list[dict[str, Any]]:
    """All ratios: median, quartiles, the limit where there is one."""
    torch.set_num_threads(1)
    rows = []
    for problem, (name, options, shape, batch, inner, pairs) in PROBLEMS.items():
        bases = {
            "our SGD": stepper("sgd", name, options, shape, batch),
            "torch's SGD": torch_stepper(name, options, shape, batch),
        }
        for method, settings in METHODS.items():
            for base, base_step in bases.items():
                if method != "sam" and (name == "resnet20" or base != "our SGD"):
                    continue
                ratios = paired(base_step, stepper(method, name, options, shape, batch, **settings), inner, pairs)
                low, middle, high = statistics.quantiles(ratios, n=4)
                rows.append({
                    "what": f"{method} step / {base} step, {problem}", "value": middle, "low": low, "high": high,
                    "unit": "ratio", "limit": LIMITS[problem] if method == "sam" else None,
                })  # fmt: skip
    return rows
