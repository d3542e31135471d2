"""Several models of one architecture as the rows of one matrix, and an optimizer step of all of them at once.

The rows of W (models, p) are the weights of models that train apart, each on a batch of its own. With g and a the rows
of gradients at W and T the metric, one row of a perturbed step is that of `SharpnessAware`, to rounding:

    δ = ρ T²a / ‖Ta‖,   u = combination of g at W + δ and a,   v ← μ v + u + λ W,   W ← W - lr v

Norms and products run along rows; ρ, lr and λ are columns. A step reads no number back from the device.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from landscape.objectives import obf_direction
from landscape.params import Params
from landscape.perturbation import TINY, AbsWeight, AscentStep
from trainers.sharpness_aware.combiners import Combiner, Decoupled, Rescaled, SurrogateGap, TakePerturbed, Weighted
from trainers.tasks.losses import Loss

ALIGNED = 16  # entries to a multiple of which rows are filled up, so that all begin alike in memory
Rows = Float[Tensor, "m p"]


class Stack:
    """Weights, momenta and buffers of models of one architecture, a row each.

    From now on the parameters and buffers of the models, and the momenta of their optimizers, are views of the rows:
    what is done to the rows is done to them, and evaluation, checkpoints and snapshots of each model go on as before.

    Args:
        models: Of one architecture and type, on one device, without dropout; in any mode.
        bases: Their SGD, for its momentum and its weight decay.

    Attributes:
        weights: W.
        momenta: v, zero where there is none yet; None without momentum.
        decay: λ of each entry; None where there is none.
        buffers: By name, the models along the first axis.
        scaled: Which entries belong to a tensor whose name contains "weight", see `AbsWeight.scope`.
    """

    def __init__(self, models: Sequence[nn.Module], bases: Sequence[Optimizer]) -> None:
        self.skeleton = copy.deepcopy(models[0]).train()
        first = dict(models[0].named_parameters())
        self.shapes = {name: p.shape for name, p in first.items()}
        sizes = [p.numel() for p in first.values()]
        width = -(-sum(sizes) // ALIGNED) * ALIGNED
        self.sizes = [*sizes, width - sum(sizes)]
        self.weights: Rows = next(iter(first.values())).detach().new_zeros(len(models), width)
        self.momenta = torch.zeros_like(self.weights) if any(g["momentum"] for g in bases[0].param_groups) else None
        decay = torch.zeros_like(self.weights)
        named = ["weight" in name for name in self.shapes for _ in range(self.shapes[name].numel())]
        self.scaled = torch.tensor([*named, *[False] * self.sizes[-1]], device=self.weights.device)
        kept = [dict(model.named_buffers()) for model in models]
        self.buffers = {name: torch.stack([b[name] for b in kept]) for name in kept[0]}
        for i, (model, base) in enumerate(zip(models, bases, strict=True)):
            self._adopt(i, model, base, decay[i])
        self.decay = decay if bool(decay.any()) else None

    @torch.no_grad()
    def _adopt(self, i: int, model: nn.Module, base: Optimizer, decay: Tensor) -> None:
        place = dict(zip(model.parameters(), self._cut(self.weights[i]), strict=True))
        for p, row in place.items():
            row.copy_(p)
            p.data = row
        if self.momenta is not None:
            for p, row in zip(model.parameters(), self._cut(self.momenta[i]), strict=True):
                held = base.state[p].get("momentum_buffer")
                if held is not None:
                    row.copy_(held)
                base.state[p]["momentum_buffer"] = row
        for p, row in zip(model.parameters(), self._cut(decay), strict=True):
            row.fill_(next(g["weight_decay"] for g in base.param_groups if any(p is q for q in g["params"])))
        for name, stacked in self.buffers.items():
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, stacked[i])

    def _cut(self, row: Float[Tensor, " p"]) -> list[Tensor]:
        """A row as tensors of the parameters' shapes, which are views of it."""
        return [part.view(shape) for part, shape in zip(row.split(self.sizes), self.shapes.values(), strict=False)]

    def row(self, values: Params) -> Float[Tensor, " p"]:
        """Tensors by name as a row."""
        flat = torch.cat([values[name].reshape(-1) for name in self.shapes])
        return nn.functional.pad(flat, (0, self.sizes[-1]))

    def logits(self, weights: Rows, buffers: Params, x: Shaped[Tensor, "m n ..."]) -> Float[Tensor, "m n k"]:
        """Each model's outputs on its batch, in training mode; running statistics are updated in `buffers`."""
        parts = weights.split(self.sizes, dim=1)
        values = {n: t.view(-1, *shape) for (n, shape), t in zip(self.shapes.items(), parts, strict=False)}
        outputs: Tensor = vmap(self._one)(values, buffers, x)
        return outputs

    def _one(self, values: Params, buffers: Params, x: Tensor) -> Any:
        return functional_call(self.skeleton, (values, buffers), (x,))


