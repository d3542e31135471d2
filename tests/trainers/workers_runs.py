"""What ranks do in the tests of runs that several processes train together."""

import math
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from trainers import fit

BASE = {
    "train_size": 70, "validation_size": 11, "test_size": 3, "batch_size": 16, "epochs": 2, "precision": "float64",
    "model_options": {"width": 8}, "label_noise": 0.1,
}  # fmt: skip


def trained(rank, out, changes, **options):
    """What `fit` says of a run at its end."""
    run = fit({**BASE, **changes}, out=out, trust=True, **{"signals": False, **options})
    return run.status()["status"], run.status()["reason"], str(run.folder)


def stopped_after_an_epoch(rank, out, changes):
    return trained(rank, out, changes, stop=lambda epoch: epoch == 1)


def stopped_by_a_signal(rank, out, changes):
    """The run ends in the middle of an epoch, since one rank was sent SIGTERM; gives the exit code."""
    try:
        return trained(rank, out, changes, signals=True, snapshot_seconds=0)
    except SystemExit as stop:
        return stop.code


class Watched(nn.Module):
    """A small network with dropout, and what happens at chosen passes: LANDSCAPE_TEST_AT says RANK:PASS:WHAT."""

    def __init__(self, inputs, classes, dropout=0.2):
        super().__init__()
        hidden = nn.Linear(inputs, 6)
        self.layers = nn.Sequential(nn.Flatten(), hidden, nn.Dropout(dropout), nn.ReLU(), nn.Linear(6, classes))
        self.passes = 0

    def forward(self, x):
        if self.training:
            self.passes += 1
            for number in os.environ.get("LANDSCAPE_TEST_AT", "").split():
                who, when, what = number.split(":")
                if int(who) == dist.get_rank() and int(when) == self.passes:
                    act(what)
        return self.layers(x)


def act(what):
    if what == "raise":
        raise OSError("the disk of this rank is gone")
    os.kill(os.getpid(), getattr(signal, what))


def watched(shape, classes):
    return Watched(math.prod(shape), classes)


def plain(shape, classes):
    return Watched(math.prod(shape), classes, dropout=0.0)


def happens(rank, at, work, **arguments):
    """Call a function while something happens at chosen passes of the model."""
    os.environ["LANDSCAPE_TEST_AT"] = at
    try:
        return globals()[work](rank, **arguments)
    finally:
        del os.environ["LANDSCAPE_TEST_AT"]


def other_weights(shape, classes):
    """A model that starts elsewhere in every process."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    with torch.no_grad():
        model[1].weight.add_(dist.get_rank())
    return model


class Items(Dataset):
    """Small images that are made one by one."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(1000 * self.seed + i)), i % 3


def items():
    return Items(120, 0), Items(20, 1)


def other_data():
    """Data that are others in every process."""
    return Items(120, 2 + dist.get_rank()), Items(20, 1)


def drifting(rank, out, changes):
    """The leader's weights are moved after an epoch, as by an error of hardware."""
    models = []
    original = nn.Module.train

    def keep(self, mode=True):
        models.append(self)
        return original(self, mode)

    def move(_):
        with torch.no_grad():
            next(m for m in models if isinstance(m, Watched)).get_parameter("layers.1.bias").add_(1e-6)

    nn.Module.train = keep
    try:
        return trained(rank, out, changes, progress=move)
    finally:
        nn.Module.train = original


def busy(rank, out, changes):
    """A second launch, while the first holds the folder's lock."""
    from trainers.config import train_config
    from trainers.files.lock import locked

    config = train_config({**BASE, **changes})
    if rank:
        return trained(rank, out, changes)
    with locked(Path(out) / config.run_id):
        return trained(rank, out, changes)
