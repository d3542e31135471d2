"""Tables as LaTeX: as large as fits the width of a page, with names that wrap, booktabs rules and a short caption.

Widths are estimated from the number of characters. A table that is too wide in the smallest type has its columns in
blocks, one below the other; one that is longer than a page goes on in further tables of the same number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.reporting.table import Table, captioned, measure_in
from analysis.style import measure_name

WIDTH, HEIGHT = 345.0, 520.0  # points: the text of LaTeX's article class in 10 pt, narrower than most papers'
FONTS = {"normalsize": (5.2, 12.0), "small": (4.8, 11.0), "footnotesize": (4.4, 9.5), "scriptsize": (4.3, 8.0)}
SMALLEST = "scriptsize"
GAP = 6.0  # points between columns
NARROW, WIDE = 11, 26  # characters: what a column of words may be squeezed to, and what it has where there is room
NOTES = 4.2  # points a character of the notes
ROUGH = 10.0  # points by which an estimated width may be wrong
ABOVE = 36.0  # points of caption and rules


def to_latex(table: Table) -> str:
    """A LaTeX table that needs booktabs alone, as its first line says; its notes stand below."""
    caption, notes = captioned(table.note)
    shown = table.shown.assign(**{name: [_named(str(cell)) for cell in table.shown[name]] for name in table.ids})
    head = rf"\caption{{{marked_latex(table.title)}. {marked_latex(caption)}}}"
    label = rf"\label{{tab:{table.name.replace('_', '-')}}}"
    said = rf"\par\smallskip\noindent\parbox{{\linewidth}}{{\footnotesize\sloppy {marked_latex(notes)}}}"
    below = [said] if notes else []
    blocks = _blocks(shown, table.text)
    font = min((_font(block, table.text) for block in blocks), key=lambda name: FONTS[name])
    layouts = [_layout(block, table.text, font) for block in blocks]
    pages = _pages(layouts)
    inside = _height(layouts, pages[-1]) + 9.5 * math.ceil(len(notes) * NOTES / WIDTH) < HEIGHT
    lines = [r"% \usepackage{booktabs}"]
    for page in pages:
        again = page is not pages[0]
        lines += [r"\addtocounter{table}{-1}"] * again
        lines += [r"\begin{table}", r"\centering"]
        lines += [rf"\caption{{{marked_latex(table.title)} (continued).}}"] if again else [head, label]
        lines += [rf"\{font}", rf"\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}"]
        for layout in layouts:
            lines += [r"\par\medskip"] * (layout is not layouts[0])
            rows = [_row(row) for row in layout.cells[page.start : page.stop]]
            lines += [rf"\begin{{tabular}}{{{layout.columns}}}", r"\toprule", _row(layout.names), r"\midrule", *rows]
            lines += [r"\bottomrule", r"\end{tabular}"]
        lines += below if inside and page is pages[-1] else []
        lines += [r"\end{table}"]
    return "\n".join([*lines, *([] if inside else below)]) + "\n"


def _named(cell: str) -> str:
    """A cell with the id of a measure as LaTeX's readers see it."""
    variant, marks = measure_in(cell)
    return measure_name(variant) + marks


@dataclass(frozen=True)
class _Layout:
    """How a block of columns is set.

    Attributes:
        columns: What `tabular` takes.
        names: Headings, escaped, on several lines where they are longer than what stands below.
        cells: Rows, escaped.
        head: Expected height of the headings, in points.
        heights: Of the rows.
    """

    columns: str
    names: list[str]
    cells: list[list[str]]
    head: float
    heights: list[float]


def _widths(shown: pd.DataFrame) -> tuple[list[list[str]], list[int]]:
    """Headings on lines no longer than what stands below, and the characters that each column wants."""
    found = []
    for name in shown.columns:
        widest = max((len(str(cell)) for cell in shown[name]), default=0)
        lines = _wrapped(str(name), max(widest, 4))
        found.append((lines, max(widest, *map(len, lines))))
    return [lines for lines, _ in found], [width for _, width in found]


def _blocks(shown: pd.DataFrame, text: Sequence[str]) -> list[pd.DataFrame]:
    """The columns in as few blocks as fit in the smallest type, words squeezed; each begins with the first column."""
    _, widths = _widths(shown)
    least = [min(w, NARROW) if name in text else w for name, w in zip(shown.columns, widths, strict=True)]
    character, _ = FONTS[SMALLEST]
    blocks: list[list[int]] = [[0][: len(least)]]
    for k in range(1, len(least)):
        wide = sum(least[i] * character + GAP for i in [*blocks[-1], k]) - GAP
        if wide > WIDTH - ROUGH and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(k)
    return [shown.iloc[:, places] for places in blocks]


def _font(shown: pd.DataFrame, text: Sequence[str]) -> str:
    """The largest type in which all columns fit side by side."""
    _, widths = _widths(shown)
    wanted = [w for w, name in zip(widths, shown.columns, strict=True) if name in text]
    room, numbers = WIDTH - GAP * (len(widths) - 1), sum(widths) - sum(wanted)
    return next(
        (f for f, (character, _) in FONTS.items() if room / character - numbers >= _least(wanted, WIDE)), SMALLEST
    )


