"""How values show themselves in a notebook: small tables, without a style of their own."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(rows: Iterable[Sequence[object]], *, head: Sequence[str] = (), caption: str = "") -> str:
    """An HTML table; the first cell of each row is its heading.

    Args:
        rows: Cells, shown by `str`.
        head: Headings of the columns; none if empty.
        caption: Above it.
    """
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>{"".join(f"<td>{escape(str(c))}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    return f"<table>{said}{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{body}</tbody></table>"


def curve(heights: Sequence[float], *, ends: tuple[str, str], title: str) -> str:
    """A small SVG of one curve, from 0 to its highest point, with what its two ends are.

    Args:
        heights: At points of equal distance; finite, >= 0.
        ends: What is written under the first and under the last point.
        title: What it shows, for readers who do not see it.
    """
    top, last = max(heights) or 1.0, len(heights) - 1
    points = " ".join(f"{400 * i / last:.1f},{85 - 80 * h / top:.1f}" for i, h in enumerate(heights))
    return (
        f'<svg viewBox="0 0 400 105" width="400" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="1.5"/>'
        f'<path d="M0 85H400" stroke="currentColor" stroke-width="0.5"/><g font-size="12" fill="currentColor">'
        f'<text x="0" y="101">{escape(ends[0])}</text>'
        f'<text x="400" y="101" text-anchor="end">{escape(ends[1])}</text></g></svg>'
    )
