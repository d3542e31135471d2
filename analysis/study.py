"""A study: from one YAML file to runs, measures, statistics and a report.

Every step leaves files, so it can be redone alone.
"""

import importlib.metadata
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from pydantic import Field

from analysis import table
from analysis.measures.collect import Call, Weights, tabulate, take, to_measure, work_of
from analysis.measures.plan import Choice, Examples, plan
from analysis.measures.registry import expected_sign
from analysis.pace import Work
from analysis.statistics.catalogue import STATISTICS
from analysis.statistics.correlation import Correlations, correlate, defaults
from analysis.studyfile import StudyConfig, read_study
from analysis.surfaces.places import checkpoint_of
from analysis.surfaces.recipe import recipe
from analysis.version import version
from trainers.config import TrainConfig
from trainers.data.shifted import Shifted, shifted_sets
from trainers.data.sources.named import fingerprint
from trainers.files.lock import Lock, locked
from trainers.files.reading import Shape, read_json
from trainers.files.writing import write_json
from trainers.machine import processor
from trainers.reference import is_reference, load_reference
from trainers.runs.folder import Run, list_runs
from trainers.runs.tracking import check_trackers
from trainers.runtime import HERE, Runtime
from trainers.sharpness_aware.methods.own import method_named
from trainers.sweep.alike import SMALL
from trainers.sweep.cluster import import_ray
from trainers.sweep.parallel import cores
from trainers.sweep.rehearsal import check_trust, rehearse
from trainers.sweep.running import part, train_all

__all__ = [
    "Study",
    "StudyConfig",
    "changes",
    "commit",
    "environment",
    "processor",
    "read_study",
    "write_statistics",
]


class Track(Protocol):
    """Shows progress over items, and yields them."""

    def __call__(self, items: Iterable[Any], what: str, total: int, work: Work | None = None) -> Iterator[Any]: ...


MADE = "delete it and run `landscape study` again"


class StudyFile(Shape):
    """study.json, as far as a study goes on from it."""

    study: dict[str, Any]
    digest: str | None = None
    command: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)
    runs: list[str] = Field(default_factory=list)
    data: dict[str, str] = Field(default_factory=dict)


