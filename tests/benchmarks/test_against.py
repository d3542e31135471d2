"""Another commit against this one: what is timed, and what the ratios are of."""

import pytest

from benchmarks.against import compare, names, work


class Steady:
    """A side whose calls take so many seconds, the first of each turn ten times as long."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def time(self, name, times):
        self.asked.append(name)
        return [10 * self.seconds, *[self.seconds] * (times - 1)]


def test_ratios_are_of_the_new_to_the_old():
    old, new = Steady(0.01), Steady(0.012)
    row = compare(old, new, "step sam, mlp", seconds=1.0)
    assert row["least"] == pytest.approx(1.2)
    assert row["low"] == row["median"] == row["high"] == pytest.approx(1.2)
    assert row["milliseconds"] == pytest.approx(10)
    assert set(old.asked) == {"step sam, mlp"}
    assert len(old.asked) == len(new.asked) > 5


def test_names_are_distinct():
    assert len(set(names())) == len(names())


@pytest.mark.parametrize("name", [n for n in names() if n.endswith("tiny") or "eigenpairs, mlp" in n or "ascent" in n])
def test_what_is_timed_runs(name):
    call = work(name)
    call()
    call()
