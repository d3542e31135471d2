"""The data that outputs are compared on, and a model's outputs on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.metrics import Outputs
from landscape import EmpiricalRisk, Params
from landscape.functional import PureModel
from trainers.tasks.evaluation import batch_of

Array = np.ndarray

CHUNK = 4096  # examples a forward pass, of inputs so small that
ENOUGH = 2048  # or more suit a pass


class Evaluation:
    """The data that outputs are compared on: training examples, then held-out ones.

    Attributes:
        x: Training inputs.
        y: Their labels.
        labels: Labels of all.
        n_train: Number of training examples.
        by_batch: Whether the model normalises by the statistics of what it is given.
        apart: Whether B is evaluated by itself: because of that, or because it is not among the examples that are seen.
        others: How many training examples stand for those outside B.
        seen: Positions of the examples that every model is evaluated on, among all.

    Args:
        risk: Model, loss and training data.
        held_out: Inputs and labels of the others.
        asked: How outputs are read.
        others: Training examples, the first ones, that stand for all those outside B; None means all of them.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        held_out: tuple[Tensor, Tensor],
        asked: Displacements,
        *,
        others: int | None = None,
    ) -> None:
        self.x, self.y = training_pairs(risk)
        other, other_y = _labelled(held_out, "held_out")
        self.risk, self.asked = risk, asked
        self.n_train = len(self.x)
        self.labels: Int[Array, " n"] = torch.cat([self.y.cpu(), other_y.cpu()]).numpy()
        normalised = isinstance(risk.predict, PureModel) and risk.predict.normalised
        if normalised and risk.mode not in ("eval", "batch"):
            raise ValueError(
                f"`risk` must be in mode 'eval' or 'batch' to be perturbed batch by batch, got {risk.mode!r}."
            )
        self.by_batch = normalised and risk.mode == "batch"
        self.others = self.n_train if others is None or self.by_batch else min(others, self.n_train)
        self.apart = self.by_batch or self.others < self.n_train
        self.seen = np.concatenate([np.arange(self.others), np.arange(self.n_train, len(self.labels))])
        self._base: Tensor | None = None
        if self.by_batch:
            parts: Any = [*(x for x, _ in risk.batches), *other.to(self.x.device).split(max(risk.sizes))]
        else:
            parts = torch.cat([self.x[: self.others], other.to(self.x.device)])
        self.inputs = on_inputs(risk, parts, asked.batch_size)

    def logits(self, theta: Params, chosen: Int[Array, " m"] | None = None) -> Tensor:
        """Logits on the examples that are seen, and then on the chosen batch where it is evaluated by itself."""
        if theta is not self.risk.theta:
            found = self.asked.outputs_of(self.inputs, theta)
        else:
            found = self._base = self.asked.outputs_of(self.inputs, theta) if self._base is None else self._base
        if chosen is None or not self.apart:
            return found
        batch = self.x[torch.from_numpy(chosen).to(self.x.device)]
        return torch.cat([found, self.asked.outputs_of(on_inputs(self.risk, [batch]), theta)])

    def outputs(self, theta: Params, chosen: Int[Array, " m"] | None = None) -> Outputs:
        """Outputs at θ."""
        logits = self.logits(theta, chosen)
        labels = self.labels[self.places(chosen)]
        if logits.ndim != 2 or logits.shape[1] <= labels.max() or labels.min() < 0:
            raise ValueError(
                f"`risk` must predict logits of shape (n, c), one column a class, for labels from 0 to c - 1; got "
                f"{tuple(logits.shape)} for labels from {labels.min()} to {labels.max()}."
            )
        return Outputs.from_logits(logits, labels)

    def read(self, logits: list[Tensor], chosen: Int[Array, " m"]) -> Outputs:
        """Outputs of several models at once."""
        return Outputs.from_logits(torch.stack(logits), self.labels[self.places(chosen)])

    def rows(self, chosen: Int[Array, " m"]) -> Int[Array, " m"]:
        """Which examples of the plan the training examples are by these numbers: themselves."""
        return chosen

    def places(self, chosen: Int[Array, " m"] | None) -> Int[Array, " k"]:
        """Which of all examples each output is of."""
        return np.concatenate([self.seen, chosen]) if self.apart and chosen is not None else self.seen

    def sets(self, chosen: Int[Array, " m"]) -> dict[str, Int[Array, " k"]]:
        """Positions of the three sets in the outputs."""
        outside = np.ones(self.n_train, dtype=bool)
        outside[chosen] = False
        k, others = len(self.seen), self.others
        exposed = k + np.arange(len(chosen)) if self.apart else chosen
        return {"exposed": exposed, "other_train": np.flatnonzero(outside[:others]), "held_out": np.arange(others, k)}


def on_inputs(risk: EmpiricalRisk, parts: Tensor | Sequence[Tensor], size: int | None = None) -> EmpiricalRisk:
    """The model of a risk on inputs alone, to be asked for its outputs.

    Args:
        risk: Gives the model.
        parts: Inputs, or batches of them.
        size: Examples a pass, where they are no batches yet; None for as many as suit them.
    """
    if isinstance(parts, Tensor):
        usual = batch_of(parts)
        parts = parts.split(size or (CHUNK if usual >= ENOUGH else usual))
    return risk.on([(part, part) for part in parts])


def training_pairs(risk: EmpiricalRisk) -> tuple[Tensor, Tensor]:
    """All inputs and labels of a risk whose batches are pairs of them.

    Raises:
        ValueError: If they are not.
    """
    pairs = [_labelled(batch, "risk") for batch in risk.batches]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _labelled(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    x, y = batch
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(f"`{name}` must hold pairs of tensors (inputs, labels), got {type(x).__name__}.")
    if y.ndim != 1 or y.is_floating_point() or len(x) != len(y) or len(y) == 0:
        raise ValueError(
            f"`{name}` must have one integer label for each of its inputs, and at least one, got {y.dtype} labels of "
            f"shape {tuple(y.shape)} for {len(x)} inputs."
        )
    return x, y
