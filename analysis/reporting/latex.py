"""Tables as LaTeX: as large as fits the width of a page, with names that wrap, booktabs rules and a short caption.

Widths are estimated from the number of characters. A table that is too wide in the smallest type is scaled to the width
of the text; one that is longer than a page goes on over several.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.reporting.table import Table, captioned

WIDTH, HEIGHT = 345.0, 520.0  # points: the text of LaTeX's article class in 10 pt, narrower than most papers'
FONTS = {"normalsize": (5.2, 12.0), "small": (4.8, 11.0), "footnotesize": (4.4, 9.5), "scriptsize": (4.1, 8.0)}
SMALLEST = "scriptsize"
GAP = 6.0  # points between columns
NARROW, WIDE = 11, 26  # characters: what a column of words may be squeezed to, and what it has where there is room
NOTES = 4.2  # points a character of the notes


def to_latex(table: Table) -> str:
    """A LaTeX table with booktabs rules; its first line names the packages that it needs, its notes stand below."""
    caption, notes = captioned(table.note)
    layout = _layout(table)
    if layout.height > HEIGHT:
        layout = _layout(table, long=True)
    head = rf"\caption{{{marked_latex(table.title)}. {marked_latex(caption)}}}"
    label = rf"\label{{tab:{table.name.replace('_', '-')}}}"
    said = rf"\par\smallskip\noindent\parbox{{\linewidth}}{{\footnotesize\sloppy {marked_latex(notes)}}}"
    below = [said] if notes else []
    setting = [rf"\{layout.font}", rf"\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}"]
    columns, names, rows = layout.columns, _row(layout.names), [_row(row) for row in layout.cells]
    if layout.long:
        return _text(
            *_needs("longtable"), "{", *setting, rf"\begin{{longtable}}{{{columns}}}", rf"{head}{label} \\",
            r"\toprule", names, r"\midrule", r"\endfirsthead", r"\toprule", names, r"\midrule", r"\endhead",
            *rows, r"\bottomrule", r"\end{longtable}", "}", *below,
        )  # fmt: skip
    scaled = layout.scale < 1
    inside = layout.height + 9.5 * math.ceil(len(notes) * NOTES / WIDTH) < HEIGHT
    return _text(
        *_needs(*["graphicx"] * scaled), r"\begin{table}", r"\centering", head, label, *setting,
        *[r"\resizebox{\linewidth}{!}{%"] * scaled, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", names,
        r"\midrule", *rows, r"\bottomrule", r"\end{tabular}" + "}" * scaled,
        *(below if inside else []), r"\end{table}", *([] if inside else below),
    )  # fmt: skip


def _needs(*more: str) -> list[str]:
    return [rf"% \usepackage{{{','.join(['booktabs', *more])}}}"]


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Layout:
    """How a table is set.

    Attributes:
        font: Size of its type.
        columns: What `tabular` takes.
        names: Headings, escaped, on several lines where they are longer than what stands below.
        cells: Rows, escaped.
        scale: What it has to be scaled by to fit the width of the text, at most 1.
        height: Expected, in points, as scaled.
        long: Whether it goes on over several pages.
    """

    font: str
    columns: str
    names: list[str]
    cells: list[list[str]]
    scale: float
    height: float
    long: bool


def _layout(table: Table, *, long: bool = False) -> _Layout:
    """The largest type in which all columns fit side by side, those of words squeezed as far as that needs.

    Args:
        table: What to set.
        long: Over several pages, which cannot be scaled: words are squeezed as far as it takes.
    """
    names = [str(name) for name in table.shown.columns]
    cells = [[str(cell) for cell in row] for row in table.shown.itertuples(index=False)]
    words = [name in table.text for name in names]
    widths = [max([len(row[k]) for row in cells] or [0]) for k in range(len(names))]
    lines = [_wrapped(name, max(width, 4)) for name, width in zip(names, widths, strict=True)]
    widths = [max(width, *map(len, line)) for width, line in zip(widths, lines, strict=True)]
    wanted = [w for w, word in zip(widths, words, strict=True) if word]
    room = WIDTH - GAP * (len(names) - 1)
    numbers = sum(widths) - sum(wanted)
    fitting = [f for f, (character, _) in FONTS.items() if room / character - numbers >= _least(wanted, WIDE)]
    font = fitting[0] if fitting else SMALLEST
    character, leading = FONTS[font]
    free = room / character - numbers
    scaled = free < _least(wanted, NARROW) and not long
    given = iter([float(min(w, WIDE)) for w in wanted] if scaled else _squeezed(wanted, free))
    shares = [next(given) if word else width for width, word in zip(widths, words, strict=True)]
    tight = [word and share < width for word, share, width in zip(words, shares, widths, strict=True)]
    kinds = [
        rf"p{{{share * character:.0f}pt}}" if squeezed else "l" if word else "r"
        for share, squeezed, word in zip(shares, tight, words, strict=True)
    ]
    total = sum(shares) * character + GAP * (len(names) - 1)
    scale = min(1.0, WIDTH / total) if scaled else 1.0
    high = [
        max(math.ceil(1.1 * len(c) / max(share, 1)) if t else 1 for c, share, t in zip(row, shares, tight, strict=True))
        for row in cells
    ]
    height = scale * leading * (sum(high) + max(map(len, lines), default=1) + 1) + 36
    return _Layout(
        font,
        "@{}" + "".join(kinds) + "@{}",
        [_stacked(line, word) for line, word in zip(lines, words, strict=True)],
        [[_cell(cell, squeezed) for cell, squeezed in zip(row, tight, strict=True)] for row in cells],
        scale,
        height,
        long,
    )


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
