"""Figures of a survey: which there are for a line, a plane, a volume, several models, a trajectory, a way between."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.figures.room import inches
from analysis.figures.surfaces import (
    Along,
    Slice,
    barrier_plot,
    comparison,
    curve_against_line,
    explained_variance,
    lines,
    plane,
    section,
)
from analysis.figures.surfaces.comparison import WIDE
from analysis.figures.surfaces.scales import quantity
from analysis.style import rc
from analysis.surfaces.context import prediction_of
from analysis.surfaces.sheets import Sheet
from landscape.surfaces import Surface
from trainers.files.writing import write_atomically

DPI = 200
MODES = {"eval": "running statistics kept", "recalibrate": "running statistics anew", "batch": "batch statistics"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with what belongs below it.

    Attributes:
        name: Stem of its files.
        figure: The figure.
        said: What the scale does to the values, for the caption; empty if nothing.
    """

    name: str
    figure: Figure
    said: str = ""


def pictures(sheets: Sequence[Sheet], *, between: str | None = None) -> Iterator[Picture]:
    """All figures of some sheets that belong together, at the width of the medium in force.

    Args:
        sheets: Of a survey.
        between: What lies between models, where that is what they show.
    """
    first = sheets[0].surface
    dimensions = len(first.grid.shape)
    if between in ("line", "bezier", "polygon"):
        yield from _ways(sheets, between)
    elif dimensions == 1:
        yield from _lines(sheets)
    elif dimensions == 2:
        yield from _planes(sheets)
    else:
        yield from _volumes(sheets)
    shares = first.context.get("explained")
    if shares:
        figure = _figure(0.5)
        explained_variance(figure.subplots(), shares[:6], (first.context.get("explained_null") or [])[:6])
        yield Picture("explained-variance", figure)


