"""Names that were not found: what the writer probably meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for an error message: `" Did you mean 'sam'?"`, or an empty string where nothing is close.

    Capital letters, and `-` written for `_`, count as the same name.
    """
    plain = {_plain(choice): choice for choice in choices}
    close = difflib.get_close_matches(_plain(str(name)), plain, n=1, cutoff=0.6)
    return f" Did you mean {plain[close[0]]!r}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
