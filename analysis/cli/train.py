"""`landscape train`: one run, or a search of its radius."""

from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from analysis.cli.options import HERE, Here
from analysis.cli.output import show_table
from analysis.path import find_own_modules
from analysis.progress import track
from trainers.config import TrainConfig, train_config
from trainers.data.augmentation import Given
from trainers.data.sources.named import download as fetch
from trainers.runs.checkpoint import read_meta
from trainers.runs.folder import HISTORY, Run
from trainers.runs.loop import fit
from trainers.runs.signals import Left
from trainers.runs.tracking import TrackerName
from trainers.runtime import started
from trainers.sharpness_aware.methods.own import import_methods
from trainers.weights.known import remember

TRY_AGAIN = 75  # EX_TEMPFAIL: the same command continues


def _arguments() -> type:
    """The fields of `TrainConfig` as command-line options; `train_config` then checks them, with its own messages."""
    fields = []
    for name, info in TrainConfig.model_fields.items():
        annotation = Annotated[info.annotation, tyro.conf.arg(help=info.description)]  # type: ignore[name-defined]
        default = info.get_default(call_default_factory=True)
        given = field(default_factory=dict) if isinstance(default, dict) else field(default=default)
        fields.append((name, annotation, given))
    return make_dataclass("Configuration", fields, frozen=True)


if TYPE_CHECKING:
    Configuration = TrainConfig
else:
    Configuration = tyro.conf.OmitArgPrefixes[_arguments()]


def train(
    config: Configuration,
    *,
    out_folder: Annotated[Path, tyro.conf.arg(name="out")] = Path("runs"),
    place: Here = HERE,
    time_limit: str | None = None,
    snapshot_seconds: float = 30.0,
    log_steps: int | None = None,
    track_with: Annotated[tuple[TrackerName, ...], tyro.conf.arg(name="track")] = (),
    checkpoint_activations: bool = False,
    rho_search: bool = False,
    search_radii: tuple[float, ...] | None = None,
    search_share: float = 0.2,
    search_seeds: int = 1,
    download: bool = False,
    other_ranks: bool = False,
) -> int:
    """Train one run; a finished run is skipped, an interrupted one is continued.

    The exit code is 0 if the run has ended, 75 if the time limit stopped it, 130 after Ctrl-C, 143 after SIGTERM, 138
    after SIGUSR1. The same command then continues it.

    Under torchrun all processes train it together, each on its part of every batch.

    Args:
        config: Everything that determines the result.
        out_folder: Folder of runs; the run goes into a subfolder named by its hash.
        place: Where to train; several processes or devices are for the search of a radius.
        time_limit: Stop with a snapshot before this time has passed, in seconds or as HH:MM:SS.
        snapshot_seconds: Shortest time between two snapshots, from which a killed run continues.
        log_steps: Log every n-th step to steps.parquet.
        track_with: Show the run in TensorBoard or W&B too.
        checkpoint_activations: Compute activations again in backward passes instead of keeping them: less memory.
        rho_search: Try several radii in short runs and suggest one; the run itself is not trained.
        search_radii: The radii to try; by default 0 and factors of three around the given one.
        search_share: Fraction of the epochs that each of these runs gets.
        search_seeds: Number of runs for each radius.
        download: Fetch the dataset to its path if it is not there.
        other_ranks: Under torchrun, go on with a run that another number of processes began.
    """
    find_own_modules(config.method)
    import_methods({"method": config.method}, trust=True)  # named on the command line
    chosen = train_config({name: getattr(config, name) for name in TrainConfig.model_fields})
    find_own_modules(
        chosen.model, chosen.dataset, chosen.task, *(text for text in chosen.augment if Given.read(text).needs_trust)
    )
    runtime = replace(place.runtime(), checkpoint_activations=checkpoint_activations)
    remember(out_folder, chosen.init)
    if rho_search:
        if started():
            raise ValueError("`--rho-search` trains many runs, one process each: start it without torchrun.")
        if download:
            fetch(chosen.dataset)
        return _search_radius(
            chosen,
            out=out_folder,
            radii=search_radii,
            share=search_share,
            seeds=search_seeds,
            runtime=runtime,
        )
    with runtime.joined() as among:
        if download:
            among.ranks.led(lambda: fetch(chosen.dataset))
        rows = iter(range(chosen.epochs))
        if among.ranks.leads:
            rows = track(rows, f"{chosen.method} {chosen.run_id}", chosen.epochs)

        def advance(_: dict[str, Any]) -> None:
            next(rows, None)

        code = 0
        try:
            run = fit(
                chosen,
                out=out_folder,
                device=among.single(),
                workers=among.workers,
                trust=True,  # named on the command line itself
                progress=advance,
                time_limit=time_limit,
                snapshot_seconds=snapshot_seconds,
                log_steps=log_steps,
                track=track_with,
                checkpoint_activations=checkpoint_activations,
                backend=among.backend,
                ranks=among.ranks,
                other_ranks=other_ranks,
            )
        except Left as stop:  # after a signal; the snapshot is written
            run, code = Run(stop.folder), int(stop.code or 0)
        again = among.ranks.led(lambda: run.status()["status"] == "interrupted")
    if among.ranks.leads:
        _tell(run, chosen)
    return code or (TRY_AGAIN if again else 0)


def _tell(run: Run, chosen: TrainConfig) -> None:
    """Print how a run ended."""
    status = run.status()
    line = f"{status['status']} after {status['epochs']} epochs" + (
        f" ({status['reason']})" if status["reason"] else ""
    )
    if status["epochs"]:
        last = run.history().iloc[-1]
        own = [c for c in last.index if c.startswith("test_") and c not in HISTORY]  # of a task of one's own
        score = (own or ["test_error"])[0].removeprefix("test_")
        values = (f"{split} {score.replace('_', ' ')} {last[f'{split}_{score}']:.4f}" for split in ("train", "test"))
        line += f": {', '.join(values)}"
        if chosen.average is not None:
            line += f", with the average of weights {last[f'average_test_{score}']:.4f}"
    print(line)
    if status.get("skipped_steps"):
        print(f"{status['skipped_steps']} steps skipped by overflow, the first: {', '.join(status['first_skipped'])}")
    for line in _start_of(run):
        print(line)
    print(f"run: {run.folder}")


def _start_of(run: Run) -> list[str]:
    """What is to be said of the weights that a run started from."""
    first = run.checkpoints().get(0)
    told = None if first is None else read_meta(first).get("init")
    if not told or "file" not in told:
        return []
    return [f"initial weights: {told['file']}, {told['taken']}", *(f"note: {note}" for note in told["notes"])]


def _search_radius(chosen: TrainConfig, **options: Any) -> int:
    """Search the radius and print the table and the suggestion."""
    from trainers.sweep.radius_search import search_radius

    search = search_radius(chosen, trust=True, **options)
    rows = [
        (
            f"{row.rho:g}",
            f"{row.validation_error:.4f}",
            "" if row.seeds == 1 else f"{row.deviation:.4f}",
            f"{row.train_error:.4f}",
            "; ".join(t for t in ("best" * (row.rho == search.best), str(row.status)) if t),
        )
        for row in search.table.itertuples()
    ]
    score = search.score.replace("_", " ")
    show_table(("rho", f"validation {score}", "± deviation", f"train {score}", "note"), rows)
    for note in search.notes:
        print(f"note: {note}")
    print(f"runs: {search.folder}")
    if search.best is None:
        return 1
    print(f"suggestion: --rho {search.best:g}")
    return 0
