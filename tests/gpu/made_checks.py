"""Tests that pass, fail and are skipped. They are found by the runner alone."""

import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 2)])
@pytest.mark.parametrize("c", [0, 3])
def test_equal(a, b, c):
    assert a == b, f"{a} is not {b}"


def test_without():
    pytest.skip("no such device")


def helper():
    raise AssertionError