def _layout(shown: pd.DataFrame, text: Sequence[str], font: str) -> _Layout:
    """Columns side by side, those of words squeezed as far as that needs."""
    lines, widths = _widths(shown)
    words = [name in text for name in shown.columns]
    character, leading = FONTS[font]
    room = (WIDTH - GAP * (len(widths) - 1)) / character
    wanted = [w for w, word in zip(widths, words, strict=True) if word]
    given = iter(_squeezed(wanted, room - sum(widths) + sum(wanted)))
    shares = [next(given) if word else width for width, word in zip(widths, words, strict=True)]
    tight = [word and share < width for word, share, width in zip(words, shares, widths, strict=True)]
    kinds = [
        rf"p{{{share * character:.0f}pt}}" if squeezed else "l" if word else "r"
        for share, squeezed, word in zip(shares, tight, words, strict=True)
    ]
    cells = [[str(cell) for cell in row] for row in shown.itertuples(index=False)]
    high = [
        max(math.ceil(1.1 * len(c) / max(share, 1)) if t else 1 for c, share, t in zip(row, shares, tight, strict=True))
        for row in cells
    ]
    return _Layout(
        "@{}" + "".join(kinds) + "@{}",
        [_stacked(line, word) for line, word in zip(lines, words, strict=True)],
        [[_cell(cell, squeezed) for cell, squeezed in zip(row, tight, strict=True)] for row in cells],
        leading * (max(map(len, lines), default=1) + 1) + 8,
        [leading * lines_of_row for lines_of_row in high],
    )


def _height(layouts: Sequence[_Layout], rows: range) -> float:
    return ABOVE + sum(layout.head + sum(layout.heights[i] for i in rows) for layout in layouts)


def _pages(layouts: Sequence[_Layout]) -> list[range]:
    """The rows of each page."""
    pages = [range(0)]
    for i in range(len(layouts[0].cells)):
        longer = range(pages[-1].start, i + 1)
        if _height(layouts, longer) > HEIGHT and len(pages[-1]):
            longer = range(i, i + 1)
            pages.append(longer)
        else:
            pages[-1] = longer
    return pages


def _least(widths: Sequence[int], most: int) -> int:
    return sum(min(w, most) for w in widths)


def _squeezed(widths: Sequence[int], room: float) -> list[float]:
    """Widths that sum to the room at most: each has `NARROW` characters, what is left goes to those that want most."""
    least = [min(w, NARROW, room / max(len(widths), 1)) for w in widths]
    wanted = [w - own for w, own in zip(widths, least, strict=True)]
    share = min(1.0, max(room - sum(least), 0.0) / (sum(wanted) or 1.0))
    return [own + share * more for own, more in zip(least, wanted, strict=True)]


def _wrapped(name: str, width: int) -> list[str]:
    """A heading on lines no longer than what stands below, or than its longest word."""
    lines: list[str] = []
    for word in name.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _stacked(lines: Sequence[str], word: bool) -> str:
    if len(lines) == 1:
        return escape_latex(lines[0])
    text = r" \\ ".join(escape_latex(line) for line in lines)
    return rf"\begin{{tabular}}[b]{{@{{}}{'l' if word else 'r'}@{{}}}}{text}\end{{tabular}}"


def _cell(text: str, squeezed: bool) -> str:
    """A cell; a squeezed one is ragged, and may break after an underscore and before a bracket."""
    if not squeezed:
        return escape_latex(text)
    return rf"\raggedright {_breakable(text)}"


def _row(cells: Sequence[str]) -> str:
    first = "{}" if cells and cells[0].startswith(("[", "*")) else ""  # the command before it would take it for its own
    return first + " & ".join(cells) + r" \tabularnewline"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$", "–": "--", "τ": r"$\tau$", "ρ": r"$\rho$", "λ": r"$\lambda$",
    "Ŷ": r"$\hat{Y}$", "×": r"$\times$", "→": r"$\to$", "⇄": r"$\rightleftharpoons$", "≥": r"$\geq$", "≤": r"$\leq$",
    "Ψ": r"$\Psi$", "²": r"$^2$", "Δ": r"$\Delta$", "Σ": r"$\Sigma$", "Π": r"$\Pi$", "σ": r"$\sigma$",
    "⚠": "(!)", "†": r"$\dagger$", "‡": r"$\ddagger$", "…": r"\ldots{}", "“": "``", "”": "''",
    "\n": " ",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text with every character that LaTeX reads as a command, and the symbols used here, made safe."""
    return r"$\tau_b$".join("".join(_LATEX.get(c, c) for c in part) for part in text.split("τ_b"))


def marked_latex(text: str) -> str:
    """The same for sentences in which `names in backticks` are set in typewriter type."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one backtick has no partner, and is none
        parts[-2:] = ["`".join(parts[-2:])]
    return "".join(rf"\texttt{{{_breakable(p)}}}" if i % 2 else escape_latex(p) for i, p in enumerate(parts))


def _breakable(text: str) -> str:
    """Escaped, and with places to break after an underscore and before a bracket."""
    return escape_latex(text).replace(r"\_", r"\_\allowbreak{}").replace("[", r"\allowbreak{}[")
