"""What a measure is taken of: one checkpoint with its data, its risk and what is known of its training."""

import copy
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from analysis.forgetting.providers import OwnPerturbation
from analysis.measures.needs import Need, lacking, no_probabilities
from landscape import Eigenpairs, EmpiricalRisk, GaussNewton, Hessian, Params, top_eigenpairs
from landscape.complexity import Network, fold
from landscape.memory import free_bytes
from landscape.progress import Progress
from landscape.ranks import Ranks
from landscape.sharpness import GradientMoments, Radius, gradient_moments, noise_radius
from trainers.backend import Backend
from trainers.config import TrainConfig
from trainers.data.loading import DataBundle, Split
from trainers.data.splits import stratified_order
from trainers.randomness import stream
from trainers.runs.checkpoint import apply_weights, load_checkpoint, model_state, read_weights
from trainers.runs.folder import Run
from trainers.runtime import require_float64
from trainers.sharpness_aware.ascent import Gradient, IteratedGradient, Random
from trainers.sharpness_aware.memory import EmaResidual
from trainers.sharpness_aware.methods import METHODS, Setting
from trainers.sharpness_aware.methods.own import import_methods
from trainers.sweep.parallel import cores
from trainers.tasks.evaluation import batch_of, entries_of
from trainers.tasks.registry import learns_labels
from trainers.tasks.task import Classification, Task, batch_weight, measured, task_of
from trainers.weights.foreign import place, read_foreign

Inputs = tuple[Tensor, Tensor]
T = TypeVar("T", Hessian, GaussNewton)

ENDS: dict[str, Any] = {"tol": 1e-3, "own_tol": 5e-2, "max_products": 200}  # usual options of eigenvalues

BATCH = 1024  # examples a pass, at most; fewer of large inputs, which would leave a processor's cache
DRAWN = 2048  # training examples that measures go through, unless they are told another number
HELD_SHARE = 8  # an eighth of the free memory may hold examples that are else read one by one
KEPT_SHARE = 4  # a quarter of the free memory may go into graphs, on a CPU over all processes, and
KEPT_BYTES = 2**30  # there no more than so much in each of them
AT_ONCE = 32  # examples of which a CPU makes a graph anew: a fifth of the memory of 167, and no slower


