"""`landscape study`: from a study file to its report."""

import sys
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Annotated

import tyro

from analysis.cli.options import SPREAD, Spread
from analysis.path import find_own_modules
from analysis.progress import track
from trainers.data.sources.named import download as fetch
from trainers.runs.tracking import TrackerName
from trainers.sweep.running import parse_shard

if TYPE_CHECKING:
    from analysis.study import Study


def study(
    file: tyro.conf.Positional[Path],
    *,
    out_folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    place: Spread = SPREAD,
    trust: bool = False,
    extend: bool = False,
    shard: str | None = None,
    time_limit: str | None = None,
    track_with: Annotated[tuple[TrackerName, ...], tyro.conf.arg(name="track")] = (),
    checkpoint_activations: bool = False,
    download: bool = False,
    dry_run: bool = False,
) -> int:
    """Run a study from its file to the report; what is done already is kept.

    Args:
        file: A study file, such as studies/digits.yaml.
        out_folder: Folder of the study; runs/<name> if left out.
        place: Where to train and measure.
        trust: Import a model or dataset that the file names as module:function.
        extend: Go on in a folder that was made with another configuration.
        shard: i/n trains only part i of n, counted from 0, and makes no report: for array jobs.
        time_limit: For training, in seconds or as HH:MM:SS; runs in progress then stop and can be continued.
        track_with: Show the runs in TensorBoard or W&B too, while they train.
        checkpoint_activations: Compute activations again in backward passes instead of keeping them: less memory.
        download: Fetch datasets to their paths where they are not there.
        dry_run: Say how many runs there are, what they would take in time and disk, and what is missing; train nothing.
    """
    from analysis.study import Study, pays, read_study

    find_own_modules(trust=trust)
    runtime = replace(place.runtime(), checkpoint_activations=checkpoint_activations)
    config = read_study(file, trust=trust, folder=out_folder)
    if download and not dry_run:
        for name in dict.fromkeys(c.dataset for c in config.configs()):
            fetch(name)
    folder = out_folder or Path("runs") / config.name
    if place.executor == "population" or (place.executor is None and pays(config, runtime, folder)):
        config = config.in_populations()
        print("training many models at once: executor population", file=sys.stderr)
    command = f"landscape study {file}" + (f" --out {out_folder}" if out_folder else "")
    work = Study(
        config, folder, runtime=runtime, trust=trust,
        shard=None if shard is None else parse_shard(shard), time_limit=time_limit, command=command,
        track_with=track_with,
    )  # fmt: skip
    if dry_run:
        return show_forecast(work)
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
    finished = any(run.status()["status"] == "finished" for run in work.runs())
    return 1 if not finished or any(status["status"] == "failed" for _, status in bad) else 0


def show_forecast(work: "Study") -> int:
    """Print what a study would take; the exit code is 2 where something is missing, which is said as an error."""
    from analysis.forecast import forecast
    from analysis.measures.budget import shown

    found = forecast(work)
    jobs = min(work.runtime.processes, max(1, found.left))
    free = disk_usage(next(p for p in (work.folder.absolute(), *work.folder.absolute().parents) if p.exists())).free
    print(f"runs: {found.runs}, of which {found.left} are left to train")
    if found.left:
        spent = f"training {shown(found.training / jobs)}, measuring {shown(found.measuring / jobs)}"
        print(f"time: about {shown(found.duration(jobs))} on {jobs} processes ({spent}), statistics and report apart")
        print(f"disk: about {found.size / 1e6:.0f} MB of {free / 1e9:.0f} GB free, in {work.folder}")
    print("missing: nothing" if found.size < free else "missing: room on the disk")
    return 0 if found.size < free else 2
