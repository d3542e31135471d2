"""An epoch of `fit` with crop and flip on Fashion-MNIST against a plain loop of torch: time, waiting, memory.

The plain loop is what one writes by hand: a DataLoader over the same images, which crops and mirrors each of them, SGD,
and the same evaluation. Both train the same network in one process, an epoch of each in turn.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.pairing import quartiles, ratio
from benchmarks.peak import fresh, memory
from benchmarks.table import Row
from trainers import build_model, fit
from trainers.config import train_config
from trainers.data.loading import load_dataset
from trainers.runs.training import Training

ROUNDS = 5
PAD, MEAN, STD = 3, 0.2860, 0.3530
FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
SIZES = {"train_size": 1024, "validation_size": 256, "test_size": 512}
MODELS: dict[str, dict[str, Any]] = {
    "resnet20 width 8": {"model": "resnet20", "model_options": {"width": 8}},
    "cnn": {"model": "cnn"},
}
EVALUATION = 256  # examples a forward pass of the plain loop's evaluation


class Images(Dataset[tuple[Tensor, int]]):
    """Images of bytes with labels, read one by one from memory; cropped and mirrored where `augmented`."""

    mean, std = MEAN, STD

    def __init__(self, x: Tensor, y: Tensor, *, in_memory: bool = True, augmented: bool = False) -> None:
        self.x, self.targets, self.in_memory = x, y.tolist(), in_memory
        self.padded = F.pad(x, [PAD] * 4) if augmented else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.padded is None:
            return self.x[i], self.targets[i]
        top, left, mirrored = torch.randint(2 * PAD + 1, (3,)).tolist()
        x = self.padded[i, :, top : top + 28, left : left + 28]
        return (x.flip(-1) if mirrored % 2 else x), self.targets[i]


def parts(*, in_memory: bool) -> tuple[Images, Images]:
    """Some training and test images of Fashion-MNIST, or of noise where it is not there."""
    draw = Generator().manual_seed(0)
    sets = []
    for name, count in (("train", sum(SIZES.values()) - SIZES["test_size"]), ("t10k", SIZES["test_size"])):
        if FOLDER.is_dir():
            x, y = (idx(FOLDER / f"{name}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
            sets.append(Images(x[:count, None], y[:count].long(), in_memory=in_memory))
        else:
            y = torch.randint(10, (count,), generator=draw)
            x = torch.randint(256, (count, 1, 28, 28), generator=draw).to(torch.uint8)
            sets.append(Images(x, y, in_memory=in_memory))
    return sets[0], sets[1]


def idx(path: Path) -> Tensor:
    """An array of bytes as MNIST's files hold it."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, 4).tolist()
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def held() -> tuple[Images, Images]:
    """In memory."""
    return parts(in_memory=True)


def loaded() -> tuple[Images, Images]:
    """Read one by one."""
    return parts(in_memory=False)


class Plain:
    """The loop by hand, an epoch a call.

    Attributes:
        waited: Seconds for which the steps of the last epoch waited for their batches.
    """

    def __init__(self, model: str, options: dict[str, Any], function: str, *, lr: float, workers: int = 0) -> None:
        data = load_dataset(f"benchmarks.augmented:{function}", **SIZES)
        self.model = build_model(model, shape=data.shape, classes=10, generator_seed=0, options=options)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, fused=True)
        train, test = held()
        sets = []
        for split, source in ((data.train, train), (data.validation, train), (data.test, test)):
            index = split.index % len(train) if source is train else split.index - len(train)
            sets.append((source.x[index], split.y))
        shown = Images(*sets[0], augmented=True)
        self.loader = DataLoader(
            shown, 128, shuffle=True, num_workers=workers, persistent_workers=workers > 0, generator=Generator()
        )
        self.evaluated = [DataLoader(Images(*part), EVALUATION) for part in sets]
        self.waited = 0.0

    def __call__(self) -> None:
        self.model.train()
        self.waited, seen = 0.0, list[Tensor]()
        for x, y in timed(iter(self.loader), self.wait):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(normalised(x)), y)
            loss.backward()
            self.optimizer.step()
            seen.append(loss.detach())
        float(torch.stack(seen).mean())
        for loader in self.evaluated:
            scores(self.model, loader)

    def wait(self, seconds: float) -> None:
        """Remember that a step waited."""
        self.waited += seconds


def normalised(x: Tensor) -> Tensor:
    """Bytes as inputs."""
    return x.float().div_(255).sub_(MEAN).div_(STD)


@torch.no_grad()
def scores(model: nn.Module, loader: DataLoader[Any]) -> tuple[float, float]:
    """Loss and error."""
    model.eval()
    outputs, labels = zip(*((model(normalised(x)), y) for x, y in loader), strict=True)
    logits, y = torch.cat(outputs), torch.cat(labels)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(-1) != y).float().mean())


