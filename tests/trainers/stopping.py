"""Small runs, ways to stop them at a chosen place, and what it means that two runs are the same."""

import json
import signal
from types import SimpleNamespace

import numpy as np

from trainers import read_weights
from trainers.files.tree import equal

SMALL = {
    "train_size": 60, "validation_size": 40, "test_size": 50, "label_noise": 0.2, "epochs": 3, "batch_size": 16,
    "checkpoints": [2], "model_options": {"width": 8, "depth": 1, "dropout": 0.2},
}  # fmt: skip
STEPS = 4  # of an epoch of SMALL; the last has 12 examples


def without_checksums(folder):
    """Make a run's folder, or a checkpoint's, one of version 0.1, which wrote no checksums."""
    for path in (*folder.rglob("meta.json"), *folder.rglob("status.json"), *folder.rglob("state.json")):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in values.items() if k not in ("sha256", "checksum")}))
    for path in folder.glob("measures/*.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({k: values[k] for k in ("weights", "rows")}))


def signal_after(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal in the middle of a step, once; the handler sees it before the step has ended."""
    from trainers.runs.training import Training

    take = Training.train_step
    sent = []

    def train_step(self):
        take(self)
        if self.step == step and not sent:
            sent.append(number)
            signal.raise_signal(number)

    monkeypatch.setattr(Training, "train_step", train_step)


def with_clock(monkeypatch, *, step, snapshot=0.0, epoch_end=0.0, written=None):
    """Put time into the test's hands: a step, a snapshot and the end of an epoch take so many seconds, all else none.

    A checkpoint takes a third of a snapshot. Returns a list with the time now as its only entry; the steps of snapshots
    go into `written`.
    """
    from trainers.runs.training import Training

    now = [0.0]

    def costing(name, cost):
        work = getattr(Training, name)

        def timed(self, *arguments):
            now[0] += cost
            if name == "snapshot" and written is not None:
                written.append(self.step)
            if name == "save_checkpoint":
                self.took("checkpoint", cost)
            return work(self, *arguments)

        monkeypatch.setattr(Training, name, timed)

    for name, cost in (
        ("train_step", step),
        ("snapshot", snapshot),
        ("end_epoch", epoch_end),
        ("save_checkpoint", snapshot / 3),
    ):
        costing(name, cost)
    for module in ("limits", "loop", "signals", "training"):
        monkeypatch.setattr(f"trainers.runs.{module}.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def assert_same(one, other):
    """Weights and buffers of every checkpoint, history, log of steps and examples are equal, bit for bit."""
    assert one.status()["status"] == other.status()["status"] == "finished"
    assert list(one.checkpoints()) == list(other.checkpoints())
    for step in one.checkpoints():
        pair = [read_weights(run.checkpoint(step) / "params.safetensors") for run in (one, other)]
        assert equal(*pair), f"weights after step {step}"
        averages = [run.checkpoint(step) / "average.safetensors" for run in (one, other)]
        assert averages[0].exists() == averages[1].exists()
        if averages[0].exists():
            assert equal(*map(read_weights, averages)), f"average of weights after step {step}"
    assert one.status().get("best") == other.status().get("best")
    drop = ["seconds"]
    assert one.history().drop(columns=drop).equals(other.history().drop(columns=drop))
    kept = () if one.config().task == "language" else ("sweep",) if one.config().mixes else ("presentation", "sweep")
    for protocol in kept:  # tokens are not right or wrong by the sequence
        np.testing.assert_array_equal(one.correctness(protocol), other.correctness(protocol))
    with np.load(one.folder / "examples.npz") as a, np.load(other.folder / "examples.npz") as b:
        assert {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}
    if (one.folder / "steps.parquet").exists():
        assert one.steps().drop(columns=drop).equals(other.steps().drop(columns=drop))
    for run in (one, other):
        assert {p.name for p in run.folder.iterdir()} <= {
            "config.json", "data.json", "status.json", "history.parquet", "examples.npz", "checkpoints",
            "steps.parquet",
            "tensorboard", "wandb",
        }  # fmt: skip
        assert not [p for p in run.folder.rglob(".*") if p.is_file()], "files aside are left"
