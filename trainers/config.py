"""What decides the result of a run: one flat, validated configuration, and the hash that names the run."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from trainers.data import DATASETS
from trainers.models import MODELS, model_options
from trainers.naming import nearest
from trainers.options import checked
from trainers.reference import is_reference
from trainers.sharpness_aware.methods import METHODS

SCHEMA = 1  # part of the hash: raise it when the same configuration comes to mean another computation

Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[Finite, Field(ge=0)]
Share = Annotated[Finite, Field(ge=0, le=1)]
Positive = Annotated[Finite, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Option = bool | int | float | str


class Strict(pydantic.BaseModel):
    """A frozen model that refuses unknown keys, and says which key was probably meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "the configuration") -> "Strict":
        """Validate a mapping; the error names the key, the value and the way out.

        Raises:
            ValueError: With one line a problem.
        """
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            raise ValueError(f"{where}: " + "; ".join(explain(error, cls.model_fields))) from None


def explain(error: pydantic.ValidationError, known: Iterable[str]) -> list[str]:
    """One line for each problem of a validation error, in the words of this project."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part not in ("bool", "int", "float", "str"))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key `{key}`.{nearest(key, known) or f' Known keys: {sorted(known)}.'}")
        elif problem["type"] == "missing":
            lines.append(f"`{key}` is required.")
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
            lines.append(text if "`" in text else f"`{key}`: {text}")
        else:
            reason = problem["msg"][0].lower() + problem["msg"][1:]
            lines.append(f"`{key}` got {problem['input']!r}: {reason}.")
    return list(dict.fromkeys(lines))


class TrainConfig(Strict):
    """Everything that decides the result of one training run. Output folders, devices and verbosity live elsewhere."""

    # data
    dataset: str = "digits"
    """Name of a dataset (`landscape list datasets`) or module:function."""
    train_size: Count | None = None
    """Training examples; None takes all."""
    validation_size: Annotated[int, Field(ge=0)] = 500
    """Held-out examples, on which forgetting is measured beside the training data."""
    test_size: Count | None = None
    """Test examples; None takes the dataset's default."""
    label_noise: Share = 0.0
    """Probability that a training label is replaced by a uniform draw over the classes."""
    spurious: Share | None = None
    """Probability that a planted patch agrees with the label; None plants none."""
    data_seed: Seed = 0
    """Seed of the split, the noise and the patch."""

    # model
    model: str = "mlp"
    """Name of a model (`landscape list models`) or module:function."""
    model_options: dict[str, Option] = Field(default_factory=dict)
    """Sizes of the model."""

    # objective
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Training loss."""
    label_smoothing: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    """Smoothing of the training targets."""
    smoothing_convention: Literal["uniform", "others"] = "uniform"
    """Spread the smoothed mass over all classes, or over the other ones."""

    # method
    method: str = "sgd"
    """Name of a method (`landscape list methods`)."""
    base: Literal["sgd", "adamw"] = "sgd"
    """Base optimizer of a sharpness-aware method."""
    rho: NonNegative | None = None
    """Radius; None takes the method's default."""
    rho_schedule: Literal["constant", "lr"] = "constant"
    """Keep the radius, or let it fall with the learning rate."""
    rho_min: NonNegative = 0.0
    """Radius at the smallest learning rate, for rho_schedule lr."""
    m: Count | None = None
    """Examples that share one perturbation (m-SAM); None is the whole batch."""
    ascent: Literal["loss", "obf"] | None = None
    """Objective that the perturbation ascends; None takes the method's own."""
    obf_classes: Finite | None = None
    """C of the OBF objective; None is the number of classes, a negative value chance level 0."""
    obf_gamma: Share = 1.0
    """gamma of the OBF objective."""
    obf_link: Literal["softmax", "sigmoid"] | None = None
    """Link of the OBF objective; None follows the training loss."""
    method_options: dict[str, Option] = Field(default_factory=dict)
    """Further knobs of the method, such as alpha or eta."""
    same_rng: bool = True
    """Both passes of a step see the same dropout masks."""
    shrink_perturb: Share = 0.0
    """Pull towards the initial weights at each step."""

    # optimisation
    lr: Positive = 0.1
    """Largest learning rate."""
    lr_schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    lr_min: NonNegative = 0.0
    """Learning rate at the end of the cosine."""
    lr_milestones: tuple[Share, ...] = (0.5, 0.75)
    """Fractions of training at which the step schedule drops."""
    lr_factor: Share = 0.1
    """Multiplier at each milestone."""
    warmup_epochs: NonNegative = 0.0
    """Epochs of linear warm-up."""
    momentum: Annotated[Finite, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: NonNegative = 5e-4
    """Decay in the base optimizer, at the clean weights."""
    decay_all: bool = False
    """Decay biases and normalisation layers too."""
    grad_clip: Positive | None = None
    """Largest norm of the final gradient."""
    batch_size: Count = 32
    """Examples a step."""
    epochs: Count = 100
    """Passes over the training data."""

    # record
    checkpoints: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Epochs after which a checkpoint is kept, besides the first weights and the last."""
    evaluate_every: Count = 1
    """Epochs between evaluations on held-out and test data."""

    # replication
    seed: Seed = 0
    """Seed of the initialisation, the order of the data and all other randomness of training."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.method not in METHODS:
            raise ValueError(
                f"`method` {self.method!r} is unknown; there are {sorted(METHODS)}.{nearest(self.method, METHODS)}"
            )
        for key, registry in (("dataset", DATASETS), ("model", MODELS)):
            name = getattr(self, key)
            if name not in registry and not is_reference(name):
                raise ValueError(
                    f"`{key}` {name!r} is unknown; there are {sorted(registry)}, or name your own as module:function."
                    f"{nearest(name, registry)}"
                )
        entry = METHODS[self.method]
        checked(entry.compose, self.method_options, owner=f"method {self.method!r}")
        if self.model in MODELS:
            model_options(self.model, self.model_options)
        if entry.rho is None and self.rho:
            raise ValueError(f"`rho` has no meaning for method {self.method!r}, got {self.rho!r}; leave it out.")
        if self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov` needs `momentum` above 0.")
        if self.m is not None and self.m > self.batch_size:
            raise ValueError(f"`m` must be at most the batch size {self.batch_size}, got {self.m}.")
        late = [e for e in self.checkpoints if e > self.epochs]
        if late:
            raise ValueError(f"`checkpoints` names epochs {late} beyond the last epoch {self.epochs}.")
        if self.obf_classes is not None and 0 <= self.obf_classes <= 1:
            raise ValueError(
                f"`obf_classes` must be above 1, or negative for chance level 0, got {self.obf_classes!r}."
            )
        return self

    def resolved(self) -> "TrainConfig":
        """The same run spelled out: defaults filled in, and what the method does not read set to its default."""
        entry = METHODS[self.method]
        fields = type(self).model_fields
        unread: set[str] = set()
        changes: dict[str, Any] = {
            "method_options": checked(entry.compose, self.method_options, owner=f"method {self.method!r}"),
            "checkpoints": tuple(sorted(set(self.checkpoints) - {0, self.epochs})),
        }
        if self.model in MODELS:
            changes["model_options"] = model_options(self.model, self.model_options)
        changes["base"] = entry.base or self.base
        if entry.rho is None:
            unread |= {"rho", "rho_schedule", "rho_min", "m", "ascent", "same_rng"}
        else:
            changes["rho"] = entry.rho if self.rho is None else self.rho
            changes["ascent"] = self.ascent or entry.ascent
            if self.rho_schedule == "constant":
                unread.add("rho_min")
            if self.m is not None and self.m >= self.batch_size:
                unread.add("m")
        if changes.get("ascent") == "obf":
            changes["obf_link"] = self.obf_link or ("softmax" if self.loss == "cross_entropy" else "sigmoid")
        else:
            unread |= {"obf_classes", "obf_gamma", "obf_link"}
        if self.lr_schedule != "step":
            unread |= {"lr_milestones", "lr_factor"}
        if changes["base"] == "adamw":
            unread |= {"momentum", "nesterov"}
        if self.label_smoothing == 0:
            unread.add("smoothing_convention")
        changes |= {key: fields[key].get_default(call_default_factory=True) for key in unread}
        return self.model_copy(update=changes)

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration in types that JSON knows."""
        values: dict[str, Any] = self.resolved().model_dump(mode="json")
        return values

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits of a hash of what decides the result."""
        text = json.dumps({"schema": SCHEMA, **self.as_dict()}, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from a mapping, such as a YAML file's.

    Raises:
        ValueError: With one line a problem.
    """
    config = TrainConfig.parse(values)
    assert isinstance(config, TrainConfig)
    return config
