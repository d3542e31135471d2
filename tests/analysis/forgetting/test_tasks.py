import math

import numpy as np
import pytest

from analysis.forgetting.tasks import task_forgetting

R = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.75, 0.5, 0.85]])


def values(*args, **options):
    return {r.measure: r for r in task_forgetting(*args, **options)}


def test_three_tasks_by_hand():
    found = values(R, untrained=np.array([0.1, 0.1, 0.2]), reference=np.array([0.9, 0.85, 0.9]))
    expected = {
        "average_accuracy": (0.75 + 0.5 + 0.85) / 3,
        "average_forgetting": ((0.9 - 0.75) + (0.8 - 0.5)) / 2,
        "backward_transfer": ((0.75 - 0.9) + (0.5 - 0.8)) / 2,
        "forward_transfer": ((0.2 - 0.1) + (0.3 - 0.2)) / 2,
        "intransigence": (0.0 + 0.05 + 0.05) / 3,
    }
    assert {k: r.value for k, r in found.items()} == pytest.approx(expected)
    assert all(math.isnan(r.stderr) and r.draws == 1 and not r.warnings for r in found.values())


def test_forgetting_is_from_the_best_so_far_not_from_the_diagonal():
    r = np.array([[0.5, 0.1, 0.1], [0.9, 0.8, 0.1], [0.6, 0.8, 0.7]])
    found = values(r)
    assert found["average_forgetting"].value == pytest.approx((0.9 - 0.6 + 0) / 2)
    assert found["backward_transfer"].value == pytest.approx((0.6 - 0.5 + 0) / 2)


def test_errors_are_over_seeds():
    runs = np.stack([R, R - 0.1, R + 0.03])
    found = values(runs, untrained=np.zeros(3))
    x = np.array([0.0, -0.1, 0.03])
    assert found["average_accuracy"].value == pytest.approx(0.7 + x.mean())
    assert found["average_accuracy"].stderr == pytest.approx(x.std(ddof=1) / math.sqrt(3))
    assert found["average_forgetting"].stderr == pytest.approx(0, abs=1e-15)
    assert found["forward_transfer"].draws == 3


def test_what_is_not_known_is_said():
    r = np.where(np.triu(np.ones((3, 3)), 1) > 0, np.nan, R)
    found = values(r)
    assert found["average_forgetting"].value == pytest.approx(0.225)
    assert "needs `untrained`" in found["forward_transfer"].warnings
    assert "needs `reference`" in found["intransigence"].warnings
    assert math.isnan(found["intransigence"].value)
    assert values(r, untrained=np.zeros(3))["forward_transfer"].warnings == "`accuracy` is NaN just above its diagonal"
    one = values(np.array([[0.5]]), untrained=np.zeros(1))
    assert one["average_accuracy"].value == 0.5
    for name in ("average_forgetting", "backward_transfer", "forward_transfer"):
        assert one[name].warnings == "there is one task only"
        assert math.isnan(one[name].value)


@pytest.mark.parametrize(
    ("accuracy", "options", "message"),
    [
        (R[:2], {}, r"`accuracy` must be a matrix of tasks by tasks.*\(2, 3\)"),
        (R.T * np.nan, {}, "`accuracy` must be known on and below its diagonal"),
        (R, {"untrained": np.zeros(2)}, "`untrained` must be one accuracy a task"),
        (R, {"reference": np.zeros((2, 3))}, "`reference` must be one accuracy a task"),
    ],
)
def test_bad_arguments_are_named(accuracy, options, message):
    with pytest.raises(ValueError, match=message):
        task_forgetting(accuracy, **options)
