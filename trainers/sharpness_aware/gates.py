"""When a step is perturbed: the first part of a sharpness-aware method."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from trainers.sharpness_aware.moment import Moment, Part


class Mode(enum.StrEnum):
    """What a step does: the base optimizer's own step, a perturbed one, or one that reuses an earlier perturbation."""

    PLAIN = "plain"
    PERTURBED = "perturbed"
    REUSE = "reuse"


class Gate(Part):
    """Decides the mode of each step.

    Attributes:
        needs_gradient: Whether the decision needs ‖g_t‖², so that the first pass comes before it.
    """

    needs_gradient: bool = False

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        """The mode of the step; `squared_norm` is ‖g_t‖², the mean over ranks, where `needs_gradient`."""
        raise NotImplementedError


@dataclass
class Always(Gate):
    """Every step is perturbed."""

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        return Mode.PERTURBED


@dataclass
class Never(Gate):
    """No step is perturbed: the base optimizer."""

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        return Mode.PLAIN


@dataclass
class Window(Gate):
    """Steps from `start` up to, not including, `end` are perturbed; `end=None` leaves it open.

    Late-phase SAM (Zhou et al. 2025) is a window at the end. The base optimizer is one and the same throughout, so its
    momentum goes on across the edges (the code of that paper starts a second optimizer with momentum zero).
    """

    start: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and self.end < self.start):
            raise ValueError(f"`window` must be (start, end) with 0 <= start <= end, got ({self.start}, {self.end}).")

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        inside = moment.t >= self.start and (self.end is None or moment.t < self.end)
        return Mode.PERTURBED if inside else Mode.PLAIN


@dataclass
class EveryK(Gate):
    """Step t is perturbed if (t - offset) mod k = 0.

    Attributes:
        k: Period, at least 1.
        otherwise: Mode of the other steps: "plain" (periodic SAM) or "reuse" (LookSAM).
        offset: First step that counts.
    """

    k: int = 5
    otherwise: Mode = Mode.PLAIN
    offset: int = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"`k` must be at least 1, got {self.k}.")

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        return Mode.PERTURBED if (moment.t - self.offset) % self.k == 0 else self.otherwise


