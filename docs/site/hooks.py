"""What is not in docs/: pages from elsewhere in the repository, generated ones, and where links between them lead."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import gallery
import reference

LINK = re.compile(r"(?<!\\)(!?)\[([^\]]*)\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<!\[)`((?:docs|studies)/[\w/]+\.md)`(?!\])")
FENCE = re.compile(r"(^```.*?^```)", flags=re.DOTALL | re.MULTILINE)


def _place(source: str) -> str:
    """Where a file of the repository lies in the site."""
    return "index.md" if source == "README.md" else source.removeprefix("docs/")


def _source(place: str) -> str:
    """The file of the repository that a page of the site was made from."""
    outside = place.startswith("studies/") or place in ("CONTRIBUTING.md", "CHANGELOG.md")
    return "README.md" if place == "index.md" else place if outside else f"docs/{place}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's other pages and the generated ones, and put every page into the navigation."""
    studies = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "studies").glob("*.md"))
    for source in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *studies):
        files.append(File.generated(config, _place(source), abs_src_path=str(ROOT / source)))
    generated = {**reference.pages(), **gallery.pages()}
    for place, content in generated.items():
        files.append(File.generated(config, place, content=content))
    for place, picture in gallery.pictures().items():
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    sections: dict[str, list[Any]] = {name: pages for section in config.nav or [] for name, pages in section.items()}
    sections["Studies"].extend(sorted(studies, key=lambda name: (name != "studies/README.md", name)))
    sections["Reference"].extend(place for place in generated if place.startswith("reference/"))
    sections["About"].extend(place for place in generated if not place.startswith("reference/"))
    named = {page for pages in sections.values() for page in ([pages] if isinstance(pages, str) else pages)}
    left = (file.src_uri for file in files.documentation_pages() if file.src_uri not in named)
    sections[config.extra["catch"]].extend(sorted(left))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links between files of the repository lead to the pages made from them, outside of code blocks."""
    if page.file.src_uri.startswith("reference/"):
        return markdown
    parts = FENCE.split(markdown)
    parts[::2] = [_linked(part, page.file.src_uri, files) for part in parts[::2]]
    return "".join(parts)


def _linked(text: str, place: str, files: Files) -> str:
    folder = posixpath.dirname(_source(place))

    def to(source: str) -> str:
        return posixpath.relpath(_place(source), posixpath.dirname(place) or ".")

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        source = posixpath.normpath(posixpath.join(folder, path))
        if files.get_file_from_path(_place(source)) is None and (ROOT / source).exists():
            return words  # a file that is no page: the words stay
        return f"{picture}[{words}]({to(source)}{mark}{anchor})"

    def named(found: re.Match[str]) -> str:
        known = files.get_file_from_path(_place(found[1])) is not None
        return f"[{found[0]}]({to(found[1])})" if known else found[0]

    return NAMED.sub(named, LINK.sub(link, text))
