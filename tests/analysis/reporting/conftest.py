import pytest
from synthetic import make

from analysis.reporting.pages import report


@pytest.fixture(scope="session")
def results():
    return make()


@pytest.fixture(scope="session")
def page(results, tmp_path_factory):
    """The report of the made-up study, drawn once for all tests: read it, change nothing."""
    return report(results, out=tmp_path_factory.mktemp("report"))
