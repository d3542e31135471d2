"""Checkpoints that can be measured: of our runs, and files of weights from elsewhere."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from torch import Tensor

from analysis import table
from analysis.measures.cache import Cache, option_hash
from analysis.measures.plan import Plan
from analysis.measures.registry import MEASURES, failed_rows
from analysis.measures.subject import DRAWN, Subject
from analysis.measures.taking import Begin, measures_of, passing, silent
from landscape.memory import explained
from landscape.progress import Progress
from landscape.ranks import Ranks
from trainers.backend import USUAL, Backend
from trainers.data.loading import DataBundle, load_dataset
from trainers.data.shifted import Shifted, check_fit, with_shifted
from trainers.data.sources.named import identity
from trainers.files.reading import read_json
from trainers.models.building import build_model
from trainers.runs.checkpoint import read_weights
from trainers.runs.digests import WHOLE, digest_of
from trainers.runs.folder import Run, data_options, hugging_face, load_data
from trainers.tasks.registry import CLASSIFICATION, targets_of
from trainers.tasks.task import check_targets, measured, named_task, outputs_of
from trainers.weights.fitting import heads
from trainers.weights.foreign import read_foreign
from trainers.weights.places import AVERAGE, PARAMS, ending, files_of

ALONE = Ranks()
STORE_SECONDS = 5.0  # of measuring that a killed process may lose, beside the measure it was at
WEIGHTS = table.WEIGHTS
HF = "hf:"
BESIDE = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state|random_states)")  # what trainers leave there


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

    @property
    def shifted(self) -> tuple[Shifted, ...]:
        """Shifted test sets from elsewhere, on which it is measured too."""
        ...

    @property
    def train_size(self) -> int | None:
        """Number of training examples; None where it is known only once the data are read."""
        ...

    @property
    def kind(self) -> str:
        """What model and data it is of: checkpoints that are alike in it take equally long."""
        ...

    def load(self, seed: int, device: str = "cpu") -> Subject:
        """The checkpoint, ready to be measured on a device."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name, without building the model."""
        ...


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of one of our runs.

    Attributes:
        folder: The run's.
        step: Optimizer steps taken.
        trust: Import a model or dataset that the run names as module:function.
        shifted: Shifted test sets from elsewhere.
        average: Take the average of weights.
        batch_size: Examples a pass, see `Subject`.
        dataset: Where the run's data lie now, as `scheme:PATH`; None where they did.
    """

    folder: Path
    step: int
    trust: bool = False
    shifted: tuple[Shifted, ...] = ()
    average: bool = False
    batch_size: int | None = None
    dataset: str | None = None

    @property
    def run_id(self) -> str:
        """What its rows are known by."""
        return Run(self.folder).run_id

    @property
    def cache(self) -> Cache:
        """Where its rows are kept."""
        run = Run(self.folder)
        weights = run.checkpoint(self.step) / (AVERAGE if self.average else PARAMS)
        name = f"{self.step}.average" if self.average else str(self.step)
        return Cache(self.folder / "measures", name, weights, (self.run_id, self.step))

    @property
    def context(self) -> Mapping[str, Any]:
        """What else decides its numbers."""
        return {}  # all else is in the configuration, which names the run

    @property
    def train_size(self) -> int | None:
        """Number of training examples, where the configuration says it."""
        return Run(self.folder).config().train_size

    @property
    def kind(self) -> str:
        """What model and data it is of."""
        config = Run(self.folder).config()
        return json.dumps([config.model, config.model_options, data_options(config)], default=str)

    def load(self, seed: int, device: str = "cpu") -> Subject:
        """The checkpoint, ready to be measured on a device."""
        run = Run(self.folder)
        config = run.config()
        if self.dataset is not None:
            config = config.moved(self.dataset)
        identities = [vars(one) for one in self.shifted]
        recipe = json.dumps([data_options(config), config.precision, identities], default=str)
        data = _data(recipe, device, lambda: load_data(config, trust=self.trust, shifted=self.shifted))
        found = Subject.of_checkpoint(run, self.step, data, average=self.average, trust=self.trust, seed=seed)
        return replace(found, batch_size=self.batch_size).on(device)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name."""
        return _shapes(read_weights(Run(self.folder).checkpoint(self.step) / PARAMS))


