"""Runs with an average of weights: what is kept is the average of the checkpoints' weights."""

import dataclasses
import json

import pytest
import torch
from stopping import SMALL
from torch.testing import assert_close

from landscape.batchnorm import recalibrate
from trainers import Run, fit, load_checkpoint, load_dataset
from trainers.config import train_config
from trainers.runs.checkpoint import read_weights

# one step is one epoch, and each is kept
STEPWISE = {**SMALL, "batch_size": 60, "epochs": 6, "checkpoints": [1, 2, 3, 4, 5], "lr": 0.5}


def states(run):
    return [read_weights(run.checkpoint(step) / "params.safetensors") for step in run.checkpoints()]


@pytest.mark.parametrize(("method", "begin"), [("sgd", 0.0), ("sam", 0.5)])
def test_the_moving_average_of_a_run_is_that_of_its_clean_weights(method, begin, tmp_path):
    run = fit(
        {**STEPWISE, "method": method, "average": "ema", "average_decay": 0.6, "average_from": begin}, out=tmp_path
    )
    first = 1 + round(begin * 6)
    weights = states(run)
    for step in range(1, 7):
        kept = run.checkpoint(step) / "average.safetensors"
        if step < first:
            assert not kept.exists()
            continue
        expected = {k: t.double() for k, t in weights[first].items()}
        for later in weights[first + 1 : step + 1]:
            expected = {k: 0.6 * t + 0.4 * later[k].double() for k, t in expected.items()}
        for key, value in read_weights(kept).items():
            assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    model, meta = load_checkpoint(run.checkpoint(6), average=True)
    assert (meta["average"]["kind"], meta["average"]["count"]) == ("ema", 7 - first)
    data = load_dataset("digits", train_size=60, validation_size=40, test_size=50, label_noise=0.2)
    wrong = (model(data.test.x).argmax(1) != data.test.y).float().mean()
    row = run.history().iloc[-1]
    assert float(wrong) == pytest.approx(row["average_test_error"], abs=1e-6)
    assert row["average_test_error"] != row["test_error"]
    assert run.history()["average_test_error"].isna().sum() == first - 1


def test_the_mean_of_the_ends_of_epochs_with_statistics_of_its_own(tmp_path):
    config = {
        **SMALL, "epochs": 4, "average": "swa", "average_from": 0.5, "checkpoints": [1, 2, 3], "model": "resnet20",
        "model_options": {"width": 2, "blocks": 1},
    }  # fmt: skip
    run = fit(config, out=tmp_path)
    *_, third, last = states(run)
    model, meta = load_checkpoint(run.checkpoint(max(run.checkpoints())), average=True)
    assert meta["average"]["count"] == 2
    for name, p in model.named_parameters():
        assert_close(p.detach(), (third[name] + last[name]) / 2, rtol=1e-5, atol=1e-6)
    before = {name: b.clone() for name, b in model.named_buffers()}
    data = load_dataset("digits", train_size=60, validation_size=40, test_size=50, label_noise=0.2)
    recalibrate(model, data.train.batches(size=16))
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())


def test_the_run_itself_is_the_same_bit_for_bit(tmp_path):
    plain = fit({**SMALL, "method": "sam"}, out=tmp_path)
    averaged = fit({**SMALL, "method": "sam", "average": "ema"}, out=tmp_path)
    assert plain.run_id != averaged.run_id
    pairs = zip(states(plain), states(averaged), strict=True)
    assert all(torch.equal(a[k], b[k]) for a, b in pairs for k in a)
    columns = [c for c in plain.history().columns if c != "seconds"]
    assert averaged.history()[columns].equals(plain.history()[columns])


def test_skipped_steps_are_not_averaged(tmp_path, monkeypatch):
    from trainers.models.averaging import WeightAverage
    from trainers.sharpness_aware.engine import SharpnessAware

    steps, updates = [], []
    take = SharpnessAware.step

    def step(self, *arguments, **named):
        loss = take(self, *arguments, **named)
        steps.append(self)
        if len(steps) % 3 == 0:
            self.last = dataclasses.replace(self.last, overflow="first pass")
        return loss

    monkeypatch.setattr(SharpnessAware, "step", step)
    monkeypatch.setattr(WeightAverage, "update", lambda *_: updates.append(len(steps)))
    fit({**SMALL, "average": "ema"}, out=tmp_path)
    assert updates == [n for n in range(1, len(steps) + 1) if n % 3]


def test_settings_that_are_not_read_leave_the_id_as_it_is():
    plain = train_config(SMALL).run_id
    assert train_config({**SMALL, "average_decay": 0.5, "average_from": 0.5}).run_id == plain
    swa = train_config({**SMALL, "average": "swa"})
    assert swa.resolved().average_from == 0.75
    assert swa.run_id == train_config({**SMALL, "average": "swa", "average_from": 0.75, "average_decay": 0.5}).run_id
    assert train_config({**SMALL, "average": "ema"}).resolved().average_from == 0
    with pytest.raises(ValueError, match="average_from"):
        train_config({**SMALL, "average": "ema", "average_from": 1.0})


def test_a_damaged_or_missing_average_is_named(tmp_path):
    run = fit({**SMALL, "average": "ema", "average_from": 0.5}, out=tmp_path)
    with pytest.raises(ValueError, match="has no average of weights: train with `average` ema or swa"):
        load_checkpoint(run.checkpoint(0), average=True)
    path = Run(run.folder).checkpoint(12) / "average.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"average\.safetensors cannot be read"):
        load_checkpoint(run.checkpoint(12), average=True)
    load_checkpoint(run.checkpoint(12))
    assert "average" not in json.loads((run.checkpoint(0) / "meta.json").read_text())
