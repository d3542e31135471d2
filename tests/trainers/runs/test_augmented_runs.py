"""Runs with augmentation, mixing and workers: against a plain loop, stopped and continued, and when a worker dies."""

import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stopping import SMALL, STEPS, assert_same, signal_after
from torch.utils.data import Dataset, get_worker_info

from analysis.measures.collect import collect, measure_run
from analysis.measures.plan import plan
from trainers import METHODS, build_model, fit
from trainers.data.augmentation import augmentation
from trainers.data.items import ItemInputs
from trainers.data.loading import load_dataset
from trainers.data.mixing import Mixing
from trainers.data.reading import Reader
from trainers.randomness import stream
from trainers.runs.checkpoint import load_checkpoint
from trainers.runs.folder import Run

OWN = "test_augmented_runs:brighter"
BYTES = {**SMALL, "dataset": "test_augmented_runs:items", "train_size": 60, "validation_size": 30, "test_size": 20}


class Items(Dataset):
    """Images of bytes, of which a worker that is told to dies of the one at `deadly`."""

    in_memory = False
    deadly = None

    def __init__(self, start, stop):
        self.targets = [i % 4 for i in range(start, stop)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        if i == Items.deadly and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        draw = torch.Generator().manual_seed(i)
        x = torch.randint(0, 200, (1, 8, 8), generator=draw) + 15 * self.targets[i]
        return x.to(torch.uint8), self.targets[i]


def items():
    return Items(0, 120), Items(120, 160)


def brighter(up_to=20):
    """A transform that draws from the global states of torch and NumPy."""
    return lambda x: x.float().add(up_to * torch.rand(()) * np.random.rand()).clamp(0, 255).to(torch.uint8)  # noqa: NPY002


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))  # noqa: PTH120
    import test_augmented_runs  # the module that runs import

    monkeypatch.setattr(test_augmented_runs.Items, "deadly", None)
    return test_augmented_runs


def weights(run):
    return {
        n: p.detach()
        for n, p in load_checkpoint(list(run.checkpoints().values())[-1], trust=True)[0].named_parameters()
    }


def test_training_is_what_a_plain_loop_does(tmp_path):
    config = {
        "train_size": 60, "validation_size": 0, "test_size": 50, "epochs": 2, "batch_size": 16, "precision": "float64",
        "lr_schedule": "constant", "weight_decay": 0, "model_options": {"width": 8}, "seed": 3, "label_smoothing": 0.1,
        "augment": ["crop", "flip", "mixup:0.4", "cutmix"],
    }  # fmt: skip
    run = fit(config, out=tmp_path)
    data = load_dataset("digits", train_size=60, validation_size=0, test_size=50)
    train = data.train.double()
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=3, options={"width": 8}).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    names = run.config().augment
    augment, mixing = augmentation(names, train, classes=10, seed=3, fill=data.fill)
    order, shown = stream(3, "order"), []
    for epoch in range(2):
        for number, index in enumerate(torch.randperm(60, generator=order).split(16)):
            x = torch.stack(
                [replace(augment, epoch=epoch).whole(train.inputs[i][None], train.index[i][None])[0] for i in index]
            )  # one at a time
            x, soft = mixing(x, train.y[index], epoch=epoch, batch=number)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), soft, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            shown.append(float(loss.detach()) * len(index))
    for name, p in model.named_parameters():
        torch.testing.assert_close(weights(run)[name], p.detach(), rtol=1e-9, atol=1e-11)
    assert run.history()["loss"].tolist() == pytest.approx([sum(shown[:4]) / 60, sum(shown[4:]) / 60], rel=1e-9)


