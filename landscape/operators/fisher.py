"""The Fisher matrix of a model's own predictions, and the empirical Fisher matrix of the data's labels."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from torch import Generator, Tensor, nn

from landscape.batches import Batch, batch_size, slice_batch, take
from landscape.checks.repeatability import EXAMPLES
from landscape.kernels import second_derivatives
from landscape.operators import predictions
from landscape.operators.curvature import Path, RowMap
from landscape.operators.derivatives import Disagreement
from landscape.operators.output_space import OutputMap, Outputs, OutputSpaceOperator
from landscape.params import Params
from landscape.per_example import example_gradients
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk

Likelihood = Literal["auto", "categorical", "gaussian", "bernoulli"]

SEEDS = 2**62


@final
class Fisher(OutputSpaceOperator):
    """The Fisher matrix F = (1/n) Σ_i E_{y ~ p(·|x_i)} [∇ log p(y|x_i) ∇ log p(y|x_i)ᵀ] at θ.

    The labels y are the model's own, not the data's. Exact by default: the expectation is known in the outputs f as
    diag(p) - p pᵀ (categorical, f logits, p = softmax f), I (gaussian with unit variance, f its mean) or s (1 - s)
    (bernoulli, f logits, s = sigmoid f). With `samples` it is estimated from labels that are drawn once, here.

    For cross-entropy the exact matrix equals `GaussNewton`; for a squared error it does up to the loss's own factor.
    An example with several predictions, as the tokens of a sentence or the pixels of an image, counts as so many: n is
    the number of predictions. Categorical ones count as they do in the loss, w_i instead of 1/n, where the loss is a
    weighted cross-entropy in the outputs: ignored ones not at all, others by class weights, reduction and smoothing.
    Where it is something else (a focal loss, say), all count alike whose labels are classes.

    Args:
        risk: The risk; its model's output must be one tensor that the loss uses.
        theta: As in `RiskOperator`, as are `parameters`, `path`, `budget`, `micro_batch` and `probe`.
        parameters: See `theta`.
        likelihood: What the outputs parametrise. "auto" asks the loss: torch's cross_entropy, mse_loss and
            binary_cross_entropy_with_logits are known. The class axis is 1 for torch's cross_entropy, else the one that
            fits the labels, or along which the loss's slopes sum to zero.
        samples: Labels drawn for each prediction; None is exact.
        generator: Source of the labels, of use with `samples` alone; None means a fresh one from seed 0. In several
            processes the draws are not those of one.
        path: See `theta`; the paths are those of `OutputSpaceOperator`.
        budget: See `theta`.
        micro_batch: See `theta`.
        probe: See `theta`.

    Raises:
        ValueError: As `RiskOperator`; or if the likelihood is not known, or a `generator` comes without `samples`.

    Source:
        Amari (1998), Neural Comput. 10(2); Kunstner, Hennig and Balles (2019), NeurIPS, for the sampled form.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Params | None = None,
        *,
        parameters: str | Iterable[str] | None = None,
        likelihood: Likelihood = "auto",
        samples: int | None = None,
        generator: Generator | None = None,
        path: Path = "auto",
        budget: int | None = None,
        micro_batch: int | None = None,
        probe: bool = True,
    ) -> None:
        self.likelihood = _likelihood(risk.loss) if likelihood == "auto" else likelihood
        if self.likelihood not in ("categorical", "gaussian", "bernoulli"):
            raise ValueError(f"`likelihood` must be 'categorical', 'gaussian' or 'bernoulli', got {likelihood!r}.")
        if samples is not None and samples < 1:
            raise ValueError(f"`samples` must be at least 1, or None for the exact matrix, got {samples!r}.")
        if samples is None and generator is not None:
            raise ValueError("`generator` draws labels, and there are no `samples`: give both, or neither (exact).")
        self.samples = samples
        self._seed = 0 if samples is None else _draw_seed(source_of(generator))
        super().__init__(
            risk, theta, parameters=parameters, path=path, budget=budget, micro_batch=micro_batch, probe=probe
        )

    def _output_map(self, i: int, outputs: Outputs, loss: Tensor, batch: Batch) -> OutputMap:
        if len(outputs) != 1:
            raise ValueError(f"`risk` must have a model with one output tensor that the loss uses, got {len(outputs)}.")
        out, y = outputs[0].detach(), batch[1]
        classes = self.likelihood == "categorical"
        axis = predictions.class_axis(self.point.risk.loss, loss, outputs[0], y) if classes else -1
        if out.ndim < 2:  # one example without an axis for them, or one prediction each
            out = out.reshape(1, -1) if classes else out.reshape(-1, 1)
        logits = out.movedim(axis, -1)
        rows = logits.reshape(-1, logits.shape[-1])
        if classes:
            share, n = predictions.shares(self.point.risk.loss, loss, outputs[0], y, axis)
        else:
            share, n = torch.ones_like(rows[:, :1]), max(len(out), 1)
        curvature = self._exact(rows) if self.samples is None else self._sampled(rows, i)

        def output_map(u: Outputs) -> Outputs:
            shape = u[0].shape
            tangents = u[0].reshape(out.shape).movedim(axis, -1)
            back = (curvature(tangents.reshape(rows.shape)) * share / n).reshape(tangents.shape)
            return [back.movedim(-1, axis).reshape(shape)]

        return output_map

    def _exact(self, f: Tensor) -> RowMap:
        if self.likelihood == "categorical":
            p = f.softmax(-1)
            return lambda u: p * u - p * (p * u).sum(-1, keepdim=True)
        if self.likelihood == "bernoulli":
            s = f.sigmoid()
            return lambda u: s * (1 - s) * u
        return lambda u: u

    def _sampled(self, f: Tensor, i: int) -> RowMap:
        """(1/S) Σ_s r_s (r_s · u), with slopes r_s of the negative log-likelihood at labels drawn from the model."""
        assert self.samples is not None
        home = torch.device("cpu") if f.device.type == "mps" else f.device  # which has no float64
        source = torch.Generator(home).manual_seed((self._seed + i) % SEEDS)
        mean = f.to(home).double()
        slopes = []
        for _ in range(self.samples):
            if self.likelihood == "categorical":
                p = mean.softmax(-1)
                label = torch.multinomial(p, 1, generator=source)
                slope = p.scatter_add(-1, label, -torch.ones_like(p[:, :1]))
            elif self.likelihood == "bernoulli":
                s = mean.sigmoid()
                slope = s - torch.bernoulli(s, generator=source)
            else:
                slope = torch.randn(mean.shape, generator=source, dtype=mean.dtype, device=home)
            slopes.append(slope.to(f))
        r = torch.stack(slopes)
        return lambda u: (r * (r * u).sum(-1, keepdim=True)).mean(0)


