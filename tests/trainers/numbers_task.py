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
