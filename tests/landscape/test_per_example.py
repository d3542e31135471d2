"""Gradients of single examples and of chunks, against a loop."""

import pytest
import torch
from problems import F64, case, o2, small
from torch import nn
from torch.testing import assert_close

from landscape import flatten, per_example
from landscape.batches import batch_size, slice_batch
from landscape.operators.point import Point
from landscape.per_example import chunk_gradients, example_gradients

EXACT = {"rtol": 1e-12, "atol": 1e-14}


class DataDependent(nn.Module):
    """A branch on a value, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)

    def forward(self, x):
        out = self.line(x)
        return out * 2 if float(x.sum()) > 0 else out


def loop(risk, batch):
    parts = [slice_batch(batch, i, i + 1) for i in range(batch_size(batch))]
    return torch.stack([flatten(risk.on([part]).gradient(), risk.names) for part in parts])


RISKS = {
    "tanh": o2,
    "conv": lambda: case("conv:eval").risk(),
    "attention": lambda: case("sdpa:causal").risk(),
    "lstm": lambda: case("recurrent:lstm").risk(),
    "two inputs": lambda: case("padded").risk(),
    "data dependent": lambda: small(DataDependent()),
    "one example": lambda: small(nn.Linear(3, 2), shape=(1, 3), sizes=(1,)),
}


@pytest.mark.parametrize("rows", [1, 2, 1000])
@pytest.mark.parametrize("name", RISKS)
def test_rows_are_the_gradients_of_a_loop(name, rows, monkeypatch):
    risk = RISKS[name]()
    point = Point.of(risk, None, None)
    monkeypatch.setattr(per_example, "CHUNK_BYTES", rows * point.row_bytes)
    parts = list(example_gradients(point, risk.batches[0]))
    assert max(map(len, parts)) <= rows
    assert_close(torch.cat(parts), loop(risk, risk.batches[0]), **EXACT)
    assert not any(t.grad is not None for t in point.leaves)


def test_token_losses_go_one_example_at_a_time():
    c = case("language")
    risk = c.risk()
    rows = torch.cat(list(example_gradients(Point.of(risk, None, None), risk.batches[0])))
    expected = []
    for i in range(3):
        part = {k: t[i : i + 1] for k, t in c.batches[0].items()}
        grads = torch.autograd.grad(c.loss(c.model(**part), part), list(c.model.parameters()))
        expected.append(torch.cat([g.flatten() for g in grads]))
    assert_close(rows, torch.stack(expected), **EXACT)


def test_held_parameters_have_no_rows():
    risk = o2()
    point = Point.of(risk, None, "2")
    rows = torch.cat(list(example_gradients(point, risk.batches[0])))
    assert_close(rows, loop(risk, risk.batches[0])[:, 9:], **EXACT)


def test_chunks_are_means_over_their_examples():
    risk = o2()
    x, y = risk.batches[0]
    x, y = x[:4].view(2, 2, 2), y[:4].view(2, 2)
    grads, losses = chunk_gradients(risk, risk.theta, x, y)
    for i in range(2):
        value, gradient = risk.on((x[i], y[i])).value_and_gradient()
        assert float(losses[i]) == pytest.approx(value, rel=1e-12)
        for name, g in gradient.items():
            assert_close(grads[name][i], g, **EXACT)
    assert losses.dtype == F64
