"""The program `landscape`: one function a command, with the arguments of the library call behind it."""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pandas as pd
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import table as tables
from analysis.measures.registry import MEASURES
from analysis.measuring.budget import Budget, announcement, budget
from analysis.measuring.checkpoints import WeightsFile, measure_checkpoint, weight_files
from analysis.measuring.collect import Call, Executor, tabulate, take, to_measure
from analysis.measuring.plan import plan
from analysis.progress import steps, track
from analysis.surfaces.crew import crew
from analysis.surfaces.places import checkpoint_of
from analysis.surfaces.recipe import AxisKind, Between, recipe
from trainers.config import Option, TrainConfig, train_config
from trainers.data import DATASETS
from trainers.files import write_bytes
from trainers.loop import fit
from trainers.models import MODELS
from trainers.options import knobs
from trainers.parallel import Stopped, cores
from trainers.runs import Run, has_runs, list_runs
from trainers.sharpness_aware.methods import METHODS
from trainers.sweep import parse_shard
from trainers.tracking import TrackerName

out = Console()
TRY_AGAIN = 75  # EX_TEMPFAIL: the same command continues


def study(
    file: tyro.conf.Positional[Path],
    *,
    out_folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    jobs: int | None = None,
    trust: bool = False,
    extend: bool = False,
    executor: Literal["processes", "ray"] = "processes",
    address: str | None = None,
    shard: str | None = None,
    time_limit: str | None = None,
) -> int:
    """Run a study from its file to the report; what is done already is kept.

    Args:
        file: A study file, such as studies/digits.yaml.
        out_folder: Folder of the study; runs/<name> if left out.
        jobs: Processes; one a core if left out.
        trust: Import a model or dataset that the file names as module:function.
        extend: Go on in a folder that was made with another configuration.
        executor: Train on this machine, or on the machines of a Ray cluster that share the folder.
        address: Of the Ray cluster; the one on this machine, or RAY_ADDRESS, if left out.
        shard: i/n trains only part i of n, counted from 0, and makes no report: for array jobs.
        time_limit: For training, in seconds or as HH:MM:SS; runs in progress then stop and can be continued.
    """
    from analysis.study import Study, read_study

    config = read_study(file)
    folder = out_folder or Path("runs") / config.name
    command = f"landscape study {file}" + (f" --out {out_folder}" if out_folder else "")
    work = Study(
        config, folder, jobs=jobs, trust=trust, executor=executor, address=address,
        shard=None if shard is None else parse_shard(shard), time_limit=time_limit, command=command,
    )  # fmt: skip
    if shard is not None:
        work.prepare(extend=extend)
        ended = work.train(track)
        print(f"part {shard}: {len(ended)} runs ended; without --shard the same command measures and reports")
        return 1 if any(run.status()["status"] == "failed" for run in ended) else 0
    path = work.all(track, extend=extend)
    bad = [(run.run_id, run.status()) for run in work.runs() if run.status()["status"] != "finished"]
    for run_id, status in bad:
        print(f"run {run_id} {status['status']}: {status['reason']}", file=sys.stderr)
    print(f"report: {path.resolve()}")
    return 1 if any(status["status"] == "failed" for _, status in bad) else 0


def _arguments() -> type:
    """The fields of `TrainConfig` as command-line options; `train_config` then checks them, with its own messages."""
    found = []
    for name, info in TrainConfig.model_fields.items():
        annotation = Annotated[info.annotation, tyro.conf.arg(help=info.description)]  # type: ignore[name-defined]
        default = info.get_default(call_default_factory=True)
        given = field(default_factory=dict) if isinstance(default, dict) else field(default=default)
        found.append((name, annotation, given))
    return make_dataclass("Configuration", found, frozen=True)


if TYPE_CHECKING:
    from analysis.surfaces.survey import Survey

    Configuration = Any
else:
    Configuration = tyro.conf.OmitArgPrefixes[_arguments()]


