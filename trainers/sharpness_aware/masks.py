"""Which weights a perturbation may move: chosen layers, random subsets, or the entries that matter most."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from landscape.params import Params
from trainers.sharpness_aware.moment import Moment, Part

SMALL = 1e-7  # added to scores, so that a score of zero still counts as live


class Mask(Part):
    """Restricts a direction. A name that it drops is not displaced and, where `in_norm`, not counted in the norm.

    Attributes:
        in_norm: Whether the mask comes before the normalisation (SAM-ON) or after it (SSAM).
        scale: What the displacement is multiplied by.
        reference: "squares" where the mask needs the squared gradients of single reference examples.
    """

    in_norm: bool = True
    scale: float = 1.0
    reference: Literal["", "squares"] = ""

    def names(self, moment: Moment) -> frozenset[str] | None:
        """The parameters whose ascent gradients are needed in this step; None for all. Called once a chunk."""
        return None

    def __call__(self, moment: Moment, direction: Params) -> Params:
        """The direction as far as the mask lets it through."""
        raise NotImplementedError

    def wants_ascent(self, t: int) -> bool:
        """Whether `after_ascent` is to be called in step t."""
        return False

    def after_ascent(self, moment: Moment, grad: Params) -> None:
        """Called when all displacements of a step are done, with the ascent gradient's mean over chunks and ranks."""

    def wants_squares(self, t: int) -> bool:
        """Whether squared reference gradients are due after step t."""
        return False

    def refresh(self, moment: Moment, squares: Params) -> None:
        """Take Σ_i (∂ℓ_i/∂w)² over the reference examples."""


@dataclass
class Chosen(Mask):
    """The parameters of chosen layers: SAM-ON perturbs those of normalisation layers alone.

    Attributes:
        chosen: Names of the parameters that are perturbed.
        complement: Perturb all others instead.

    Source:
        Mueller, Vlaar, Rolnick, Hein (2023), "Normalization layers are all that sharpness-aware minimization needs".
    """

    chosen: frozenset[str]
    complement: bool = False
    in_norm: bool = field(default=True, init=False)

    def of(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the names that are chosen."""
        return frozenset(name for name in names if (name in self.chosen) is not self.complement)

    def check(self, trained: Iterable[str]) -> "Chosen":
        """The mask itself.

        Raises:
            ValueError: If it leaves nothing of what is trained.
        """
        if not self.of(trained):
            raise ValueError(
                "`layers` chooses no parameter that is trained: the base optimizer has no normalisation layer with "
                "weights, or no name that matches; give `layers=` a glob of parameter names."
            )
        return self

    def names(self, moment: Moment) -> frozenset[str] | None:
        return self.of(moment.theta)

    def __call__(self, moment: Moment, direction: Params) -> Params:
        return {name: t for name, t in direction.items() if (name in self.chosen) is not self.complement}


def normalisation_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of normalisation layers, told by their class, and by "Norm" in the names of others'."""
    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, kinds) or "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    )


@dataclass
class Live(Mask):
    """Weights that are not exactly zero: the live ones of a pruned model."""

    in_norm: bool = field(default=True, init=False)

    def __call__(self, moment: Moment, direction: Params) -> Params:
        return {name: t * (moment.theta[name] != 0) for name, t in direction.items()}


