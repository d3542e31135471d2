"""Barriers: both definitions, their paired errors, and the golden section."""

import math

import numpy as np
import pytest
import torch

from landscape.paths.barrier import barrier

F64 = torch.float64


@pytest.mark.parametrize(("definition", "value"), [("B_lin", 0.6), ("B_max", 0.5)])
def test_oracle(definition, value):
    found = barrier([0, 0.5, 1], [0.2, 0.9, 0.4], definition=definition)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.location == 0.5
    assert math.isnan(found.stderr)
    assert found.definition == definition


def test_values_outside_the_line_do_not_count():
    found = barrier([-0.5, 0, 0.25, 1, 1.5], [99.0, 0.2, 0.3, 0.4, 99.0])
    assert found.value == pytest.approx(0.05)
    assert found.evaluations == 3


@pytest.mark.parametrize("definition", ["B_lin", "B_max"])
def test_no_barrier_is_exactly_zero(definition):
    found = barrier([0, 0.3, 1], [0.7, 0.1, 0.3], definition=definition)
    assert found.value == 0
    assert found.stderr == 0 or math.isnan(found.stderr)


def test_the_two_definitions_are_ordered(generator):
    for _ in range(20):
        values = torch.rand(7, generator=generator, dtype=F64)
        where = torch.arange(7, dtype=F64) / 6
        lin, top = (barrier(where, values, definition=d).value for d in ("B_lin", "B_max"))
        assert 0 <= top <= lin + 1e-15


@pytest.mark.parametrize("definition", ["B_lin", "B_max"])
def test_error_is_the_paired_one(definition, generator):
    """Examples differ much more than the path does: the paired error is small, the unpaired one is not."""
    n = 200
    level = 10 * torch.rand(n, generator=generator, dtype=F64)
    noise = 0.1 * torch.randn(3, n, generator=generator, dtype=F64)
    table = level + torch.tensor([[0.2], [0.9], [0.4]], dtype=F64) + noise
    found = barrier([0, 0.25, 1], table, definition=definition)
    t = table.numpy()
    rises = t[1] - (0.75 * t[0] + 0.25 * t[2] if definition == "B_lin" else t[2])
    assert found.value == pytest.approx(rises.mean(), rel=1e-12)
    assert found.stderr == pytest.approx(rises.std(ddof=1) / math.sqrt(n), rel=1e-12)
    assert found.stderr < 0.1 * t[1].std(ddof=1) / math.sqrt(n)
    assert found.draws == n


def test_coverage_of_the_paired_interval():
    """The interval of B_lin at a fixed place covers the truth about as often as it says."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        level, d = rng.normal(size=40), rng.exponential(size=40)
        table = torch.tensor(np.stack([level, level + d, level]))
        low, high = barrier([0, 0.5, 1], table).interval(0.95)
        covered += low <= 1.0 <= high
    assert 0.87 < covered / 300 <= 0.98  # skewed differences and n = 40 cost a few per cent


@pytest.mark.parametrize(("bad", "value"), [(math.nan, math.nan), (math.inf, math.inf)])
def test_models_that_diverge_between(bad, value):
    found = barrier([0, 0.5, 1], [0.2, bad, 0.4])
    assert math.isnan(found.value) if math.isnan(value) else found.value == value


@pytest.mark.parametrize(
    ("where", "values", "message"),
    [
        ([0.0, 0.5], [1.0, 2.0], "must hold 0 and 1"),
        ([0.1, 1.0], [1.0, 2.0], "must hold 0 and 1"),
        ([0.0, 1.0], [1.0, 2.0, 3.0], "a row for each of the 2 coordinates, got 3"),
    ],
)
def test_bad_arguments(where, values, message):
    with pytest.raises(ValueError, match=message):
        barrier(where, values)