@dataclass(frozen=True)
class Rule:
    """What one method with its settings does with the gradients of its rows.

    Attributes:
        rows: Which.
        scaler: Metric and normalisation, for radius 1.
        combiner: The gradient for SGD.
        obf: C, gamma and link of the OBF objective, if that is ascended; None for the loss.
    """

    rows: slice
    scaler: AscentStep
    combiner: Combiner
    obf: tuple[float | None, float, Any] | None = None

    def objective(
        self, losses: Float[Tensor, " m"], logits: Float[Tensor, "m n k"], y: Int[Tensor, "m n"]
    ) -> Float[Tensor, ""]:
        """The sum over the rule's rows of what each ascends, from the losses and outputs of all rows."""
        if self.obf is None:
            return losses[self.rows].sum()
        own, targets = logits[self.rows], y[self.rows]
        C, gamma, link = self.obf
        q, _ = obf_direction(own.detach().flatten(0, 1), targets.flatten(), C=C, gamma=gamma, link=link)
        return (q.view_as(own) * own).sum(-1).mean(1).sum()

    def direction(self, theta: Rows, ascent: Rows, scaled: Bool[Tensor, " p"]) -> Rows:
        """The displacement for ρ = 1: `AscentStep`, row by row."""
        step, metric = self.scaler, self.scaler.metric
        scale: Tensor | None = None
        if isinstance(metric, AbsWeight):
            scale = theta.abs() + metric.eta
            if metric.scope == "weights":
                scale = torch.where(scaled, scale, 1.0)
        raw = ascent if scale is None or step.where == "after" else scale * ascent
        size = _length(raw)
        usable = torch.isfinite(size)
        if step.normalise:
            usable = usable & (size > 0)
            raw = raw / (size + TINY)
        if scale is not None and step.where != "before":
            raw = scale * raw
        return torch.where(usable, raw, 0.0)

    def combined(self, unit: Rows, ascent: Rows, perturbed: Rows) -> tuple[Rows, Rows | None]:
        """The gradient u of the base optimizer, and what is added to the weights past it, times -lr."""
        combiner = self.combiner
        if isinstance(combiner, Decoupled):
            return ascent, combiner.c * (perturbed - ascent)
        if isinstance(combiner, Weighted):
            return torch.lerp(ascent, perturbed, combiner.c), None
        if isinstance(combiner, Rescaled):
            along, other = (perturbed, ascent) if combiner.direction == "perturbed" else (ascent, perturbed)
            return along * (_length(other) / (_length(along) + TINY)), None
        if isinstance(combiner, SurrogateGap):
            a = unit if combiner.backup == "direction" else ascent
            base, other, sign = (perturbed, a, -1.0) if combiner.minimize == "perturbed" else (a, perturbed, 1.0)
            share = _dot(other, base) / (_dot(base, base) + TINY**2)
            return (1 - sign * combiner.alpha * share) * base + sign * combiner.alpha * other, None
        assert isinstance(combiner, TakePerturbed)
        return perturbed, None


@dataclass(frozen=True)
class Outcome:
    """What a step did, a row each.

    Attributes:
        loss: Training loss at the clean weights.
        hits: Which examples of the batch were right there.
        length: l2 length of the displacement.
        gap: Loss at the displaced weights less that at the clean ones; zero for a plain step.
    """

    loss: Float[Tensor, " m"]
    hits: Bool[Tensor, "m n"]
    length: Float[Tensor, " m"]
    gap: Float[Tensor, " m"]


