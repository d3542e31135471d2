import math

import numpy as np
import pytest

from analysis.forgetting.output_bias import classwise_bias, output_bias

LABELS = np.array([0, 0, 1, 1])
BEFORE = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
AFTER = np.array([[0.7, 0.3], [0.45, 0.55], [0.4, 0.6], [0.55, 0.45]])


def values(probs, labels=LABELS):
    return {r.measure: r.value for r in output_bias(probs, labels)}


def test_hand_table():
    assert values(BEFORE)["b_marg"] == pytest.approx(0.0, abs=1e-15)
    assert values(BEFORE)["overconfidence"] == pytest.approx(0.75 - 1.0, abs=1e-15)
    after = values(AFTER)  # mean output (0.525, 0.475); top classes 0, 1, 1, 0
    expected = {
        "b_marg": 0.0012505214,
        "b_tv": 0.025,
        "b_prior": 0.0012505214,
        "b_marg_count": 0.0,
        "b_tv_count": 0.0,
        "b_prior_count": 0.0,
        "mean_confidence": (0.7 + 0.55 + 0.6 + 0.55) / 4,
        "overconfidence": 0.6 - 0.5,
        "mean_entropy": 0.6650383991,
        "classwise_bias": (1 - 0.575 + 1 - 0.525) / 2,
    }
    assert set(after) == set(expected)
    for name, value in expected.items():
        assert after[name] == pytest.approx(value, abs=1e-10), name


def test_unbalanced_labels_are_compared_with_their_own_frequencies():
    probs = np.array([[0.75, 0.25]] * 4)
    found = values(probs, np.array([0, 0, 0, 1]))
    assert found["b_prior"] == pytest.approx(0, abs=1e-15)
    assert found["b_marg"] == pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25), abs=1e-14)
    assert found["b_marg_count"] == pytest.approx(math.log(2), abs=1e-14)
    assert found["b_tv_count"] == 0.5
    assert found["b_prior_count"] == pytest.approx(math.log(4 / 3), abs=1e-14)


def test_without_labels_what_needs_them_is_left_out():
    assert {r.measure for r in output_bias(AFTER)} == {
        *("b_marg", "b_tv", "b_marg_count", "b_tv_count", "mean_confidence", "mean_entropy")
    }


def test_standard_errors_match_the_spread_over_samples():
    rng = np.random.default_rng(0)
    repeats = [{r.measure: r for r in output_bias(rng.dirichlet([4.0, 1.0, 2.0], size=60))} for _ in range(300)]
    for name in ("b_marg", "b_tv", "mean_confidence", "b_marg_count"):
        spread = np.std([r[name].value for r in repeats], ddof=1)
        stderr = np.mean([r[name].stderr for r in repeats])
        assert stderr == pytest.approx(spread, rel=0.2), name  # a spread from 300 repeats has an error of 4 %


def test_standard_error_of_a_distance_is_the_jackknife_written_out():
    rows = {r.measure: r for r in output_bias(AFTER, LABELS)}
    left = np.array([values(np.delete(AFTER, i, 0), None)["b_marg"] for i in range(4)])
    expected = math.sqrt(3 / 4 * np.sum((left - left.mean()) ** 2))
    assert rows["b_marg"].stderr == pytest.approx(expected, rel=1e-12)


def test_one_example_has_no_standard_error():
    assert all(math.isnan(r.stderr) for r in output_bias(AFTER[:1], LABELS[:1]))


def test_outputs_that_are_not_finite_are_nan_with_a_warning():
    probs = AFTER.copy()
    probs[2] = np.nan
    for row in output_bias(probs, LABELS, split="held_out"):
        assert math.isnan(row.value)
        assert row.warnings == "outputs of 1 examples not finite"
        assert row.split == "held_out"


def test_classwise_bias_of_the_hand_table():
    np.testing.assert_allclose(classwise_bias(BEFORE, LABELS), [[-0.25, 0.25], [0.25, -0.25]], rtol=0, atol=1e-15)
    lacking = classwise_bias(BEFORE[:2], LABELS[:2])
    np.testing.assert_allclose(lacking, [[-0.25, 0.25], [np.nan, np.nan]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (BEFORE[None], LABELS, r"`probs` must have shape \(n, c\), got \(1, 4, 2\)"),
        (BEFORE * 2, LABELS, "`probs` must hold distributions"),
        (BEFORE, LABELS[:2], "`labels` must be one class for each of the 4"),
        (BEFORE, LABELS + 1, "`labels` must be integers from 0 to 1, .* from 1 to 2"),
        (BEFORE, LABELS - 0.5, "`labels` must be integers .* float64"),
    ],
    ids=["three axes", "not normalised", "too few", "too large", "not integers"],
)
def test_bad_arguments_are_named(probs, labels, message):
    with pytest.raises(ValueError, match=message):
        output_bias(probs, labels)
