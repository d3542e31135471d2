import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import make

from analysis.explorer.data import page_data
from analysis.explorer.page import explorer

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
PROBES = Path(__file__).with_name("probes.js").read_text(encoding="utf-8")


class Opened:
    """A page in a browser, with what it said and what it asked the network for."""

    def __init__(self, browser, path, *, width=1280):
        self.page, self.said, self.asked = browser.new_page(viewport={"width": width, "height": 900}), [], []
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.rest()
        self.page.add_script_tag(content=PROBES)

    def rest(self):
        """Wait until everything is drawn."""
        self.page.wait_for_function("document.documentElement.dataset.ready === 'yes'")

    def go(self, address):
        """Open a view by its address, as a link does."""
        self.page.evaluate("(to) => { location.hash = to; dispatchEvent(new HashChangeEvent('hashchange')); }", address)
        self.rest()

    def choose(self, menu, value):
        self.page.select_option(f"#{menu}", value)
        self.rest()

    def numbers(self):
        """The coefficients beside the plot, by row."""
        rows = self.page.locator("#coefficients tbody tr").all_inner_texts()
        return {cells[0]: cells[1:] for cells in (row.split("\t") for row in rows)}

    def chosen(self):
        return self.page.evaluate("[...Explorer.view.chosen()].reduce((a, b) => a + b, 0)")

    def probe(self, name):
        return self.page.evaluate(f"probes.{name}()")

    def address(self):
        return self.page.evaluate("location.hash")

    def check(self):
        """Nothing was said on the console, and nothing was asked of any other place."""
        assert self.said == []
        assert {url.split(":")[0] for url in self.asked} <= {"file", "data", "blob"}
        assert sum(url.startswith("file") for url in self.asked) == 1


@pytest.fixture(scope="session")
def results():
    """The made-up study, with ties, gaps and values that differ by rounding alone."""
    study = make()
    measures = study.measures.copy()
    tied = measures["measure"].isin(["trace", "F_mi", "test_error"])
    measures.loc[tied, "value"] = measures.loc[tied, "value"].round(2)
    near = measures["measure"] == "gradient_norm"
    measures.loc[near, "value"] = measures.loc[near, "value"].round(1) * (1 + 1e-7 * np.arange(near.sum()))
    gone = measures["measure"] == "cw"
    measures.loc[gone, "value"] = measures.loc[gone, "value"].mask(np.arange(gone.sum()) % 7 == 0)
    return replace(study, measures=measures)


@pytest.fixture(scope="session")
def data(results):
    """What the page is given."""
    return page_data([results], report="report.html")


@pytest.fixture(scope="session")
def browser():
    if BROWSER is None:
        pytest.skip(f"no browser installed: none of {', '.join(NAMES)} on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def page_file(results, tmp_path_factory):
    return explorer([results], report="report.html").save(tmp_path_factory.mktemp("explorer") / "explorer.html")


@pytest.fixture(scope="session")
def wide_page(browser, page_file):
    return Opened(browser, page_file)


@pytest.fixture(scope="session")
def narrow_page(browser, page_file):
    return Opened(browser, page_file, width=420)


@pytest.fixture
def wide(wide_page):
    """The page on a wide screen, as it opens."""
    wide_page.go("")
    yield wide_page
    wide_page.check()


@pytest.fixture(params=["narrow_page", "wide_page"])
def here(request):
    """The page on a phone and on a wide screen, as it opens."""
    page = request.getfixturevalue(request.param)
    page.go("")
    yield page
    page.check()


@pytest.fixture
def opened(browser):
    """Opens other pages."""
    pages = []

    def one(path):
        pages.append(Opened(browser, path))
        return pages[-1]

    yield one
    for each in pages:
        each.check()
        each.page.close()