@dataclass
class RandomTensors(Mask):
    """ESAM's stochastic weight perturbation by whole tensors: each is kept with probability β, the step divided by β.

    The norm runs over the kept tensors, and only their ascent gradients are computed.

    Attributes:
        beta: β in (0, 1].
        generator: Of the choice; ranks may differ.

    Source:
        The code of Du et al. (2022), ESAM, ICLR. At least one tensor is kept (ours).
    """

    keeps = ("generator",)
    beta: float
    generator: Generator
    in_norm: bool = field(default=True, init=False)
    drawn: frozenset[str] = field(default_factory=frozenset, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"`beta` must be in (0, 1], got {self.beta!r}.")
        self.scale = 1 / self.beta

    def names(self, moment: Moment) -> frozenset[str] | None:
        if self.beta == 1:
            return None
        everything = list(moment.theta)
        device = self.generator.device
        kept = (torch.rand(len(everything), generator=self.generator, device=device) < self.beta).tolist()
        if not any(kept):
            kept[int(torch.randint(len(everything), (), generator=self.generator, device=device))] = True
        self.drawn = frozenset(n for n, k in zip(everything, kept, strict=True) if k)
        return self.drawn

    def __call__(self, moment: Moment, direction: Params) -> Params:
        return direction if self.beta == 1 else {n: t for n, t in direction.items() if n in self.drawn}


@dataclass
class RandomEntries(RandomTensors):
    """ESAM's stochastic weight perturbation by entries: eps = (ρ/β) m g/‖g‖, m_i ~ Bernoulli(β); the norm is that of g.

    Source:
        The equation of Du et al. (2022), as collected by others; it saves no computation.
    """

    in_norm: bool = field(default=False, init=False)

    def names(self, moment: Moment) -> frozenset[str] | None:
        return None

    def __call__(self, moment: Moment, direction: Params) -> Params:
        if self.beta == 1:
            return direction
        device = self.generator.device
        return {
            n: t * (torch.rand(t.shape, generator=self.generator, device=device) < self.beta).to(t.device)
            for n, t in direction.items()
        }


@dataclass
class Sparse(Mask):
    """A binary mask over entries with a share `sparsity` of zeros, kept from step to step: Sparse SAM.

    The norm runs over the whole gradient, so ‖eps‖ ≤ ρ.

    Attributes:
        sparsity: s in [0, 1).
        every: Steps between two updates.
    """

    keeps: ClassVar[tuple[str, ...]] = ("mask",)
    sparsity: float = 0.5
    every: int = 1
    in_norm: bool = field(default=False, init=False)
    mask: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"`sparsity` must be in [0, 1), got {self.sparsity!r}.")
        if self.every < 1:
            raise ValueError(f"`update_epochs` must be at least one step, got {self.every} steps.")

    def __call__(self, moment: Moment, direction: Params) -> Params:
        if self.sparsity == 0:
            return direction
        self.prepare(moment)
        names = list(direction)
        ones = [self.mask[n].to(direction[n].dtype) for n in names]
        return dict(zip(names, torch._foreach_mul(ones, [direction[n] for n in names]), strict=True))

    def prepare(self, moment: Moment) -> None:
        """Make the first mask where there is none, or for parameters that have come to be trained."""
        fresh = {n: w for n, w in moment.theta.items() if n not in self.mask}
        if fresh:
            self.mask = {**self.mask, **self.first(fresh)}

    def first(self, theta: Params) -> dict[str, Tensor]:
        """The mask of parameters that have had none."""
        return {n: torch.zeros_like(w, dtype=torch.bool) for n, w in theta.items()}

    def live(self, total: int) -> int:
        """Number of ones among `total` entries."""
        return total - math.ceil(self.sparsity * total)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "mask": {n: t.bool() for n, t in state["mask"].items()}})


@dataclass
class FisherMask(Sparse):
    """SSAM-F: the entries with the largest diagonal of the empirical Fisher, F_i = Σ over examples of (∂ℓ/∂w_i)².

    F is taken after the first perturbed step, and again every `every` steps, at the weights that step left, on single
    reference examples with frozen running statistics. Until the first update the mask is all zero: the first step is
    a plain one.

    Source:
        Mi et al. (2022), "Make sharpness-aware minimization stronger: a sparsified perturbation approach", NeurIPS.
    """

    keeps = ("mask", "known")
    reference: Literal["", "squares"] = field(default="squares", init=False)
    known: bool = field(default=False, init=False)  # whether F has been taken

    def wants_squares(self, t: int) -> bool:
        return self.sparsity > 0 and (t % self.every == 0 or not self.known)

    def refresh(self, moment: Moment, squares: Params) -> None:
        names = list(moment.theta)
        score = torch.cat(
            [
                squares[n].reshape(-1) if n in squares else moment.theta[n].new_zeros(moment.theta[n].numel())
                for n in names
            ]
        )
        self.mask, self.known = _cut(_top(score, self.live(score.numel())), moment.theta), True