@dataclass(frozen=True)
class StackedStep:
    """One optimizer step of all rows.

    Attributes:
        stack: The rows.
        rules: The methods, whose rows are all rows; none for plain SGD.
        each: Training loss of each example, for logits (n, k) and labels (n,).
        momentum: μ.
        nesterov: Of SGD.
        grad_clip: Largest norm of u; None clips none.
    """

    stack: Stack
    rules: Sequence[Rule]
    each: Loss
    momentum: float = 0.0
    nesterov: bool = False
    grad_clip: float | None = None

    def __call__(
        self,
        x: Shaped[Tensor, "m n ..."],
        y: Int[Tensor, "m n"],
        lr: Float[Tensor, "m 1"],
        rho: Float[Tensor, "m 1"],
        drawn: Rows | None = None,
    ) -> Outcome:
        """Take the step.

        Args:
            x: Each model's inputs.
            y: Their labels.
            lr: Learning rates.
            rho: Radii; a row with 0 takes a plain step.
            drawn: Raw directions, for methods that draw them instead of ascending.
        """
        stack = self.stack
        with torch.no_grad():
            if not self.rules:
                loss, hits, gradient = self._gradient(stack.weights, stack.buffers, x, y, ())
                self._descend(gradient, lr)
                return Outcome(loss, hits, torch.zeros_like(loss), torch.zeros_like(loss))
            if drawn is None:
                loss, hits, ascent = self._gradient(stack.weights, stack.buffers, x, y, self.rules)
            else:
                ascent = drawn
                loss, hits, _ = self._losses(stack.weights, stack.buffers, x, y)
            ways = [(rule, stack.weights[rule.rows], ascent[rule.rows]) for rule in self.rules]
            unit = _joined([rule.direction(theta, a, stack.scaled) for rule, theta, a in ways])
            still = {name: t.clone() for name, t in stack.buffers.items()}  # statistics are those of the clean pass
            shifted, _, perturbed = self._gradient(torch.addcmul(stack.weights, unit, rho), still, x, y, ())
            self._combine(ways, unit, perturbed, lr, rho)
            gap = torch.where(rho[:, 0] > 0, shifted.double() - loss.double(), 0.0)
            return Outcome(loss, hits, rho[:, 0] * _length(unit)[:, 0], gap)

    def _combine(
        self, ways: Sequence[tuple[Rule, Rows, Rows]], unit: Rows, perturbed: Rows, lr: Tensor, rho: Tensor
    ) -> None:
        """Step along what each rule makes of its rows; a plain row, whose two gradients are one, along that."""
        plain = rho == 0
        taken, beside = [], []
        for rule, _, ascent in ways:
            rows = rule.rows
            u, extra = rule.combined(unit[rows], ascent, perturbed[rows])
            taken.append(u if u is perturbed else torch.where(plain[rows], perturbed[rows], u))
            if extra is not None:
                beside.append((rows, torch.where(plain[rows], 0.0, extra)))
        self._descend(_joined(taken), lr)
        for rows, extra in beside:
            self.stack.weights[rows].addcmul_(extra, lr[rows], value=-1)

    def _losses(
        self, weights: Rows, buffers: Params, x: Tensor, y: Tensor
    ) -> tuple[Float[Tensor, " m"], Bool[Tensor, "m n"], Float[Tensor, "m n k"]]:
        logits = self.stack.logits(weights, buffers, x)
        losses = self.each(logits.flatten(0, 1), y.flatten()).view_as(y).mean(1)
        return losses, logits.detach().argmax(-1) == y, logits

    def _gradient(
        self, weights: Rows, buffers: Params, x: Tensor, y: Tensor, rules: Sequence[Rule]
    ) -> tuple[Float[Tensor, " m"], Bool[Tensor, "m n"], Rows]:
        """The losses, what was right, and the gradient of what the rules ascend; of the loss without rules.

        Models do not meet, so the gradient of the sum over models holds that of each in its row.
        """
        leaf = weights.detach().requires_grad_()
        with torch.enable_grad():
            losses, hits, logits = self._losses(leaf, buffers, x, y)
            total = sum((rule.objective(losses, logits, y) for rule in rules), torch.zeros_like(losses[0]))
            (gradient,) = torch.autograd.grad(total if rules else losses.sum(), leaf)
        return losses.detach(), hits, gradient

    def _descend(self, u: Rows, lr: Float[Tensor, "m 1"]) -> None:
        """The step of SGD along u, which is given away."""
        stack = self.stack
        if self.grad_clip is not None:
            u = u * (self.grad_clip / (_length(u) + 1e-6)).clamp(max=1.0)
        if stack.decay is not None:
            u = torch.addcmul(u, stack.decay, stack.weights)
        if stack.momenta is not None:
            stack.momenta.mul_(self.momentum).add_(u)
            u = u.add(stack.momenta, alpha=self.momentum) if self.nesterov else stack.momenta
        stack.weights.addcmul_(u, lr, value=-1)


def _joined(parts: Sequence[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _dot(a: Rows, b: Rows) -> Float[Tensor, "m 1"]:
    product: Tensor = torch.linalg.vecdot(a, b)
    return product.unsqueeze(1)


def _length(a: Rows) -> Float[Tensor, "m 1"]:
    size: Tensor = torch.linalg.vector_norm(a, dim=1, keepdim=True)
    return size