def train(
    config: Configuration,
    *,
    out_folder: Annotated[Path, tyro.conf.arg(name="out")] = Path("runs"),
    device: str = "cpu",
    time_limit: str | None = None,
    snapshot_seconds: float = 30.0,
    log_steps: int | None = None,
    track_with: Annotated[tuple[TrackerName, ...], tyro.conf.arg(name="track")] = (),
    rho_search: bool = False,
    search_radii: tuple[float, ...] | None = None,
    search_share: float = 0.2,
    search_seeds: int = 1,
    jobs: int | None = None,
) -> int:
    """Train one run; a finished run is skipped, an interrupted one is continued.

    Exit code 0 once the run has ended, 75 where the time limit stopped it, 130 after Ctrl-C, 143 after SIGTERM, 138
    after SIGUSR1; the same command then continues.

    Args:
        config: What decides the result.
        out_folder: Folder of runs; the run goes into a subfolder named by its hash.
        device: Where to train, such as cpu or cuda.
        time_limit: Stop with a snapshot before so many seconds, or HH:MM:SS, have passed.
        snapshot_seconds: Least time between two snapshots, from which a killed run continues.
        log_steps: Log every so many steps to steps.parquet.
        track_with: Show the run in TensorBoard or W&B too.
        rho_search: Try several radii on a short budget, and suggest one; the run itself is not trained.
        search_radii: The radii to try; 0 and factors of three around the given one if left out.
        search_share: Fraction of the epochs that each of these runs gets.
        search_seeds: Runs for each radius.
        jobs: Processes of the search; one a core if left out.
    """
    chosen = train_config({f.name: getattr(config, f.name) for f in fields(config)})
    if rho_search:
        return _search_radius(
            chosen,
            out=out_folder,
            radii=search_radii,
            share=search_share,
            seeds=search_seeds,
            jobs=jobs,
            device=device,
        )
    rows = track(iter(range(chosen.epochs)), f"{chosen.method} {chosen.run_id}", chosen.epochs)

    def advance(_: dict[str, Any]) -> None:
        next(rows, None)

    code = 0
    try:
        run = fit(
            chosen,
            out=out_folder,
            device=device,
            trust=True,  # named on the command line itself
            progress=advance,
            time_limit=time_limit,
            snapshot_seconds=snapshot_seconds,
            log_steps=log_steps,
            track=track_with,
        )
    except SystemExit as stop:  # a signal; the snapshot is written
        run, code = Run(out_folder / chosen.run_id), int(stop.code or 0)
    status = run.status()
    line = f"{status['status']} after {status['epochs']} epochs" + (
        f" ({status['reason']})" if status["reason"] else ""
    )
    if status["epochs"]:
        last = run.history().iloc[-1]
        line += f": train error {last['train_error']:.4f}, test error {last['test_error']:.4f}"
    print(line)
    if status.get("skipped_steps"):
        print(f"{status['skipped_steps']} steps skipped by overflow, the first: {', '.join(status['first_skipped'])}")
    print(f"run: {run.folder}")
    return code or (TRY_AGAIN if status["status"] == "interrupted" else 0)


def _search_radius(chosen: TrainConfig, **options: Any) -> int:
    """Search the radius and print the table and the suggestion."""
    from trainers.radius_search import search_radius

    found = search_radius(chosen, trust=True, **options)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rho", "validation error", "± deviation", "train error", "note"):
        grid.add_column(name)
    for row in found.table.itertuples():
        mark = "best" if row.rho == found.best else ""
        grid.add_row(
            f"{row.rho:g}",
            f"{row.validation_error:.4f}",
            "" if row.seeds == 1 else f"{row.deviation:.4f}",
            f"{row.train_error:.4f}",
            escape("; ".join(t for t in (mark, str(row.status)) if t)),
        )
    out.print(grid)
    for note in found.notes:
        print(f"note: {note}")
    print(f"runs: {found.folder}")
    if found.best is None:
        return 1
    print(f"suggestion: --rho {found.best:g}")
    return 0


