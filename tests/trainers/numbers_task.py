"""A task and a data set of a user's own: regression, which asks nothing of the rest but what a task has."""

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset


class Regression:
    """Learns numbers by their squared distance."""

    name = "mse"
    weight = None

    def loss(self, outputs, targets):
        return F.mse_loss(outputs, targets)

    def each(self, outputs, targets):
        return (outputs - targets).square().mean(1)

    def scores(self, outputs, targets):
        return {"absolute_error": (outputs - targets).abs().mean(1), "far": (outputs - targets).square().mean(1)}


class Weighted(Regression):
    """The same with a weight of each example, in the second column of the targets."""

    name = "weighted mse"

    def weight(self, targets):
        return targets[:, 1].sum()

    def each(self, outputs, targets):
        return (outputs[:, 0] - targets[:, 0]).square()

    def loss(self, outputs, targets):
        return (targets[:, 1] * self.each(outputs, targets)).sum() / targets[:, 1].sum()

    def scores(self, outputs, targets):
        return {"absolute_error": (outputs[:, 0] - targets[:, 0]).abs()}


class Summed(Regression):
    """Its loss is no mean of the examples' losses."""

    def loss(self, outputs, targets):
        return F.mse_loss(outputs, targets, reduction="sum")


class Pooled(Regression):
    """Its score is one number."""

    def scores(self, outputs, targets):
        return {"absolute_error": (outputs - targets).abs().mean()}


class Silent(Regression):
    """It has no score."""

    def scores(self, outputs, targets):
        return {}


class Idle(Regression):
    """It gives no example its loss."""

    each = None


class Half:
    """No task: it has no scores."""

    name = "half"
    weight = None
    loss = each = None


def line():
    """A noisy line in three dimensions, one number to be told for each point."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(160, 3, generator=g)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(160, 1, generator=g)
    return TensorDataset(x[:120], y[:120]), TensorDataset(x[120:], y[120:])


def weighted():
    """The line with weights between 0 and 2."""
    (x, y), (x_test, y_test) = (d.tensors for d in line())
    g = torch.Generator().manual_seed(1)
    targets = (torch.cat([t, 2 * torch.rand(len(t), 1, generator=g)], 1) for t in (y, y_test))
    return tuple(TensorDataset(*pair) for pair in zip((x, x_test), targets, strict=True))


def tokens():
    """Sentences of five tokens, with labels."""
    x, y = torch.arange(800).reshape(160, 5) % 7, torch.arange(160) % 3
    return TensorDataset(x[:120], y[:120]), TensorDataset(x[120:], y[120:])


def to_one(shape, classes):
    """A model with one output, whatever the targets are."""
    return torch.nn.Linear(shape[0], 1)


def to_three(shape):
    """A model with three outputs, whatever the targets are."""
    return torch.nn.Linear(shape[0], 3)


def missing():
    """The line with a target that is not known."""
    train, test = line()
    train.tensors[1][3] = float("nan")
    return train, test
