"""The displacements that a measure of forgetting applies: each provider, at each radius, batch by batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from analysis.forgetting.providers import (
    PROVIDERS,
    OwnPerturbation,
    Scope,
    check_provider,
    provider_options,
    raw_direction,
    unit_direction,
)
from analysis.forgetting.radii import iso_loss_radius
from landscape import EmpiricalRisk, Params, displaced, norm
from landscape.objectives import Link
from landscape.randomness import source_of
from trainers.tasks.losses import Loss
from trainers.tasks.task import Classification

Array = np.ndarray
Radius = Literal["own", "relative", "iso-loss"]
Cell = tuple[str, str]  # (provider, radius)

FEW_EXAMPLES, MANY, USUAL = 16, 50, 20  # batches of at most 16 examples are drawn 50 times, others 20 times


@dataclass(frozen=True, kw_only=True)
class Displacements:
    """What is to be applied: providers, and radii that say how far each of them moves θ.

        "own"       the l2 length of the run's own ε on the same batch (our definition), the same for every provider;
                    the run's own provider applies exactly the run's own step.
        "relative"  ‖ε_l‖ = `relative` · ‖θ_l‖ for every parameter tensor l, so that layers of any scale move alike.
        "iso-loss"  ‖ε‖ is such that the mean cross-entropy on B rises by `iso_loss`, within 0.1 % of it, searched for
                    between 1e-6 and 10 times ‖θ‖.

    Attributes:
        providers: Names in `PROVIDERS`. "apgd" searches the ball of the length asked for: at "iso-loss", that of SAM's
            iso-loss step, and the displacement found is then scaled. "zero" is the control, without "iso-loss".
        radii: Some of the three.
        own: The run's own perturbation; None where it has none.
        m: Examples in a batch B; None makes B the whole training set.
        batches: Number of batches; None means 20, or 50 for m <= 16.
        iso_loss: Rise of the cross-entropy in nats, above 0.
        relative: Length of ε relative to θ, above 0.
        C: Option of OBF, see `landscape.obf_loss`; so are `gamma` and `link`.
        gamma: Option of OBF.
        link: Option of OBF.
        eta: η of the adaptive providers.
        scope: Which parameters these scale, see `landscape.AbsWeight`.
        initial: Weights before training, for "shrink".
        last_update: θ minus the weights one step before, for "last_update".
        outputs: How logits are read: "softmax", or "sigmoid" for σ(z_c) divided by its sum over the classes.
        loss: Loss that rises at "iso-loss", of outputs in float64 and targets; None is the cross-entropy. One that is
            given is of no labels, which OBF needs.
        batch_size: Examples a forward pass of the data that outputs are compared on; None for as many as suit them.
    """

    providers: Sequence[str]
    radii: Sequence[Radius]
    own: OwnPerturbation | None = None
    m: int | None = 64
    batches: int | None = None
    iso_loss: float = 0.1
    relative: float = 0.05
    C: float | None = None
    gamma: float = 1.0
    link: Link = "softmax"
    eta: float = 0.0
    scope: Scope = "all"
    initial: Params | None = None
    last_update: Params | None = None
    outputs: Link = "softmax"
    batch_size: int | None = None
    loss: Loss | None = None
    cells: list[Cell] = field(init=False)

    def __post_init__(self) -> None:
        for name in self.providers:
            check_provider(name)
        if not self.providers:
            raise ValueError(f"`providers` is empty; choose from {', '.join(PROVIDERS)}.")
        if not self.radii or not set(self.radii) <= set(get_args(Radius)):
            raise ValueError(f"`radii` must be some of {get_args(Radius)}, got {list(self.radii)}.")
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"`batches` must be at least 1, and 2 or more for a standard error, got {self.batches!r}.")
        if not (math.isfinite(self.iso_loss) and self.iso_loss > 0):
            raise ValueError(f"`iso_loss` must be a finite rise of the loss above 0 nats, got {self.iso_loss!r}.")
        if not (math.isfinite(self.relative) and self.relative > 0):
            raise ValueError(f"`relative` must be a finite length above 0, relative to θ, got {self.relative!r}.")
        if self.outputs not in get_args(Link):
            raise ValueError(f"`outputs` must be one of {get_args(Link)}, got {self.outputs!r}.")
        pairs = [(p, r) for p in dict.fromkeys(self.providers) for r in dict.fromkeys(self.radii)]
        object.__setattr__(self, "cells", [cell for cell in pairs if cell != ("zero", "iso-loss")])

    @property
    def count(self) -> int:
        """Number of batches that are drawn."""
        if self.batches is not None:
            return self.batches
        return MANY if self.m is not None and self.m <= FEW_EXAMPLES else USUAL

    def deterministic(self, provider: str) -> bool:
        """Whether one batch says all: the whole training set, or a direction that no batch enters."""
        return self.m is None and not PROVIDERS[provider].random

    def options(self, cell: Cell) -> dict[str, Any]:
        """What decides the numbers of a cell, for its rows."""
        provider, radius = cell
        found: dict[str, Any] = {"provider": provider, "radius": radius, "m": self.m}
        found["batches"] = 1 if self.deterministic(provider) else self.count
        found |= provider_options(provider, C=self.C, gamma=self.gamma, link=self.link, eta=self.eta, scope=self.scope)
        if radius == "iso-loss":
            found["iso_loss"] = self.iso_loss
        elif radius == "relative":
            found["relative"] = self.relative
        elif self.own is not None:
            found["own"] = f"{self.own.provider}: {self.own.step!r}"
        return found if self.outputs == "softmax" else {**found, "outputs": "sigmoid over its sum"}

    def missing(self, cell: Cell) -> str:
        """Why a cell cannot be had at all; empty where it can."""
        provider, radius = cell
        if radius == "own" and self.own is None:
            return "the run has no perturbation of its own"
        objective = PROVIDERS[provider].objective
        if objective == "initial" and self.initial is None:
            return "the initial weights are not known"
        if objective == "last update" and self.last_update is None:
            return "the run's last update is not known"
        if objective == "obf" and self.loss is not None:
            return "OBF ascends an objective of labels, which the task has not"
        return ""

    def shortfall(self, cell: Cell, missed: int, tried: int) -> str:
        """Why a cell has no value, or fewer than batches were tried; empty where it has all."""
        if missed:
            unit = " nats" if self.loss is None else ""
            return f"no radius raised the loss by {self.iso_loss:g}{unit} on {missed} of {tried} batches"
        return self.missing(cell)

    def outputs_of(self, risk: EmpiricalRisk, theta: Params) -> Float[Tensor, "n c"]:
        """Logits whose softmax is the output, of all inputs of a risk, in order."""
        raw = risk.outputs(theta)
        return raw if self.outputs == "softmax" else logsigmoid(raw)

    def draw(self, n: int, generator: Generator | None = None) -> "list[Draw]":
        """The batches, and a seed of noise for each; the draws depend on n, m and the number of batches alone.

        A generator of None means a fresh one from seed 0.

        Raises:
            ValueError: If `m` is not between 1 and n.
        """
        if self.m is not None and not 1 <= self.m <= n:
            raise ValueError(f"`m` must be between 1 and the number of training examples {n}, got {self.m!r}.")
        generator = source_of(generator)
        index = [
            torch.arange(n) if self.m is None else torch.randperm(n, generator=generator)[: self.m].sort().values
            for _ in range(self.count)
        ]
        seeds = [int(s) for s in torch.randint(2**62, (self.count,), generator=generator)]
        return [Draw(number, i.numpy(), s) for number, (i, s) in enumerate(zip(index, seeds, strict=True))]

    def along(
        self, risk: EmpiricalRisk, x: Tensor, y: Tensor, draws: "Sequence[Draw]"
    ) -> "Iterator[tuple[Draw, Iterator[tuple[Cell, Move | None]]]]":
        """Each batch with its displacements, made one at a time; None where the iso-loss radius was not found.

        What does not depend on the batch is given for the first batch alone if B is the whole training set.

        Args:
            risk: Model and loss at θ.
            x: Training inputs.
            y: Their labels.
            draws: See `draw`.
        """
        mover = _Mover(risk, self)
        for draw in draws:
            repeated = self.m is None and draw.number > 0
            if not repeated:
                index = torch.from_numpy(draw.index).to(x.device)
                mover.load(x[index], y[index])
            yield draw, mover.moves(draw.seed, random_only=repeated)


@dataclass(frozen=True)
class Draw:
    """One batch: its number, the examples in it, and the seed of its noise."""

    number: int
    index: Int[Array, " m"]
    seed: int


@dataclass(frozen=True)
class Move:
    """A displacement, its l2 length, and its radius in the provider's units."""

    delta: Params
    length: float
    rho: float


