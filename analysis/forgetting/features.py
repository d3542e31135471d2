"""F_z: what a perturbation makes the features forget, the inputs of a classifier's last linear layer."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import logsumexp
from torch import Generator, Tensor, nn

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.evaluation import Evaluation, on_inputs
from analysis.forgetting.leaveout import over_batches, stderr_of_mean
from analysis.table import Row
from landscape import EmpiricalRisk, Params, displaced
from landscape.batches import Batch
from landscape.functional import PureModel
from landscape.randomness import source_of

Array = np.ndarray
FEW = 50
BLOCK = 2**22  # distances held at once


def last_linear(model: nn.Module) -> str:
    """The name of the model's last linear layer, whose input is what we call its features.

    Raises:
        ValueError: If it has none.
    """
    names = [name for name, child in model.named_modules() if isinstance(child, nn.Linear)]
    if not names:
        raise ValueError("`layer`: the model has no nn.Linear whose input could be its features; name a layer.")
    return str(names[-1])


def features(
    risk: EmpiricalRisk, x: Tensor, *, theta: Params | None = None, layer: str | None = None
) -> Float[Array, "n d"]:
    """The input of a layer on each example, flattened, in float64.

    Args:
        risk: Made by `EmpiricalRisk.from_model`.
        x: Inputs.
        theta: The point; None means the risk's own.
        layer: Name of a module; None means `last_linear`.

    Raises:
        ValueError: If the risk is made from a function, or the layer is not there, or is not called exactly once.
    """
    if not isinstance(risk.predict, PureModel):
        raise ValueError("`risk` must be made by EmpiricalRisk.from_model: a function shows no layer's input.")
    module = risk.predict.module  # a copy of the tree of modules, so that the caller's gets no hook
    name = last_linear(module) if layer is None else layer
    known = dict(module.named_modules())
    if name not in known:
        raise ValueError(f"`layer` {name!r} is no module of the model; there are {', '.join(filter(None, known))}.")
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0].detach())

    hook = known[name].register_forward_pre_hook(catch)

    def read(_: Any, batch: Batch) -> Tensor:
        calls = list(caught)
        caught.clear()
        if len(calls) != 1 or len(calls[0]) != len(batch[0]):
            raise ValueError(f"`layer` {name!r} must be called once, with one row an example, got {len(calls)} calls.")
        return calls[0].flatten(1).cpu().double()

    try:
        rows = on_inputs(risk, x).over(read, theta)
    finally:
        hook.remove()
    found: Float[Array, "n d"] = torch.cat(rows).numpy()
    return found


def noisy_information(
    h: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    scale: float,
    noise: Float[Array, "k n d"],
    leave_one_out: bool = False,
) -> Float[Array, " n"]:
    """Each example's share of I(X;Z|Y) for noisy features Z = h(X) + s N(0, I), X uniform on the examples of a class.

    The share of example i, of class y with n_y examples, is the mean over the noise of
    ln N(z_i; h_i, s²) - ln (1/n_y) Σ_{j in y} N(z_i; h_j, s²), z_i = h_i + s ε_i; the mean of the shares is the
    information in nats, without bias for these examples, and never above ln n_y. With `leave_one_out` the sum is over
    the n_y - 1 others, which estimates the information of the population from above and has no bound of its own: a
    share is cut at ln n_y. A class of one example has information 0.

    Args:
        h: Features.
        labels: True classes.
        scale: s > 0.
        noise: ε, standard normal; the first axis are draws to average over.
        leave_one_out: Leave i out of its own mixture.

    Returns:
        One share an example; NaN where a feature is not finite.

    Raises:
        ValueError: If `scale` is not above 0 or shapes do not match.

    Source:
        Our definition; the quantity is that of Kawaguchi et al. (2023), ICML.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"`scale` must be a finite standard deviation above 0, got {scale!r}.")
    if noise.ndim != 3 or noise.shape[1:] != h.shape or labels.shape != h.shape[:1]:
        raise ValueError(
            f"`noise` must have shape (draws, *features) and `labels` one class an example, got {noise.shape} and "
            f"{labels.shape} for features {h.shape}."
        )
    shares = np.zeros(len(h))
    if not np.isfinite(h).all():
        return np.full(len(h), np.nan)
    for y in np.unique(labels):
        members = np.flatnonzero(labels == y)
        n_y = len(members)
        if n_y == 1:
            continue
        centres = h[members] / scale
        centres = centres - centres.mean(0)  # keeps digits in the differences of squares below
        squares = (centres**2).sum(1)
        rows = max(1, BLOCK // n_y)
        for eps in noise[:, members]:
            for start in range(0, n_y, rows):
                stop = min(start + rows, n_y)
                own = eps[start:stop]
                z = centres[start:stop] + own
                logs = z @ centres.T - squares / 2 - (z**2).sum(1, keepdims=True) / 2
                others = n_y
                if leave_one_out:
                    logs[np.arange(stop - start), np.arange(start, stop)] = -np.inf
                    others = n_y - 1
                mixture = logsumexp(logs, axis=1) - math.log(others)
                share = -(own**2).sum(1) / 2 - mixture
                shares[members[start:stop]] += np.minimum(share, math.log(n_y)) / len(noise)
    return shares


def feature_forgetting(
    risk: EmpiricalRisk,
    held_out: tuple[Tensor, Tensor],
    asked: Displacements,
    *,
    noise: float = 0.1,
    draws: int = 1,
    leave_one_out: bool = False,
    layer: str | None = None,
    generator: Generator | None = None,
) -> list[Row]:
    """F_z = I_θ(X;Z|Y) - I_{θ+ε}(X;Z|Y) in nats, for noisy features Z; positive means forgotten.

    The noise has one standard deviation for all features, before and after: `noise` times the root mean square of the
    features' standard deviations at θ. The same noise is used before and after, and for all batches.

    Args:
        risk: Training risk of a classifier at θ, made by `EmpiricalRisk.from_model`.
        held_out: Inputs and labels that were not trained on.
        asked: Providers, radii and batches.
        noise: Standard deviation of the noise, relative to that of the features.
        draws: Draws of noise an example.
        leave_one_out: See `noisy_information`.
        layer: Whose input is meant; None means the last linear layer.
        generator: Source of batches and noise; the batches are those of `perturbed_forgetting`. None means a fresh one
            from seed 0.

    Returns:
        `feature_information` at θ, and F_z for each cell, on "train" and "held_out". The standard error adds up the
        variance over examples, of their shares averaged over batches, and that between batches.

    Raises:
        ValueError: As `perturbed_forgetting` and `features`; or if the features do not vary.

    Source:
        Our definition.
    """
    if not (math.isfinite(noise) and noise > 0):
        raise ValueError(f"`noise` must be a finite share of the features' spread, above 0, got {noise!r}.")
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1, got {draws!r}.")
    generator = source_of(generator)
    evaluation = Evaluation(risk, held_out, asked)
    evaluation.outputs(risk.theta)  # says what is wrong with labels or outputs
    n = evaluation.n_train
    batches = asked.draw(n, generator)
    sets = {"train": slice(0, n), "held_out": slice(n, None)}
    x = {"train": evaluation.x, "held_out": held_out[0].to(evaluation.x.device)}
    source = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    before: dict[str, Float[Array, " k"]] = {}
    scale, eps = math.nan, dict[str, Float[Array, "k n d"]]()
    for split in sets:
        h = features(risk, x[split], layer=layer)
        if split == "train":
            scale = noise * float(np.sqrt(h.var(0).mean()))
            if scale == 0:
                raise ValueError("`noise` has nothing to be relative to: the features are the same on all inputs.")
        eps[split] = source.standard_normal((draws, *h.shape))
        before[split] = _shares(h, evaluation.labels[sets[split]], scale, eps[split], leave_one_out)

    common = {"noise": noise, "draws": draws, "leave_one_out": leave_one_out, "layer": layer or "last linear"}
    few = {s: _few(evaluation.labels[part]) for s, part in sets.items()}
    rows = [
        Row(
            "feature_information",
            float(share.mean()),
            stderr_of_mean(share),
            draws=len(share),
            split=split,
            options=common,
            warnings=_notes("" if np.isfinite(share).all() else "the features are not finite", few[split]),
        )
        for split, share in before.items()
    ]
    drops: dict[tuple[str, str], dict[str, list[Float[Array, " k"]]]] = {
        cell: {split: [] for split in sets} for cell in asked.cells
    }
    missed = dict.fromkeys(asked.cells, 0)
    for _, moves in asked.along(risk, evaluation.x, evaluation.y, batches):
        for cell, move in moves:
            if move is None:
                missed[cell] += 1
                continue
            for split, part in sets.items():
                after = before[split]
                if move.length > 0:
                    h = features(risk, x[split], theta=displaced(risk.theta, move.delta), layer=layer)
                    after = _shares(h, evaluation.labels[part], scale, eps[split], leave_one_out)
                drops[cell][split].append(before[split] - after)
    for cell in asked.cells:
        for split in sets:
            each, tried = drops[cell][split], len(drops[cell][split]) + missed[cell]
            value, stderr = over_batches(each) if each else (math.nan, math.nan)
            note = asked.shortfall(cell, missed[cell], tried)
            if each and math.isnan(value):
                note = _notes(note, "the features are not finite")
            rows.append(
                Row(
                    "F_z",
                    value,
                    stderr,
                    draws=len(each),
                    split=split,
                    options=asked.options(cell) | common,
                    converged=missed[cell] <= tried / 5,
                    warnings=_notes(note, few[split]),
                )
            )
    return rows


def _shares(
    h: Float[Array, "n d"], labels: Int[Array, " n"], scale: float, noise: Float[Array, "k n d"], leave_one_out: bool
) -> Float[Array, " n"]:
    if not math.isfinite(scale):
        return np.full(len(h), np.nan)
    return noisy_information(h, labels, scale=scale, noise=noise, leave_one_out=leave_one_out)


def _few(labels: Int[Array, " n"]) -> str:
    counts = np.bincount(labels)
    least = int(counts[counts > 0].min())
    return f"only {least} examples of a class" if least < FEW else ""


def _notes(*parts: str) -> str:
    return "; ".join(filter(None, parts))
