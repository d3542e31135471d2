"""What a figure is for: its width, the size of its type, and the font."""

from dataclasses import dataclass, replace
from typing import Literal

Font = Literal["sans", "serif"]

FONTS: dict[str, list[str]] = {  # both come with matplotlib; where the first lacks a sign, the second has it
    "sans": ["DejaVu Sans"],
    "serif": ["STIXGeneral", "DejaVu Sans"],
}


@dataclass(frozen=True)
class Medium:
    """The place that a figure is drawn for.

    Attributes:
        width: Of the figure, in inches: it is put into a paper as it is, not scaled.
        size: Of its type, in points; ticks and legends have one less.
        font: "sans", or "serif", which goes with a paper set in Times.

    Raises:
        ValueError: If the width or the size is not above 0, or there is no such font.
    """

    width: float
    size: float
    font: Font = "sans"

    def __post_init__(self) -> None:
        for name in ("width", "size"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` of a medium must be a number above 0, got {getattr(self, name)!r}.")
        if self.font not in FONTS:
            raise ValueError(f"`font` must be one of {list(FONTS)}, got {self.font!r}.")


MEDIA: dict[str, Medium] = {
    "screen": Medium(5.5, 9.0),  # the report's page, and what lies beside it as PDF: the width of a page of one column
    "icml": Medium(3.25, 8.0),  # a column
    "column": Medium(3.25, 8.0),  # of other papers of two columns: IEEE, ACL
    "neurips": Medium(5.5, 8.0),  # the width of the text; ICLR's and JMLR's too, within an inch
    "page": Medium(6.75, 8.0),  # both columns
    "slides": Medium(10.0, 16.0),
}


def medium(name: "str | Medium", *, font: str | None = None) -> Medium:
    """A medium by name, with another font if one is given.

    Raises:
        ValueError: If there is none of that name, or no such font.
    """
    if isinstance(name, str) and name not in MEDIA:
        raise ValueError(f"`medium` must be one of {list(MEDIA)}, or a Medium(width, size), got {name!r}.")
    found = MEDIA[name] if isinstance(name, str) else name
    return found if font is None else replace(found, font=font)  # type: ignore[arg-type]  # checked when made
