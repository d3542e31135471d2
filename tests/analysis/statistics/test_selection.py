import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics.selection import split_selection


def test_the_best_of_noise_is_nothing_on_the_other_half():
    rng = np.random.default_rng(0)
    naive, held = [], []
    for _ in range(30):
        found = split_selection(rng.normal(size=(20, 30)), rng.normal(size=30), splits=50, generator=rng)
        naive.append(found.naive)
        held.append(found.held_out)
    assert np.mean(naive) > 0.2
    assert np.mean(held) == pytest.approx(0, abs=4 * np.std(held) / np.sqrt(30) + 1e-9)


def test_a_true_variant_is_chosen_and_keeps_its_tau():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 60)), rng.normal(size=60)
    x[4] = -y + 0.4 * rng.normal(size=60)
    found = split_selection(x, y, generator=rng)
    assert (found.chosen, found.shares[4]) == (4, 1.0)
    assert found.naive == pytest.approx(abs(stats.kendalltau(x[4], y).statistic), abs=1e-12)
    assert found.held_out == pytest.approx(found.naive, abs=0.03)  # the sign is that of the half that chose
    assert found.low < found.held_out < found.high
    assert found.shares.sum() == pytest.approx(1)


def test_each_half_chooses_for_the_other():
    """Split by split, by hand."""
    x, (y, *_) = np.random.default_rng(4).normal(size=(2, 5, 13))
    found = split_selection(x, y, splits=8, generator=np.random.default_rng(0))
    told = []
    for keys in np.random.default_rng(0).random((8, 13)):
        first, second = np.split(np.argsort(keys), [6])
        for here, there in ((first, second), (second, first)):
            tau = [stats.kendalltau(row[here], y[here]).statistic for row in x]
            best = int(np.abs(tau).argmax())
            told.append(stats.kendalltau(x[best][there], y[there]).statistic * np.sign(tau[best]))
    assert found.held_out == pytest.approx(np.mean(told), abs=1e-12)
    assert found.high == pytest.approx(np.percentile(told, 97.5), abs=1e-12)


def test_one_variant_is_no_choice():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 20))
    y += x
    found = split_selection(x[None], y, splits=400, generator=rng)
    assert found.held_out == pytest.approx(found.naive, abs=0.06)


@given(st.integers(0, 14), st.integers(1, 3), st.integers(0, 5))
def test_any_data_gives_a_number_or_a_reason(n, variants, seed):
    rng = np.random.default_rng(seed)
    pool = np.array([0.0, 1.0, np.nan, np.inf])
    found = split_selection(rng.choice(pool, (variants, n)), rng.choice(pool, n), splits=5, generator=rng)
    assert np.isfinite(found.held_out) or found.warnings


def test_bad_arguments_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="`x` must hold a row of configurations for each variant"):
        split_selection(np.zeros(3), np.zeros(3), generator=rng)
    with pytest.raises(ValueError, match="`splits` must be at least 1"):
        split_selection(np.zeros((1, 3)), np.zeros(3), splits=0, generator=rng)
