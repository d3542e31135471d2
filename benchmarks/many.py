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


def batched(models: list[Any], x: Tensor, y: Tensor, *, rho: float, lr: float) -> Step:
    """A SAM step with plain SGD of all models on the same batch."""
    optimizers = [make_optimizer("sam", model, lr=lr, rho=rho) for model in models]
    stack, parts, count = Stack(models, [o.base for o in optimizers]), optimizers[0].parts, len(models)
    take = StackedStep(stack, [Rule(slice(0, count), parts.scaler, parts.combiner)], Classification().each)
    inputs, labels = x.expand(count, *x.shape), y.expand(count, *y.shape)
    rates, radii = (torch.full((count, 1), value, device=x.device, dtype=x.dtype) for value in (lr, rho))
    return lambda: take(inputs, labels, rates, radii)


def one_by_one(models: list[Any], x: Tensor, y: Tensor, *, rho: float, lr: float) -> Step:
    """The same with an optimizer each."""
    made = [(model, list(model.parameters()), make_optimizer("sam", model, lr=lr, rho=rho)) for model in models]

    def step() -> None:
        for model, parameters, optimizer in made:
            optimizer.step(Objective(model, F.cross_entropy, x, y, parameters=parameters))

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
        x, y = torch.randn(size, 1, 8, 8, generator=draw), torch.randint(10, (size,), generator=draw)
        made = [
            [build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=i, options={}) for i in range(MODELS)]
            for _ in range(2)
        ]
        ways = {
            "one": one_by_one(made[0], x, y, rho=0.05, lr=0.01), "all": batched(made[1], x, y, rho=0.05, lr=0.01)
        }  # fmt: skip
        seconds = mirrored(ways, rounds=7, inner=4, warm_up=2)
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
