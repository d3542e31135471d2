"""Data, models and the SAM family: everything that turns a configuration into checkpoints."""

from typing import Any

from landscape.naming import nearest
from landscape.objectives import obf_loss
from trainers.config import TrainConfig
from trainers.data.loading import DATASETS, load_dataset
from trainers.models.building import MODELS, build_model
from trainers.runs.checkpoint import load_checkpoint, read_weights, save_checkpoint
from trainers.runs.folder import Run, list_runs
from trainers.runs.loop import fit
from trainers.runtime import Runtime
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sharpness_aware.methods import METHODS
from trainers.sharpness_aware.objective import AscentObjective, Objective
from trainers.sharpness_aware.optimizers import make_optimizer
from trainers.sharpness_aware.spec import MethodSpec
from trainers.sweep.running import expand, part, train_all
from trainers.sweep.search import RandomSearch
from trainers.tasks.check import check_task
from trainers.tasks.multilabel import Multilabel
from trainers.tasks.registry import TASKS
from trainers.tasks.regression import Regression
from trainers.tasks.task import Classification, Task
from trainers.weights.foreign import ForeignWeights, read_foreign

__all__ = [
    "DATASETS",
    "METHODS",
    "MODELS",
    "TASKS",
    "AscentObjective",
    "Classification",
    "Composition",
    "ForeignWeights",
    "MethodSpec",
    "Multilabel",
    "Objective",
    "RandomSearch",
    "Regression",
    "Run",
    "Runtime",
    "SharpnessAware",
    "Task",
    "TrainConfig",
    "build_model",
    "check_task",
    "expand",
    "fit",
    "list_runs",
    "load_checkpoint",
    "load_dataset",
    "make_optimizer",
    "obf_loss",
    "part",
    "read_foreign",
    "read_weights",
    "save_checkpoint",
    "train_all",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'trainers' has no attribute {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return __all__
