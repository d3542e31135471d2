"""An epoch of `fit` against a plain loop in torch that takes the same steps and makes the same evaluation.

Both train the same network on the same batches in one process, an epoch of each in turn.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.pairing import ratio
from trainers import build_model, fit
from trainers.config import TrainConfig, train_config
from trainers.data.splits import Split
from trainers.runs.folder import load_data

ROUNDS = 6
SHAPE = (1, 28, 28)
CONFIG = {
    "dataset": "benchmarks.epochs:images", "train_size": 2048, "validation_size": 256, "test_size": 512,
    "model": "resnet20", "model_options": {"width": 8}, "batch_size": 128, "lr": 0.02, "epochs": ROUNDS + 1,
}  # fmt: skip
EVALUATION = 256  # examples a forward pass of the plain loop's evaluation


def images() -> tuple[TensorDataset, TensorDataset]:
    """Random images with labels that can be learned."""
    draw = Generator().manual_seed(0)
    means = torch.randn(10, *SHAPE, generator=draw)

    def some(n: int) -> TensorDataset:
        y = torch.randint(10, (n,), generator=draw)
        return TensorDataset(means[y] + torch.randn(n, *SHAPE, generator=draw), y)

    return some(2048 + 256), some(512)


def plain_epoch(config: TrainConfig) -> Callable[[], None]:
    """A loop as one writes it by hand: SGD with a cosine, then loss and error on all three splits."""
    data = load_data(config, trust=True)
    model = build_model(
        config.model, shape=data.shape, classes=data.classes, generator_seed=0, options=config.model_options
    ).train()
    decay = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, fused=True, **decay)
    batches = math.ceil(len(data.train) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * batches)
    draw = Generator().manual_seed(0)

    def epoch() -> None:
        model.train()
        seen: list[Tensor] = []
        for index in torch.randperm(len(data.train), generator=draw).split(config.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.train.x[index]), data.train.y[index])
            loss.backward()
            optimizer.step()
            schedule.step()
            seen.append(loss.detach())
        float(torch.stack(seen).mean())
        for split in (data.train, data.validation, data.test):
            scores(model, split)

    return epoch


@torch.no_grad()
def scores(model: nn.Module, split: Split) -> tuple[float, float]:
    """Loss and error of a split."""
    model.eval()
    logits = torch.cat([model(x) for x in split.x.split(EVALUATION)])
    return float(F.cross_entropy(logits, split.y)), float((logits.argmax(-1) != split.y).float().mean())


def epochs(config: TrainConfig) -> dict[str, list[float]]:
    """Processor seconds of each epoch, of `fit` and of the plain loop by turns; the first of each warms up."""
    plain = plain_epoch(config)
    seconds: dict[str, list[float]] = {"fit": [], "plain": []}
    begun = time.process_time()

    def turn(_: dict[str, Any]) -> None:
        nonlocal begun
        ended = time.process_time()
        plain()
        seconds["fit"].append(ended - begun)
        begun = time.process_time()
        seconds["plain"].append(begun - ended)

    with tempfile.TemporaryDirectory() as folder:
        fit(config, out=folder, trust=True, progress=turn, signals=False)
    return {name: values[1:] for name, values in seconds.items()}


def run() -> Iterator[dict[str, Any]]:
    """The ratio, and the seconds of both."""
    torch.set_num_threads(1)
    config = train_config(CONFIG)
    seconds = epochs(config)
    what = "epoch of fit / plain loop with the same evaluation, resnet20 width 8, 2048 images of 28 x 28"
    yield {"what": what, **ratio(seconds, "fit", "plain"), "unit": "ratio", "limit": 1.15}
    least = min(seconds["fit"]) / min(seconds["plain"])
    yield {"what": "the same, least of fit / least of the plain loop", "value": least, "unit": "ratio", "limit": 1.15}
    for name, values in seconds.items():
        yield {
            "what": f"epoch, {name}",
            "value": statistics.median(values),
            "low": min(values),
            "high": max(values),
            "unit": "s",
        }