def measure(
    path: tyro.conf.Positional[Path],
    *,
    measures: tuple[str, ...] | None = None,
    out_file: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    all_checkpoints: bool = False,
    cost: bool = False,
    jobs: int | None = None,
    executor: Executor = "processes",
    address: str | None = None,
    trust: bool = False,
    model: str | None = None,
    model_options: dict[str, Option] | None = None,
    dataset: str = "digits",
    train_size: int | None = None,
    label_noise: float = 0.0,
    data_seed: int = 0,
) -> int:
    """Measure the checkpoints of runs, or files of weights from elsewhere; what was measured before is read back.

    Args:
        path: A study's folder, a folder of runs, one run, a file of weights (.safetensors, .pt), or a folder of them.
        measures: Names (`landscape list measures`), or all; the study's own, or the usual ones, if left out.
        out_file: Where to write the table (Parquet); measures.parquet in the folder if left out.
        all_checkpoints: Measure every checkpoint of a run after its initial weights, not the last alone.
        cost: Only say what it would cost.
        jobs: Processes; one a core if left out.
        executor: Measure on this machine, or on the machines of a Ray cluster that share the folder.
        address: Of the Ray cluster; the one that RAY_ADDRESS names, or that runs here, if left out.
        trust: Import a model or dataset that the runs name as module:function.
        model: For files of weights: the model's name or module:function.
        model_options: For files of weights: the model's sizes.
        dataset: For files of weights: the data's name or module:function.
        train_size: For files of weights: training examples.
        label_noise: For files of weights: label noise of the training data.
        data_seed: For files of weights: seed of the split and the noise.
    """
    spread: dict[str, Any] = {"jobs": jobs, "executor": executor, "address": address}
    target = out_file
    if measures is None and not all_checkpoints and (path / "study.json").exists():
        from analysis.study import Study

        wanted = Study.open(path, trust=trust, **spread).to_measure
    elif path.is_file() or not has_runs(path):
        files = [path] if path.is_file() else weight_files(path)
        if model is None:
            raise ValueError(f"`--model` is needed to measure the weights in {path}: a name or module:function.")
        data = {"name": dataset, "train_size": train_size, "label_noise": label_noise, "seed": data_seed}
        chosen = plan(measures)
        weights = [(WeightsFile(file.absolute(), model, model_options or {}, data), chosen, 0) for file in files]

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            return list(weights), []

        target = target or (path.with_suffix(".measures.parquet") if path.is_file() else None)
    else:
        chosen = plan(measures)

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            return to_measure(list_runs(path), chosen, chosen if all_checkpoints else None, trust=trust)

    if cost:
        show_budget(budget(wanted()[0]), jobs or cores())
        return 0

    def measured(calls: list[Call]) -> Iterable[pd.DataFrame]:
        if len(calls) == 1:
            with steps("measuring", len(calls[0][1])) as (begin, tell):
                return [measure_checkpoint(*calls[0], begin=begin, progress=tell, strict=path.is_file())]
        left = budget(calls)
        if left.checkpoints:
            print(announcement(left, jobs or cores()), file=sys.stderr)
        return track(take(calls, **spread), "measuring", len(calls))

    target = target or path / "measures.parquet"
    frame = tabulate(target, wanted, measured)
    show_measures(frame)
    print(f"table: {target}")
    return 0 if frame["value"].notna().any() else 1


def correlate(
    path: tyro.conf.Positional[Path],
    *,
    targets: tuple[str, ...] | None = None,
    measures: tuple[str, ...] | None = None,
    draws: int = 2000,
    permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
    top: int = 15,
    interval: Literal["stabilised", "bca", "percentile"] = "stabilised",
    tables_only: tuple[str, ...] | None = None,
    controls: tuple[str, ...] | None = None,
    settings: Path | None = None,
    settings_key: str = "weights",
) -> int:
    """Relate measures to generalisation, with intervals, p-values and corrections.

    Args:
        path: A study's folder, or a folder of runs that was measured.
        targets: What is to be explained; test error, gaps and shifted errors if left out.
        measures: What may explain it; all measures if left out.
        draws: Bootstrap resamples of configurations.
        permutations: Permutations for p-values.
        level: Coverage of the intervals.
        seed: Of resampling.
        top: Measures to print for each target.
        interval: Kind of the intervals of correlations: jackknife on Fisher's z scale, or of a bootstrap.
        tables_only: Further tables to make, of granulated, information, sign_errors, partial, multilevel, selection,
            prediction and power; all if left out.
        controls: Measures or hyper-parameters to hold fixed in partial correlations; the usual ones if left out.
        settings: For weights from elsewhere: CSV or Parquet with a row a file and its hyper-parameters as columns.
        settings_key: The column of `settings` that names the file.
    """
    from analysis.study import Study, present, write_statistics  # statistics are slow to import

    measured = tables.read(path / "measures.parquet")
    if settings is None and not has_runs(path):
        raise ValueError(
            f"`--settings` is needed: {path} holds no runs of ours, so a table (CSV or Parquet) must say how each file "
            f"of weights was trained, a row a file, named in the column `{settings_key}`."
        )
    runs = {run.run_id: run.settings() for run in list_runs(path)} if has_runs(path) else {}
    if settings is None:
        tables.own(measured, runs, path / "measures.parquet")
    unmeasured = sorted(set(runs) - set(measured["run_id"]))
    if unmeasured:
        print(f"note: {len(unmeasured)} of {len(runs)} runs have no row in the table, such as {unmeasured[0]}: measure "
              "them with `landscape measure`.", file=sys.stderr)  # fmt: skip
    if settings is not None:
        runs |= tables.read_settings(settings, key=settings_key)
    joined = tables.join_config(measured, runs) if settings is None else tables.join_settings(measured, runs)
    compare: list[tuple[str, str]] = []
    if (path / "study.json").exists():
        compare = present(Study.open(path).config.statistics.compare, measured)
    found = write_statistics(
        joined,
        path / "statistics",
        targets=targets,
        measures=measures,
        draws=draws,
        permutations=permutations,
        level=level,
        seed=seed,
        compare=compare,
        interval=interval,
        tables=tables_only,
        controls=controls,
    )
    for warning in found.warnings:
        print(f"note: {warning}", file=sys.stderr)
    show_correlations(found.table, top)
    print(f"statistics: {path / 'statistics'}")
    return 0


