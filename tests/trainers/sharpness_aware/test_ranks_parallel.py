"""SAMPa on two processes is SAMPa on one, and takes the time of one gradient."""

import numpy as np
import pytest
from workers import pool
from workers_problem import Network

from trainers import make_optimizer

pytestmark = pytest.mark.xdist_group("ranks")


def both(**arguments):
    (alone,) = pool().run("workers_parallel", "train", ranks=1, parallel=False, **arguments)
    return alone, pool().run("workers_parallel", "train", ranks=2, parallel=True, **arguments)


def assert_the_same(alone, pair):
    for result in pair:
        np.testing.assert_array_equal(result["losses"], alone["losses"])
        for name, values in alone["tensors"].items():  # weights, running statistics, the counter of batches
            np.testing.assert_array_equal(result["tensors"][name], values, err_msg=name)
        np.testing.assert_array_equal(result["random"], alone["random"])
        assert result["tracked"] == alone["tracked"]


@pytest.mark.parametrize("lam", [0.0, 0.2, 1.0])
def test_two_processes_equal_one_bit_for_bit(lam):
    alone, pair = both(lam=lam)
    assert_the_same(alone, pair)
    assert alone["passes"] == [3, 2, 2, 2, 2]
    assert [result["passes"] for result in pair] == [[2, 1, 1, 1, 1]] * 2


@pytest.mark.parametrize(
    "case",
    [
        {"wrap": True},
        {"stop": 3},
        {"stop": 3, "wrap": True},
        {"window": (2, 4)},
        {"chunks": 2},
        {"same_rng": False},
        {"scale": 8.0},
    ],
    ids=lambda case: "-".join(case),
)
def test_and_so_they_do_with(case):
    assert_the_same(*both(**case))


def test_an_overflow_skips_the_step_on_both():
    alone, pair = both(scale=float("inf"), steps=3)
    assert all(alone["overflows"])
    assert [result["overflows"] for result in pair] == [alone["overflows"]] * 2
    for result in pair:
        for name in ("first.weight", "second.bias"):
            np.testing.assert_array_equal(result["tensors"][name], alone["tensors"][name])


def test_the_critical_path_is_one_gradient():
    seconds = 0.15
    (alone,) = pool().run("workers_parallel", "timed", ranks=1, parallel=False, seconds=seconds)
    pair = pool().run("workers_parallel", "timed", ranks=2, parallel=True, seconds=seconds)
    assert alone > 2 * seconds
    assert max(pair) < 1.7 * seconds


def test_it_needs_the_method_and_two_processes():
    with pytest.raises(ValueError, match=r"`parallel_gradients` needs two gradients .* method 'sampa'"):
        make_optimizer("sam", Network(), lr=0.1, parallel_gradients=True)
    with pytest.raises(ValueError, match=r"`parallel_gradients` needs two processes.* got 1"):
        make_optimizer("sampa", Network(), lr=0.1, parallel_gradients=True)
