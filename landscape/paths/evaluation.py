"""Losses and errors, example by example, at any state of a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.batches import as_batches
from landscape.checks.trust import Trust
from landscape.evaluate import evaluate
from landscape.functional import PureModel
from landscape.params import Params
from landscape.paths.states import ModelState
from landscape.risk import EmpiricalRisk

Statistics = Literal["eval", "batch", "recalibrate"]
Readings = Mapping[tuple[str, str], Mapping[str, Float[Tensor, " _"]]]
"""By (subset, BatchNorm mode), by metric: one value an example, or one for all where examples cannot be told apart."""
Evaluate = Callable[[ModelState], Readings]


class StateEvaluator:
    """Evaluates states of one architecture on subsets of data: a function ModelState -> readings.

    Metrics are "loss", and "error" (0 or 1) where outputs are rows of scores and targets whole numbers. The model and
    the states are never changed; dropout is off.

    Args:
        model: The architecture; its own weights do not matter.
        loss: Mean loss of one batch, called as loss(outputs, targets).
        data: By name of the subset, what `EmpiricalRisk.from_model` accepts.
        modes: How BatchNorm behaves: "eval" with the state's running statistics, "recalibrate" with statistics
            estimated afresh at every state, "batch" with each batch's own. None means "eval", and "recalibrate" too
            where the model has running statistics.
        calibration: Data for "recalibrate"; None means the subset "train", or the first one where there is none.
        weight: Weight of a batch, see `EmpiricalRisk.from_model`.

    Raises:
        ValueError: If there is no subset, or a mode is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        data: Mapping[str, Any],
        *,
        modes: Sequence[Statistics] | None = None,
        calibration: Any = None,
        weight: Callable[[Any, Any], float] | None = None,
    ) -> None:
        if not isinstance(data, Mapping) or not data:
            raise ValueError(
                "`data` must name its subsets, such as {'train': (x, y), 'test': (x, y)}, at least one, got "
                f"{type(data).__name__}."
            )
        plain = PureModel(model)
        usual: tuple[Statistics, ...] = ("eval", "recalibrate") if plain.normalised else ("eval",)
        self.modes = usual if modes is None else tuple(modes)
        unknown = [mode for mode in self.modes if mode not in get_args(Statistics)]
        if unknown or not self.modes:
            raise ValueError(f"`modes` must be some of {list(get_args(Statistics))}, got {list(self.modes)}.")
        self.loss, self.weight = loss, weight
        self.batches = {name: as_batches(part) for name, part in data.items()}
        chosen = self.batches.get("train", next(iter(self.batches.values())))
        self.calibration = chosen if calibration is None else as_batches(calibration)
        self._trust = Trust()
        self._pure = {mode: PureModel(model, mode="batch" if mode == "batch" else "eval") for mode in self.modes}

    def __call__(self, state: ModelState) -> Readings:
        """Readings at a state, by (subset, mode)."""
        found: dict[tuple[str, str], Mapping[str, Tensor]] = {}
        for mode, pure in self._pure.items():
            self._set_buffers(pure, state.buffers)
            here = pure.recalibrated(state.parameters, self.calibration) if mode == "recalibrate" else pure
            for name, batches in self.batches.items():
                risk = EmpiricalRisk(here, self.loss, batches, state.parameters, self.weight, trust=self._trust)
                found[name, mode] = evaluate(risk, losses=True).examples
        return {(name, mode): found[name, mode] for name in self.batches for mode in self.modes}

    def _set_buffers(self, pure: PureModel, buffers: Params) -> None:
        with torch.no_grad():
            for name, own in pure.module.named_buffers():  # of the private copy
                if name in buffers:
                    own.copy_(buffers[name])