@dataclass
class DynamicMask(Sparse):
    """SSAM-D: drop the live entries of least score, revive as many dead ones.

    It starts from a random mask. Every `every` steps, after the displacements of all chunks, with e the number of
    updates so far out of E: the drop rate is d = r/2 (1 + cos(πe/E)); of the live entries the int(L (1 - d)) with the
    largest `drop` score stay, and of those that were dead before the update int(min(L d, N - L)) with the largest
    `grow` score come alive. Scores: "gradient" |g|, "weight" |w| at the clean weights, "random".

    Attributes:
        generator: Of the first mask and of random scores; the same on all ranks.
        drop_rate: r in [0, 1].
        drop: Score that keeps an entry alive.
        grow: Score that revives one.
        total: Steps of the run, for E.

    Source:
        Mi et al. (2022), as in their code, but for clean instead of perturbed weights in "weight".
    """

    keeps = ("mask", "generator")
    generator: Generator = field(default_factory=Generator)
    drop_rate: float = 0.5
    drop: Literal["gradient", "weight", "random"] = "gradient"
    grow: Literal["gradient", "weight", "random"] = "random"
    total: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"`drop_rate` must be in [0, 1], got {self.drop_rate!r}.")

    def first(self, theta: Params) -> dict[str, Tensor]:
        total = sum(w.numel() for w in theta.values())
        scores = torch.rand(total, generator=self.generator, device=self.generator.device)
        return _cut(_top(scores, self.live(total)), theta)

    def wants_ascent(self, t: int) -> bool:
        return self.sparsity > 0 and t % self.every == 0

    def after_ascent(self, moment: Moment, grad: Params) -> None:
        self.prepare(moment)
        names = list(moment.theta)
        mask = torch.cat([self.mask[n].reshape(-1) for n in names])
        total = mask.numel()
        live = self.live(total)
        rate = self.drop_rate / 2 * (1 + math.cos(math.pi * min(1.0, moment.t / max(1, self.total))))
        stay, revive = int(live * (1 - rate)), int(min(live * rate, total - live))
        stay = min(live, live - revive) if stay + revive != live else stay  # rounding must not lose an entry
        kept = _top(torch.where(mask, self._score(self.drop, moment, grad, names) + SMALL, -1.0), stay)
        born = _top(torch.where(mask, -1.0, self._score(self.grow, moment, grad, names) + SMALL), revive)
        self.mask = _cut(kept | born, moment.theta)

    def _score(self, kind: str, moment: Moment, grad: Params, names: Sequence[str]) -> Tensor:
        theta = moment.theta
        if kind == "weight":
            return torch.cat([theta[n].abs().reshape(-1) for n in names])
        if kind == "gradient":
            return torch.cat([grad.get(n, torch.zeros_like(theta[n])).abs().reshape(-1) for n in names])
        total = sum(theta[n].numel() for n in names)
        return torch.rand(total, generator=self.generator, device=self.generator.device).to(theta[names[0]].device)


def _top(scores: Tensor, count: int) -> Tensor:
    """A mask of exactly `count` entries of largest score; ties go to the first."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if count > 0:
        mask[torch.sort(scores, descending=True, stable=True).indices[:count]] = True
    return mask


def _cut(flat: Tensor, like: Params) -> dict[str, Tensor]:
    pieces: Iterable[Tensor] = flat.split([t.numel() for t in like.values()])
    return {n: piece.view(t.shape).to(t.device) for (n, t), piece in zip(like.items(), pieces, strict=True)}