def compare(
    path: tyro.conf.Positional[Path],
    *,
    baseline: str = "sgd",
    group: str = "method",
    by: tuple[str, ...] = (),
    target: str = "test_error",
    choose: str = "validation_error",
    level: float = 0.95,
) -> int:
    """Compare training methods, each at the configuration chosen on validation data, paired over seeds.

    Args:
        path: A study's folder, or a folder of runs.
        baseline: The group that the others are compared with.
        group: What is compared: the method, or any key of the configuration.
        by: Keys of the configuration whose values are compared separately, such as label_noise.
        target: An error of the last epoch (test_error, train_error, ...), or a measured variant.
        choose: What chooses each group's configuration, likewise.
        level: Coverage of the intervals.
    """
    from analysis.outcomes import ERRORS, outcomes  # statistics are slow to import
    from analysis.reporting.methods import method_comparison
    from analysis.reporting.tables import to_csv, to_markdown
    from analysis.statistics.methods import compare_methods

    runs = outcomes(path, [name for name in dict.fromkeys((target, choose)) if name not in ERRORS])
    found = compare_methods(runs, baseline=baseline, group=group, by=by, target=target, choose=choose, level=level)
    shown = method_comparison(found, runs, group=group, by=by, target=target, choose=choose, level=level)
    write_bytes(path / "comparison.csv", to_csv(shown).encode())
    write_bytes(path / "comparison.md", to_markdown(shown).encode())
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in shown.shown.columns:
        grid.add_column(escape(str(name)), justify="left" if name in shown.text else "right")
    for _, row in shown.shown.iterrows():
        grid.add_row(*(escape(str(value)) for value in row))
    out.print(grid)
    print(shown.note)
    print(f"tables: {path / 'comparison.csv'}, {path / 'comparison.md'}")
    return 0


def report(path: tyro.conf.Positional[Path], *, figure: tuple[str, ...] | None = None) -> int:
    """Write the report of a study, or only some of its figures.

    Args:
        path: The study's folder.
        figure: Names of figures to redraw; the whole report if left out.
    """
    from analysis.reporting.pages import report as write_report  # and so are figures

    print(f"report: {write_report(path, figures=figure, jobs=None).resolve()}")
    return 0


