"""Checkpoints that can be measured: of our runs, and files of weights from elsewhere."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from analysis import table
from analysis.measures.cache import Cache, option_hash
from analysis.measures.plan import Plan
from analysis.measures.registry import failed_rows
from analysis.measures.subject import Subject
from analysis.measures.taking import Begin, measures_of, silent
from landscape.progress import Progress
from trainers.data.loading import DataBundle, load_dataset
from trainers.data.sources.named import identity
from trainers.models.building import build_model
from trainers.runs.checkpoint import LIGHTNING, OF_LIGHTNING, PARAMS
from trainers.runs.folder import Run, load_data

STORE_SECONDS = 5.0  # of measuring that a killed process may lose, beside the measure it was at
WEIGHTS = table.WEIGHTS
DATA_KEYS = (
    "dataset", "train_size", "validation_size", "test_size", "label_noise", "spurious", "data_seed", "input_size",
    "on_corrupt", "dataset_digest",
)  # fmt: skip


class Checkpoint(Protocol):
    """One checkpoint, by its place; small, so that it travels to other processes."""

    @property
    def run_id(self) -> str:
        """What its rows are known by."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        ...

    @property
    def cache(self) -> Cache:
        """Where its rows are kept."""
        ...

    @property
    def context(self) -> Mapping[str, Any]:
        """What decides its numbers beside its weights, the measure, the options and the seed."""
        ...

    def load(self, seed: int, device: str = "cpu") -> Subject:
        """The checkpoint, ready to be measured on a device."""
        ...


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of one of our runs.

    Attributes:
        folder: The run's.
        step: Optimizer steps taken.
        trust: Import a model or dataset that the run names as module:function.
        dataset: Where the run's data lie now, as `scheme:PATH`; None where they did.
    """

    folder: Path
    step: int
    trust: bool = False
    dataset: str | None = None

    @property
    def run_id(self) -> str:
        """What its rows are known by."""
        return Run(self.folder).run_id

    @property
    def cache(self) -> Cache:
        """Where its rows are kept."""
        run = Run(self.folder)
        weights = run.checkpoint(self.step) / PARAMS
        return Cache(self.folder / "measures", str(self.step), weights, (self.run_id, self.step))

    @property
    def context(self) -> Mapping[str, Any]:
        """What else decides its numbers."""
        return {}  # all else is in the configuration, which names the run

    def load(self, seed: int, device: str = "cpu") -> Subject:
        """The checkpoint, ready to be measured on a device."""
        run = Run(self.folder)
        config = run.config()
        if self.dataset is not None:
            config = config.moved(self.dataset)
        recipe = json.dumps([getattr(config, key) for key in (*DATA_KEYS, "precision")], default=str)
        data = _data(recipe, device, lambda: load_data(config, trust=self.trust))
        return Subject.of_checkpoint(run, self.step, data, trust=self.trust, seed=seed).on(device)


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights from elsewhere, with the model and the data that go with it.

    Attributes:
        path: .safetensors, or a `state_dict` of torch (.pt, .pth, .bin).
        model: Name, or module:function.
        model_options: The model's sizes.
        data: Options of `trainers.load_dataset`, with the dataset's name under "name"; where they leave it out, small
            data sets keep no examples for validation.
        step: Optimizer steps taken, where known.
    """

    path: Path
    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    step: int = 0

    @property
    def run_id(self) -> str:
        """What its rows are known by: the file's name, with its ending where another one differs in that alone."""
        others = (self.path.with_suffix(ending) for ending in WEIGHTS if ending != self.path.suffix)
        return self.path.name if any(other.exists() for other in others) else self.path.stem

    @property
    def cache(self) -> Cache:
        """Where its rows are kept."""
        return Cache(self.path.parent / "measures", self.path.name, self.path)

    @property
    def context(self) -> Mapping[str, Any]:
        """What else decides its numbers."""
        data = {**self.data, "name": identity(self.data["name"])}
        return {"model": self.model, "model_options": dict(self.model_options), "data": data}

    def load(self, seed: int, device: str = "cpu") -> Subject:
        """The checkpoint, ready to be measured on a device."""
        recipe = json.dumps(dict(self.data), sort_keys=True, default=str)
        data = _data(recipe, device, lambda: load_dataset(**{"validation_size": None, **self.data}))
        model = build_model(
            self.model, shape=data.shape, classes=data.classes, generator_seed=0, options=dict(self.model_options)
        )
        return replace(Subject.of_weights(self.path, model, data, seed=seed), run_id=self.run_id).on(device)


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder, in order of name.

    Raises:
        FileNotFoundError: If there is none.
    """
    files = [path for path in folder.iterdir() if path.is_file()]
    paths = sorted(path for path in files if path.suffix in WEIGHTS)
    if not paths and any(path.suffix == LIGHTNING for path in files):
        raise FileNotFoundError(f"{folder} holds no run and no file of weights; {OF_LIGHTNING}")
    if not paths:
        raise FileNotFoundError(f"{folder} holds no run and no file of weights ({', '.join(WEIGHTS)}).")
    return paths


def kept_rows(checkpoint: Checkpoint, wanted: Plan, seed: int) -> pd.DataFrame | None:
    """The rows of a checkpoint if all that is wanted is kept already."""
    kept, context = checkpoint.cache.load(), checkpoint.context
    keys = [option_hash(key, options, seed, context) for key, options in wanted.items()]
    if not all(key in kept for key in keys):
        return None
    return pd.concat([kept[key] for key in keys], ignore_index=True).assign(run_id=checkpoint.run_id)


def measure_checkpoint(
    checkpoint: Checkpoint,
    wanted: Plan,
    seed: int = 0,
    device: str = "cpu",
    *,
    begin: Begin = silent,
    progress: Progress = False,
    strict: bool = False,
) -> pd.DataFrame:
    """Rows of one checkpoint: those that are kept, and the others measured now, and kept as they come.

    A checkpoint that cannot be read gives rows that say why, which are not kept: it may be mended.

    Args:
        checkpoint: Which.
        wanted: The measures, see `plan`.
        seed: Of their random choices.
        device: Where to compute.
        begin: Called with the name of each measure before it is taken.
        progress: Told of the products of long measures.
        strict: Raise for a checkpoint that cannot be read.
    """
    cache, context = checkpoint.cache, checkpoint.context
    kept = cache.load()
    keys = {key: option_hash(key, options, seed, context) for key, options in wanted.items()}
    todo = {key: wanted[key] for key in wanted if keys[key] not in kept}
    if todo:
        try:
            stamp = cache.stamp()
            subject = replace(checkpoint.load(seed, device), progress=progress)
        except (OSError, ValueError) as error:
            if strict:
                raise
            failed = failure(checkpoint, todo, f"{type(error).__name__}: {error}")
            kept |= {keys[key]: frame for key, frame in failed.items()}
        else:
            for key, frame in _measured(cache, stamp, subject, todo, keys, begin):
                kept[key] = frame
    return pd.concat([kept[keys[key]] for key in wanted], ignore_index=True).assign(run_id=checkpoint.run_id)


def failure(checkpoint: Checkpoint, wanted: Plan, reason: str) -> dict[str, pd.DataFrame]:
    """Rows without values, by measure, for a checkpoint that could not be measured."""
    frame = {key: failed_rows(key, reason) for key in wanted}
    run_id, step = checkpoint.run_id, checkpoint.step
    return {key: table.to_frame(rows, run_id=run_id, step=step, epoch=-1) for key, rows in frame.items()}


def _measured(
    cache: Cache, stamp: Mapping[str, Any], subject: Subject, todo: Plan, keys: Mapping[str, str], begin: Begin
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Measure, and store what is there every few seconds, at the end and where Ctrl-C ends it."""
    stored, new = time.monotonic(), dict[str, pd.DataFrame]()
    try:
        for key, rows in measures_of(subject, todo, begin=begin):
            new[keys[key]] = table.to_frame(rows, run_id=subject.run_id, step=subject.step, epoch=subject.epoch)
            yield keys[key], new[keys[key]]
            if time.monotonic() - stored > STORE_SECONDS:
                cache.store(new, stamp)
                stored, new = time.monotonic(), {}
    finally:
        if new:
            cache.store(new, stamp)


_last_data: tuple[str, str, DataBundle] | None = None  # one process measures many checkpoints on the same data


def _data(recipe: str, device: str, make: Callable[[], DataBundle]) -> DataBundle:
    """The data of a recipe on a device; the last one is kept in memory."""
    global _last_data
    if _last_data is None or _last_data[:2] != (recipe, device):
        _last_data = None  # let go of the old one first
        _last_data = (recipe, device, make().to(device))
    return _last_data[2]
