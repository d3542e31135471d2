"""One call from checkpoints to surfaces: around a model, of several on common axes, along training, between models."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import escape

from analysis.measures.checkpoints import Checkpoint
from analysis.progress import quiet
from analysis.style import rc
from analysis.surfaces.between import Fit, Tell, silent
from analysis.surfaces.computing import Track, metrics_of, told_time
from analysis.surfaces.drawing import draw
from analysis.surfaces.places import checkpoint_of, suited, surface_risks
from analysis.surfaces.reading import ANSWERS, Remark, reading, reading_together, to_markdown, verdict
from analysis.surfaces.recipe import Recipe, recipe
from analysis.surfaces.sheets import Sheet, between_models, file_of, folder_of, scan_checkpoint
from landscape.memory import explained
from landscape.surfaces import Surface
from landscape.surfaces.scanner import Scanner
from trainers.backend import USUAL, Backend
from trainers.files.writing import write_bytes
from trainers.runtime import HERE, Runtime
from trainers.sweep.parallel import single_threaded

if TYPE_CHECKING:
    from analysis.surfaces.pictures import Picture

SHOWN_DPI = 110
AXES = {
    "random": "random direction", "top": "top Hessian eigenvector", "bottom": "bottom Hessian eigenvector",
    "gradient": "gradient", "sam": "SAM perturbation", "asam": "ASAM perturbation", "obf": "OBF perturbation",
    "own": "own perturbation", "pca": "principal axis of training",
}  # fmt: skip
PLURAL = {"pca": "principal axes of training"}
BETWEEN = {
    "line": "On the line between", "bezier": "On a Bezier curve between", "polygon": "On a polygonal chain between",
    "plane": "In the plane through",
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Survey:
    """Surfaces that belong together; a notebook shows the first figure, and the note on how to read it.

    Attributes:
        recipe: What decides them beside the models.
        sheets: One a surface: of each model, or of each way between two.
        folder: Where `write` puts figures of them.
        command: What makes them again.
    """

    recipe: Recipe
    sheets: tuple[Sheet, ...]
    folder: Path
    command: str = ""

    def __repr__(self) -> str:
        return f"Survey({self.title!r}, {len(self.sheets)} surface{'s' * (len(self.sheets) != 1)})"

    @property
    def surfaces(self) -> dict[str, Surface]:
        """By the models' names."""
        return {sheet.name: sheet.surface for sheet in self.sheets}

    def remarks(self) -> dict[str, list[Remark]]:
        """How to read each surface, and under "together" whether they may be compared."""
        found = {name: reading(surface) for name, surface in self.surfaces.items()}
        together = reading_together(self.surfaces) if self.recipe.between is None else []
        return {"together": together, **found} if together else found

    def notes(self) -> str:
        """The same as Markdown."""
        parts = []
        for name, remarks in self.remarks().items():
            title = "Whether they may be compared" if name == "together" else f"How to read {name}"
            parts.append(to_markdown(remarks, title))
        return "\n".join(parts)

    def pictures(self, medium: str = "screen") -> list["Picture"]:
        """All figures, at the width of a medium."""
        from analysis.surfaces.pictures import pictures  # figures are slow to import

        with mpl.rc_context(rc(medium)):
            return list(pictures(self.sheets, between=self.recipe.between))

    def write(self, *, vtk: bool = False) -> list[Path]:
        """Write figures (PNG, and PDF at the width of two columns), the interactive page, and the note.

        Args:
            vtk: Write files for ParaView too.

        Returns:
            The files, the page first.
        """
        from analysis.surfaces.interactive import write_page
        from analysis.surfaces.pictures import drawn
        from analysis.surfaces.vtk import write_vtk

        paths = {sheet.name: sheet.paths for sheet in self.sheets}
        page = write_page(
            self.surfaces, self.folder / "surface.html", title=self.title, paths=paths, command=self.command
        )
        note = self.folder / "reading.md"
        write_bytes(note, self.notes().encode())
        found = [page, note]
        for medium in ("screen", "page"):
            found += drawn(self.sheets, self.folder, between=self.recipe.between, medium=medium)
        if vtk:
            found += [write_vtk(s.surface, self.folder / f"{_slug(s.name)}.vts") for s in self.sheets]
        return found

    @property
    def title(self) -> str:
        """What the surfaces show, in words."""
        names = ", ".join(self.surfaces)
        if self.recipe.between is not None:
            models = ", ".join(str(m) for m in self.sheets[0].surface.context.get("models", [])) or names
            return f"{BETWEEN[self.recipe.between]} {models}"
        kinds = [
            AXES[kind] if n == 1 else f"{n} {PLURAL.get(kind, AXES[kind] + 's')}"
            for kind, n in Counter(self.recipe.axes).items()
        ]
        return f"{names}: along {' and '.join(kinds)}"

    def _repr_html_(self) -> str:
        """The first figure and the note, for a notebook."""
        from analysis.surfaces.pictures import pictures

        with mpl.rc_context(rc("screen")):
            first = next(pictures(self.sheets, between=self.recipe.between))
        image = io.BytesIO()
        first.figure.savefig(image, format="png", dpi=SHOWN_DPI)
        data = base64.b64encode(image.getvalue()).decode()
        said = f"<p>{escape(first.said)}</p>" if first.said else ""
        found = self.remarks()
        answer = ANSWERS[verdict([r for remarks in found.values() for r in remarks])]
        return (
            f'<img alt="{escape(self.title)}" src="data:image/png;base64,{data}" style="max-width:100%">{said}'
            f"<p><b>{escape(answer)}</b></p>{''.join(_folded(*item, alone=len(found) == 1) for item in found.items())}"
        )