@dataclass(frozen=True)
class WeightsFile:
    """Weights from elsewhere, with the model and the data that go with them.

    Attributes:
        path: A file or folder, see `trainers.read_foreign`.
        model: Name, or module:function; `hf:PATH` where the path is a folder of Hugging Face that says it itself.
        model_options: The model's sizes.
        data: Options of `trainers.load_dataset`, with the dataset's name under "name"; where they leave it out, small
            data sets keep no examples for validation.
        step: Optimizer steps taken, where known.
        ema: Take the average of weights (EMA, SWA) in the file.
        shifted: Shifted test sets from elsewhere.
        batch_size: Examples a pass, see `Subject`.
        task: What the model was trained to do, by name or module:Class.
        task_options: The task's options.
    """

    path: Path
    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    step: int = 0
    ema: bool = False
    shifted: tuple[Shifted, ...] = ()
    batch_size: int | None = None
    task: str = CLASSIFICATION
    task_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """What its rows are known by: the file's name, with its ending where another one differs in that alone."""
        stem = self.path.name.removesuffix(ending(self.path.name))
        others = (self.path.with_name(stem + other) for other in WEIGHTS)
        alone = not any(other.exists() for other in others if other != self.path)
        return stem if alone else self.path.name

    @property
    def own_model(self) -> bool:
        """Whether the folder itself says what the model is."""
        return self.model == f"{HF}{self.path}"

    @property
    def cache(self) -> Cache:
        """Where its rows are kept."""
        files: tuple[Path, ...] = ()
        with suppress(OSError, ValueError):  # said where they are read
            files = (*files_of(self.path), *((self.path / "config.json",) if self.own_model else ()))
        return Cache(self.path.parent / "measures", self.path.name, files)

    @property
    def context(self) -> Mapping[str, Any]:
        """What else decides its numbers."""
        data = {**self.data, "name": identity(self.data["name"])}
        model = HF if self.own_model else self.model
        given: dict[str, Any] = {"model": model, "model_options": dict(self.model_options), "data": data}
        if (self.task, dict(self.task_options)) != (CLASSIFICATION, {}):
            given["task"] = [self.task, dict(self.task_options)]
        return {**given, "ema": True} if self.ema else given

    @property
    def train_size(self) -> int | None:
        """Number of training examples, where it was given."""
        size: int | None = self.data.get("train_size")
        return size

    @property
    def kind(self) -> str:
        """What model and data it is of."""
        return json.dumps(dict(self.context), default=str)

    def load(self, seed: int, device: str = "cpu") -> Subject:
        """The checkpoint, ready to be measured on a device."""
        trained = named_task(self.task, self.task_options)
        options = {"validation_size": None, **targets_of(self.task), **self.data}
        recipe = json.dumps([options, [vars(one) for one in self.shifted]], sort_keys=True, default=str)
        data = _data(recipe, device, lambda: with_shifted(load_dataset(**options), self.shifted))
        check_targets(trained, data)
        model = build_model(
            self.model, shape=data.shape, classes=outputs_of(trained, data.classes), generator_seed=0,
            options=dict(self.model_options), graph=data.graph,
        )  # fmt: skip
        subject = Subject.of_weights(self.path, model, data, ema=self.ema, seed=seed)
        task = measured(trained)
        return replace(subject, task=task, run_id=self.run_id, batch_size=self.batch_size).on(device)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by its name in the file."""
        return _shapes(read_foreign(self.path, ema=self.ema).tensors)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without what all names begin with, which differs between files of one model."""
    cut = next(head for head in heads(next(iter(tensors)))[::-1] if all(name.startswith(head) for name in tensors))
    return {name.removeprefix(cut): tuple(t.shape) for name, t in tensors.items()}


