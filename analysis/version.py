"""The version of the product; its source is the changelog, from which the distribution takes it."""

import re
from pathlib import Path

DISTRIBUTION = "landscape-lab"  # the name that pip knows; that of the program and the packages is another's there
HEADING = re.compile(r"^## (\d+\.\d+\.\d+\S*)", re.MULTILINE)
CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def version() -> str:
    """The version of the installed distribution; that of the changelog where the code runs from a source tree."""
    from importlib import metadata  # slow, and of the program's help no part

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        found = HEADING.search(CHANGELOG.read_text(encoding="utf-8")) if CHANGELOG.is_file() else None
        return found[1] if found else "unknown"