@dataclass
class Bernoulli(Gate):
    """Step t is perturbed with probability p(t): SS-SAM, also called RST.

    "constant": p; "piecewise": p until step `switch` · T, then `p_end`; "linear": p + (p_end - p) t/T; "cosine":
    p + (p_end - p) (1 - cos πt/T) / 2. The draw depends on (seed, t) alone, so all ranks agree and a resumed run draws
    what it would have drawn.

    Attributes:
        p: Probability, at the start where it changes.
        p_end: Probability at the end, for the shapes other than "constant".
        shape: How p changes.
        switch: Share of the run after which "piecewise" changes.
        total: T, steps of the run; needed unless "constant".
        seed: Of the draws.

    Source:
        Zhao et al. (2022), "SS-SAM"; the exact forms of the schedules are ours.
    """

    p: float = 0.5
    p_end: float = 1.0
    shape: Literal["constant", "piecewise", "linear", "cosine"] = "constant"
    switch: float = 0.5
    total: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("p", "p_end", "switch"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {value!r}.")
        if self.shape not in ("constant", "piecewise", "linear", "cosine"):
            raise ValueError(f"`shape` must be 'constant', 'piecewise', 'linear' or 'cosine', got {self.shape!r}.")
        if self.shape != "constant" and not self.total:
            raise ValueError(f"`shape` {self.shape!r} needs the length of the run: pass `total_steps=`.")

    def probability(self, t: int) -> float:
        """p(t)."""
        if self.shape == "constant":
            return self.p
        assert self.total is not None
        s = min(1.0, t / self.total)
        if self.shape == "piecewise":
            return self.p if s < self.switch else self.p_end
        share = s if self.shape == "linear" else (1 - math.cos(math.pi * s)) / 2
        return self.p + (self.p_end - self.p) * share

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        draw = torch.rand((), generator=torch.Generator().manual_seed(_mixed(self.seed, moment.t)), dtype=torch.float64)
        return Mode.PERTURBED if float(draw) < self.probability(moment.t) else Mode.PLAIN


@dataclass
class AdaptiveNorm(Gate):
    """AE-SAM: perturb where the gradient is unusually long.

    With s_t = ‖g_t‖²:

        μ_t = δ μ_{t-1} + (1 - δ) s_t,   v_t = δ v_{t-1} + (1 - δ) (s_t - μ_t)²,   perturb iff s_t >= μ_t + c_t √v_t

    and c_t = (t/T) λ1 + (1 - t/T) λ2. From μ_0 = v_0 = 0 the first steps lean towards perturbing; `correct` divides
    both averages by 1 - δ^(t+1) as Adam does (ours).

    Attributes:
        delta: δ in [0, 1).
        lambda1: λ1, c at the end; below λ2 it makes perturbed steps more frequent over training.
        lambda2: λ2, c at the start.
        total: T; needed unless λ1 = λ2.
        correct: Correct the bias of the first averages.

    Source:
        Jiang et al. (2023), "An adaptive policy to employ SAM", ICLR; its default constants from memory.
    """

    keeps = ("mean", "variance", "seen")
    delta: float = 0.9
    lambda1: float = -1.0
    lambda2: float = 1.0
    total: int | None = None
    correct: bool = False
    mean: float = field(default=0.0, init=False)
    variance: float = field(default=0.0, init=False)
    seen: int = field(default=0, init=False)
    needs_gradient: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise ValueError(f"`delta` must be in [0, 1), got {self.delta!r}.")
        if math.isnan(self.lambda1) or math.isnan(self.lambda2):
            raise ValueError(f"`lambda1` and `lambda2` must be numbers, got {self.lambda1!r} and {self.lambda2!r}.")
        if self.lambda1 != self.lambda2 and not self.total:
            raise ValueError(
                "AE-SAM's threshold runs from `lambda2` to `lambda1`: pass `total_steps=`, or make them equal."
            )

    def threshold(self, t: int) -> float:
        """c_t."""
        if self.lambda1 == self.lambda2:
            return self.lambda1
        assert self.total is not None
        s = min(1.0, t / self.total)
        return s * self.lambda1 + (1 - s) * self.lambda2

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        assert squared_norm is not None
        if not math.isfinite(squared_norm):
            return Mode.PLAIN  # one overflow must not poison the averages
        self.seen += 1
        self.mean = self.delta * self.mean + (1 - self.delta) * squared_norm
        self.variance = self.delta * self.variance + (1 - self.delta) * (squared_norm - self.mean) ** 2
        share = 1 - self.delta**self.seen if self.correct else 1.0
        c = self.threshold(moment.t)
        spread = math.sqrt(self.variance / share)
        bound = self.mean / share + (c * spread if spread else 0.0)
        return Mode.PERTURBED if c == -math.inf or squared_norm >= bound else Mode.PLAIN


@dataclass
class All(Gate):
    """Several gates at once: plain where any says plain, else reuse where any says reuse, else perturbed."""

    gates: Sequence[Gate]

    def __post_init__(self) -> None:
        self.needs_gradient = any(g.needs_gradient for g in self.gates)

    def __call__(self, moment: Moment, squared_norm: float | None = None) -> Mode:
        modes = {gate(moment, squared_norm) for gate in self.gates}
        for mode in (Mode.PLAIN, Mode.REUSE):
            if mode in modes:
                return mode
        return Mode.PERTURBED

    def state_dict(self) -> dict[str, Any]:
        return {"gates": [g.state_dict() for g in self.gates]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for gate, kept in zip(self.gates, state["gates"], strict=True):
            gate.load_state_dict(kept)


def joined(*gates: Gate) -> Gate:
    """One gate that asks all of them; `Always` drops out."""
    asked = [g for g in gates if not isinstance(g, Always)]
    return asked[0] if len(asked) == 1 else All(asked) if asked else Always()


def _mixed(seed: int, t: int) -> int:
    """One seed from two numbers, by the finaliser of SplitMix64, so that neighbouring steps are unrelated."""
    z = (seed * 0x9E3779B97F4A7C15 + t + 1) & (2**64 - 1)
    for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
        z = ((z ^ (z >> shift)) * factor) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
