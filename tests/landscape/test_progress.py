"""Progress: silent unless asked, a line for people, statuses for programs, and no noticeable cost."""

import inspect
import io
import math
import time

import pytest
from rich.console import Console

from analysis import progress as module
from analysis.progress import shown
from landscape.progress import Status, watching


def work(progress, steps=5):
    with watching(progress, work="trace", most=20) as tell:
        for step in range(1, steps + 1):
            tell(step, 1 / step)


def test_silence_unless_asked(capfd):
    work(False)
    assert capfd.readouterr() == ("", "")


def test_a_function_is_called_with_each_status():
    seen = []
    work(seen.append, steps=3)
    assert seen == [Status("trace", 1, 20, 1.0), Status("trace", 2, 20, 0.5), Status("trace", 3, 20, 1 / 3)]
    assert str(seen[1]) == "trace: 2 of at most 20 products, residual 5.0e-01"
    assert str(Status("trace", 0, 20, math.nan)).endswith("residual unknown")


def test_what_the_function_raises_goes_through():
    def stop(status):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(stop)


def test_plain_lines_where_there_is_no_terminal(capfd, monkeypatch):
    work(shown())
    assert capfd.readouterr() == ("", "")  # it took less than 10 s
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    work(shown())
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 5)
    assert err.splitlines()[2] == "trace: 3 of at most 20 products, residual 3.3e-01"


def test_one_line_on_a_terminal(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=written, force_terminal=True, width=120, color_system=None))
    work(shown())
    assert written.getvalue().count("\r") == 5
    assert "trace: 5 of at most 20 products, residual 2.0e-01" in written.getvalue()


@pytest.mark.parametrize("progress", [False, shown(), lambda _: None], ids=["silent", "shown", "told"])
def test_the_cost_is_small_beside_a_product_of_5_ms(progress, capfd):
    def cost():
        begin = time.process_time()
        work(progress, steps=2000)
        return (time.process_time() - begin) / 2000

    assert min(cost() for _ in range(3)) < 0.02 * 5e-3


@pytest.mark.parametrize("progress", [None, True, 3, "yes"])
def test_anything_else_is_refused(progress):
    unchecked = inspect.unwrap(watching)  # the generator, without the type checks of the tests, which come first
    with pytest.raises(ValueError, match=f"`progress` must be False or a function of a Status, got {progress!r}"):
        next(unchecked(progress, work="trace", most=3))