def surface(
    models: tyro.conf.Positional[tuple[Path, ...]],
    *,
    axes: tuple[AxisKind, ...] = ("random", "random"),
    between: Between | None = None,
    align: bool = False,
    points: tuple[int, ...] | None = None,
    radius: tuple[float, ...] | None = None,
    normalise: Literal["filter", "layer", "none"] = "filter",
    metrics: tuple[str, ...] = ("loss", "error"),
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "test"),
    examples: int | None = 512,
    batch_size: int = 512,
    mode: Literal["eval", "batch", "recalibrate"] = "eval",
    refine: float | None = None,
    precision: Literal["float32", "float64"] | None = None,
    rho: float | None = None,
    batch: int | None = None,
    centred: bool = False,
    numbers: bool = True,
    seed: int = 0,
    step: int | None = None,
    out_folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    vtk: bool = False,
    cost: bool = False,
    jobs: int | None = None,
    trust: bool = False,
    model: str | None = None,
    model_options: dict[str, Option] | None = None,
    dataset: str = "digits",
    train_size: int | None = None,
    label_noise: float = 0.0,
    data_seed: int = 0,
) -> int:
    """Draw loss and error around a trained model, of several side by side, along training, or between models.

    What was computed is kept: the same command goes on where it was stopped, and only draws where nothing is left.
    Under torchrun the processes share the work.

    Args:
        models: A run's folder, RUN/checkpoints/STEP, or a file of weights; several are compared on common axes. Files
            of surfaces (.npz) are only drawn again.
        axes: One (a line), two (a plane) or three (a volume) of random, top, bottom (Hessian eigenvectors), gradient,
            sam, asam, obf, own (perturbations), pca (the plane of training; other runs' paths are drawn over it).
        between: Instead: the line between two models with its barrier, a fitted curve, or the plane through three.
        align: Permute the units of the other models to fit the first before going between them.
        points: Points along each axis; 101 on a line, 51 in a plane, 17 in a volume if left out.
        radius: Reach along each axis, in its own unit; what suits the axes if left out.
        normalise: Random directions: scaled filter by filter, layer by layer, or not.
        metrics: What is evaluated: loss, error, "error by class", or module:function.
        splits: On what.
        examples: Examples of each split, chosen once at random; None for all.
        batch_size: Examples of a forward pass; it matters for batch statistics.
        mode: Normalisation layers: running statistics, each batch's own, or estimated anew at each point.
        refine: Evaluate only where the surface bends by more than this share of its range, such as 0.01.
        precision: Of the evaluation; the run's own if left out.
        rho: Radius of perturbation axes; the run's own, or the method's default, if left out.
        batch: Examples that gradient and perturbation axes are made of; all of the first split if left out.
        centred: For pca: through the mean of the checkpoints instead of the last.
        numbers: Compute eigenvalues, trace and sharpness to stand beside the picture.
        seed: Of directions and examples.
        step: Another checkpoint of the runs than the last.
        out_folder: Folder of figures.
        vtk: Write files for ParaView too.
        cost: Only say what it would take.
        jobs: Processes; one a core if left out.
        trust: Import a model or dataset that a run names as module:function.
        model: For files of weights: the model's name or module:function.
        model_options: For files of weights: the model's sizes.
        dataset: For files of weights: the data's name or module:function.
        train_size: For files of weights: training examples.
        label_noise: For files of weights: label noise of the training data.
        data_seed: For files of weights: seed of the split and the noise.
    """
    from analysis.surfaces.survey import read_survey, survey, time_needed

    if models and all(m.suffix == ".npz" for m in models):
        return show_survey(read_survey(*models, out=out_folder), vtk=vtk)
    chosen = recipe(
        axes=axes, between=between, align=align, points=points, radius=radius, normalise=normalise, metrics=metrics,
        splits=splits, examples=examples, batch_size=batch_size, mode=mode, refine=refine, precision=precision, rho=rho,
        batch=batch, centred=centred, numbers=numbers, seed=seed,
    )  # fmt: skip
    data = {"name": dataset, "train_size": train_size, "label_noise": label_noise, "seed": data_seed}
    places = [
        checkpoint_of(m, step=step, trust=trust, model=model, model_options=model_options, data=data) for m in models
    ]
    if cost:
        print(time_needed(places, chosen, jobs=jobs))
        return 0

    def announce(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    command = "landscape surface " + " ".join(str(m) for m in models)
    with crew() as team:
        found = survey(places, chosen, out=out_folder, jobs=jobs, track=track, announce=announce, command=command)
        return show_survey(found, vtk=vtk) if team.leads else 0


def list_names(what: tyro.conf.Positional[Literal["methods", "measures", "models", "datasets"]]) -> int:
    """Print what there is, with a line of help each.

    Args:
        what: Which list.
    """
    grid = Table(box=None, pad_edge=False, header_style="bold")
    if what == "methods":
        for name in ("name", "what it is", "passes a step", "rho", "options", "rule", "source"):
            grid.add_column(name, overflow="fold")
        for name, method in METHODS.items():
            options = ", ".join(f"{k}={p.default}" for k, p in knobs(method.compose).items())
            rho = "-" if method.rho is None else f"{method.rho:g}"
            grid.add_row(name, method.help, method.cost, rho, options, method.rule, method.source)
    elif what == "measures":
        for name in (
            "name",
            "what it is",
            "a larger value means",
            "expected sign with the gap",
            "invariant to",
            "taken",
        ):
            grid.add_column(name, overflow="fold")
        for name, entry in MEASURES.items():
            sign = {1: "+", -1: "-", 0: ""}[entry.sign]
            taken = "always" if entry.usual else "if named"
            grid.add_row(name, entry.help, entry.higher_means, sign, entry.invariant, taken)
    else:
        grid.add_column("name")
        grid.add_column("what it is", overflow="fold")
        for name, thing in (MODELS if what == "models" else DATASETS).items():
            grid.add_row(name, escape(thing.help))
    out.print(grid)
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "study": study,
    "train": train,
    "measure": measure,
    "correlate": correlate,
    "compare": compare,
    "report": report,
    "surface": surface,
    "list": list_names,
}