def _folded(name: str, remarks: Sequence[Remark], *, alone: bool) -> str:
    """Remarks for a notebook: what there is to mind, the rest behind a click; for one of several models, all of it."""

    def listed(some: Sequence[Remark]) -> str:
        texts = [f"{r.level}: {r.text}" if r.level != "fine" else r.text for r in some]
        return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"

    if alone or name == "together":
        graver, fine = [r for r in remarks if r.level != "fine"], [r for r in remarks if r.level == "fine"]
        return listed(graver) + f"<details><summary>{len(fine)} facts</summary>{listed(fine)}</details>"
    return f"<details><summary>How to read {escape(name)}</summary>{listed(remarks)}</details>"


def surface(
    *models: str | Path | Checkpoint,
    step: int | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    device: str = "cpu",
    workers: int = 0,
    backend: Backend = USUAL,
    track: Track = quiet,
    announce: Tell = silent,
    trust: bool = False,
    model: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    fit: Fit | None = None,
    **options: Any,
) -> Survey:
    """Draw loss and error around a trained model, of several models on common axes, or between models.

    What was computed before is read back; what was interrupted goes on. Under `torchrun` the processes share the work.

    `analysis.surface(model, loss, data)` is the same around a model in memory, see
    `analysis.surfaces.in_memory.surface_of_model`.

    Args:
        models: Runs' folders, RUN/checkpoints/STEP, or files of weights. Several are compared on the same kind of axes
            (the same random draw, each in its own weights' scale) over the same reach; with pca axes the plane is the
            first run's, and the others' trajectories are drawn over it; with `between` it is what lies between them.
        step: Another checkpoint of the runs than the last.
        out: Folder of figures; one beside the surfaces if left out.
        jobs: Processes; one a core if left out.
        device: Where: cpu, cuda, cuda:0,1 for several, mps or auto.
        workers: Processes that read data ahead, where they are read one by one.
        backend: How torch computes.
        track: Shows progress.
        announce: Told what is done, and what it will take.
        trust: Import a model or dataset that a run names as module:function.
        model: For files of weights: name or module:function.
        model_options: For files of weights: the model's sizes.
        data: For files of weights: options of `trainers.load_dataset`, with the dataset under "name".
        fit: Fits curves between models; `analysis.surface` brings one along.
        options: See `Recipe`: axes, points, radius, between, metrics, splits, examples, mode, refine, seed, ...

    Returns:
        The surfaces, with their files; a notebook shows them as a figure with the note on how to read it.

    Raises:
        ValueError: Naming what is wrong; also if models that are compared differ in architecture.
        FileNotFoundError: If a path names no model.
        BusyError: If another process computes the same surface.
    """
    chosen, runtime = recipe(**options), Runtime(device, jobs, workers=workers, backend=backend)
    places = [
        m
        if not isinstance(m, str | Path)
        else checkpoint_of(m, step=step, trust=trust, model=model, model_options=model_options, data=data)
        for m in models
    ]
    return survey(places, chosen, out=out, runtime=runtime, track=track, announce=announce, fit=fit)


def read_survey(*files: str | Path, out: str | Path | None = None) -> Survey:
    """The surfaces of some files, to be drawn again without the models.

    Args:
        files: Made by `landscape surface`.
        out: Folder of figures; beside the first file if left out.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If there is none, one is damaged, or they are not of one recipe.
    """
    if not files:
        raise ValueError("`files` must name at least one surface (.npz), got none.")
    sheets = _told_apart([Sheet.read(file) for file in files])
    recipes = [Recipe.model_validate(s.surface.context["recipe"]) for s in sheets]
    if any(r != recipes[0] for r in recipes):
        raise ValueError("`files` hold surfaces of other recipes (axes, points, examples, ...): draw them apart.")
    return Survey(recipes[0], tuple(sheets), Path(out) if out else Path(files[0]).with_suffix(""))


