"""What a notebook shows of runs, studies and long work."""

import re

import pytest
from IPython.core import displaypub
from IPython.core.interactiveshell import InteractiveShell

import analysis
import trainers
from analysis import progress
from analysis.style import interval, measure_name

pytestmark = pytest.mark.xdist_group("smoke")


def test_a_study_shows_its_strongest_measures(smoke):
    results = analysis.StudyResults.load(smoke)
    shown = results._repr_html_()
    table = results.correlations.query("target == @results.targets[0] and coefficient == 'kendall'")
    listed = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', shown)
    assert listed
    for name, value in listed:
        row = table[[f"{measure_name(m)} ({m})" == name for m in table["measure"]]].iloc[0]
        assert value == interval(row["value"], row["low"], row["high"])
    assert "runs (" in shown


def test_a_run_shows_its_settings_and_scores(smoke):
    results = analysis.StudyResults.load(smoke)
    run = trainers.Run(smoke / "runs" / results.runs["run_id"].iloc[0])
    assert repr(run) == f"Run({str(run.folder)!r})"
    cells = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', run._repr_html_()))
    assert cells["method"] == run.settings()["method"]
    assert cells["status"] == "finished"
    assert float(cells["test_error"]) == pytest.approx(run.history()["test_error"].iloc[-1], rel=1e-3)


@pytest.fixture
def published(monkeypatch):
    """What a notebook's output would be sent: (HTML, whether it replaces what was there)."""
    sent = []

    class Publisher(displaypub.DisplayPublisher):
        def publish(self, data, metadata=None, *, transient=None, update=False, **rest):
            sent.append((data["text/html"], update))

    shell = InteractiveShell()
    monkeypatch.setattr(shell, "display_pub", Publisher())
    monkeypatch.setattr(InteractiveShell, "_instance", shell)
    monkeypatch.setattr(progress.console, "is_jupyter", True)
    yield sent
    InteractiveShell.clear_instance()


def test_a_notebook_has_one_bar_that_moves(published, capsys, monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    assert list(progress.track("abc", "runs < 4", 3)) == ["a", "b", "c"]
    assert published[0] == ("", False)
    assert [update for _, update in published[1:]] == [True] * 4  # from 0 of 3 on
    assert published[3][0].startswith('<progress value="2" max="3"></progress> runs &lt; 4: 2 of 3 after 0 s')
    published.clear()
    tell = progress.shown("points")
    tell(1, 2)
    tell(2, 2)
    assert published == [("", False), ("1/2 points", True), ("2/2 points", True)]
    assert capsys.readouterr() == ("", "")


def test_a_notebooks_bar_does_not_flood_it(published):
    list(progress.track(range(10_000), "runs", 10_000))
    assert len(published) < 50
    assert 'value="10000"' in published[-1][0]