@dataclass
class Study:
    """A study and its folder; each method does one step and writes its file.

    Attributes:
        config: The study file's content.
        folder: Where everything goes.
        runtime: Where runs are trained and measured and surfaces drawn.
        trust: Import a model or dataset that the study names as module:function.
        shard: (i, n): train only part i of n, for array jobs.
        time_limit: For training, in seconds or as "HH:MM:SS".
        track_with: Trackers that show the runs while they train, beside their files.
        command: What started it, for the report.
        seconds: Time spent, by step.
        promised: Ids of the runs that the folder was made with; empty for a new one.
    """

    config: StudyConfig
    folder: Path
    runtime: Runtime = HERE
    trust: bool = False
    shard: tuple[int, int] | None = None
    time_limit: float | str | None = None
    track_with: Sequence[str] = ()
    command: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    promised: frozenset[str] = frozenset()

    @classmethod
    def open(cls, folder: str | Path, **settings: Any) -> "Study":
        """The study that made a folder.

        Raises:
            FileNotFoundError: If the folder was not made by a study.
        """
        folder = Path(folder)
        path = folder / "study.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} was not made by a study (no study.json): make one with `landscape study`."
            )
        stored = read_json(path, StudyFile, hint=MADE)
        config = StudyConfig.parse(stored["study"], where=str(path))
        assert isinstance(config, StudyConfig)
        config.recall(folder)
        found = {"command": stored.get("command", ""), "seconds": stored.get("seconds", {})}
        return cls(config, folder, promised=frozenset(stored.get("runs", ())), **found, **settings)

    def prepare(self, *, extend: bool = False) -> list[TrainConfig]:
        """Claim the folder for this study.

        Args:
            extend: Accept a folder made with another configuration; its finished runs that still belong are kept.

        Raises:
            FileExistsError: If the folder was made with another configuration.
            ValueError: If data, model or method of a run that is left do not fit together.
            PermissionError: For a module:function without `trust`.
            ImportError: If a package is missing.
        """
        self.look_ahead()
        with self.alone():
            return self._claim(extend=extend)

    def look_ahead(self) -> None:
        """Check that every run that is left can begin; nothing is written."""
        configs = self.config.configs()
        if self.runtime.executor == "ray":
            import_ray()
        if self.shard is not None:
            part(configs, self.shard)
        check_trust(configs, trust=self.trust)
        check_trackers(self.track_with)
        rehearse(
            [c for c in configs if not Run(self.folder / "runs" / c.run_id).finished],
            out=self.folder / "runs",
            trust=self.trust,
            checkpoint_activations=self.runtime.checkpoint_activations,
            shifted=self.shifted(),
        )

    def alone(self) -> AbstractContextManager[Lock]:
        """The right to write what belongs to the whole study; waits for another process that has it."""
        return locked(self.folder, "study.lock", wait=math.inf)

    def _claim(self, *, extend: bool) -> list[TrainConfig]:
        configs = self.config.configs()
        path = self.folder / "study.json"
        if path.exists():
            stored = read_json(path, StudyFile, hint=MADE)
            if stored.get("digest") != self.config.digest and not extend:
                what = changes(stored["study"], self.config)
                raise FileExistsError(
                    f"{self.folder} was made with another configuration ({what}): choose another folder with `--out`, "
                    f"or add `--extend` to keep its runs and go on with the new one."
                )
            before, now = stored.get("data") or {}, fingerprints(configs)
            other = [name for name in now if before.get(name, now[name]) != now[name]]
            if other and not extend:
                raise FileExistsError(
                    f"{self.folder} was made with other data: the files of {', '.join(other)} have changed since: "
                    f"put back what was there, choose another folder with `--out`, or add `--extend` to train anew."
                )
            self.seconds = stored.get("seconds", {})
        self.write(configs)
        return configs

    def write(self, configs: Sequence[TrainConfig]) -> None:
        """Write study.json."""
        values = {
            "name": self.config.name,
            "question": self.config.question,
            "command": self.command,
            "created": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "seconds": {step: round(spent, 1) for step, spent in self.seconds.items()},
            "digest": self.config.digest,
            "study": self.config.model_dump(mode="json"),
            "compare": [list(pair) for pair in self.config.statistics.compare],
            "runs": [c.run_id for c in configs],
            "data": fingerprints(configs),
            "environment": environment(),
        }
        write_json(self.folder / "study.json", values)

    def runs(self) -> list[Run]:
        """The study's runs that have a folder."""
        wanted = self.promised or {c.run_id for c in self.config.configs()}
        return [run for run in list_runs(self.folder) if run.run_id in wanted]

    def train(self, track: Track) -> list[Run]:
        """Train what is not trained yet, or of it the part that is this process's share."""
        configs = self.config.configs()
        if self.shard is not None:
            configs = part(configs, self.shard)
        ended = train_all(
            configs,
            out=self.folder / "runs",
            runtime=self.runtime,
            trust=self.trust,
            time_limit=self.time_limit,
            track=self.track_with,
        )
        return list(track(ended, "training", len(configs), self._work(configs)))

    def _work(self, configs: Sequence[TrainConfig]) -> Work:
        """What training has to do, in epochs of plain gradients: with a perturbation an epoch costs two, roughly."""
        runs = self.folder / "runs"
        costs = {
            c.run_id: 0
            if Run(runs / c.run_id).finished
            else c.epochs * (1 if method_named(c.method).rho is None else 2)
            for c in configs
        }
        return Work(lambda run: costs.get(run.run_id, 0), sum(costs.values()), self.runtime.processes)

    def shifted(self, given: Mapping[str, str] | None = None) -> tuple[Shifted, ...]:
        """The shifted test sets from elsewhere that the study names, or that are given in their place.

        Raises:
            ValueError: As `shifted_sets`.
            FileNotFoundError: Likewise.
            PermissionError: Where the study names one as module:function, without `trust`.
        """
        return shifted_sets(self.config.shifted, trust=self.trust) if given is None else shifted_sets(given, trust=True)

    def to_measure(
        self,
        measures: Choice | None = None,
        *,
        all_checkpoints: bool = False,
        weights: Weights | None = None,
        shifted: Mapping[str, str] | None = None,
        examples: Examples | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> tuple[list[Call], list[pd.DataFrame]]:
        """The checkpoints that the study measures, and rows for runs that have none.

        Args:
            measures: Instead of the study's own.
            all_checkpoints: Take them at every checkpoint, instead of what the study takes along training.
            weights: Of these weights, instead of the study's own choice.
            shifted: Shifted sets by name, instead of the study's own.
            examples: Instead of the study's own, see `plan`.
            settings: Options in the place of the study's own, likewise.
        """
        those: Weights = weights or self.config.weights or "last"
        along = self.config.trajectory
        where = along.condition
        examples = self.config.examples if examples is None else examples
        trust = self.trust or measures is not None
        own = self.config.measures if measures is None else measures
        chosen = plan(own, examples=examples, settings=settings, trust=trust)
        if measures is not None or all_checkpoints:
            every = chosen if all_checkpoints else None
            sets = self.shifted(shifted)
            return to_measure(self.runs(), chosen, every, weights=those, trust=self.trust, shifted=sets)
        return to_measure(
            self.runs(),
            chosen,
            plan(along.measures, examples=examples, trust=self.trust) if along.measures else None,
            weights=those,
            trust=self.trust,
            shifted=self.shifted(shifted),
            along_runs=None if where is None else lambda config: where.holds(config.model_dump()),
        )

    def measure(self, track: Track) -> pd.DataFrame:
        """Measure what is not measured yet, and write measures.parquet."""

        def measured(calls: Sequence[Call]) -> Iterator[pd.DataFrame]:
            return track(take(calls, self.runtime), "measuring", len(calls), work_of(calls, self.runtime))

        return tabulate(self.folder / "measures.parquet", self.to_measure, measured)

    def correlate(self, **told: Any) -> Correlations:
        """Relate measures to generalisation, and write statistics.json and statistics/*.parquet.

        Args:
            told: Settings of `analysis.correlate` that take the place of the study's own; None leaves it.

        Raises:
            ValueError: If measures.parquet has rows of runs that are not in the folder.
        """
        path = self.folder / "measures.parquet"
        runs = {run.run_id: run for run in list_runs(self.folder)}
        measures = table.own(table.read(path), runs, path)
        strangers = set(runs) - (self.promised or {c.run_id for c in self.config.configs()})  # of an earlier study here
        measures = measures[~measures["run_id"].isin(strangers)]
        joined = table.join_config(measures, {key: run.settings() for key, run in runs.items() if key not in strangers})
        own = self.config.statistics.model_dump(
            include={"draws", "permutations", "level", "seed", "correction", "representatives"}
        )
        chosen = own | {"compare": self.config.statistics.compare}
        chosen |= {key: value for key, value in told.items() if value is not None}
        return write_statistics(joined, self.folder / "statistics", **chosen)

    def survey(self, track: Track) -> list[Path]:
        """Draw the surfaces that the study asks for, and write surfaces.json; needs the runs and the statistics."""
        wanted = self.config.surfaces
        path = self.folder / "surfaces.json"
        if wanted is None:
            path.unlink(missing_ok=True)
            return []
        from analysis.curves import fitted
        from analysis.results import StudyResults
        from analysis.surfaces.survey import survey  # none is needed by a worker that only measures

        drawn = recipe(**wanted.options)
        for name in filter(is_reference, drawn.metrics):
            load_reference(name, trust=self.trust)
        chosen, rule = StudyResults.load(self.folder).best_configurations()
        folders = {run.run_id: run.folder for run in self.runs()}
        places = {}
        for label in wanted.methods:
            rows = chosen[chosen["method"] == label].sort_values([*table.SEED_COLUMNS, "run_id"])
            if len(rows):
                places[label] = checkpoint_of(folders[str(rows["run_id"].iloc[0])], trust=self.trust)
        if not places:
            path.unlink(missing_ok=True)
            return []
        found = survey(list(places.values()), drawn, runtime=self.runtime, track=track, wait=math.inf, fit=fitted)
        files = [sheet.file for sheet in found.sheets if sheet.file is not None]
        shown = {
            label: str(file.relative_to(self.folder.absolute())) for label, file in zip(places, files, strict=True)
        }
        write_json(path, {"surfaces": shown, "rule": rule}, sort=False)
        return files

    def timed(self, step: str, function: Callable[[], Any]) -> Any:
        """Call a step and add its time to the record."""
        start = time.monotonic()
        result = function()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start
        return result

    def all(self, track: Track, *, extend: bool = False) -> Path:
        """Every step from training to the report; returns the report's path."""
        configs = self.prepare(extend=extend)
        trained = self.timed("training", lambda: self.train(track))
        self.write(configs)
        if all(run.status()["status"] == "failed" for run in trained):
            raise ValueError(f"no run of the study could be trained; the first: {trained[0].status()['reason']}")
        self.timed("measuring", lambda: self.measure(track))
        from analysis.reporting.pages import report  # figures are slow to import, and only needed here

        with self.alone():
            self.timed("statistics", self.correlate)
            if self.config.surfaces is not None:
                self.timed("surfaces", lambda: self.survey(track))
            self.write(configs)
            path: Path = self.timed("report", lambda: report(self.folder, jobs=self.runtime.jobs))
        return path


def write_statistics(joined: pd.DataFrame, folder: Path, **settings: Any) -> Correlations:
    """Correlate a joined table and write the tables of statistics, FOLDER/<name>.parquet, and how: FOLDER.json.

    How is every setting that was used, also those that nobody chose; `usual` names those that a rule decided.
    """
    found = correlate(joined, **settings)
    used = {**defaults(), **settings}
    usual = [key for key in ("permutations",) if used[key] is None]
    used |= {"permutations": found.permutations, "usual": usual}
    with locked(folder, "statistics.lock", wait=math.inf):  # tables that belong together
        write_json(folder.with_suffix(".json"), {key: value for key, value in used.items() if value is not None})
        _write_tables(found, folder)
    return found


def _write_tables(found: Correlations, folder: Path) -> None:
    signs = found.table["measure"].str.split("[").str[0].map(expected_sign)
    table.write(found.table.assign(expected_sign=signs), folder / "correlations.parquet")
    table.write(found.comparisons, folder / "comparisons.parquet")
    table.write(found.ceilings, folder / "ceilings.parquet")
    for name in STATISTICS:
        more: pd.DataFrame = getattr(found, name)
        path = folder / f"{name}.parquet"
        if len(more.columns):
            table.write(more, path)
        else:
            path.unlink(missing_ok=True)  # of an earlier call that asked for it


def fingerprints(configs: Sequence[TrainConfig]) -> dict[str, str]:
    """What the files of each data set with a path are known by, by its name."""
    noted = {config.dataset: fingerprint(config.dataset) for config in configs}
    return {name: found for name, found in noted.items() if found is not None}


def changes(old: Mapping[str, Any], new: StudyConfig) -> str:
    """Which parts of a study differ."""
    now = new.model_dump(mode="json")
    return "other " + ", ".join(key for key in now if old.get(key) != now[key])


def pays(study: StudyConfig, runtime: Runtime, folder: Path) -> bool:
    """Whether a study's runs are to be trained many at once without being told: most are small models, all on GPUs.

    A folder that was begun goes on as it was. On a CPU it is never so, since runs change in rounding.
    """
    if any(torch.device(name).type != "cuda" for name in runtime.devices):
        return False
    changed = study.in_populations()
    path = folder / "study.json"
    if path.exists():
        return read_json(path, StudyFile, hint=MADE).get("digest") == changed.digest
    configs = [config.resolved() for config in changed.configs()]
    return 2 * sum(c.executor == "population" and c.model in SMALL for c in configs) > len(configs)


def environment() -> dict[str, Any]:
    """What a result may depend on besides its configuration."""
    packages = ("torch", "numpy", "scipy", "pandas", "scikit-learn")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        **versions,
        "landscape": version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the source tree this code runs from; empty where it is installed."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
