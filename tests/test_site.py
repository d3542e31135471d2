"""The documentation as a site: built strictly, every page in it, nothing fetched from elsewhere."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import analysis
import landscape
import trainers
from analysis.cli.program import COMMANDS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("smoke")


class Page(HTMLParser):
    """What a page links to, loads and can be linked at."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag != "a":
            self.loads += [given[key] for key in ("src", "href") if given.get(key)]


@pytest.fixture(scope="module")
def site(smoke, tmp_path_factory):
    """The folder of the site, and what its making warned of."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    warned = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warned.append(record.getMessage())
    folder = tmp_path_factory.mktemp("site")
    logging.getLogger("mkdocs").addHandler(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANDSCAPE_SITE_STUDY", str(smoke))
        build(load_config(str(ROOT / "docs" / "site" / "mkdocs.yml"), site_dir=str(folder)))
    logging.getLogger("mkdocs").removeHandler(listener)
    return folder, warned


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site[0].rglob("*.html") if path.name != "404.html"}


def test_it_is_built_without_a_warning(site):
    assert site[1] == []


def test_every_link_leads_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if not parts.scheme:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                target = target / "index.html" if target.is_dir() else target
                assert target.exists(), f"{path.name} links to {link}"
                anchor = unquote(parts.fragment)
                if anchor and target in pages:
                    assert anchor in pages[target].anchors, f"{path.name} links to {link}"


def test_nothing_is_fetched_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert not [load for load in page.loads if urlsplit(load).scheme in ("http", "https")], path.name
    for path in site[0].rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_every_document_is_a_page_and_in_the_navigation(site, pages):
    names = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    names |= {f"studies/{path.stem}.html" for path in (ROOT / "studies").glob("*.md") if path.stem != "README"}
    home = pages[site[0] / "index.html"]
    assert names <= {unquote(link) for link in home.links}


@pytest.mark.parametrize("package", [landscape, trainers, analysis], ids=lambda package: package.__name__)
def test_every_public_name_is_in_the_reference(site, pages, package):
    anchors = {anchor.rsplit(".", 1)[-1] for anchor in pages[site[0] / f"reference/{package.__name__}.html"].anchors}
    assert set(package.__all__) <= anchors


def test_every_command_is_in_the_reference(site):
    text = (site[0] / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"usage: landscape {name}" in text for name in COMMANDS)


def test_the_gallery_shows_the_figures_of_the_study(site, smoke):
    text = re.sub(r"</?span[^>]*>", "", (site[0] / "gallery.html").read_text(encoding="utf-8"))  # colours of code
    assert "landscape report runs/smoke --figure forest" in text
    drawn = {path.name for path in (smoke / "report" / "figures").glob("*.png")}
    assert drawn == {path.name for path in (site[0] / "gallery").glob("*.png")}
    assert all(f"gallery/{name}" in text for name in drawn)