@final
class EmpiricalFisher(OutputSpaceOperator):
    """The uncentred second moment E = (1/n) Σ_i g_i g_iᵀ of the per-example gradients g_i = ∇ℓ_i(θ).

    It is not the Fisher matrix: labels are the data's, and E vanishes at interpolation. ℓ_i is the risk's loss on a
    batch of one example. Where a batch's loss is the mean of the ℓ_i, as the trial finds, g_i = J_iᵀ r_i with r_i the
    slope of ℓ_i in the outputs, and a product costs as much as one with `GaussNewton`. Otherwise the gradients
    themselves are computed, by vmap or one by one, and kept ("kept", n × p entries) or not ("afresh").

    Paths are those of `OutputSpaceOperator`; arguments, attributes and errors those of `RiskOperator`.

    Raises:
        ValueError: Also for a risk in mode "batch", where a single example has no gradient of its own.

    Source:
        Kunstner, Hennig and Balles (2019), NeurIPS, for what it is not.
    """

    paths: ClassVar[tuple[str, ...]] = ("kept", "afresh", "forward")
    _wrong = False  # whether Jacobian products of the model are

    def _require(self) -> None:
        if self.point.risk.mode in ("batch", "train"):
            raise ValueError(
                f"`risk` has mode={self.point.risk.mode!r}, where an example's loss depends on its batch, so it has no "
                "gradient of its own: use mode='eval' or 'recalibrate'."
            )
        self.point.risk.require_examples("`EmpiricalFisher`, which takes examples one by one,")

    def _lacking(self) -> str | None:
        return None

    def _compared(self, path: str) -> Disagreement:
        """By rows it takes first derivatives alone, and so it does where others are wrong."""
        if self.point.risk.weight is None and not self._mixed:
            self._wrong = self._beside_differences(path).relative > 0
        return Disagreement()

    @cached_property
    def _shares(self) -> list[float]:
        """Examples count alike, whatever the weights of the batches."""
        risk = self.point.risk
        total = risk.n if risk.ranks is None else risk.ranks.total(risk.n, risk.device)
        return [k / total for k in risk.sizes]

    @cached_property
    def by_rows(self) -> bool:
        """Whether the per-example gradients themselves are computed."""
        risk = self.point.risk
        if self._wrong or self._trial.lacking is not None or risk.weight is not None:
            return True
        return any(predictions.weighted(risk.loss, y) for _, y in risk.batches) or self._mixed

    @cached_property
    def _mixed(self) -> bool:
        """Whether an example's slope in the outputs, among a few, is not what it is alone."""
        batch = self.point.batch(self.point.risk.batches[0])
        size = batch_size(batch)
        n = min(size, EXAMPLES)
        batch = take(batch, torch.linspace(0, size - 1, n).long())
        with torch.enable_grad(), second_derivatives():
            together = self._slopes(batch)
            if not together or not all(r.ndim and len(r) == n for r in together):
                return True
            for i in range(n):
                alone = self._slopes(slice_batch(batch, i, i + 1))
                for r, one in zip(together, alone, strict=True):
                    if one.shape != (1, *r.shape[1:]) or _apart(n * r[i], one[0]):
                        return True
        return False

    def _slopes(self, batch: Batch) -> Outputs:
        _, outputs, loss = self._used(self.point.outputs(batch[0]), batch)
        return [] if not outputs else list(torch.autograd.grad(loss, outputs, materialize_grads=True))

    def _kept_bytes(self) -> int:
        return self.point.risk.n * self.point.row_bytes if self.by_rows else super()._kept_bytes()

    def _map(self, i: int, batch: Batch, path: str) -> RowMap:
        if not self.by_rows:
            return super()._map(i, batch, path)
        if path == "kept":
            G = torch.cat(list(example_gradients(self.point, batch)))
            return lambda rows: rows @ G.T @ G / len(G)

        def product(rows: Tensor) -> Tensor:
            total, n = torch.zeros_like(rows), 0
            for part in example_gradients(self.point, batch):
                total += rows @ part.T @ part
                n += len(part)
            return total / n

        return product

    def _output_map(self, i: int, outputs: Outputs, loss: Tensor, batch: Batch) -> OutputMap:  # noqa: ARG002
        slopes = torch.autograd.grad(loss, outputs, retain_graph=True, materialize_grads=True)
        n = len(outputs[0])
        slopes = tuple(n * r.detach() for r in slopes)

        def output_map(u: Outputs) -> Outputs:
            along = sum((r * t).flatten(1).sum(1) if r.ndim > 1 else r * t for r, t in zip(slopes, u, strict=True))
            assert isinstance(along, Tensor)
            return [r * along.view(-1, *[1] * (r.ndim - 1)) / n for r in slopes]

        return output_map


def _likelihood(loss: Any) -> str:
    functional = torch.nn.functional
    if predictions.is_cross_entropy(loss):
        return "categorical"
    if loss is functional.mse_loss or isinstance(loss, nn.MSELoss):
        return "gaussian"
    if loss is functional.binary_cross_entropy_with_logits or isinstance(loss, nn.BCEWithLogitsLoss):
        return "bernoulli"
    raise ValueError(
        f"`likelihood` cannot be told from the loss {getattr(loss, '__name__', loss)!r}: give "
        "likelihood='categorical', 'gaussian' or 'bernoulli'."
    )


def _apart(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by more than rounding can explain."""
    largest = float(torch.maximum(a.abs(), b.abs()).max())
    return bool((a - b).abs().max() > torch.finfo(a.dtype).eps ** 0.5 * max(largest, 1e-3))


def _draw_seed(generator: Generator) -> int:
    return int(torch.randint(SEEDS, (1,), generator=generator, device=generator.device))