def foreign_place(path: str | Path) -> tuple[Path, str | None] | None:
    """The weights from elsewhere that a path names, and their model where it is known: of a folder of Hugging Face.

    Args:
        path: A file, a folder that Hugging Face made, or `hf:FOLDER`.

    Returns:
        The absolute path, and `hf:FOLDER`, `timm:NAME` or None; None where the path names something else.

    Raises:
        FileNotFoundError: If `hf:FOLDER` names none.
    """
    told = str(path).startswith(HF)
    place = Path(str(path).removeprefix(HF)).expanduser()
    if told and not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"{place} is no folder of Hugging Face (no config.json): give one that save_pretrained made."
        )
    if told or hugging_face(place):
        stored = read_json(place / "config.json", hint="save the model again")
        timm = stored.get("architecture") if "model_type" not in stored else None
        return place.absolute(), f"timm:{timm}" if timm else f"{HF}{place.absolute()}"
    return (place.absolute(), None) if place.is_file() else None


def weight_files(folder: Path) -> list[tuple[Path, str | None]]:
    """The weights from elsewhere in a folder, in order of name: files, and folders of Hugging Face.

    Returns:
        Their absolute paths, with the model's name where it is known, see `foreign_place`.

    Raises:
        FileNotFoundError: If there is none.
    """
    files = [p for p in folder.iterdir() if p.is_file() and ending(p.name) and not BESIDE.match(p.name)]
    folders = [p for p in folder.iterdir() if p.is_dir() and hugging_face(p)]
    found = [foreign_place(path) for path in sorted(files or folders)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no run and no file of weights ({', '.join(WEIGHTS)}).")
    return [place for place in found if place is not None]


def keys_of(checkpoint: Checkpoint, wanted: Plan, seed: int) -> dict[str, str]:
    """What the cache knows each measurement of a checkpoint by.

    Shifted sets are a part of it for those measures alone that read them; the size of a draw of the training examples
    where there may be one.
    """
    context, n = checkpoint.context, checkpoint.train_size
    sets = {one.name: one.identity for one in checkpoint.shifted}
    shifted = {"shifted": sets} if sets else {}
    draws = {} if n is not None and n <= DRAWN else {"examples": DRAWN}

    def decides(key: str) -> Mapping[str, Any]:
        entry = MEASURES[key]
        return {**context, **(shifted if entry.reads_shifted else {}), **(draws if entry.sampled else {})}

    return {key: option_hash(key, options, seed, decides(key)) for key, options in wanted.items()}


def check_shifted(checkpoint: Any, wanted: Plan, seed: int) -> None:
    """Read shifted sets as far as shows whether they fit a checkpoint's data, unless its rows are kept already.

    Raises:
        ValueError: If they do not.
    """
    if not checkpoint.shifted or kept_rows(checkpoint, wanted, seed) is not None:
        return
    try:
        data = replace(checkpoint, shifted=()).load(seed).data
    except (OSError, ValueError):
        return  # its rows will say why
    check_fit(with_shifted(data, checkpoint.shifted), checkpoint.shifted)


def in_batches(checkpoint: Checkpoint, size: int | None) -> Checkpoint:
    """The same checkpoint, to be measured in passes of so many examples.

    Raises:
        ValueError: If the size is below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"`batch_size` must be at least 1 example a pass, got {size!r}.")
    assert isinstance(checkpoint, RunCheckpoint | WeightsFile)
    return replace(checkpoint, batch_size=size)


def kept_rows(checkpoint: Checkpoint, wanted: Plan, seed: int) -> pd.DataFrame | None:
    """The rows of a checkpoint if all that is wanted is kept already."""
    kept, keys = checkpoint.cache.load(), keys_of(checkpoint, wanted, seed).values()
    if not all(key in kept for key in keys):
        return None
    return pd.concat([kept[key] for key in keys], ignore_index=True).assign(run_id=checkpoint.run_id)


def measure_checkpoint(
    checkpoint: Checkpoint,
    wanted: Plan,
    seed: int = 0,
    device: str = "cpu",
    *,
    workers: int = 0,
    backend: Backend = USUAL,
    begin: Begin = silent,
    progress: Progress = False,
    strict: bool = False,
    ranks: Ranks = ALONE,
) -> pd.DataFrame:
    """Rows of one checkpoint: those that are kept, and the others measured now, and kept as they come.

    A checkpoint that cannot be read gives rows that say why, which are not kept: it may be mended. Nor are those of a
    measure that found no memory.

    Args:
        checkpoint: Which.
        wanted: The measures, see `plan`.
        seed: Of their random choices.
        device: Where to compute.
        workers: Processes that read data ahead, where they are read one by one.
        backend: How torch computes; rows say so where it may show in their values.
        begin: Called with the name of each measure before it is taken.
        progress: Told of the products of long measures.
        strict: Raise for a checkpoint that cannot be read.
        ranks: The processes that measure it together; the leader keeps the rows, and all get them.
    """
    cache = checkpoint.cache
    kept, keys = ranks.led(lambda: (cache.load(), keys_of(checkpoint, wanted, seed)))
    todo = {key: wanted[key] for key in wanted if keys[key] not in kept}
    if todo:
        try:
            with explained(device, examples=None, option=""):
                stamp, subject = ranks.alike(
                    lambda: (cache.stamp(), checkpoint.load(seed, device).read_by(workers).by(backend))
                )
            subject = replace(subject, progress=progress, ranks=ranks)
            if ranks.count > 1:
                ranks.require_same(lambda: _facts(subject))
        except (OSError, ValueError, MemoryError) as error:
            if strict:
                raise
            failed = failure(checkpoint, todo, f"{type(error).__name__}: {error}")
            kept |= {keys[key]: frame for key, frame in failed.items()}
        else:
            with backend.flags():
                kept |= dict(_measured(cache, stamp, subject, todo, keys, begin))
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
    store = cache.store if subject.ranks.leads else _kept_by_the_leader
    try:
        for key, rows in measures_of(subject, todo, begin=begin):
            if subject.weights:
                rows = [replace(row, options={**row.options, "weights": subject.weights}) for row in rows]
            frame = table.to_frame(rows, run_id=subject.run_id, step=subject.step, epoch=subject.epoch)
            if not passing(rows):
                new[keys[key]] = frame
            yield keys[key], frame
            if time.monotonic() - stored > STORE_SECONDS:
                store(new, stamp)
                stored, new = time.monotonic(), {}
    finally:
        if new:
            store(new, stamp)


def _kept_by_the_leader(rows: Mapping[str, pd.DataFrame], stamp: Mapping[str, Any]) -> None:
    """Where another process keeps the rows."""


def _facts(subject: Subject) -> dict[str, str]:
    """What processes that measure together must see alike."""
    train = subject.data.train
    stored = (
        train.inputs if isinstance(train.inputs, Tensor) and train.inputs.nbytes <= WHOLE else train.take(slice(8))[0]
    )
    return {
        "weights": digest_of(t for _, t in sorted(subject.model.state_dict().items())),
        "data": digest_of([train.y, train.index, stored]),
    }


_last_data: tuple[str, str, DataBundle] | None = None  # one process measures many checkpoints on the same data


def _data(recipe: str, device: str, make: Callable[[], DataBundle]) -> DataBundle:
    """The data of a recipe on a device; the last one is kept in memory."""
    global _last_data
    if _last_data is None or _last_data[:2] != (recipe, device):
        _last_data = None  # let go of the old one first
        _last_data = (recipe, device, make().to(device))
    return _last_data[2]
