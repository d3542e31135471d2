"""What a study would take, told without training: runs, time and disk, from a few steps of each kind of run."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from analysis.measures.budget import Pace, timed
from analysis.measures.checkpoints import RunCheckpoint
from analysis.measures.plan import plan
from analysis.study import Study
from trainers.config import TrainConfig
from trainers.randomness import seeded
from trainers.runs.folder import Run
from trainers.runs.records import StepLog
from trainers.runs.training import Training

KINDS = 16  # of runs that are timed; more are taken to be like the last one
# settings that change what a run computes, but hardly how long a step of it takes
SAME_PACE = (
    "seed", "data_seed", "label_noise", "spurious", "rho", "rho_min", "rho_schedule", "lr", "lr_schedule", "lr_min",
    "momentum", "weight_decay", "grad_clip", "epochs", "checkpoints", "dataset_digest", "init_digest",
    "label_smoothing", "warmup_epochs", "evaluate_every", "keep_best", "early_stopping",
)  # fmt: skip


@dataclass(frozen=True)
class Forecast:
    """What is left of a study.

    Attributes:
        runs: All of it.
        left: Runs that are not finished.
        training: Expected seconds on one core of these.
        measuring: Likewise of measuring all of them, statistics and report apart.
        size: Expected bytes of what training will write.
    """

    runs: int
    left: int
    training: float
    measuring: float
    size: float

    def duration(self, jobs: int) -> float:
        """Expected seconds with so many processes."""
        return (self.training + self.measuring) / max(1, min(jobs, self.left))


@dataclass(frozen=True)
class Kind:
    """What runs of a kind take.

    Attributes:
        step: Seconds of an optimizer step.
        steps: Of an epoch.
        evaluation: Seconds of one.
        measuring: Seconds of measuring the last checkpoint, and one on the way.
        checkpoint: Bytes.
        examples: Training examples, of which a bit is kept twice an epoch.
    """

    step: float
    steps: int
    evaluation: float
    measuring: tuple[float, float]
    checkpoint: int
    examples: int

    def training(self, config: TrainConfig) -> float:
        """Seconds of a run."""
        return config.epochs * (self.steps * self.step + self.evaluation / config.evaluate_every)

    def size(self, config: TrainConfig) -> float:
        """Bytes that a run leaves."""
        kept = len({0, *config.checkpoints, config.epochs}) + config.keep_best
        return kept * self.checkpoint + 2 * self.examples * config.epochs / 8


def forecast(study: Study) -> Forecast:
    """Time a few steps of each kind of run, in a folder that is thrown away.

    Raises:
        ValueError: If data, model or method of a run do not fit together; and as `Study.look_ahead`.
    """
    study.look_ahead()
    configs = study.config.configs()
    left = [config for config in configs if not Run(study.folder / "runs" / config.run_id).finished]
    where = study.config.trajectory.condition
    kinds: dict[str, Kind] = {}
    training = measuring = size = 0.0
    for config in left:
        kind = _kind(kinds, config, study)
        training += kind.training(config)
        last, between = kind.measuring
        along = where is None or where.holds(config.model_dump())
        measuring += last + between * len(config.checkpoints) * along
        size += kind.size(config)
    return Forecast(len(configs), len(left), training, measuring, size)


def _kind(kinds: dict[str, Kind], config: TrainConfig, study: Study) -> Kind:
    """What a run takes, timed for the first of each kind."""
    key = repr({name: value for name, value in config.as_dict().items() if name not in SAME_PACE})
    if key not in kinds:
        if len(kinds) >= KINDS:
            return next(reversed(kinds.values()))
        with TemporaryDirectory() as folder, seeded(0):
            kinds[key] = _timed(config, study, Run(Path(folder) / config.run_id))
    return kinds[key]


def _timed(config: TrainConfig, study: Study, run: Run) -> Kind:
    training = Training(config.resolved(), run, device=study.runtime.devices[0], trust=study.trust)
    training.begin(StepLog(run.folder, None))
    training.train_step()  # the first is slow
    step = timed(_stepper(training))
    inputs = training.train.take(slice(config.batch_size))[0]

    def forward() -> None:
        with torch.no_grad():
            training.model(inputs)

    passes = sum(map(len, (training.data.train, training.data.validation, training.data.test))) / len(inputs)
    training.reader.close()
    checkpoint = run.checkpoint(0)
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    pace = Pace(RunCheckpoint(run.folder, 0, trust=study.trust).load(config.seed, study.runtime.devices[0]))
    plans: Iterable[Mapping[str, Mapping[str, Any]]] = (
        plan(study.config.measures, examples=study.config.examples, trust=study.trust),
        plan(study.config.trajectory.measures, examples=study.config.examples, trust=study.trust)
        if study.config.trajectory.measures
        else {},
    )
    last, between = (math.fsum(pace.seconds(chosen).values()) for chosen in plans)
    return Kind(step, training.batches, passes * timed(forward), (last, between), size, len(training.train))


def _stepper(training: Training) -> Callable[[], None]:
    """A step, of the same epoch again where it is over."""

    def step() -> None:
        if training.position == training.batches:
            training.position, training.ahead = 0, None
        training.train_step()

    return step
