"""Options that several commands have: where to compute, and what belongs to weights from elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from analysis.measures.checkpoints import WeightsFile
from trainers.backend import USUAL, Backend
from trainers.config import Option
from trainers.runtime import Executor, Runtime
from trainers.tasks.registry import CLASSIFICATION


@dataclass(frozen=True)
class Place:
    """Where to compute; it does not decide the result.

    Attributes:
        device: cpu, cuda, cuda:1 or mps; several as cuda:0,1 or cuda:all; or auto, the best there is.
        jobs: Number of processes; by default one per core, or one per device other than the CPU.
        workers: Further processes that read data ahead, for each of these, where data are not in memory or are
            transformed one by one.
        backend: How torch computes.
    """

    device: str = "cpu"
    jobs: int | None = None
    workers: int = 0
    backend: tyro.conf.OmitArgPrefixes[Backend] = USUAL

    def runtime(self, *, trains: bool = True) -> Runtime:
        """The same, checked.

        Args:
            trains: Whether the command trains.

        Raises:
            ValueError: As `Runtime`; or if something is to be compiled for training by a command that does not train.
        """
        if self.backend.compile and not trains:
            raise ValueError("`--compile` is for training, and this command does not train: leave it out.")
        return Runtime(**self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of `Runtime`."""
        return vars(self)


@dataclass(frozen=True)
class SpreadPlace(Place):
    """Where to compute, also on several machines.

    Attributes:
        executor: Compute in processes on this machine, or on the machines of a Ray cluster that share the folder; or
            train many small models at once in each process (population), the same steps to rounding. By default
            processes, and population for a new study of small models on GPUs.
        address: Address of the Ray cluster; by default RAY_ADDRESS, or the cluster on this machine.
    """

    executor: Executor | None = None
    address: str | None = None

    def runtime(self, *, trains: bool = True) -> Runtime:
        """The same, checked; raises also where a population is asked of a command that does not train."""
        if self.executor == "population" and not trains:
            raise ValueError(
                "`executor` 'population' is for training, and measures take one model at a time: leave it out."
            )
        return super().runtime(trains=trains)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of `Runtime`."""
        return {**vars(self), "executor": self.executor or "processes"}


@dataclass(frozen=True)
class Foreign:
    """For files of weights from elsewhere: the model and the data that go with them.

    Attributes:
        model: The model's name or module:function; a folder of Hugging Face says it itself.
        model_options: The model's sizes.
        dataset: The data's name or module:function; by default digits. For runs, where their data have moved to.
        train_size: Number of training examples.
        validation_size: Number of validation examples; by default 500, or none of fewer.
        label_noise: Label noise of the training data.
        data_seed: Seed of the split and the noise.
        task: What the model was trained to do: classification, regression, ... (`landscape list tasks`), or
            module:Class.
        task_options: The task's options.
        target_columns: For csv:FILE: the columns that are targets, by name; by default the last one.
    """

    model: str | None = None
    model_options: dict[str, Option] | None = None
    dataset: str | None = None
    train_size: int | None = None
    validation_size: int | None = None
    label_noise: float = 0.0
    data_seed: int = 0
    task: str = CLASSIFICATION
    task_options: dict[str, Option] | None = None
    target_columns: tuple[str, ...] = ()

    @property
    def data(self) -> dict[str, Any]:
        """Options of `trainers.load_dataset`; what is left out is not part of what rows depend on."""
        options: dict[str, Any] = {
            "name": self.dataset or "digits", "train_size": self.train_size, "label_noise": self.label_noise,
            "seed": self.data_seed,
        }  # fmt: skip
        if self.validation_size is not None:
            options["validation_size"] = self.validation_size
        if self.target_columns:
            options["columns"] = self.target_columns
        return options

    def of(self, path: Path, known: str | None = None, *, ema: bool = False) -> WeightsFile:
        """The weights at a path with these.

        Args:
            path: Absolute.
            known: The model's name where the weights say it themselves.
            ema: Take the average of weights in it.

        Raises:
            ValueError: If nothing says what the model is.
        """
        model = self.model or known
        if model is None:
            raise ValueError(f"`--model` is needed for the weights in {path}: a name or module:function.")
        return WeightsFile(
            path, model, self.model_options or {}, self.data, ema=ema, task=self.task,
            task_options=self.task_options or {},
        )  # fmt: skip


Here = Annotated[Place, tyro.conf.OmitArgPrefixes]
Spread = Annotated[SpreadPlace, tyro.conf.OmitArgPrefixes]
Elsewhere = Annotated[Foreign, tyro.conf.OmitArgPrefixes]

HERE, SPREAD, ELSEWHERE = Place(), SpreadPlace(), Foreign()