@pytest.mark.parametrize(("more", "workers"), [
    ({"augment": ["crop", "flip", "cutout:2"], "dataset": "digits", "method": "sam"}, (0, 0)),
    ({"augment": [OWN, "flip", "mixup:0.3", "cutmix"], "method": "sam", "ascent": "obf"}, (0, 2)),
    ({"augment": ["crop", OWN, "mixup:1"], "method": "nsam", "method_options": {"ascent_data": "previous"}}, (1, 0)),
])  # fmt: skip
def test_stopped_in_the_middle_of_an_epoch_and_continued(more, workers, tmp_path, monkeypatch):
    config = {**BYTES, **more}
    whole = fit(config, out=tmp_path / "whole", trust=True)
    for step in (STEPS + 2, 2 * STEPS, 2 * STEPS + 1):
        signal_after(monkeypatch, step)
        with pytest.raises(SystemExit):
            fit(config, out=tmp_path / "part", trust=True, workers=workers[0])
        assert Run(tmp_path / "part" / whole.run_id).status()["steps"] == step
        workers = workers[::-1]
    assert_same(whole, fit(config, out=tmp_path / "part", trust=True, workers=workers[0]))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_soft_targets(method, tmp_path, monkeypatch):
    """Where these are the labels, written as shares, each does what it does with labels."""
    config = {
        **SMALL,
        "train_size": 32,
        "epochs": 1,
        "checkpoints": [],
        "method": method,
        "model_options": {"width": 8},
    }
    if method == "mup2":
        config["base_model_options"] = {"width": 4}
    if method == "sam_on":
        config |= {"model": "vit", "model_options": {"dim": 8, "depth": 1, "heads": 2}, "lr": 0.02}
    labels = fit({**config, "augment": ["flip"]}, out=tmp_path)
    monkeypatch.setattr(Mixing, "__call__", lambda self, x, y, **_: (x, F.one_hot(y, self.classes).to(x.dtype)))
    shares = fit({**config, "augment": ["flip", "mixup"]}, out=tmp_path)
    for name, p in weights(labels).items():
        torch.testing.assert_close(weights(shares)[name], p, rtol=1e-3, atol=1e-4)


def test_chunks_of_a_step_see_one_mixed_batch(tmp_path):
    config = {
        **SMALL,
        "method": "sam",
        "precision": "float64",
        "augment": ["crop", "mixup:1"],
        "model_options": {"width": 8},
    }
    whole, parts = fit(config, out=tmp_path), fit({**config, "micro_batch": 5}, out=tmp_path)
    for name, p in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], p, rtol=1e-8, atol=1e-10)


def test_mixed_examples_leave_no_record_of_presentation(tmp_path):
    run = fit({**SMALL, "augment": ["mixup"]}, out=tmp_path)
    assert run.correctness("sweep").shape == (3, 60)
    with pytest.raises(ValueError, match=r"examples were mixed when they were presented.*: take 'sweep'"):
        run.correctness("presentation")
    rows = measure_run(run.folder, plan(["example_forgetting"]))
    mixed = rows["options"].str.contains('"protocol": ?"presentation"')
    assert mixed.sum() == 3
    assert rows[mixed]["value"].isna().all()
    assert rows[mixed]["warnings"].str.contains("mixed when they were presented").all()
    assert rows[~mixed]["value"].notna().all()


def test_a_worker_that_dies_is_named_with_what_was_read(tmp_path, here):
    config = {**BYTES, "epochs": 1, "checkpoints": []}
    data = load_dataset(config["dataset"], train_size=60, validation_size=30, test_size=20)
    assert isinstance(data.train.inputs, ItemInputs)
    here.Items.deadly = int(data.train.index[3])
    with pytest.raises(
        RuntimeError, match=r"a worker process that reads data died \(.*\) when examples \d+, .* and \d+ more"
    ):
        fit(config, out=tmp_path, trust=True, workers=1)
    assert fit(config, out=tmp_path, trust=True).status()["status"] == "finished"


def test_workers_change_no_number_of_a_measure(tmp_path, monkeypatch):
    config = {**BYTES, "epochs": 1, "checkpoints": [], "augment": ["flip"]}
    run = fit(config, out=tmp_path, trust=True)
    asked, ahead = [], Reader._ahead
    monkeypatch.setattr(Reader, "_ahead", lambda self, turns: asked.append(len(turns)) or ahead(self, turns))
    plain = next(iter(collect([run], measures=["hessian_trace"], trust=True, jobs=1)))
    assert not asked
    shutil.rmtree(run.folder / "measures")
    read = next(iter(collect([run], measures=["hessian_trace"], trust=True, jobs=1, workers=1)))
    assert asked
    assert plain["value"].tolist() == read["value"].tolist()
