"""Weights of classes and balanced draws, against scikit-learn, torch and plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch.testing import assert_close

from landscape.objectives import obf_direction
from trainers import Classification, Objective, fit, load_checkpoint, obf_loss
from trainers.config import train_config
from trainers.data.imbalance import balanced_draw, class_weights
from trainers.randomness import seeded, stream
from trainers.runs.folder import Run, load_data
from trainers.runs.training import Training
from trainers.tasks.losses import each
from trainers.tasks.task import measured, task_of

F64 = torch.float64
SMALL = {
    "train_size": 60, "validation_size": 40, "test_size": 50, "epochs": 2, "batch_size": 30, "precision": "float64",
    "model_options": {"width": 8, "depth": 1},
}  # fmt: skip
WEIGHTS = (0.5, 3.0, 1.0, 2.0)


def made(n=9, classes=4):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, classes, generator=g, dtype=F64), torch.randint(classes, (n,), generator=g)


def uneven(config, *, rare=3):
    """The data of a configuration with few training examples of the classes above 4."""
    data = load_data(config)
    y = data.train.y
    kept = torch.cat([(y == c).nonzero()[:, 0][: None if c < 5 else rare] for c in range(data.classes)])
    return replace(data, train=data.train.some(kept))


def test_balanced_weights_are_those_of_scikit_learn():
    y = np.repeat([0, 1, 2, 3], [50, 20, 3, 1])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    assert_close(torch.tensor(class_weights("balanced", torch.from_numpy(y), 4), dtype=F64), torch.from_numpy(expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_weighted_cross_entropy_is_torchs(smoothing):
    z, y = made()
    task = Classification("cross_entropy", smoothing, class_weights=WEIGHTS)
    expected = F.cross_entropy(z, y, weight=torch.tensor(WEIGHTS, dtype=F64), label_smoothing=smoothing)
    assert_close(task.loss(z, y), expected)
    assert task.loss(z.float(), y).dtype == torch.float32
    assert measured(task).loss is F.cross_entropy


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_every_example_counts_as_its_label_does(name, smoothing):
    z, y = made()
    task, plain = Classification(name, smoothing, "others", WEIGHTS), Classification(name, smoothing, "others")
    w = torch.tensor(WEIGHTS, dtype=F64)[y]
    assert_close(task.loss(z, y), (w * task.each(z, y)).sum() / w.sum())
    assert task.weight(y) == pytest.approx(float(w.sum()))
    if name == "bce" or not smoothing:
        assert_close(task.each(z, y), plain.each(z, y))
    # what methods see that weigh or choose examples
    losses = each(task.loss)
    assert_close(losses(z.requires_grad_(), y), len(y) * w * task.each(z, y) / w.sum())
    assert_close(losses.weights, w / w.mean())


def test_the_objective_of_obf_counts_examples_as_the_loss_does():
    z, y = made()
    weight = torch.tensor(WEIGHTS, dtype=F64)
    q, _ = obf_direction(z, y)
    expected = sum(weight[c] * (q[i] @ z[i]) for i, c in enumerate(y)) / sum(weight[c] for c in y)
    assert_close(obf_loss(z, y, weight=weight), expected)
    ones = torch.ones(4, dtype=F64)
    for value in ("surrogate", "objective"):
        assert_close(obf_loss(z, y, weight=ones, value=value), obf_loss(z, y, value=value))


def gradients(training, chunk):
    """Of the loss and of the objective that is ascended, over one batch in chunks, weighted as the optimizer does."""
    found = []
    closures = training.feeder.closures(*training.train.take(slice(30)), chunk)
    for objectives in (closures.descents, closures.ascents):
        total = torch.zeros(())
        for closure, size in zip(objectives, closures.sizes, strict=True):
            closure()
            flat = torch.cat([p.grad.reshape(-1) for p in training.model.parameters()])
            total = total + flat * size / sum(closures.sizes)
        found.append(total)
    return found


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_chunks_of_a_batch_count_for_the_weights_in_them(loss):
    config = train_config({**SMALL, "method": "obf", "class_weights": "balanced", "loss": loss}).resolved()
    with seeded(0):
        training = Training(config, Run("unused"), data=uneven(config))
    whole, parts = gradients(training, 30), gradients(training, 7)
    for one, other in zip(whole, parts, strict=True):
        assert_close(one, other)
    plain = [len(part) for part in torch.arange(30).split(7)]
    assert training.feeder.closures(*training.train.take(slice(30)), 7).sizes != plain


@pytest.mark.parametrize("method", ["sgd", "sam", "obf", "esam", "deltasam", "aesam", "functionalsam", "bsam"])
def test_runs_with_weights_record_the_weighted_loss(method, tmp_path, monkeypatch):
    config = train_config({**SMALL, "method": method, "m": 11, "class_weights": "balanced", "lr": 0.02})
    data = uneven(config)
    monkeypatch.setattr("trainers.runs.loop.load_data", lambda *_, **__: data)
    run = fit(config, out=tmp_path)
    row = run.history().iloc[-1]
    model = load_checkpoint(run.checkpoint(max(run.checkpoints())))[0].eval()
    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(10), y=data.train.y.numpy()))
    for name, split in (("train", data.train), ("test", data.test)):
        with torch.no_grad():
            expected = F.cross_entropy(model(split.x), split.y, weight=weight)
        assert row[f"{name}_loss"] == pytest.approx(float(expected), rel=1e-9)
    assert math.isfinite(row["loss"])


def test_the_first_step_is_torchs_own_on_the_weighted_loss(tmp_path, monkeypatch):
    config = train_config({**SMALL, "epochs": 1, "batch_size": 1000, "weight_decay": 0.0, "class_weights": "balanced",
                           "micro_batch": 7}).resolved()  # fmt: skip
    data = uneven(config)
    with seeded(0):
        training = Training(config, Run(tmp_path), data=data)
    weight = torch.tensor(class_weights("balanced", data.train.y, 10), dtype=F64)
    loss = F.cross_entropy(training.model(data.train.x), data.train.y, weight=weight)
    expected = [p.detach() - 0.1 * g for p, g in zip(
        training.model.parameters(), torch.autograd.grad(loss, list(training.model.parameters())), strict=True
    )]  # fmt: skip
    training.train_step()
    for p, e in zip(training.model.parameters(), expected, strict=True):
        assert_close(p.detach(), e)
    assert float(training.losses[0]) / training.tally.examples == pytest.approx(float(loss.detach()))


# -- balanced draws --------------------------------------------------------------------------------------------------


def test_classes_are_drawn_equally_often():
    y = torch.arange(4).repeat_interleave(torch.tensor([1500, 400, 90, 10]))
    drawn = balanced_draw(y, stream(0, "test"))
    assert len(drawn) == 2000
    shares = torch.bincount(y[drawn], minlength=4) / 2000
    assert bool(((shares - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / 2000)).all())
    rare = torch.bincount(drawn, minlength=2000)[-10:]
    assert rare.min() > 0
    assert bool((rare - 50).abs().max() < 5 * math.sqrt(50))
    assert torch.equal(drawn, balanced_draw(y, stream(0, "test")))
    absent = balanced_draw(torch.tensor([0, 0, 0, 2]), stream(0, "test"))
    assert absent.max() <= 3


def test_the_order_is_decided_by_seed_and_epoch_alone(tmp_path):
    config = train_config({**SMALL, "sampler": "balanced"}).resolved()
    data = uneven(config)
    with seeded(0):
        first, second = (Training(config, Run(tmp_path), data=data) for _ in range(2))
    assert torch.equal(first.order, second.order)
    start = first.order
    for training in (first, second):
        training.generator.seed()  # no part of it
        training.epoch = 1
    assert torch.equal(first.next_order(), second.next_order())
    assert not torch.equal(first.next_order(), start)
    training.epoch = 0
    assert torch.equal(training.next_order(), start)


def test_an_example_that_an_epoch_does_not_draw_keeps_its_record(tmp_path, monkeypatch):
    orders, hits = [], []
    end = Training.end_epoch

    def end_epoch(self):
        orders.append(self.order.tolist())
        hits.append(torch.cat(self.hits).tolist())
        return end(self)

    monkeypatch.setattr(Training, "end_epoch", end_epoch)
    run = fit({**SMALL, "epochs": 3, "sampler": "balanced"}, out=tmp_path)
    right, expected = [False] * 60, []
    for order, hit in zip(orders, hits, strict=True):
        for i, h in zip(order, hit, strict=True):
            right[i] = h
        expected.append(list(right))
    assert run.correctness("presentation").tolist() == expected
    assert len(set(orders[0])) < 60


# -- names and bad input ---------------------------------------------------------------------------------------------


def test_runs_without_either_keep_their_names():
    plain = train_config({"seed": 3})
    assert plain.run_id == train_config({"seed": 3, "class_weights": None, "sampler": "shuffle"}).run_id
    others = [{"class_weights": "balanced"}, {"class_weights": [1.0] * 10}, {"sampler": "balanced"}]
    assert len({train_config({"seed": 3, **other}).run_id for other in [{}, *others]}) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"class_weights": [1.0, 2.0]},
            r"`class_weights` must be 'balanced' or 10 finite numbers above 0.*\[1.0, 2.0\]",
        ),
        (
            {"class_weights": "balanced", "train_size": 5},
            r"'balanced' needs training examples of every class, and of 5",
        ),
        ({"class_weights": [0.0] * 10}, "class_weights"),
        ({"class_weights": "even"}, "class_weights"),
        ({"sampler": "weighted"}, "sampler"),
        ({"sampler": "balanced", "task": "a:B"}, "`sampler` needs labels"),
        ({"class_weights": "balanced", "task": "a:B"}, "`class_weights` needs labels"),
    ],
)
def test_what_does_not_fit_is_named(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit({**SMALL, **values}, out=tmp_path)


def test_a_task_without_data_leaves_weights_out():
    assert task_of(train_config({"class_weights": "balanced"})).class_weights is None


def test_an_objective_of_weighted_losses_has_their_mean():
    z, y = made()
    model = torch.nn.Linear(4, 4, dtype=F64)
    objective = Objective(model, Classification("bce", 0.1, class_weights=WEIGHTS).loss, z, y)
    assert_close(objective.losses().mean().detach(), objective())
