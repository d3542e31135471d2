"""Estimates: intervals and how they read."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from landscape import Estimate


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.integers(2, 200), st.floats(0.5, 0.999))
def test_intervals_are_students(value, stderr, draws, level):
    low, high = Estimate(value, stderr, draws).interval(level)
    assert (low, high) == pytest.approx(student.interval(level, draws - 1, value, stderr), rel=1e-8, abs=1e-8)


def test_the_default_level_is_95_percent():
    low, high = Estimate(1.0, 0.1, 10).interval()
    assert (high - 1, 1 - low) == pytest.approx((0.22621571628, 0.22621571628))


def test_exact_and_unknown_errors():
    assert Estimate(2.5, 0.0, 6).interval() == (2.5, 2.5)
    assert all(math.isnan(end) for end in Estimate(2.5, math.nan, 1).interval())
    assert all(math.isnan(end) for end in Estimate(2.5, 0.1, 1).interval())


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_refused_levels(level):
    with pytest.raises(ValueError, match=r"`level` must be a probability between 0 and 1, such as 0.95"):
        Estimate(1.0, 0.1, 10).interval(level)


def test_intervals_of_normal_means_cover_the_truth():
    draws = np.random.default_rng(0).standard_normal((2000, 5))
    made = [Estimate(float(x.mean()), float(x.std(ddof=1)) / math.sqrt(5), 5).interval() for x in draws]
    assert np.mean([low <= 0 <= high for low, high in made]) == pytest.approx(0.95, abs=0.015)  # three standard errors


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(1.23456789, 0.0123, 64), "1.23457 ± 0.012 (64 draws)"),
        (Estimate(1.5, math.nan, 1), "1.5 ±? (1 draw)"),
        (Estimate(1.5, 0.0, 17, method="exact"), "1.5 (exact)"),
        (Estimate(1.5, 0.2, 10, converged=False), "1.5 ± 0.2 (10 draws, not converged)"),
    ],
)
def test_how_estimates_read(estimate, text):
    assert str(estimate) == text
    assert float(estimate) == estimate.value


def test_parts_belong_to_an_estimate_that_can_still_be_a_key():
    whole = Estimate(3.0, 0.1, 10, parts={"a": Estimate(1.0, 0.1, 10), "b": Estimate(2.0, 0.1, 10)})
    assert whole.parts["b"].value == 2
    assert whole != Estimate(3.0, 0.1, 10)
    assert {whole: 1}[whole] == 1
    assert dict(Estimate(3.0).parts) == {}
