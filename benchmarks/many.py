"""Many small models at once: a population of equal networks in one process, against one at a time.

Steps of 16 default MLPs under SAM by batch size, and whole runs of the default study's MLP with all that `fit` does.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pairing import Step, mirrored, ratio
from trainers import Objective, build_model, expand, make_optimizer, train_all
from trainers.config import TrainConfig
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sweep.stacked import Rule, Stack, StackedStep
from trainers.tasks.classification import Classification

MODELS = 16
BASE = {
    "train_size": 400, "validation_size": 520, "label_noise": 0.2, "data_seed": "seed", "evaluate_every": 5, "epochs": 5
}  # fmt: skip
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"method": "sgd"}],
    "SAM, ASAM, GSAM and OBF": [
        {"method": "sam", "rho": 0.05}, {"method": "asam", "rho": 0.5},
        {"method": "gsam", "rho": 0.1, "rho_schedule": "lr"}, {"method": "obf", "rho": 0.15},
    ],
}  # fmt: skip


def made() -> tuple[list[Any], list[SharpnessAware]]:
    """Default MLPs, and an optimizer for each."""
    models = [build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=i, options={}) for i in range(MODELS)]
    return models, [
        make_optimizer("sam", model, lr=0.01, momentum=0.9, weight_decay=5e-4, rho=0.05) for model in models
    ]


def batched(x: Tensor, y: Tensor) -> Step:
    """A SAM step of all models at once, each on its batch."""
    models, optimizers = made()
    stack, parts = Stack(models, [o.base for o in optimizers]), optimizers[0].parts
    take = StackedStep(stack, [Rule(slice(0, MODELS), parts.scaler, parts.combiner)], Classification().each, 0.9)
    lr, rho = torch.full((MODELS, 1), 0.01), torch.full((MODELS, 1), 0.05)
    return lambda: take(x, y, lr, rho)


def one_by_one(x: Tensor, y: Tensor) -> Step:
    """The same with an optimizer each."""
    every = [(model, list(model.parameters()), optimizer) for model, optimizer in zip(*made(), strict=True)]

    def step() -> None:
        for i, (model, parameters, optimizer) in enumerate(every):
            optimizer.step(Objective(model, F.cross_entropy, x[i], y[i], parameters=parameters))

    return step


def trained(configs: Sequence[TrainConfig], executor: str) -> None:
    """All runs from their configurations to their folders."""
    with tempfile.TemporaryDirectory() as folder:
        for run in train_all(configs, out=folder, jobs=1, executor=executor):
            assert run.status()["status"] == "finished"


def many_models() -> Iterator[dict[str, Any]]:
    """Speed-ups; no limit, for a CPU."""
    for size in (8, 32, 128):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(MODELS, size, 1, 8, 8, generator=draw)
        y = torch.randint(10, (MODELS, size), generator=draw)
        seconds = mirrored({"one": one_by_one(x, y), "all": batched(x, y)}, rounds=7, inner=4, warm_up=2)
        yield {
            "what": f"steps of {MODELS} MLPs under SAM: one by one / all at once, batch {size}",
            **ratio(seconds, "one", "all"), "unit": "speed-up", "limit": None,
        }  # fmt: skip
    for family, methods in FAMILIES.items():
        for size in (20, 50):
            seeds = list(range(MODELS // len(methods) // 2))
            configs = expand({**BASE, "batch_size": size}, {"lr": [0.05, 0.15], "seed": seeds}, methods)
            steps: dict[str, Step] = {
                "one": partial(trained, configs, "processes"), "all": partial(trained, configs, "population")
            }  # fmt: skip
            yield {
                "what": f"runs of {len(configs)} MLPs under {family}, 5 epochs: one by one / all at once, batch {size}",
                **ratio(mirrored(steps, rounds=2, warm_up=0), "one", "all"), "unit": "speed-up", "limit": None,
            }  # fmt: skip
