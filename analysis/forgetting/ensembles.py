"""F_data: what perturbations make independently trained models forget of the training sets they were drawn from."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.evaluation import on_inputs, training_pairs
from analysis.forgetting.information import entropy
from analysis.forgetting.leaveout import over_batches, stderr_of_mean
from analysis.table import Row
from landscape import EmpiricalRisk, Params, displaced
from landscape.randomness import source_of
from trainers.tasks.task import Classification

Array = np.ndarray


def data_information(probs: Float[Array, "k n c"]) -> Float[Array, " n"]:
    """JS_K on each example: H(mean_k p_k) - mean_k H(p_k) in nats, from 0 (all models agree) to ln K.

    Its mean over examples is I(S;Ŷ|X), the information that a prediction carries about which of the K training sets its
    model was trained on.

    Raises:
        ValueError: If there are fewer than two models.
    """
    if probs.ndim != 3 or len(probs) < 2:
        raise ValueError(f"`probs` must have shape (k, n, c) with at least 2 models k, got {probs.shape}.")
    spread: Float[Array, " n"] = entropy(probs.mean(0)) - entropy(probs).mean(0)
    return spread


def data_forgetting(
    risks: Sequence[EmpiricalRisk],
    inputs: Tensor,
    asked: Sequence[Displacements],
    *,
    generator: Generator | None = None,
) -> list[Row]:
    """F_data = JS_K(θ) - JS_K(θ + ε) over K models trained on independent sets; positive means forgotten.

    Every model is perturbed by batches of its own training set; the k-th batches of all models are taken together.

    Args:
        risks: Training risks of the models, each at its own θ and on its own training set; one architecture is not
            needed, one number of classes is.
        inputs: Where outputs are compared, trained on by none of the models.
        asked: Providers, radii and batches for each model; they may differ in what belongs to the model alone: `own`,
            `initial`, `last_update`.
        generator: Source of batches and noise; models with as many training examples get batches of equal indices.
            None means a fresh one from seed 0.

    Returns:
        `data_information` at θ, and F_data for each cell, on "held_out". The standard error adds up the variances over
        examples and between batches; models are taken as given.

    Raises:
        ValueError: If there are fewer than two models, or options that must agree do not.

    Source:
        Our definition: a stand-in, in the space of functions, for the information between weights and training set.
    """
    if len(risks) < 2 or len(asked) != len(risks):
        raise ValueError(
            f"`risks` must be at least 2 models, with one of `asked` each, got {len(risks)} and {len(asked)}."
        )
    generator = source_of(generator)
    first = asked[0]
    if any((a.cells, a.m, a.count, a.outputs) != (first.cells, first.m, first.count, first.outputs) for a in asked):
        raise ValueError("`asked` must agree in providers, radii, `m`, `batches` and `outputs` over the models.")

    def outputs(k: int, theta: Params) -> Float[Array, "n c"]:
        logits = asked[k].outputs_of(on_inputs(risks[k], inputs, asked[k].batch_size), theta)
        probs: Float[Array, "n c"] = Classification().probabilities(logits).cpu().numpy()
        return probs

    probs = [outputs(k, risk.theta) for k, risk in enumerate(risks)]
    if len({p.shape for p in probs}) > 1:
        raise ValueError(f"`risks` must predict the same classes, got outputs of {sorted({p.shape for p in probs})}.")
    before = data_information(np.stack(probs))
    note = "" if np.isfinite(before).all() else "the outputs are not finite"
    common = {"models": len(risks)}
    rows = [
        Row(
            "data_information",
            float(before.mean()),
            stderr_of_mean(before),
            draws=len(before),
            split="held_out",
            options=common,
            warnings=note,
        )
    ]
    seed = int(torch.randint(2**62, (1,), generator=generator))
    walks = []
    for risk, own in zip(risks, asked, strict=True):
        x, y = training_pairs(risk)
        walks.append(own.along(risk, x, y, own.draw(len(x), torch.Generator().manual_seed(seed))))
    drops: dict[tuple[str, str], list[Float[Array, " n"]]] = {cell: [] for cell in first.cells}
    missed = dict.fromkeys(first.cells, 0)
    for steps in zip(*walks, strict=True):
        todo = [dict.fromkeys(first.cells, np.empty(0)) for _ in risks]
        for k, (_, moves) in enumerate(steps):
            for cell, move in moves:
                if move is not None:
                    still = move.length == 0
                    todo[k][cell] = probs[k] if still else outputs(k, displaced(risks[k].theta, move.delta))
                else:
                    todo[k][cell] = np.full((1, 1), np.nan)
        for cell in first.cells:
            after = [part[cell] for part in todo]
            if any(p.size == 0 for p in after):
                continue  # not to be had, or said by the first batch already
            if any(p.shape != before.shape + p.shape[1:] for p in after):
                missed[cell] += 1
                continue
            still = all(a is b for a, b in zip(after, probs, strict=True))
            drops[cell].append(np.zeros_like(before) if still else before - data_information(np.stack(after)))
    for cell in first.cells:
        each, tried = drops[cell], len(drops[cell]) + missed[cell]
        why = next(filter(None, (a.missing(cell) for a in asked)), first.shortfall(cell, missed[cell], tried))
        value, stderr = over_batches(each) if each else (math.nan, math.nan)
        rows.append(
            Row(
                "F_data",
                value,
                stderr,
                draws=len(each),
                split="held_out",
                options={k: v for k, v in first.options(cell).items() if k != "own"} | common,
                converged=missed[cell] <= tried / 5,
                warnings="; ".join(filter(None, [note, why])),
            )
        )
    return rows
