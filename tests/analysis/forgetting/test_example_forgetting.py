from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.forgetting.examples import example_forgetting

# One example a row: answers over six presentations, and what was counted by hand.
TABLE = [
    # answers, events, sort value, first learned, last wrong + 1, learning events, never learned, unforgettable
    ([0, 0, 1, 1, 1, 1], 0, 0, 2, 2, 1, False, True),
    ([0, 1, 0, 1, 0, 1], 2, 2, 1, 5, 3, False, False),
    ([0, 0, 0, 0, 0, 0], 0, 6, np.nan, 6, 0, True, False),
    ([1, 1, 1, 1, 1, 1], 0, 0, 0, 0, 0, False, True),
    ([1, 0, 0, 1, 1, 0], 2, 2, 0, 6, 1, False, False),
]
CORRECT = np.array([row[0] for row in TABLE], dtype=bool).T


@pytest.mark.parametrize("i", range(5))
def test_hand_table(i):
    _, events, sort_value, first, last, learning, never, unforgettable = TABLE[i]
    f = example_forgetting(CORRECT)
    assert (f.events[i], f.sort_value[i], f.last_wrong[i], f.learning_events[i]) == (events, sort_value, last, learning)
    assert (f.never_learned[i], f.unforgettable[i], f.presentations[i]) == (never, unforgettable, 6)
    np.testing.assert_equal(f.first_learned[i], float(first))


def test_counts_are_integers_and_summaries_are_means():
    f = example_forgetting(CORRECT)
    assert all(x.dtype.kind == "i" for x in (f.events, f.learning_events, f.last_wrong, f.presentations))
    assert (f.mean_events, f.fraction_unforgettable, f.fraction_never_learned) == (0.8, 0.4, 0.2)


def by_hand(answers):
    events = sum(a and not b for a, b in pairwise(answers))
    learning = sum(b and not a for a, b in pairwise(answers))
    first = answers.index(True) if True in answers else np.nan
    last = len(answers) - answers[::-1].index(False) if False in answers else 0
    return events, learning, first, last


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 5))
def test_an_example_keeps_its_own_clock(seed, t, n):
    rng = np.random.default_rng(seed)
    correct, presented = rng.random((t, n)) < 0.5, rng.random((t, n)) < 0.6
    f = example_forgetting(correct, presented=presented)
    for i in range(n):
        events, learning, first, last = by_hand([bool(a) for a in correct[presented[:, i], i]])
        assert (f.events[i], f.learning_events[i], f.last_wrong[i]) == (events, learning, last)
        np.testing.assert_equal(f.first_learned[i], float(first))
        assert f.presentations[i] == presented[:, i].sum()


def test_rows_carry_the_protocol_and_errors_over_examples():
    rows = {r.measure: r for r in example_forgetting(CORRECT).rows(protocol="sweep")}
    assert list(rows) == ["forgetting_events", "fraction_unforgettable", "fraction_never_learned"]
    row = rows["forgetting_events"]
    assert (row.value, row.draws, row.options) == (0.8, 5, {"protocol": "sweep", "presentations": 6})
    assert row.stderr == pytest.approx(np.std([0, 2, 0, 0, 2], ddof=1) / 5**0.5)
    assert np.isnan(example_forgetting(CORRECT[:, :1]).rows(protocol="sweep")[0].stderr)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: example_forgetting(CORRECT.astype(float)), "`correct` must be a boolean matrix .* float64"),
        (lambda: example_forgetting(CORRECT[0]), "`correct` must be a boolean matrix"),
        (lambda: example_forgetting(CORRECT[:0]), r"got bool of shape \(0, 5\)"),
        (
            lambda: example_forgetting(CORRECT, presented=CORRECT[:3]),
            r"`presented` must be boolean of the shape \(6, 5\)",
        ),
        (lambda: example_forgetting(CORRECT).rows(protocol="epoch"), "`protocol` must be one of .*'epoch'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
