"""What determines the result of a run: one flat, validated configuration, and the hash that names the run."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core
from pydantic import ConfigDict, Field

from landscape.naming import nearest
from trainers.data.augmentation import MIXING, spelled
from trainers.data.loading import DATASETS
from trainers.data.sources.named import SCHEMES, absolute, fingerprint, named
from trainers.files.reading import explain
from trainers.models.building import MODELS, model_options
from trainers.models.libraries import in_library
from trainers.options import checked, refuse_booleans
from trainers.randomness import derive
from trainers.reference import MODEL_SCHEMES, is_reference, scheme_of, well_formed
from trainers.sharpness_aware.methods.own import method_named, options_of
from trainers.sharpness_aware.spec import Base, GateName, MethodSpec
from trainers.sweep.alike import why_alone
from trainers.tasks.registry import CLASSIFICATION, TASKS, learns_labels, text_of
from trainers.weights.known import known_digest

SCHEMA = 1  # part of the hash: raise it when the same configuration comes to mean another computation

Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[Finite, Field(ge=0)]
Share = Annotated[Finite, Field(ge=0, le=1)]
Positive = Annotated[Finite, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Option = bool | int | float | str
Precision = Literal["float32", "bfloat16", "float16", "float64"]
RADIUS_FLOOR = ("lr", "linear", "cosine")  # schedules of the radius that read rho_min
RADIUS_WARMUP = ("linear", "start_jump")  # and those that read rho_warmup_epochs

# Keys that came after the first release of this schema: at their defaults they are left out of the hash, so that the
# runs made before keep their names.
LATER = (
    "precision", "micro_batch", "sharing", "group_size", "gate", "gate_options", "perturb_from", "perturb_until",
    "rho_warmup_epochs", "reference_size", "base_model_options", "task", "class_weights", "sampler", "augment",
    "average", "average_decay", "average_from", "early_stopping", "keep_best",
    "init", "init_digest", "init_ema", "reset_head", "head", "freeze", "input_size", "on_corrupt", "dataset_digest",
    "classes", "executor", "task_options", "target_columns",
)  # fmt: skip


class Strict(pydantic.BaseModel):
    """A frozen model that refuses unknown keys, and says which key was probably meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_words_for_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if name in cls.model_fields:
                refuse_booleans(f"`{name}`", value, cls.model_fields[name].annotation)
        return values

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


