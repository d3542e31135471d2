"""The time left, on a simulated clock: right within a factor of two after a tenth of the work."""

import heapq
import io
import random

import pytest
from rich.console import Console

from analysis import progress
from analysis.pace import Pace, Work
from analysis.progress import track


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def ends(seconds, processes):
    """When each item of a queue ends, with so many processes, in the order of their ends."""
    free = [0.0] * processes
    done = []
    for item, spent in enumerate(seconds):
        begin = heapq.heappop(free)
        heapq.heappush(free, begin + spent)
        done.append((begin + spent, item))
    return sorted(done)


def costs(kind, count):
    """Costs in the unit that is told, in the order of the queue."""
    draw = random.Random(7)
    plain = [1.0] * count
    return {
        "equal": plain,
        "cheap first": plain[: count // 2] + [2.0] * (count - count // 2),
        "dear first": [3.0] * (count // 4) + plain[count // 4 :],
        "mixed": [draw.choice([1.0, 2.0, 3.0]) for _ in range(count)],
    }[kind]


@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("count", [40, 112, 1000])
@pytest.mark.parametrize("kind", ["equal", "cheap first", "dear first", "mixed"])
@pytest.mark.parametrize("there", [0, 60], ids=["new", "continued"])
def test_after_a_tenth_of_the_work_the_time_left_is_right_within_a_factor_of_two(kind, count, processes, there):
    draw, clock = random.Random(count), Clock()
    told = costs(kind, count)
    seconds = [cost * 10 * draw.uniform(0.7, 1.3) for cost in told]
    pace, begun = Pace(Work(float, sum(told), processes), clock), clock.now
    start = 30.0 if count >= 40 * processes else 0.0  # to load; a tenth must be two items a process to tell it apart
    coarse = count < 10 * processes  # so few that all end in a few waves
    for _ in range(there):
        pace.add(0.0)  # runs that were finished before, at once
    order = [(start + end, item) for end, item in ends(seconds, processes)]
    over = order[-1][0]
    for end, item in order:
        clock.now = begun + end
        pace.add(told[item])
        share = pace.done / pace.work.total
        if 0.1 <= share <= (0.3 if coarse else 0.6):  # later the last items decide, which end one by one
            assert 0.5 < pace.left / (over - end) < 2, (share, pace.left)
        if share >= 0.1:
            assert 0.5 < (end + pace.left) / over < 1.5
    assert pace.left == 0


def test_nothing_is_known_before_the_first_item_has_ended():
    clock = Clock()
    pace = Pace(Work(float, 10, 2), clock)
    clock.now += 100
    assert pace.left != pace.left
    pace.add(0)
    assert pace.left != pace.left
    pace.add(1)
    assert pace.left == 100 * (10 - 1 - 0.5) / 1.5  # half an item is under way


def test_plain_lines_begin_at_once_and_leave_out_what_was_there(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(Pace.__init__, "__defaults__", (clock,))
    work = Work({"a": 0.0, "b": 0.0, "c": 1.0, "d": 3.0}.get, 4.0)

    def items():
        yield from "ab"
        clock.now += 5
        yield "c"
        clock.now += 15
        yield "d"

    left = track(items(), "training", 4, work)
    assert next(left) == "a"
    assert capsys.readouterr().err.splitlines()[0] == "training: 0 of 4"
    assert list(left) == ["b", "c", "d"]
    assert capsys.readouterr().err.splitlines() == [
        "training: 2 of 4 after 0 s",
        "training: 3 of 4 after 5 s, about 15 s left",
        "training: 4 of 4 after 20 s, about 0 s left",
    ]


def test_a_terminal_shows_the_bar_before_anything_has_ended_and_then_the_time_left(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=written, force_terminal=True, width=100, color_system=None))
    items = iter(track(iter("ab"), "training", 2))
    assert next(items) == "a"
    assert "training" in written.getvalue()
    assert "0/2" in written.getvalue()
    assert "-:--:--" in written.getvalue()
    assert list(items) == ["b"]
    assert "0:00:00" in written.getvalue().split("2/2")[-1]