def save(found: Iterator[Picture], folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Write figures, each in the given formats."""
    for picture in found:
        for suffix in suffixes:
            path = folder / f"{picture.name}{suffix}"
            settings: dict[str, Any] = {"format": suffix[1:], "dpi": DPI}
            if suffix == ".pdf":
                settings["metadata"] = {"CreationDate": None}
            write_atomically(path, partial(picture.figure.savefig, **settings))
            yield path


def drawn(sheets: Sequence[Sheet], folder: Path, *, between: str | None = None, medium: str = "screen") -> list[Path]:
    """PNGs for a screen, or PDFs for a paper."""
    with mpl.rc_context(rc(medium)):
        return list(save(pictures(sheets, between=between), folder, [".png"] if medium == "screen" else [".pdf"]))


def _figure(height: float) -> Figure:
    """A figure of the medium's width and a share of it high."""
    width = float(mpl.rcParams["figure.figsize"][0])
    return Figure(figsize=(width, height * width), layout="constrained")


def _slug(text: str) -> str:
    return text.replace(",", "").replace(" ", "-")


def _lines(sheets: Sequence[Sheet]) -> Iterator[Picture]:
    """Each quantity once: training and test examples, and all models, on one pair of axes."""
    metrics = sheets[0].surface.metrics
    for factor in dict.fromkeys(quantity(m).factor for m in metrics):
        chosen = [m for m in metrics if quantity(m).factor == factor]
        slices = [Slice(s.surface, s.name, m, prediction_of(s.surface, m)) for s in sheets for m in chosen]
        figure = _figure(0.62)
        lines(figure.subplots(), slices)
        yield Picture("line-" + ("error" if factor == 100 else "loss"), figure)


def _planes(sheets: Sequence[Sheet]) -> Iterator[Picture]:
    first = sheets[0]
    metrics = first.surface.metrics
    if len(sheets) == 1:
        for metric in metrics:
            wide = bool(first.paths) and len(first.paths[0].table) > 1
            figure = _figure(0.62 if wide else 0.82)
            scale = plane(
                figure, first.surface, metric=metric, prediction=prediction_of(first.surface, metric),
                paths=first.paths,
            )  # fmt: skip
            yield Picture(f"contour-{_slug(metric)}", figure, scale.said)
    else:
        surfaces = {s.name: s.surface for s in sheets}
        rows = -(-len(sheets) // 3)
        for metric in metrics:
            figure = _figure(0.5 * rows if _wide() else 0.75 * -(-len(sheets) // 2))
            second = {s.name: p for s in sheets if (p := prediction_of(s.surface, metric)) is not None}
            scale = comparison(figure, surfaces, metric=metric, predictions=second)
            yield Picture(f"contour-{_slug(metric)}", figure, scale.said)
    for metric in metrics[:1]:
        figure = Figure(figsize=_relief_size(len(sheets)))
        scale = comparison(figure, {s.name: s.surface for s in sheets}, form="relief", metric=metric)
        yield Picture(f"relief-{_slug(metric)}", figure, scale.said)


def _volumes(sheets: Sequence[Sheet]) -> Iterator[Picture]:
    """The three planes through the middle of each volume."""
    for sheet in sheets:
        for i in range(3):
            figure = _figure(0.82)
            scale = plane(figure, section(sheet.surface, {i: 0.0}))
            name = f"section-{i + 1}" if len(sheets) == 1 else f"section-{i + 1}-{_slug(sheet.name)}"
            yield Picture(name, figure, scale.said)


def _ways(sheets: Sequence[Sheet], between: str) -> Iterator[Picture]:
    """Barriers of lines, and a curve against its line, for each metric."""
    straight = [s for s in sheets if s.name.startswith("line")]
    curves = [s for s in sheets if not s.name.startswith("line")]
    ends = _ends(sheets[0].surface)
    modes = {str(s.surface.context.get("mode")) for s in sheets}
    for metric in sheets[0].surface.metrics:
        profiles = [_along(s, metric, told_mode=len(modes) > 1) for s in straight]
        figure = _figure(0.62)
        barrier_plot(figure.subplots(), profiles, ends=ends)
        yield Picture(f"barrier-{_slug(metric)}", figure)
        for curve in curves:
            mode = curve.surface.context.get("mode")
            line = next(s for s in reversed(straight) if s.surface.context.get("mode") == mode)
            told = curve.surface.context["between"][metric]
            figure = _figure(0.62)
            curve_against_line(
                figure.subplots(), _along(curve, metric), _along(line, metric, inside=True), ends=ends,
                longer=told["length"] / told["straight"] if told["straight"] else None,
            )  # fmt: skip
            name = f"{between}-{_slug(metric)}" + (f"-{mode}" if len(modes) > 1 else "")
            yield Picture(name, figure)


@dataclass(frozen=True)
class _Barrier:
    definition: str
    value: float
    stderr: float
    location: float


def _along(sheet: Sheet, metric: str, *, told_mode: bool = False, inside: bool = False) -> Along:
    """A way as the figures take it; a line's barriers only where all of it is shown."""
    surface = sheet.surface
    where = surface.grid.coordinates[0].numpy()
    chosen = (where >= 0) & (where <= 1) if inside else where == where
    mode = str(surface.context.get("mode"))
    told = surface.context["between"][metric]
    barriers = [_Barrier(name, b["value"], b["stderr"], b["location"]) for name, b in told.items() if name[:2] == "B_"]
    return Along(
        where[chosen], surface.values[metric].numpy()[chosen], surface.stderr[metric].numpy()[chosen],
        label=f"{sheet.name}, {MODES[mode]}" if told_mode else sheet.name, metric=metric,
        barriers=() if inside else barriers, solid=mode != "eval" or not told_mode, group=sheet.name,
    )  # fmt: skip


def _ends(surface: Surface) -> tuple[str, str]:
    name = str(surface.axes[0]["name"]).removeprefix("from ")
    start, _, end = name.partition(" to ")
    return start, end


def _wide() -> bool:
    return inches() > WIDE


def _relief_size(count: int) -> tuple[float, float]:
    width = float(mpl.rcParams["figure.figsize"][0])
    columns = min(count, 3 if _wide() else 2)
    rows = -(-count // columns)
    return width, (0.85 if count == 1 else 0.5 if columns == 3 else 0.62) * width * rows