class TrainConfig(Strict):
    """Everything that determines the result of one training run; output folders and devices are not part of it."""

    # data
    dataset: str = "digits"
    """Name of a dataset (`landscape list datasets`), such as cifar10:PATH, or module:function."""
    train_size: Count | None = None
    """Number of training examples; None takes all."""
    validation_size: Annotated[int, Field(ge=0)] = 500
    """Number of validation examples, on which forgetting is also measured; taken out of the training examples where
    the dataset has no validation set of its own, which is kept whole."""
    test_size: Count | None = None
    """Number of test examples; None takes the dataset's default."""
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Learn these classes of the data alone, numbered anew in this order; None takes all."""
    input_size: Count | None = None
    """Side to which images are brought: of a folder the shorter side is resized to input_size / 0.875 and the middle
    kept; small images of other data are resized as a whole, when they are used."""
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    """Stop at images that cannot be read, or leave them out."""
    dataset_digest: str | None = None
    """Fingerprint of the dataset's files, which names the run instead of their path; None takes it from the files."""
    target_columns: tuple[str, ...] = ()
    """Columns of csv:FILE that are targets, by name; by default the last one."""
    label_noise: Share = 0.0
    """Probability that a training label is replaced by a uniform draw over the classes; of other tasks than
    classification, that a target is replaced by that of an example drawn from all of the data."""
    spurious: Share | None = None
    """Probability that a planted patch agrees with the label; None plants no patch."""
    data_seed: Seed = 0
    """Seed of the split, the label noise and the patch; "seed" in a study file is the number of the run's own seed, so
    that each seed is a new draw of the data."""

    # augmentation
    augment: tuple[str, ...] = ()
    """Random transforms of the training examples (`landscape list augmentations`), such as crop flip cutout:8
    mixup:0.2, torchvision.transforms.v2:GaussianBlur:kernel_size=3, or module:function."""

    # model
    model: str = "mlp"
    """Name of a model (`landscape list models`), such as resnet18 or timm:vit_tiny_patch16_224, or module:function."""
    model_options: dict[str, Option] = Field(default_factory=dict)
    """Sizes of the model."""

    # initial weights
    init: str | None = None
    """Weights to start from: a file, a folder of Hugging Face, or a run or checkpoint; its content names the run, not
    its place."""
    init_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of these weights; filled in from the file."""
    init_ema: bool = False
    """Start from the average of weights (EMA, SWA) in the file."""
    reset_head: bool = False
    """Make the classifier anew from the seed, also where the file's has another number of classes."""
    head: str | None = None
    """Name of the classifier's module for reset_head, where it is not found by itself."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are: names, modules, or globs such as patch_embed.*."""

    # average of weights
    average: Literal["ema", "swa"] | None = None
    """A second model, kept beside the trained one: the exponential moving average of its weights after each step, or
    the mean of those at the ends of epochs (stochastic weight averaging)."""
    average_decay: Annotated[Finite, Field(ge=0, lt=1)] = 0.999
    """Share of the average that stays at each step, for average ema."""
    average_from: Annotated[Finite, Field(ge=0, lt=1)] | None = None
    """Fraction of training after which weights are averaged; None is 0 for ema and 0.75 for swa."""

    # objective
    task: str = CLASSIFICATION
    """What is learned: a name of `landscape list tasks`, or module:Class."""
    task_options: dict[str, Option] = Field(default_factory=dict)
    """Options of a task other than classification, such as loss_name huber of regression."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Training loss of classification."""
    label_smoothing: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    """Smoothing of the training targets."""
    smoothing_convention: Literal["uniform", "others"] = "uniform"
    """Spread the smoothed mass over all classes, or over the other classes."""
    class_weights: Literal["balanced"] | tuple[Positive, ...] | None = None
    """What an example of each class counts for in the training loss: balanced is n / (K n_c); None is 1."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """The examples of an epoch: all, shuffled; or as many, drawn with replacement so that classes are equally
    frequent."""

    # method
    method: str = "sgd"
    """Name of a method (`landscape list methods`), or your own as module:function."""
    base: Base = "sgd"
    """Base optimizer of a sharpness-aware method; bsam belongs to the method of that name."""
    rho: NonNegative | None = None
    """Radius; None takes the method's default."""
    rho_schedule: Literal["constant", "lr", "linear", "cosine", "start_jump", "lr_multiple"] = "constant"
    """Radius over training: constant, proportional to the learning rate (lr), rising linearly, falling as a cosine,
    zero at first (start_jump), or a multiple of the learning rate."""
    rho_min: NonNegative = 0.0
    """Smallest radius, for rho_schedule lr, linear and cosine."""
    rho_warmup_epochs: NonNegative = 0.0
    """Epochs of the rise for rho_schedule linear, of no perturbation for start_jump."""
    gate: GateName | None = None
    """Perturb only some steps: every k-th, at random, or where the gradient is long; None leaves it to the method."""
    gate_options: dict[str, Option] = Field(default_factory=dict)
    """Options of the gate, such as k or p."""
    perturb_from: Share = 0.0
    """Fraction of training after which steps are perturbed (late-phase SAM)."""
    perturb_until: Share = 1.0
    """Fraction of training after which steps are no longer perturbed."""
    m: Count | None = None
    """Examples that share one perturbation (m-SAM); None is the whole batch."""
    sharing: Literal["chunk", "batch", "group", "global"] | None = None
    """What shares a perturbation: each chunk alone, the batch of a process, a group of processes, or all processes;
    None is the chunk if m is given, and the batch otherwise."""
    group_size: Count | None = None
    """Number of processes in a group, for sharing group."""
    reference_size: Count | None = None
    """Number of training examples in the reference set, for methods that have one; None is all, or 128 if each needs a
    pass of its own."""
    ascent: Literal["loss", "obf"] | None = None
    """Objective that the perturbation ascends; None takes the method's own."""
    obf_classes: Finite | None = None
    """C of the OBF objective; None is the number of classes, a negative value means chance level 0."""
    obf_gamma: Share = 1.0
    """gamma of the OBF objective."""
    obf_link: Literal["softmax", "sigmoid"] | None = None
    """Link of the OBF objective; None follows the training loss."""
    method_options: dict[str, Option] = Field(default_factory=dict)
    """Further options of the method, such as alpha or eta."""
    base_model_options: dict[str, Option] = Field(default_factory=dict)
    """Options of the narrow model whose shapes mup2 compares with; by default those of model_options."""
    same_rng: bool = True
    """All passes of a step use the same dropout masks."""
    shrink_perturb: Share = 0.0
    """Pull towards the initial weights at each step."""

    # optimisation
    lr: Positive = 0.1
    """Largest learning rate."""
    lr_schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    lr_min: NonNegative = 0.0
    """Learning rate at the end of the cosine or the line."""
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
    """Weight decay of the base optimizer, at the clean weights."""
    decay_all: bool = False
    """Apply weight decay to biases and normalisation layers too."""
    grad_clip: Positive | None = None
    """Largest norm of the final gradient; longer ones are clipped."""
    batch_size: Count = 32
    """Examples per step."""
    micro_batch: Count | None = None
    """Examples per forward and backward pass, several of which make a step; None is as many as share a perturbation."""
    precision: Precision = "float32"
    """float32; bfloat16 or float16 autocast with float32 weights; or float64 throughout."""
    epochs: Count = 100
    """Passes over the training data."""

    # stopping
    early_stopping: Count | None = None
    """Stop after so many evaluations without a smaller validation error (patience); None trains all epochs."""
    keep_best: bool = False
    """Keep the checkpoint with the smallest validation error too; of equals the earliest."""

    # record
    checkpoints: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Epochs after which to keep a checkpoint, besides the initial and the final weights."""
    evaluate_every: Count = 1
    """Epochs between evaluations, on the training data as well as on held-out and test data."""

    # rounding
    executor: Literal["alone", "population"] = "alone"
    """Train the run by itself, or many small models at once (population): the same steps to rounding, in which whole
    runs drift apart. Runs that no population can hold are trained by themselves."""

    # replication
    seed: Seed = 0
    """Seed of the initialisation, the order of the data and all other randomness of training."""

    @pydantic.field_validator("init", mode="before")
    @classmethod
    def _no_start(cls, value: Any) -> Any:
        return None if value == "none" else value

    @pydantic.model_validator(mode="before")
    @classmethod
    def _draw_of_the_data(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("data_seed") == "seed":
            return {**values, "data_seed": values.get("seed", 0)}
        return values

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        entry = method_named(self.method)
        known = (("dataset", [*DATASETS, *SCHEMES]), ("model", MODELS), ("task", TASKS))
        for key, registry in known:
            name = getattr(self, key)
            by_scheme = named(name) is not None if key == "dataset" else key == "model" and in_library(name)
            if name not in registry and not (is_reference(name) and well_formed(name)) and not by_scheme:
                libraries = [f"{scheme}:NAME" for scheme in MODEL_SCHEMES] if key == "model" else []
                head, colon, _ = name.partition(":")
                near = MODEL_SCHEMES if key == "model" and colon else registry
                raise ValueError(
                    f"`{key}` {name!r} is unknown; there are {[*sorted(registry), *libraries]}, or name your own as "
                    f"module:function.{nearest(head, near)}"
                )
        spelled(self.augment)
        if self.mixes and self.task != CLASSIFICATION:
            raise ValueError(
                f"`augment` with {' or '.join(MIXING)} mixes labels, which are those of `task` 'classification', got "
                f"{self.task!r}: leave it out."
            )
        if self.mixes and self.class_weights is not None:
            raise ValueError(
                f"`class_weights` count an example by its label, and {' or '.join(MIXING)} in `augment` gives it two: "
                f"leave one of them out, or take `sampler` 'balanced'."
            )
        self.spec()
        for key in ("early_stopping", "keep_best"):
            if getattr(self, key) and self.validation_size == 0:
                raise ValueError(
                    f"`{key}` goes by the validation error, and `validation_size` is 0: keep some examples for it."
                )
        if self.model in MODELS:
            model_options(self.model, self.model_options)
            model_options(self.model, self.base_model_options)
        if self.task in TASKS:
            TASKS[self.task].make(**checked(TASKS[self.task].make, self.task_options, owner=f"task {self.task!r}"))
        if not learns_labels(self.task):
            self._check_labels(entry.ascent if self.ascent is None else self.ascent)
        self._check_start()
        if self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov` needs `momentum` above 0.")
        if self.m is not None and self.m > self.batch_size:
            raise ValueError(f"`m` must be at most the batch size {self.batch_size}, got {self.m}.")
        if entry.rho is not None:
            self._check_sharing()
            self._check_window()
        late = [e for e in self.checkpoints if e > self.epochs]
        if late:
            raise ValueError(f"`checkpoints` names epochs {late} beyond the last epoch {self.epochs}.")
        if self.obf_classes is not None and 0 <= self.obf_classes <= 1:
            raise ValueError(
                f"`obf_classes` must be above 1, or negative for chance level 0, got {self.obf_classes!r}."
            )
        return self

    def _check_sharing(self) -> None:
        m = None if self.m == self.batch_size else self.m
        if m is not None and self.micro_batch is not None and self.micro_batch < m:
            raise ValueError(
                f"`micro_batch` {self.micro_batch} is below `m` {m}, and `m` below the batch size {self.batch_size}: "
                f"micro-batches can share a perturbation only over the whole batch. Make `micro_batch` at least {m}, "
                f"or leave `m` out."
            )
        if m is not None and self.sharing not in (None, "chunk"):
            raise ValueError(
                f"`sharing` {self.sharing!r} needs one perturbation for the whole batch, and `m` {m} asks for one a "
                f"chunk: leave one of them out."
            )
        if (self.sharing == "group") != (self.group_size is not None):
            raise ValueError(
                f"`group_size` goes with `sharing` 'group', got {self.group_size} with {self.sharing!r}: give both or "
                f"neither."
            )

    def _check_labels(self, ascent: str | None) -> None:
        """Of a task whose targets are no labels, or of which only the user knows what they are."""
        known = TASKS[self.task].settings if self.task in TASKS else ()
        labelled = {
            "label_noise": self.label_noise,
            "label_smoothing": self.label_smoothing,
            "loss": self.loss != type(self).model_fields["loss"].default,
            "spurious": self.spurious,
            "ascent": ascent == "obf",
            "class_weights": self.class_weights,
            "sampler": self.sampler == "balanced",
            "classes": self.classes,
        }
        for key, given in labelled.items():
            if given and key not in known:
                own = key == "ascent" and self.ascent is None  # which comes with the method
                said = f"`method` {self.method!r} ascends an objective that" if own else f"`{key}`"
                out = "take another method" if own else "leave it out"
                raise ValueError(f"{said} needs labels, that is `task` 'classification', got {self.task!r}: {out}.")

    def _check_start(self) -> None:
        if self.init is not None and not self.init.strip():
            raise ValueError("`init` is empty: name a file of weights, or leave it out.")
        for key in ("init_digest", "init_ema", "reset_head"):
            if self.init is None and getattr(self, key):
                raise ValueError(f"`{key}` goes with `init`, the weights to start from: give both or neither.")
        if self.head is not None and not self.reset_head:
            raise ValueError(f"`head` {self.head!r} goes with `reset_head`: give both or neither.")

    def _check_window(self) -> None:
        if self.perturb_from >= self.perturb_until:
            raise ValueError(
                f"`perturb_from` must be below `perturb_until`, got {self.perturb_from} and {self.perturb_until}; "
                f"for no perturbation at all take rho 0."
            )
        if self.rho_schedule in RADIUS_WARMUP and self.rho_warmup_epochs == 0:
            raise ValueError(f"`rho_schedule` {self.rho_schedule!r} needs `rho_warmup_epochs` above 0.")

    def spec(self, steps_per_epoch: int = 1, **more: Any) -> MethodSpec:
        """The method and its base optimizer; fractions and epochs become steps.

        Args:
            steps_per_epoch: Steps of an epoch.
            **more: Further fields.

        Raises:
            ValueError: If they do not go together.
        """
        entry, total = method_named(self.method), self.epochs * steps_per_epoch
        values: dict[str, Any] = {name: getattr(self, name) for name in SHARED}
        values["options"] = options_of(entry, self.method_options, owner=f"method {self.method!r}")
        if entry.rho is None:
            values |= {"ascent": None, "gate": None}
        if values["gate"] is None:
            values["gate_options"] = {}
        if (self.perturb_from, self.perturb_until) != (0, 1):
            end = None if self.perturb_until == 1 else round(self.perturb_until * total)
            values["window"] = (round(self.perturb_from * total), end)
        values |= {"sharing": self.shared_by, "rho_steps": round(self.rho_warmup_epochs * steps_per_epoch)}
        values |= {"total_steps": total, "steps_per_epoch": steps_per_epoch, "seed": derive(self.seed, "method")}
        return MethodSpec(**values | more)

    def resolved(self) -> "TrainConfig":
        """The same run spelled out: defaults filled in, and what the method does not read set to its default."""
        entry = method_named(self.method)
        fields = type(self).model_fields
        unread: set[str] = set()
        changes: dict[str, Any] = {
            "method_options": options_of(entry, self.method_options, owner=f"method {self.method!r}"),
            "checkpoints": tuple(sorted(set(self.checkpoints) - {0, self.epochs})),
        }
        if self.model in MODELS:
            changes["model_options"] = model_options(self.model, self.model_options)
        if self.task in TASKS:
            entry_of_task = TASKS[self.task]
            options = checked(entry_of_task.make, self.task_options, owner=f"task {self.task!r}")
            changes["task_options"] = entry_of_task.resolved(options)
        if (text := text_of(self.task, changes.get("task_options", {}))) is not None:
            changes["task_options"] = asdict(text.resolved())
        changes["augment"] = spelled(self.augment)
        if self.init is not None:
            place = str(Path(self.init.removeprefix("hf:")).expanduser().absolute())
            changes |= {"init": place, "init_digest": self.init_digest or known_digest(place, ema=self.init_ema)}
        changes["freeze"] = tuple(sorted(set(self.freeze)))
        if self.dataset_digest is None:
            changes["dataset"] = absolute(self.dataset)
            with suppress(FileNotFoundError):  # said where the data are loaded
                changes["dataset_digest"] = fingerprint(self.dataset)
        changes["base"] = entry.base or self.base
        if entry.rho is None:
            unread |= {
                "rho", "rho_schedule", "rho_min", "rho_warmup_epochs", "m", "ascent", "same_rng", "sharing",
                "group_size", "gate", "gate_options", "perturb_from", "perturb_until", "reference_size",
                "base_model_options",
            }  # fmt: skip
            m = None
        else:
            changes["rho"] = entry.rho if self.rho is None else self.rho
            changes["ascent"] = self.ascent or entry.ascent
            if self.rho_schedule not in RADIUS_FLOOR:
                unread.add("rho_min")
            if self.rho_schedule not in RADIUS_WARMUP:
                unread.add("rho_warmup_epochs")
            if self.gate is None:
                unread.add("gate_options")
            if self.sharing in ("chunk", "batch"):
                unread.add("sharing")  # now said by m
            m = self.m or (self.micro_batch if self.sharing == "chunk" else None)
            m = None if m is None or m >= self.batch_size else m
            changes["m"] = m
        if self.micro_batch is not None and self.micro_batch >= (m or self.batch_size):
            unread.add("micro_batch")
        if changes.get("ascent") == "obf":
            changes["obf_link"] = self.obf_link or ("softmax" if self.loss == "cross_entropy" else "sigmoid")
        else:
            unread |= {"obf_classes", "obf_gamma", "obf_link"}
        if self.lr_schedule != "step":
            unread |= {"lr_milestones", "lr_factor"}
        if changes["base"] != "sgd":
            unread |= {"momentum", "nesterov"}
        if self.average is None:
            unread.add("average_from")
        elif self.average_from is None:
            changes["average_from"] = 0.75 if self.average == "swa" else 0.0
        if self.average != "ema":
            unread.add("average_decay")
        if self.label_smoothing == 0:
            unread.add("smoothing_convention")
        changes |= {key: fields[key].get_default(call_default_factory=True) for key in unread}
        result = self.model_copy(update=changes)
        alone = self.executor == "population" and why_alone(result)
        return result.model_copy(update={"executor": "alone"}) if alone else result

    def moved(self, dataset: str) -> "TrainConfig":
        """The same run, whose data now lie elsewhere.

        Args:
            dataset: `scheme:PATH` of the new place; that the files are the same is checked when they are loaded.

        Raises:
            ValueError: If it names data of another kind, or the run's data do not lie in files.
        """
        scheme = scheme_of(self.dataset)
        if self.dataset_digest is None or scheme is None:
            raise ValueError(
                f"`dataset` {dataset!r} is not where {self.dataset!r} lies, which has no path: leave it out."
            )
        if scheme_of(dataset) != scheme:
            raise ValueError(
                f"`dataset` {dataset!r} is not where the run's {self.dataset!r} can have moved: give {scheme}:PATH."
            )
        return self.model_copy(update={"dataset": absolute(dataset)})

    @property
    def mixes(self) -> bool:
        """Whether the examples of a batch are mixed with each other."""
        return any(text.partition(":")[0] in MIXING for text in self.augment)

    @property
    def chunk(self) -> int:
        """Examples a forward and backward pass, of a resolved configuration."""
        return min(self.m or self.batch_size, self.micro_batch or self.batch_size)

    @property
    def shared_by(self) -> Literal["chunk", "batch", "group", "global"]:
        """Who shares a perturbation, of a resolved configuration."""
        return self.sharing or ("chunk" if self.chunk == (self.m or self.batch_size) else "batch")

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration in types that JSON knows."""
        values: dict[str, Any] = self.resolved().model_dump(mode="json")
        return values

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits of a hash of what decides the result."""
        return hashed(self.as_dict())


SHARED = [f.name for f in fields(MethodSpec) if f.name in TrainConfig.model_fields]  # of the same name and meaning


def hashed(values: Mapping[str, Any]) -> str:
    """The run id of a resolved configuration, from its values as config.json holds them."""
    fields = TrainConfig.model_fields
    usual = {key: fields[key].get_default(call_default_factory=True) for key in LATER}
    unchanged = {key for key in LATER if values.get(key) in (usual[key], pydantic_core.to_jsonable_python(usual[key]))}
    if values.get("init_digest") is not None:
        unchanged.add("init")  # what the weights are counts, not where they were
    kept = {key: value for key, value in values.items() if key not in unchanged}
    if values.get("dataset_digest") is not None:
        kept["dataset"] = values["dataset"].partition(":")[0]  # wherever its files lie
    text = json.dumps({"schema": SCHEMA, **kept}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fits(values: Mapping[str, Any], run_id: str) -> bool:
    """Whether a configuration is the one of a run id; True for names that are no hash, and what cannot be validated."""
    if not re.fullmatch("[0-9a-f]{12}", run_id):
        return True
    try:
        return hashed(values) == run_id or train_config(values).run_id == run_id
    except ValueError:
        return True  # said where it is validated


def train_config(values: Mapping[str, Any], *, where: str = "the configuration") -> TrainConfig:
    """A configuration from a mapping, such as a YAML file's.

    Args:
        values: Keys and values; those left out have their defaults.
        where: What to call it in messages.

    Raises:
        ValueError: With one line a problem.
    """
    config = TrainConfig.parse(values, where=where)
    assert isinstance(config, TrainConfig)
    return config