class _Mover:
    """Makes the displacements of all cells, one batch at a time."""

    def __init__(self, risk: EmpiricalRisk, asked: Displacements) -> None:
        self.risk, self.asked = risk, asked
        self.steps = {name: PROVIDERS[name].step(1.0, eta=asked.eta, scope=asked.scope) for name in asked.providers}
        self.scale = float(norm(risk.theta)) or 1.0
        self.start: dict[str, float] = {}  # a search starts where the last batch's ended
        self.raws: dict[str, Params] = {}
        self.units: dict[tuple[str, float], tuple[Params, float]] = {}
        self.found: dict[str, float | None] = {}

    def load(self, x: Tensor, y: Tensor) -> None:
        """Take up a new batch."""
        self.x, self.y, self.batch = x, y, self.risk.on((x, y))
        self.loss = math.nan
        self.raws, self.units, self.found = {}, {}, {}

    def moves(self, seed: int, *, random_only: bool) -> Iterator[tuple[Cell, Move | None]]:
        """The displacement of each cell that can be had."""
        self.raws.pop("random", None)
        self.found = {name: r for name, r in self.found.items() if not PROVIDERS[name].random}
        self.units = {key: unit for key, unit in self.units.items() if not PROVIDERS[key[0]].random}
        self.seed, own_length = seed, None
        own = self.asked.own
        for cell in self.asked.cells:
            provider, radius = cell
            if self.asked.missing(cell) or (random_only and not PROVIDERS[provider].random):
                continue
            if radius == "iso-loss":
                yield cell, self._to_iso_loss(provider)
            elif radius == "relative":
                yield cell, self._to_relative(provider)
            elif own is not None:
                if own_length is None:
                    delta = own.step(self.risk.theta, self._raw(own.provider, own.step.rho))
                    own_length = float(norm(delta))
                if provider == own.provider:
                    yield cell, Move(delta, own_length, own.step.rho)
                else:
                    yield cell, self._to_length(provider, own_length)

    def _raw(self, provider: str, length: float = math.nan) -> Params:
        objective = PROVIDERS[provider].objective
        key = f"{objective} {length!r}" if objective == "worst" else objective
        if key not in self.raws:
            self.raws[key] = raw_direction(
                objective,
                self.batch,
                C=self.asked.C,
                gamma=self.asked.gamma,
                link=self.asked.link,
                radius=length,
                initial=self.asked.initial,
                last_update=self.asked.last_update,
                generator=Generator().manual_seed(self.seed),
            )
        return self.raws[key]

    def _unit(self, provider: str, length: float = math.nan) -> tuple[Params, float]:
        key = (provider, length if PROVIDERS[provider].objective == "worst" else 0.0)
        if key not in self.units:
            self.units[key] = unit_direction(self.steps[provider], self.risk.theta, self._raw(provider, length))
        return self.units[key]

    def _to_length(self, provider: str, length: float) -> Move:
        if not math.isfinite(length) or length == 0:
            return Move({name: t.new_zeros(t.shape) for name, t in self.risk.theta.items()}, 0.0, 0.0)
        unit, per_rho = self._unit(provider, length)
        if per_rho == 0:
            return Move(unit, 0.0, 0.0)
        return Move({name: t * length for name, t in unit.items()}, length, length / per_rho)

    def _to_relative(self, provider: str) -> Move:
        theta, share = self.risk.theta, self.asked.relative
        sizes = {name: share * float(t.norm()) for name, t in theta.items()}
        unit, per_rho = self._unit(provider, math.hypot(*sizes.values()))
        if per_rho == 0:
            return Move(unit, 0.0, 0.0)
        lengths = {name: float(t.norm()) for name, t in unit.items()}
        delta = {name: t * (sizes[name] / lengths[name]) if lengths[name] > 0 else t for name, t in unit.items()}
        return Move(delta, float(norm(delta)), share)

    def _to_iso_loss(self, provider: str) -> Move | None:
        ball = math.nan
        if PROVIDERS[provider].objective == "worst":
            found = self._iso_length("sam")
            if found is None:
                return None
            ball = found
        unit, per_rho = self._unit(provider, ball)
        length = self._iso_length(provider, ball)
        if length is None:
            return None
        return Move({name: t * length for name, t in unit.items()}, length, length / per_rho)

    def _iso_length(self, provider: str, ball: float = math.nan) -> float | None:
        """The l2 length at which the loss on the batch has risen far enough."""
        if provider not in self.found:
            self.found[provider] = self._search(provider, ball)
        return self.found[provider]

    def _search(self, provider: str, ball: float) -> float | None:
        if provider not in self.steps:
            self.steps[provider] = PROVIDERS[provider].step(1.0)
        unit, per_rho = self._unit(provider, ball)
        if math.isnan(self.loss):
            self.loss = self._loss_at(self.risk.theta)
        if per_rho == 0 or not math.isfinite(self.loss):
            return None
        length = iso_loss_radius(
            lambda r: self._loss_at(displaced(self.risk.theta, unit, r)) - self.loss,
            self.asked.iso_loss,
            start=self.start.get(provider, 0.05 * self.scale),
            largest=10 * self.scale,
            smallest=1e-6 * self.scale,
        )
        if length is not None:
            self.start[provider] = length
        return length

    def _loss_at(self, theta: Params) -> float:
        loss = self.asked.loss or Classification().loss
        return float(loss(self.asked.outputs_of(self.batch, theta).double(), self.y))
