"""How much room a figure has: letters that fit side by side, and legends in as many columns as the page takes."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, font_scalings
from matplotlib.textpath import text_to_path

LETTER = 0.56  # width of a letter of a name, in sizes of the type
Place = Axes | Figure | SubFigure


def inches(place: Place | None = None) -> float:
    """Width of a figure, of the column of panels that axes are in, or of a page to be."""
    if place is None:
        return float(mpl.rcParams["figure.figsize"][0])
    figure = place.get_figure(root=False) if isinstance(place, Axes) else place
    assert figure is not None
    spec = place.get_subplotspec() if isinstance(place, Axes) else None
    return float(figure.bbox.width / figure.dpi) / (spec.get_gridspec().ncols if spec is not None else 1)


def letters(place: Place | None = None, *, size: str = "small") -> int:
    """How many letters stand side by side in a figure, in the column of panels that axes are in, or on a page to be."""
    return int(72.0 * inches(place) / (LETTER * font_scalings[size] * float(mpl.rcParams["font.size"])))


def folded(text: str, width: int) -> str:
    """A name on as many lines as it needs to be at most so many letters wide, options on a line of their own."""
    if len(text) <= width and "\n" not in text:
        return text
    parts = text.replace(" [", "\n[", 1).split("\n")
    return "\n".join(textwrap.fill(part, max(width, 8), break_long_words=False) for part in parts)


def key(place: Place, handles: Sequence[Any], labels: Sequence[str] | None = None, *, below: bool = False) -> None:
    """A legend of all panels, in as many columns as their page is wide.

    Above them, or below: beside axes that share their figure with others it stands above these axes alone.
    """
    if not handles:
        return
    names = [str(handle.get_label()) for handle in handles] if labels is None else list(labels)
    columns = _columns(names, 72.0 * inches(place))
    figure = place.get_figure(root=False) if isinstance(place, Axes) else place
    if isinstance(place, Axes) and figure is not None and len(figure.axes) > 1:
        place.legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1.02), borderaxespad=0, ncols=columns)
    elif figure is not None:
        figure.legend(handles, names, loc="outside lower left" if below else "outside upper left", ncols=columns)


def _columns(names: Sequence[str], points: float) -> int:
    """The most columns, filled one after the other, that fit in so many points."""
    settings = mpl.rcParams
    font = FontProperties(family=settings["font.family"], size=settings["legend.fontsize"])
    size = font.get_size_in_points()
    sign = (settings["legend.handlelength"] + settings["legend.handletextpad"]) * size
    widths = [sign + text_to_path.get_text_width_height_descent(name, font, ismath=False)[0] for name in names]
    gap, edge = settings["legend.columnspacing"] * size, 2 * settings["legend.borderpad"] * size + 8
    for columns in range(len(names), 1, -1):
        rows, more = divmod(len(names), columns)
        ends = [i * rows + min(i, more) for i in range(columns + 1)]
        total = sum(max(widths[a:b]) for a, b in itertools.pairwise(ends))
        if total + gap * (columns - 1) + edge <= points:
            return columns
    return 1
