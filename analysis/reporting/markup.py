"""Text of users (names, questions, reasons) in files that other programs read: what they take for markup is escaped."""

import re
from typing import Any

import pandas as pd

_ALWAYS = re.compile(r"[*`|]|~~|\\(?=[!-/:-@\[-`{-~])")
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_EDGE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # between letters an underscore is one
_LINK = re.compile(r"\](?=[(\[:])")
_BLOCK = re.compile(
    r"^(\d*)(#{1,6}(?=\s|$)|>|[+-](?=\s|$)|[=-]{2,}$|(?<=\d)[.)](?=\s))"
)  # what opens a heading, list, rule
_CODE = re.compile(r"`([^`]+)`")
RUN = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how cells begin that a spreadsheet computes


def escape_markdown(text: Any) -> str:
    """Text that Markdown shows as it is, in one line; also inside a cell of a pipe table."""
    line = " ".join(str(text).split())
    for pattern in (_ALWAYS, _HTML, _EDGE, _LINK):
        line = pattern.sub(lambda match: "".join(f"\\{c}" for c in match[0]), line)
    return _BLOCK.sub(r"\1\\\2", line)


def marked_markdown(text: Any) -> str:
    """The same for sentences in which `names in backticks` are set as code."""
    parts = _CODE.split(str(text))
    return "".join(code(part) if i % 2 else _kept_space(part) for i, part in enumerate(parts))


def code(text: Any) -> str:
    """Text as code, with as many backticks around it as it needs."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    gap = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{gap}{line}{gap}{fence}"


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose cells and headings a spreadsheet takes for text, with an apostrophe where it would compute them.

    Numbers stay what they are, the negative ones too.
    """
    columns = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    cells = {name: table[name].map(_plain_cell) for name in columns}
    return table.assign(**cells).rename(columns=_plain_cell) if cells else table.rename(columns=_plain_cell)


def _plain_cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(RUN):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _kept_space(text: str) -> str:
    """Escaped, with the space at its ends that joins it to code."""
    inner = escape_markdown(text)
    before = " " if text[:1].isspace() and inner else ""
    after = " " if text[-1:].isspace() else ""
    return f"{before}{inner}{after}"