def show_survey(found: "Survey", *, vtk: bool) -> int:
    """Write a survey's figures, and print how to read them and where they are."""
    page, *_ = found.write(vtk=vtk)
    print(found.notes())
    for sheet in found.sheets:
        print(f"surface: {sheet.file}")
    print(f"figures: {found.folder.resolve()}\npage: {page.resolve()}")
    return 0


def show_measures(frame: pd.DataFrame) -> None:
    """Print one run's last values, or how much was measured and what failed."""
    if frame["run_id"].nunique() == 1:
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("measure", "value", "± stderr", "note"):
            grid.add_column(name)
        rows = tables.with_variant(tables.last_step(frame))
        for name, value, stderr, note in rows[["variant", "value", "stderr", "warnings"]].itertuples(index=False):
            grid.add_row(name, f"{value:.6g}", "" if stderr == 0 else f"{stderr:.2g}", note)
        out.print(grid)
    missing = frame[frame["value"].isna()]
    print(f"{len(frame)} values of {frame['run_id'].nunique()} runs, {len(missing)} missing")
    for reason, count in missing["warnings"].value_counts().head(5).items():
        print(f"  {count} x {reason}")


def show_budget(found: Budget, jobs: int) -> None:
    """Print what measuring would cost, by measure."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("measure", "gradients", "seconds"):
        grid.add_column(name, justify="left" if name == "measure" else "right")
    for key, gradients in sorted(found.gradients.items(), key=lambda item: -item[1]):
        grid.add_row(key, f"{gradients:.0f}", f"{gradients * found.seconds_a_gradient:.1f}")
    out.print(grid)
    print(announcement(found, jobs))


def show_correlations(frame: pd.DataFrame, top: int) -> None:
    """Print the strongest measures for each target."""
    kendall = frame[frame["coefficient"] == "kendall"]
    for target, part in kendall.groupby("target", sort=False):
        grid = Table(
            title=f"Kendall tau_b with {target}", box=None, pad_edge=False, header_style="bold", title_justify="left"
        )
        for name in ("measure", "tau_b", "interval", "p (Holm)", "within methods", "note"):
            grid.add_column(name)
        for row in part.sort_values("value", key=abs, ascending=False).head(top).itertuples():
            note = "sign reverses within methods" if row.reversal else ""
            grid.add_row(
                str(row.measure),
                f"{row.value:+.3f}",
                f"[{row.low:+.3f}, {row.high:+.3f}]",
                f"{row.p_holm:.3g}",
                f"{row.within:+.3f}",
                "; ".join(t for t in (note, str(row.warnings)) if t),
            )
        out.print(grid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; exits with 0, or 2 for a bad argument, 1 for a failure, 130 after Ctrl-C.

    With the environment variable LANDSCAPE_TRACEBACK set, errors keep their traceback.
    """
    sys.path.insert(0, str(Path.cwd()))  # so that module:function finds the user's own module
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="landscape",
            description="Loss landscapes, sharpness and perturbed forgetting.",
            args=arguments,
        )
    except (ValueError, FileNotFoundError, FileExistsError, PermissionError, ImportError) as error:
        if os.environ.get("LANDSCAPE_TRACEBACK"):
            raise
        code = _complain(str(error), 2)
    except Stopped as stop:  # a sweep, which says how far it came
        code = _complain(str(stop), stop.code)
    except KeyboardInterrupt:
        code = _complain("stopped; what was finished is kept, and the same command goes on from there.", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing is left to say
        code = 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = (
            f"the disk is full: make room for {error.filename or 'files'}, then run the same command; "
            "what was finished is kept."
            if full
            else str(error)
        )
        code = _complain(hint, 1)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(f"landscape: {message}", file=sys.stderr)
    return code
