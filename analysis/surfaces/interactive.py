"""One page for a browser: surfaces to turn and to cut, how to read them, and their numbers, in a single file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex

from analysis.figures.surfaces.marks import axis_label, cosine_text, not_finite, pending, same_units
from analysis.figures.surfaces.scales import MAP, Scale, checked, compact, quantity, shared_scale, with_error
from analysis.offline import POLICY, in_script, plotly_script
from analysis.style import looks
from analysis.surfaces.reading import ANSWERS, reading, reading_together, verdict
from analysis.surfaces.trajectory import SurfacePath
from landscape.surfaces import Surface
from trainers.files.writing import write_bytes

DIGITS = 7  # significant, of the numbers in the page
COLOURS = 12  # of the map
FACTS = {
    "run": "Run",
    "step": "Step",
    "top_eigenvalue": "Largest Hessian eigenvalue",
    "bottom_eigenvalue": "Smallest Hessian eigenvalue",
    "trace": "Hessian trace",
    "parameters": "Weights",
    "data": "Data",
    "split": "Split",
    "examples": "Examples",
    "mode": "Normalisation layers",
    "dtype": "Precision",
}


def write_page(
    surfaces: Surface | Mapping[str, Surface],
    path: str | Path,
    *,
    title: str = "Loss surface",
    paths: Mapping[str, Sequence[SurfacePath]] | None = None,
    command: str = "",
) -> Path:
    """Write one HTML file with everything in it: no network, no other file, to be opened by a click.

    Planes are drawn as relief, contours and cuts, volumes plane by plane, lines on common axes; the reader chooses
    metric, model, and a linear or logarithmic scale, which is the same for all models. Below stand how to read it and
    the numbers. The same surfaces give the same bytes.

    Args:
        surfaces: One, or several by name; of equally many axes, with the first one's metrics.
        path: Of the file.
        title: Heading.
        paths: Trajectories over planes, by the same names.
        command: What makes the page again, for the foot.

    Returns:
        The path.

    Raises:
        ValueError: If there is no surface, they have different numbers of axes, or one lacks a metric.
        ImportError: If plotly is not installed.
        OSError: As the disk does; an old file stays whole.
    """
    given = {"model": surfaces} if isinstance(surfaces, Surface) else dict(surfaces)
    if not given:
        raise ValueError("`surfaces` must name at least one surface, got none.")
    first = next(iter(given.values()))
    metrics = first.metrics
    for surface in given.values():
        for metric in metrics:
            checked(surface, metric, dimensions=len(first.grid.shape))
    plotly = plotly_script()
    drawn = [m for m in metrics if any(np.isfinite(s.values[m].numpy()).any() for s in given.values())]
    if not drawn:
        raise ValueError("`surfaces` have no finite value: there is nothing to draw.")
    remarks = {name: reading(surface, drawn[0]) for name, surface in given.items()}
    together = reading_together(given)
    data = {
        "models": [_model(name, s, drawn, (paths or {}).get(name, ())) for name, s in given.items()],
        "metrics": {m: _metric(m, list(given.values())) for m in drawn},
        "map": [[i / (COLOURS - 1), to_hex(MAP(i / (COLOURS - 1)))] for i in range(COLOURS)],
    }
    every = [*together, *(r for found in remarks.values() for r in found)]
    said = {m: shared_scale(given.values(), m).said for m in drawn}
    context = {
        "title": title,
        "names": list(given),
        "dimensions": len(first.grid.shape),
        "metrics": [(m, quantity(m).label) for m in drawn],
        "answer": ANSWERS[verdict(every)],
        "verdict": verdict(every),
        "together": together,
        "remarks": remarks,
        "metric": quantity(drawn[0]).name,
        "said": [f"{quantity(m).name}: {text}" for m, text in said.items() if text],
        "table": _table(given, drawn),
        "axes": [axis_label(first, i) for i in range(len(first.axes))],
        "cosine": cosine_text(first),
        "command": command,
        "policy": POLICY,
        "plotly": Markup(plotly),
        "data": Markup(in_script(data)),
    }
    page = _templates().get_template("page.html.j2").render(context)
    path = Path(path)
    write_bytes(path, page.encode("utf-8"))
    return path


def _metric(metric: str, surfaces: Sequence[Surface]) -> dict[str, Any]:
    linear, log = (shared_scale(surfaces, metric, kind=kind) for kind in ("linear", "log"))
    q = quantity(metric)
    return {"label": q.label, "factor": q.factor, "scales": {"linear": _scale(linear), "log": _scale(log)}}


def _scale(scale: Scale) -> dict[str, Any]:
    values = scale.levels(8)
    return {
        "low": scale.low,
        "high": scale.high,
        "least": scale.least,
        "label": scale.label,
        "cut": scale.cut,
        "ticks": scale.positions(values).tolist(),
        "texts": scale.labels(values),
    }


def _model(name: str, surface: Surface, metrics: Sequence[str], paths: Sequence[SurfacePath]) -> dict[str, Any]:
    """The numbers of one model; points without a finite value are null, and `state` says why."""
    shown, colour, _ = looks([name])[name]
    return {
        "name": shown,
        "colour": colour,
        "grid": [c.tolist() for c in surface.grid.coordinates],
        "axes": [axis_label(surface, i) for i in range(len(surface.axes))],
        "equal": same_units(surface),
        "values": {m: _nested(surface.values[m].numpy()) for m in metrics},
        "stderr": {m: _nested(surface.stderr[m].numpy()) for m in metrics},
        "state": {m: _states(surface, m) for m in metrics},
        "centre": {m: [_rounded(v) for v in surface.centre.get(m, (math.nan, math.nan))] for m in metrics},
        "paths": [
            {
                "name": p.name,
                "colour": looks([p.look or p.name])[p.look or p.name][1],
                **{
                    c: [_rounded(v) for v in p.table[c]]
                    for c in ("step", "a1", "a2", "distance", "loss")
                    if c in p.table
                },
            }
            for p in paths
        ],
    }


def _states(surface: Surface, metric: str) -> list[Any]:
    """0 evaluated, 1 interpolated, 2 NaN, 3 infinite, 4 not yet evaluated."""
    values = surface.values[metric].numpy()
    found = np.where(surface.computed.numpy(), 0, 1)
    bad = not_finite(surface, metric)
    found[bad] = np.where(np.isnan(values[bad]), 2, 3)
    found[pending(surface, metric)] = 4
    nested: list[Any] = found.tolist()
    return nested


def _nested(values: np.ndarray) -> Any:
    """Lists of numbers short enough for a page; null for what is not finite."""
    return [_nested(v) for v in values] if values.ndim else _rounded(float(values))


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _table(surfaces: Mapping[str, Surface], metrics: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Rows of numbers, one column a model; a row that no model has is left out."""
    rows: list[tuple[str, list[str]]] = []
    for m in metrics:
        q = quantity(m)
        rows.append((f"{q.label}, at the model", [_at_centre(s, m, q.factor) for s in surfaces.values()]))
        span = [_span(s, m, q.factor) for s in surfaces.values()]
        rows.append((f"{q.label}, lowest to highest", span))
    for key, label in FACTS.items():
        rows.append((label, [_fact(s, key) for s in surfaces.values()]))
    names = dict.fromkeys(n for s in surfaces.values() for n in (s.context.get("sharpness") or {}))
    for name in names:
        cells = [(s.context.get("sharpness") or {}).get(name) for s in surfaces.values()]
        rows.append((str(name)[:1].upper() + str(name)[1:], [_text(c) for c in cells]))
    return [(label, cells) for label, cells in rows if any(c != "–" for c in cells)]


def _at_centre(surface: Surface, metric: str, factor: float) -> str:
    value, stderr = surface.centre.get(metric, (math.nan, math.nan))
    return with_error(value, stderr, factor)


def _span(surface: Surface, metric: str, factor: float) -> str:
    values = surface.values[metric].numpy()
    finite = values[np.isfinite(values)]
    return f"{compact(factor * finite.min())} to {compact(factor * finite.max())}" if len(finite) else "–"


def _fact(surface: Surface, key: str) -> str:
    value = surface.context.get(key)
    error = surface.context.get(f"{key}_stderr")
    if isinstance(error, int | float) and isinstance(value, int | float):
        return with_error(float(value), float(error))
    return _text(value)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else compact(value)


def _templates() -> jinja2.Environment:
    here = jinja2.PackageLoader("analysis.surfaces")
    report = jinja2.PackageLoader("analysis.reporting")
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([here, report]),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