def timed(batches: Iterator[Any], tell: Callable[[float], None]) -> Iterator[Any]:
    """The same batches; tells for how long each was waited for."""
    while True:
        begun = time.perf_counter()
        batch = next(batches, None)
        tell(time.perf_counter() - begun)
        if batch is None:
            return
        yield batch


def config_of(model: str, method: str, function: str, rounds: int) -> dict[str, Any]:
    """The run that is timed."""
    return {
        **SIZES, **MODELS[model], "dataset": f"benchmarks.augmented:{function}", "augment": ["crop", "flip"],
        "method": method, "batch_size": 128, "lr": 0.02, "epochs": rounds + 1,
    }  # fmt: skip


def epochs(model: str, method: str, function: str, *, workers: int = 0, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each epoch of both by turns, of the processor, or of the clock with workers; how long both waited."""
    config = train_config(config_of(model, method, function, rounds))
    plain = Plain(config.model, config.model_options, function, lr=config.lr, workers=workers)
    clock = time.perf_counter if workers else time.process_time
    seconds: dict[str, list[float]] = {"fit": [], "plain": [], "fit waits": [], "plain waits": []}
    waited, begun, shown = 0.0, clock(), Training.shown

    def wait(more: float) -> None:
        nonlocal waited
        waited += more

    def turn(_: dict[str, Any]) -> None:
        nonlocal begun, waited
        ended = clock()
        plain()
        seconds["fit"].append(ended - begun)
        seconds["fit waits"].append(waited)
        seconds["plain waits"].append(plain.waited)
        waited, begun = 0.0, clock()
        seconds["plain"].append(begun - ended)

    Training.shown = lambda self, *arguments: timed(iter(shown(self, *arguments)), wait)  # type: ignore[method-assign, assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            fit(config, out=folder, trust=True, progress=turn, signals=False, workers=workers)
    finally:
        Training.shown = shown  # type: ignore[method-assign]
    return {name: values[1:] for name, values in seconds.items()}


def peak(what: str, function: str, rounds: int) -> float:
    """MiB at most, of a process that trains so many epochs by `fit` or the plain loop."""
    config = train_config(config_of("resnet20 width 8", "sgd", function, rounds - 1))
    if what == "fit":
        with tempfile.TemporaryDirectory() as folder:
            fit(config, out=folder, trust=True, signals=False)
    else:
        plain = Plain(config.model, config.model_options, function, lr=config.lr)
        for _ in range(rounds):
            plain()
    return memory("VmHWM")


def peak_apart(what: str, function: str, rounds: int) -> float:
    """The same, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.augmented", what, function, str(rounds)]
    done = subprocess.run(command, env=fresh(), check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def run() -> Iterator[Row]:
    """Ratios to the plain loop of SGD."""
    torch.set_num_threads(1)
    for model in MODELS:
        for function, where in (("held", "in memory"), ("loaded", "by loader")):
            for method, limit in (("sgd", 1.05), ("sam", 2.05)):
                seconds = epochs(model, method, function)
                what = f"epoch of fit, {method}, crop and flip, {where} / plain SGD loop, {model}, Fashion-MNIST"
                yield {"what": what, **ratio(seconds, "fit", "plain"), "unit": "ratio", "limit": limit}
                least = min(seconds["fit"]) / min(seconds["plain"])
                yield {"what": f"{what}, least / least", "value": least, "unit": "ratio", "limit": limit}
    seconds = epochs("resnet20 width 8", "sgd", "loaded", workers=2)
    more = [(a - b) / c for a, b, c in zip(seconds["fit waits"], seconds["plain waits"], seconds["plain"], strict=True)]
    what = "waiting for data with 2 workers beyond the plain loader's, share of its epoch"
    yield {"what": what, **quartiles(more), "unit": "ratio", "limit": 0.02}
    for function, where in (("held", "in memory"), ("loaded", "by loader")):
        mine, plain = (peak_apart(what, function, 3) for what in ("fit", "plain"))
        yield {
            "what": f"peak memory of fit / plain loop, {where}",
            "value": mine / plain,
            "unit": "ratio",
            "limit": 1.1,
        }
    longer = peak_apart("fit", "held", 8)
    short = peak_apart("fit", "held", 3)
    yield {"what": "peak memory of fit, 8 epochs / 3", "value": longer / short, "unit": "ratio", "limit": 1.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["fit", "plain"])
    parser.add_argument("function", choices=["held", "loaded"])
    parser.add_argument("rounds", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(peak(asked.what, asked.function, asked.rounds)))


if __name__ == "__main__":
    main()