@dataclass(frozen=True)
class Subject:
    """One checkpoint under measurement.

    Attributes:
        model: In evaluation mode; measures never change it.
        data: Its data.
        run_id: Of the run, or the name of a foreign file.
        step: Optimizer steps taken.
        epoch: Epochs taken.
        config: The run's configuration; None for foreign weights.
        initial: The parameters before training, where they are known.
        run: The run folder, where there is one.
        seed: Of all random choices of the measures; the same for every model, so that they are compared on equal draws.
        progress: Told of the products of long measures, see `landscape.top_eigenpairs`.
        initial_buffers: The buffers before training, such as running statistics, where they are known.
        task: What losses, scores and probabilities come from: the run's, as it is measured.
        weights: Which weights they are where they are not those of training: "ema" or "swa"; rows say so.
        notes: What every row says beside its own warnings, such as which weights of a file were taken.
        examples: Training examples that measures go through: of more, a stratified draw of so many; None for all.
        batch_size: Examples a pass; None for as many as suit the inputs. It changes no number beyond rounding.
        ranks: The processes to which the examples of `risk` are shared out; what is made of it is then a sum over them.
    """

    model: nn.Module
    data: DataBundle
    run_id: str
    step: int = 0
    epoch: int = 0
    config: TrainConfig | None = None
    initial: Params | None = None
    run: Run | None = None
    seed: int = 0
    progress: Progress = False
    initial_buffers: Params | None = None
    task: Task = field(default_factory=Classification)
    weights: str = ""
    notes: tuple[str, ...] = ()
    examples: int | None = DRAWN
    batch_size: int | None = None
    ranks: Ranks = field(default_factory=Ranks)

    @classmethod
    def of_checkpoint(
        cls, run: Run, step: int, data: DataBundle, *, average: bool = False, trust: bool = False, seed: int = 0
    ) -> "Subject":
        """A checkpoint of one of our runs, or its average of weights."""
        model, meta = load_checkpoint(run.checkpoint(step), average=average, trust=trust)
        if (meta["run_id"], meta["step"]) != (run.run_id, step):
            raise ValueError(
                f"{run.checkpoint(step)} holds step {meta['step']} of run {meta['run_id']}, not step {step} of "
                f"{run.run_id}: it was copied in; take the run's own from a copy, or train it again."
            )
        first = run.checkpoints().get(0)
        initial = buffers = None
        if first is not None:
            stored = read_weights(first / "params.safetensors")
            initial = {name: stored.pop(name) for name in meta["names"]}
            buffers = stored
        config = run.config()
        import_methods(config, trust=trust)
        subject = cls(model, data, meta["run_id"], step, meta["epoch"], config, initial, run, seed)
        weights = meta["average"]["kind"] if average else ""
        task = measured(task_of(config, trust=trust))
        return replace(subject, initial_buffers=buffers, task=task, weights=weights, notes=_frozen(model))

    @classmethod
    def of_weights(
        cls, path: str | Path, model: nn.Module, data: DataBundle, *, ema: bool = False, seed: int = 0
    ) -> "Subject":
        """Weights from elsewhere in a model that fits them; the model takes them over.

        Args:
            path: A file or folder, see `trainers.read_foreign`.
            model: The model.
            data: What it is measured on.
            ema: Take the average of weights in the file.
            seed: Of all random choices of the measures.
        """
        weights = read_foreign(path, ema=ema, model=model)
        place(model, weights.tensors)
        notes = (f"weights: {', '.join(weights.notes)}",) if weights.notes else ()
        kind = "ema" if weights.average else ""
        return cls(model.eval(), data, Path(path).stem, seed=seed, weights=kind, notes=notes)

    def on(self, device: str) -> "Subject":
        """The same with its weights on a device, where its data are; the model itself goes there."""

        def moved(tensors: Params | None) -> Params | None:
            return tensors and {name: t.to(device) for name, t in tensors.items()}

        if any(p.dtype == torch.float64 for p in self.model.parameters()):
            require_float64(torch.device(device), f"run {self.run_id}, with weights in float64,")
        initial, buffers = moved(self.initial), moved(self.initial_buffers)
        return replace(self, model=self.model.to(device), initial=initial, initial_buffers=buffers)

    def read_by(self, workers: int) -> "Subject":
        """The same with data that so many processes read ahead, where they are read one by one."""
        return replace(self, data=self.data.to(self.data.train.device, workers=workers)) if workers else self

    def by(self, backend: Backend) -> "Subject":
        """The same as torch is to compute it; notes say so where numbers lose digits by it."""
        notes = ("products in TF32",) if backend.tf32 and self.data.train.device.type == "cuda" else ()
        return replace(self, model=backend.laid_out(self.model), notes=(*self.notes, *notes))

    def generator(self, purpose: str) -> torch.Generator:
        """The source of randomness of one measure, on the CPU: depends on its name and the seed, not on the model."""
        return stream(self.seed, purpose)

    def noise(self, purpose: str) -> torch.Generator:
        """The same on the device of the data, for vectors as long as the weights; each kind of device draws its own."""
        return stream(self.seed, purpose, self.data.train.device)

    @property
    def n(self) -> int:
        """Number of training examples, all of them."""
        return len(self.data.train)

    @property
    def drawn(self) -> int | None:
        """How many training examples were drawn; None where measures go through all of them."""
        return None if self.examples is None or self.examples >= self.n else self.examples

    @cached_property
    def sample(self) -> Split:
        """The training examples that measures go through: all, or a stratified draw, the same for every model.

        Every smaller draw is the beginning of a larger one. Examples that are read one by one are kept, if they fit.
        """
        train, count = self.data.train, self.drawn
        if count is None:
            return train
        some = train.some(stratified_order(train.y.cpu(), self.generator("examples"))[:count].to(train.device))
        if isinstance(some.inputs, Tensor) or some.inputs.bytes_each * count > free_bytes("cpu") // HELD_SHARE:
            return some
        stored = torch.stack([some.inputs[i] for i in some.index.tolist()])
        return replace(some, inputs=stored.to(some.device))

    def error_of_mean(self, values: np.ndarray | Tensor) -> float:
        """What the mean of a number of each example of the sample may be off by from that of all training examples.

        s √(1 - k/n) / √k for k of n examples, drawn without replacement: 0 where all are taken. In a stratified draw
        s is the deviation within classes.
        """
        if self.drawn is None:
            return 0.0
        each, y = np.asarray(values, dtype=np.float64), self.sample.y.cpu()
        labels = np.zeros(len(each)) if y.ndim > 1 or y.is_floating_point() else y.numpy()
        _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
        k, away = len(each), each - (np.bincount(place, each) / counts)[place]
        if k <= len(counts):
            return math.nan
        return math.sqrt(float(away @ away) / (k - len(counts)) * (1 - k / self.n) / k)

    @cached_property
    def risk(self) -> EmpiricalRisk:
        """The task's loss over `sample`, evaluation mode, no augmentation: plain cross-entropy for labels."""
        risk = self.risk_of(self.model, self.sample.batches(size=self.batch))
        return risk if self.ranks.count == 1 else risk.sharded(self.ranks.group)

    @cached_property
    def batch(self) -> int:
        """Examples a pass."""
        if self.batch_size is not None:
            return self.batch_size
        return min(BATCH, batch_of(self.data.train.take(slice(1))[0], entries_of(self.task, self.data)))

    def risk_of(self, model: nn.Module, data: Any, **options: Any) -> EmpiricalRisk:
        """The task's loss of a model on data; options as of `EmpiricalRisk.from_model`."""
        return EmpiricalRisk.from_model(model, self.task.loss, data, weight=batch_weight(self.task), **options)

    def outputs(self, x: Tensor) -> Tensor:
        """The model's outputs on inputs, in order, on the CPU."""
        return self.risk.on([(part, part) for part in x.split(self.batch)]).outputs().cpu()

    def outputs_on(self, split: Split) -> Tensor:
        """The same on the examples of a split; those of training and validation are computed once."""
        if split is self.data.train:
            return self.train_outputs
        return self.held_out_outputs if split is self.data.validation else self._outputs(split)

    def _outputs(self, split: Split) -> Tensor:
        return self.risk.on(split.batches(size=self.batch)).outputs().cpu()

    def probabilities(self, outputs: Tensor) -> Tensor:
        """What a classifier's outputs say of each class, in float64.

        Raises:
            ValueError: If the task has no categorical predictions.
        """
        if why := no_probabilities(self.task):
            raise ValueError(why)
        task: Any = self.task
        probabilities: Tensor = task.probabilities(outputs)
        return probabilities

    def lacks(self, needs: Iterable[Need]) -> str:
        """Why a measure that needs these cannot be taken; empty where it can."""
        if why := lacking(self.task, needs):
            return why
        if "images" in needs and not set(self.data.ood) - set(self.data.shifted):
            return f"needs images or signals, and inputs have shape {tuple(self.data.shape)}"
        return ""

    @property
    def trained_plainly(self) -> bool:
        """Whether it is known that the training loss was the plain cross-entropy."""
        config = self.config
        if config is None or not learns_labels(config.task):
            return False
        return config.loss == "cross_entropy" and config.label_smoothing == 0 and config.class_weights is None

    @property
    def held_out(self) -> Split:
        """The validation examples, which training never saw.

        Raises:
            ValueError: If there is none.
        """
        if not len(self.data.validation):
            raise ValueError("there are no validation examples: keep some, by `validation_size`.")
        return self.data.validation

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian of `risk`, shared by the measures that use it; rows carry its `note`."""
        return self._operator(Hessian)

    @cached_property
    def hessian_ends(self) -> Eigenpairs:
        """The ends of the Hessian's spectrum at the usual tolerances, with the space they were found in."""
        return top_eigenpairs(
            self.hessian, k=1, which="both", **ENDS, vectors=False, keep=True, progress=self.progress,
            generator=self.noise("eigen"),
        )  # fmt: skip

    @cached_property
    def gauss_newton(self) -> GaussNewton:
        """The Gauss-Newton matrix of `risk`, likewise."""
        return self._operator(GaussNewton)

    def _operator(self, kind: type[T]) -> T:
        """An operator that keeps its graph if it fits (on a CPU beside those of a process a core)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what it says is in the operator's note
            return operator_of(kind, self.risk, kept_bytes(self.risk.device), whole=self.batch_size is not None)

    @cached_property
    def gradient(self) -> Params:
        """∇L at the checkpoint."""
        return self.loss_and_gradient[1]

    @cached_property
    def loss_and_gradient(self) -> tuple[float, Params]:
        """L and ∇L at the checkpoint, shared by the measures that start from them."""
        return self.risk.value_and_gradient()

    @cached_property
    def gradient_moments(self) -> GradientMoments:
        """Moments of the gradients of single examples, shared by the measures of them."""
        return gradient_moments(self.risk)

    @cached_property
    def noise_radius(self) -> Radius:
        """The noise that costs a tenth of training accuracy, at the usual settings; bounds share it."""
        return noise_radius(self.risk, generator=self.noise("noise radius"))

    @cached_property
    def magnitude_noise_radius(self) -> Radius:
        """The same for noise in proportion to the weights."""
        return noise_radius(self.risk, magnitude=True, generator=self.noise("noise radius"))

    @cached_property
    def train_outputs(self) -> Tensor:
        """The model's outputs on the whole training set, in order, on the CPU."""
        return self.risk.outputs().cpu() if self.drawn is None else self._outputs(self.data.train)

    @cached_property
    def held_out_outputs(self) -> Tensor:
        """The same on the validation examples."""
        return self._outputs(self.data.validation)

    @cached_property
    def network(self) -> Network:
        """The model with BatchNorm folded in, and its layers of weights.

        Raises:
            ValueError: If it cannot be folded, see `landscape.complexity.fold`.
        """
        return fold(self.model, self._random_inputs())

    @cached_property
    def initial_model(self) -> nn.Module | None:
        """The model before training; None where its weights are not known, or not all of its running statistics."""
        if self.initial is None:
            return None
        kept = model_state(self.model)
        start = {**self.initial, **(self.initial_buffers or {})}
        if not set(kept) <= set(start):
            return None
        model = copy.deepcopy(self.model)
        apply_weights(model, {name: start[name] for name in kept})
        return model.eval()

    @cached_property
    def initial_network(self) -> Network | None:
        """The same for the model before training."""
        return None if self.initial_model is None else fold(self.initial_model, self._random_inputs())

    def _random_inputs(self) -> Tensor:
        x, _ = self.data.train.take(slice(2))
        return torch.randn(x.shape, generator=self.generator("inputs")).to(x) if x.is_floating_point() else x

    @cached_property
    def own(self) -> OwnPerturbation | None:
        """The perturbation that the run was trained with; None for plain methods and foreign weights."""
        if self.config is None:
            return None
        config = self.config.resolved()
        if config.rho is None:
            return None
        try:
            parts = METHODS[config.method].compose(
                Setting(model=self.model, total_steps=1, steps_per_epoch=1), **config.method_options
            )
        except ValueError:  # a method that needs more of the run than is kept
            return None
        if parts.mask is not None or not isinstance(parts.source, Gradient | IteratedGradient | EmaResidual | Random):
            return None  # along a momentum, on some entries, from noisy weights: no function of one gradient
        if isinstance(parts.source, Random):
            provider = "random"
        elif config.ascent == "obf":
            provider = "obf"
        else:
            provider = "sam" if parts.scaler.metric is None else "asam"
        return OwnPerturbation(provider, replace(parts.scaler, rho=config.rho))

    def correctness(self, protocol: Literal["presentation", "sweep"]) -> np.ndarray:
        """Per-example correctness up to this checkpoint.

        Raises:
            ValueError: If the training record is not there.
        """
        if self.run is None:
            raise ValueError("example forgetting needs the record of a training run; foreign weights have none.")
        return self.run.correctness(protocol, until=self.epoch)


def operator_of(kind: type[T], risk: EmpiricalRisk, budget: int, *, whole: bool = False) -> T:
    """An operator that keeps its graph if it fits; if not, one that makes it anew, a few examples at a time on a CPU.

    Args:
        kind: Of operator.
        risk: The risk.
        budget: Bytes that may be kept.
        whole: Take the risk's batches as they are.
    """
    operator = kind(risk, budget=budget)
    if operator.path != "afresh" or whole or operator.device.type != "cpu" or max(risk.sizes) <= AT_ONCE:
        return operator
    return kind(risk, path="afresh", micro_batch=AT_ONCE, probe=False)


def kept_bytes(device: torch.device) -> int:
    """What an operator may keep between products."""
    share = free_bytes(device) // KEPT_SHARE
    return min(share // cores(), KEPT_BYTES) if device.type == "cpu" else share


def _frozen(model: nn.Module) -> tuple[str, ...]:
    """What rows say of parameters that training left as they were."""
    frozen = sum(not p.requires_grad for p in model.parameters())
    if not frozen:
        return ()
    every = sum(1 for _ in model.parameters())
    return (f"frozen: {frozen} of {every} parameter tensors are held fixed, as in training",)


def pair(split: Split) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a split."""
    return split.x, split.y