def survey(
    places: Sequence[Checkpoint],
    chosen: Recipe,
    *,
    out: str | Path | None = None,
    runtime: Runtime = HERE,
    track: Track = quiet,
    announce: Tell = silent,
    command: str = "",
    wait: float = 0.0,
    fit: Fit | None = None,
) -> Survey:
    """The same for checkpoints and a recipe; see `surface`. Another process at the same surface is waited for."""
    if not places:
        raise ValueError("`models` must name at least one run, checkpoint or file of weights, got none.")
    check_comparable(places)
    chosen = suited(chosen, places)
    short = explained(runtime.devices[0], examples=chosen.batch_size, option="`--batch-size`")
    with runtime.joined() as among, runtime.backend.flags(), short:
        tell = announce if among.ranks.leads else silent
        sheets = _told_apart(_sheets(places, chosen, among, track, tell, wait, fit))
    return Survey(chosen, tuple(sheets), Path(out) if out else _folder(places, chosen), command)


def check_comparable(places: Sequence[Checkpoint]) -> None:
    """Raise a ValueError that names the first tensor in which two checkpoints differ in shape."""
    if len(places) < 2:
        return
    first = places[0].shapes()
    for place in places[1:]:
        other = place.shapes()
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"{places[0].run_id} and {place.run_id} differ in architecture: `{name}` has shape "
                    f"{first.get(name, 'none')} in the first and {other.get(name, 'none')} in the second. Surfaces on "
                    "common axes need models of one architecture; draw them one at a time."
                )


def time_needed(places: Sequence[Checkpoint], chosen: Recipe, runtime: Runtime = HERE) -> str:
    """What a survey would take, from a few points of the first model's, in words."""
    if not places:
        raise ValueError("`models` must name at least one run, checkpoint or file of weights, got none.")
    changed: dict[str, Any] = {"numbers": False}
    if chosen.between is not None:  # a point costs the same wherever it lies
        changed |= {"axes": ("random",) * chosen.dimensions, "points": chosen.counts, "radius": None, "between": None}
    chosen = suited(chosen, places)
    subject = places[0].load(chosen.seed, runtime.devices[0])
    risks = surface_risks(subject, chosen)
    drawing = draw(subject, next(iter(risks.values())), chosen.model_copy(update=changed))
    scanner = Scanner(risks, drawing.axes, metrics=metrics_of(chosen))
    each = single_threaded(scanner.seconds_per_point)
    count = 1 if "pca" in chosen.axes or chosen.between else len(places)
    return told_time(len(drawing.grid) * count, each, runtime.processes)


def _sheets(
    places: Sequence[Checkpoint], chosen: Recipe, runtime: Runtime, track: Track, announce: Tell, wait: float,
    fit: Fit | None,
) -> list[Sheet]:  # fmt: skip
    if chosen.between in ("line", "bezier", "polygon"):
        return between_models(places, chosen, runtime=runtime, tell=announce, wait=wait, fit=fit)
    settings: dict[str, Any] = {"runtime": runtime, "track": track, "announce": announce, "wait": wait}
    if chosen.between == "plane" or "pca" in chosen.axes:
        return [scan_checkpoint(places[0], chosen, others=places[1:], **settings)]
    sheets: list[Sheet] = []
    reach: tuple[float, ...] | None = None
    for place in places:
        sheets.append(scan_checkpoint(place, chosen, reach=reach, **settings))
        if chosen.radius is None and not set(chosen.axes) <= {"random", "sam", "asam", "obf", "own"}:
            reach = reach or tuple(float(c[-1]) for c in sheets[0].surface.grid.coordinates)
    return sheets


def _told_apart(sheets: Sequence[Sheet]) -> list[Sheet]:
    """Names that differ: with the run, the step or the mode where two have one name."""
    found = list(sheets)
    for key in ("mode", "rho", "run", "step"):
        names = [s.name for s in found]
        if len(set(names)) == len(names):
            break
        found = [
            replace(s, name=f"{s.name} {s.surface.context.get(key)}") if names.count(s.name) > 1 else s for s in found
        ]
    return found


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _folder(places: Sequence[Checkpoint], chosen: Recipe) -> Path:
    """Beside the surface of one model; of several, beside the study or the folder they are in."""
    if len(places) == 1:
        return file_of(places[0], chosen).with_suffix("")
    inside = folder_of(places[0]).parent.parent
    inside = inside.parent if inside.name == "runs" else inside
    key = chosen.key([[p.run_id, p.step] for p in places])
    return inside / "surfaces" / f"{chosen.title}-{key[:8]}"
