"""Options that several commands have: where to compute, and what belongs to weights from elsewhere."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from trainers.config import Option
from trainers.runtime import Executor, Runtime

# Nothing here is for workers that read data: data are in memory, so that such a flag would have no effect.


@dataclass(frozen=True)
class Place:
    """Where to compute; it does not decide the result.

    Attributes:
        device: cpu, cuda, cuda:1 or mps; several as cuda:0,1; or auto, the best there is.
        jobs: Number of processes; by default one per core, or one per device other than the CPU.
    """

    device: str = "cpu"
    jobs: int | None = None

    def runtime(self) -> Runtime:
        """The same, checked."""
        return Runtime(**vars(self))


@dataclass(frozen=True)
class SpreadPlace(Place):
    """Where to compute, also on several machines.

    Attributes:
        executor: Compute on this machine, or on the machines of a Ray cluster that share the folder.
        address: Address of the Ray cluster; by default RAY_ADDRESS, or the cluster on this machine.
    """

    executor: Executor = "processes"
    address: str | None = None


@dataclass(frozen=True)
class Foreign:
    """For files of weights from elsewhere: the model and the data that go with them.

    Attributes:
        model: The model's name or module:function.
        model_options: The model's sizes.
        dataset: The data's name or module:function; by default digits. For runs, where their data have moved to.
        train_size: Number of training examples.
        validation_size: Number of validation examples; by default 500, or none of fewer.
        label_noise: Label noise of the training data.
        data_seed: Seed of the split and the noise.
    """

    model: str | None = None
    model_options: dict[str, Option] | None = None
    dataset: str | None = None
    train_size: int | None = None
    validation_size: int | None = None
    label_noise: float = 0.0
    data_seed: int = 0

    @property
    def data(self) -> dict[str, Any]:
        """Options of `trainers.load_dataset`; a validation size left out is not part of what rows depend on."""
        options = {
            "name": self.dataset or "digits", "train_size": self.train_size, "label_noise": self.label_noise,
            "seed": self.data_seed,
        }  # fmt: skip
        return options if self.validation_size is None else {**options, "validation_size": self.validation_size}


Here = Annotated[Place, tyro.conf.OmitArgPrefixes]
Spread = Annotated[SpreadPlace, tyro.conf.OmitArgPrefixes]
Elsewhere = Annotated[Foreign, tyro.conf.OmitArgPrefixes]

HERE, SPREAD, ELSEWHERE = Place(), SpreadPlace(), Foreign()
