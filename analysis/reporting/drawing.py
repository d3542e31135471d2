"""Figures of a study, drawn for a screen or a paper, and their files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure, SubFigure
from PIL import Image, ImageFilter

from analysis import media
from analysis.figures import FIGURES
from analysis.figures.plates.plate import Facts, Wanted
from analysis.labels import Labels, labelled
from analysis.results import StudyResults
from analysis.style import rc
from trainers.files.writing import write_bytes

DPI = 200
SHADES = 25  # of each colour, between which a dark picture's are interpolated
DARKEST, LIGHTEST = 0.21, 1.14  # lightness of what was white, which is that of the dark page, and of pure black
TO_CONES = np.array([  # from linear sRGB
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
TO_LAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip
SCREEN = "screen"


@dataclass(frozen=True)
class Edition:
    """How the figures of a report are made where they are not made as usual.

    Attributes:
        medium: A name of `analysis.media.MEDIA`.
        font: "sans" or "serif"; None is the medium's own.
        labels: Names and colours of methods and measures.
        measures: What the figures that have a choice show; empty is their own choice.

    Raises:
        ValueError: If the medium or the font is not known.
    """

    medium: str = SCREEN
    font: str | None = None
    labels: Labels = field(default_factory=Labels)
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        media.medium(self.medium, font=self.font)


def figure(
    results_or_folder: StudyResults | str | Path,
    name: str,
    *,
    medium: str = SCREEN,
    font: str | None = None,
    labels: Labels | str | Path | None = None,
    measures: Sequence[str] = (),
    on: Axes | Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw one figure of a study's report.

    Args:
        results_or_folder: The study's results, or the folder they are read from.
        name: One of `analysis.FIGURES`.
        medium: "screen", "icml", "neurips", "column", "page" or "slides": width, and size of type.
        font: "sans" or "serif"; None is the medium's own.
        labels: Names and colours of methods and measures, or a YAML file of them.
        measures: What to show, from the top down, as ids or whole names of variants; for figures with a choice.
        on: Axes to draw on, or for a figure of several panels a Figure or SubFigure; None is a page of its own.

    Returns:
        The figure that was drawn on, with text as text: `figure.savefig("forest.pdf")` embeds fonts as type 42 inside
        `matplotlib.rc_context(analysis.style.rc("icml"))`.

    Raises:
        FileNotFoundError: If the folder lacks a file, with the command that makes it.
        ValueError: If a name is not known, the figure has nothing to show or no choice of measures, or it has several
            panels and `on` is one Axes.
    """
    known(names=[name], measures=measures)
    given = results_or_folder
    results = given if isinstance(given, StudyResults) else StudyResults.load(given)
    chosen = labels if isinstance(labels, Labels) else Labels() if labels is None else Labels.read(labels)
    return drawn(results, name, Edition(medium, font, chosen, tuple(measures)), on)[0]


def known(names: Sequence[str], measures: Sequence[str]) -> None:
    """Refuse names of figures that are none, and measures for figures that have no choice of them.

    Raises:
        ValueError: As it says.
    """
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(
            f"`figures` holds {unknown}, which are not figures of the report; choose from {list(FIGURES)}."
        )
    if measures and (fixed := [name for name in names if not FIGURES[name].chooses]):
        choosing = [name for name, plate in FIGURES.items() if plate.chooses]
        raise ValueError(f"`measures` can be chosen for {choosing}, not for {fixed}: leave one of the two out.")


def drawn(
    results: StudyResults, name: str, edition: Edition, on: Axes | Figure | SubFigure | None = None
) -> tuple[Figure | SubFigure, Facts]:
    """A figure in an edition, with the facts of its caption; raises `NothingToDraw` with the reason."""
    with matplotlib.rc_context(rc(media.medium(edition.medium, font=edition.font))), labelled(edition.labels):
        return FIGURES[name].draw(results, Wanted(edition.measures, on))


def written(results: StudyResults, name: str, edition: Edition, folder: Path) -> tuple[bytes, Facts]:
    """Draw a figure once and write it as PDF and PNG; where there is nothing to draw the files of before are removed.

    Returns:
        The PNG, and the facts of the caption.

    Raises:
        NothingToDraw: With the reason.
    """
    for suffix in (".pdf", ".png"):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)
    with matplotlib.rc_context(rc(media.medium(edition.medium, font=edition.font))):
        made, facts = drawn(results, name, edition)
        assert isinstance(made, Figure)
        png = _png(made)
        pdf = _pdf(made)
    write_bytes(folder / f"{name}.pdf", pdf)
    write_bytes(folder / f"{name}.png", png)
    return png, facts


def dark(png: bytes) -> bytes:
    """The same picture for a dark page: lightness turned round, hue and chroma kept (in Ottosson's OKLab, 2020)."""
    buffer = io.BytesIO()
    turned = Image.open(io.BytesIO(png)).convert("RGB").filter(_turned())
    turned.quantize(128, method=Image.Quantize.FASTOCTREE).save(buffer, "png")
    return buffer.getvalue()


@cache
def _turned() -> ImageFilter.Color3DLUT:
    steps = np.linspace(0.0, 1.0, SHADES)
    blue, green, red = (mesh.ravel() for mesh in np.meshgrid(steps, steps, steps, indexing="ij"))
    rgb = np.stack([red, green, blue], axis=1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ TO_CONES.T) @ TO_LAB.T
    lab[:, 0] = DARKEST + (LIGHTEST - DARKEST) * (1 - lab[:, 0])
    back = np.clip((lab @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_CONES).T, 0.0, 1.0)
    seen = np.where(back <= 0.0031308, 12.92 * back, 1.055 * back ** (1 / 2.4) - 0.055)
    return ImageFilter.Color3DLUT(SHADES, seen.ravel().tolist())


# Dates and versions are left out, so that equal results give equal files. `savefig` gives the same bytes, but draws
# everything twice, the first time to no effect.
def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _pdf(figure: Figure) -> bytes:
    """The PDF of a figure whose PNG was drawn: its places stay as they were found for that."""
    figure.set_layout_engine("none")
    buffer = io.BytesIO()
    without = {"CreationDate": None, "Producer": None, "Creator": None}
    FigureCanvasPdf(figure).print_pdf(buffer, metadata=without)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
