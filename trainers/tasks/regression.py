"""Regression: one or several numbers for each example, by point or with a variance."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor

from trainers.tasks.outputs import columns, require_finite

Loss = Literal["squared", "absolute", "huber", "gaussian"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

LOG_TWO_PI = math.log(2 * math.pi)
INTERVAL = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Regression:
    """Learns k numbers y of each example; every number below is a mean over the k entries.

        squared     (f - y)², with k outputs f
        absolute    |f - y|
        huber       (f - y)² / 2 up to |f - y| = delta, and from there delta (|f - y| - delta / 2)
        gaussian    (log 2π + s + (f - y)² exp(-s)) / 2 in nats, with 2k outputs: the means f, then the logarithms s of
                    the variances

    Attributes:
        loss_name: The setting `loss`, one of these.
        delta: Of huber, in units of y.
        variance: σ² of the Gaussian around f that a prediction stands for where the loss gives none, in units of y²;
            it is read by `divergence` alone. With standardised targets 1 is the variance of the training targets.
    """

    _: KW_ONLY
    loss_name: Loss = "squared"
    delta: Positive = 1.0
    variance: Positive = 1.0

    weight = None
    decides = False

    @property
    def name(self) -> str:
        """Of the loss, for the rows of measures."""
        return {"squared": "squared_error", "absolute": "absolute_error", "gaussian": "gaussian_nll"}.get(
            self.loss_name, f"huber({self.delta:g})"
        )

    @property
    def plain(self) -> "Regression":
        """Squared error, so that all runs are measured alike; with a variance, the likelihood that it belongs to."""
        return self if self.loss_name == "gaussian" else Regression(variance=self.variance)

    def outputs(self, entries: int) -> int:
        """Outputs of a model for targets of so many entries."""
        return entries * self._each

    @property
    def _each(self) -> int:
        return 2 if self.loss_name == "gaussian" else 1

    def check_targets(self, y: Shaped[Tensor, "n ..."], where: str) -> None:
        """Check the targets of a data set.

        Raises:
            ValueError: If they are labels, or not finite.
        """
        if not y.is_floating_point():
            raise ValueError(
                f"`dataset` {where}: targets are whole numbers ({y.dtype}), which are labels, and `task` 'regression' "
                f"learns floating-point numbers: take `task` 'classification', or give the targets as float32."
            )
        require_finite(y, where)

    def _parts(
        self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"] | None, Float[Tensor, "n k"]]:
        """Means, logarithms of variances where there are any, and targets."""
        f, y = columns("regression", outputs, targets, each=self._each)
        if self._each == 1:
            return f, None, y
        mean, log_variance = f.chunk(2, 1)
        return mean, log_variance, y

    def each(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The loss of each example."""
        f, s, y = self._parts(outputs, targets)
        off = f - y
        if s is not None:
            return (0.5 * (LOG_TWO_PI + s + off.square() * torch.exp(-s))).mean(1)
        if self.loss_name == "huber":
            near = off.abs() <= self.delta
            return torch.where(near, 0.5 * off.square(), self.delta * (off.abs() - 0.5 * self.delta)).mean(1)
        return (off.abs() if self.loss_name == "absolute" else off.square()).mean(1)

    def loss(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> Float[Tensor, ""]:
        """Its mean over the examples."""
        return self.each(outputs, targets).mean()

    def scores(
        self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]
    ) -> dict[str, Float[Tensor, " n"]]:
        """Squared and absolute error, in units of y² and y."""
        f, _, y = self._parts(outputs, targets)
        return {"squared_error": (f - y).square().mean(1), "absolute_error": (f - y).abs().mean(1)}

    def of_set(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> dict[str, Float[Tensor, ""]]:
        """R² of a set, and how well its variances are calibrated where there are any.

        r2                   1 - Σ (f - y)² / Σ (y - ȳ)² of each entry, with the set's own mean ȳ, and the mean over
                             the entries; NaN where an entry does not vary
        variance_ratio       mean of (f - y)² / σ²: 1 for calibrated variances, above for those too small
        coverage_error       |share of targets within f ± 1.96 σ minus 0.95|
        """
        f, s, y = (None if t is None else t.double() for t in self._parts(outputs, targets))
        assert f is not None
        assert y is not None
        spread = (y - y.mean(0)).square().sum(0)
        found = {"r2": torch.where(spread > 0, 1 - (f - y).square().sum(0) / spread, math.nan).mean()}
        if s is not None:
            z = (f - y) * torch.exp(-0.5 * s)
            found["variance_ratio"] = z.square().mean()
            found["coverage_error"] = ((z.abs() <= INTERVAL).double().mean() - 0.95).abs()
        return found

    @property
    def distribution(self) -> str:
        """What a prediction is read as by `divergence`, for the rows of measures."""
        return "gaussian" if self.loss_name == "gaussian" else f"gaussian, variance {self.variance:g}"

    def divergence(self, before: Float[Tensor, "n ..."], after: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """KL(before ‖ after) of the Gaussians of each entry, in nats; our reading of what a prediction says.

        (log σ'²/σ² + (σ² + (f - f')²) / σ'² - 1) / 2, with the predicted variances, or `variance` for both.
        """
        a, b = (t.double().reshape(len(t), -1) for t in (before, after))
        if self._each == 1:
            return (a - b).square() / (2 * self.variance)
        (f, s), (g, t) = a.chunk(2, 1), b.chunk(2, 1)
        return 0.5 * (t - s + torch.exp(s - t) + (f - g).square() * torch.exp(-t) - 1)
