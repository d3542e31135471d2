"""Perturbed forgetting: perturb the weights as a training batch would have it, and see what the classifier forgets.

The family of measures is our own definition, after the idea of Vani et al. (2024), ICML, whose formula was not
available. In every number, positive means forgotten.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from analysis.forgetting.bootstrap import Resamples
from analysis.forgetting.displacements import Displacements, Radius
from analysis.forgetting.evaluation import Evaluation
from analysis.forgetting.information import Correction
from analysis.forgetting.metrics import ALL_METRICS, METRICS
from analysis.forgetting.providers import OwnPerturbation, Scope
from analysis.forgetting.tally import SPLITS, Plan, Tally, record, summarise
from analysis.forgetting.tokens import TokenEvaluation
from analysis.table import Row
from landscape import EmpiricalRisk, Params, displaced
from landscape.objectives import Link
from landscape.randomness import source_of

__all__ = ["GAPS", "SPLITS", "perturbed_forgetting"]

GAPS = ("F_cmi", "F_mi", "dCE", "cw")  # also reported as M_gap_*
HELD = 2**24  # outputs of perturbed models held at once, in numbers


def perturbed_forgetting(
    risk: EmpiricalRisk,
    held_out: tuple[Tensor, Tensor],
    *,
    providers: Sequence[str] = ("sam", "asam", "obf", "random", "zero"),
    radii: Sequence[Radius] = ("own", "iso-loss"),
    own: OwnPerturbation | None = None,
    m: int | None = 64,
    batches: int | None = None,
    iso_loss: float = 0.1,
    relative: float = 0.05,
    C: float | None = None,
    gamma: float = 1.0,
    link: Link = "softmax",
    eta: float = 0.0,
    scope: Scope = "all",
    initial: Params | None = None,
    last_update: Params | None = None,
    outputs: Link = "softmax",
    metrics: Sequence[str] = METRICS,
    gaps: Sequence[str] = GAPS,
    contrasts: Sequence[Literal["held_out", "other_train"]] = ("held_out",),
    correction: Correction = "first-order",
    resamples: int = 0,
    level: float = 0.95,
    generator: Generator | None = None,
) -> list[Row]:
    """Measure what perturbations made from training batches B make a classifier forget.

    For each batch B and provider, θ moves to θ + ε, and the outputs before and after are compared on three sets: B
    itself ("exposed"), the training examples outside B ("other_train"), and "held_out". The metrics are those of
    `forgetting_metrics`; M_gap_* is the value on "exposed" minus that on "held_out", M_gap_tr_* that on "exposed" minus
    that on "other_train". How far θ moves, `Displacements` says. A batch without an iso-loss radius is left out and
    counted in `warnings`; the row has `converged=False` if more than one in five are.

    A small batch alone has too few examples a class, so that "exposed" pools the pairs of outputs before and after over
    all batches; its standard error is the delete-one-batch jackknife. "other_train" and "held_out", and all three if
    `m` is None, are means over batches, with the standard error of a mean; selectivity is formed from the mean F_cmi
    and F_use. These errors are over batches, for fixed evaluation sets. With `resamples` they cover the examples too:
    a bootstrap that draws batches, and examples within their class, the same before and after. Pooled pairs count as
    independent examples: where batches overlap much, the correction for few examples is too small.

    A risk in mode "batch" is evaluated with the statistics of its own batches, of parts of the held-out data as large
    as the largest of them, and of each B by itself, whose outputs are then those of "exposed".

    Args:
        risk: Training risk of a classifier at θ; its batches are pairs of inputs and integer labels. Parameters that it
            was made without are not perturbed.
        held_out: Inputs and labels that were not trained on.
        providers: Names in `PROVIDERS`. "zero" is the control: exactly zero, and no row at "iso-loss".
        radii: Some of "own", "relative" and "iso-loss", see `Displacements`.
        own: The run's own perturbation; None gives NaN at "own", with the reason in `warnings`.
        m: Examples in a batch B. None makes B the whole training set: deterministic providers then use it once, with
            standard error 0; random ones draw `batches` directions; and "other_train" is empty.
        batches: Number of batches, each a random subset without replacement; None means 20, or 50 for m <= 16.
        iso_loss: Rise of the cross-entropy in nats, above 0.
        relative: ‖ε_l‖ / ‖θ_l‖ of every parameter tensor at "relative".
        C: Option of OBF, see `landscape.obf_loss`; so are `gamma` and `link`.
        gamma: Option of OBF.
        link: Option of OBF alone.
        eta: η of the adaptive providers.
        scope: Which parameters these scale: "all", or "weights" for those whose name has "weight" in it.
        initial: Weights before training, for "shrink"; without them its rows are NaN and say so.
        last_update: θ minus the weights one step before, for "last_update"; likewise.
        outputs: How logits are read: "softmax", or for a model trained on sigmoids "sigmoid", divided by their sum.
        metrics: Names in `metrics.ALL_METRICS`.
        gaps: Which of them make M_gap rows.
        contrasts: What "exposed" is compared with in these.
        correction: For the bias of the information, see `output_information`; the same before and after.
        resamples: Number of bootstrap resamples, for errors and intervals over batches and examples; 0 for none.
        level: Nominal coverage of these intervals.
        generator: Source of batches and noise, on the CPU. Its draws depend neither on the model nor on the providers
            and radii asked for: equal seeds give every model the same batches, and the same noise if of equal shape.
            None means a fresh one from seed 0.

    Returns:
        Rows whose `draws` are the batches used; with `resamples` they are `IntervalRow`s. Two of each cell say how far
        θ moved: `eps_norm`, the mean l2 length of ε, and `eps_rho`, the mean ρ in the provider's own units (at
        "relative" that share).

    Raises:
        ValueError: If a name is unknown, a number out of range, or the data are not tensors with integer labels.
    """
    asked = Displacements(
        providers=providers, radii=radii, own=own, m=m, batches=batches, iso_loss=iso_loss, relative=relative,
        C=C, gamma=gamma, link=link, eta=eta, scope=scope, initial=initial, last_update=last_update, outputs=outputs,
    )  # fmt: skip
    return measure_displacements(
        risk, held_out, asked, metrics=metrics, gaps=gaps, contrasts=contrasts, correction=correction,
        resamples=resamples, level=level, generator=generator,
    )  # fmt: skip


def measure_displacements(
    risk: EmpiricalRisk,
    held_out: tuple[Tensor, Tensor],
    asked: Displacements,
    *,
    metrics: Sequence[str] = METRICS,
    gaps: Sequence[str] = GAPS,
    contrasts: Sequence[Literal["held_out", "other_train"]] = ("held_out",),
    correction: Correction = "first-order",
    resamples: int = 0,
    level: float = 0.95,
    others: int | None = None,
    task: Any = None,
    generator: Generator | None = None,
) -> list[Row]:
    """`perturbed_forgetting` for displacements that are given as an object; the other arguments are its own.

    Args:
        risk: As there, and so on.
        held_out: See there.
        asked: The displacements.
        metrics: See there.
        gaps: See there.
        contrasts: See there.
        correction: See there.
        resamples: See there.
        level: See there.
        others: Training examples, the first ones, that stand for "other_train", less those in B; None means all. Every
            B is then evaluated by itself, so that a displacement costs a pass over these, the held-out data and B.
        task: One whose examples have many predictions (its `tokens`), which are then compared each, see
            `analysis.forgetting.tokens`; None for classifiers.
        generator: See there.

    Raises:
        ValueError: As `perturbed_forgetting`.
    """
    _check_options(metrics, gaps, contrasts, correction)
    generator = source_of(generator)
    evaluation: Evaluation | TokenEvaluation
    if task is None:
        evaluation = Evaluation(risk, held_out, asked, others=others)
    else:
        if resamples:
            raise ValueError(
                f"`resamples` draws examples independently, which the tokens of a sequence are not, got {resamples}: "
                f"leave it out for the errors over batches."
            )
        evaluation = TokenEvaluation(risk, held_out, asked, task)
    labels, n_train = evaluation.labels, evaluation.n_train
    draws = asked.draw(len(evaluation.x), generator)
    drawn = None
    if resamples:
        source = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = Resamples.draw(labels, n_train, asked.count, resamples=resamples, level=level, generator=source)
    names = list(dict.fromkeys([*metrics, *gaps]))
    computed = list(dict.fromkeys([*names, *(("F_cmi", "F_use") if "selectivity" in names else ())]))
    plan = Plan(
        labels, n_train, evaluation.others, list(dict.fromkeys(metrics)), computed, list(dict.fromkeys(gaps)),
        list(dict.fromkeys(contrasts)), correction, asked.m is not None, drawn,
    )  # fmt: skip
    base = evaluation.outputs(risk.theta)
    tallies = {cell: Tally() for cell in asked.cells}
    together = max(1, HELD // base.probs.size)
    for draw, moves in asked.along(risk, evaluation.x, evaluation.y, draws):
        here = evaluation.outputs(risk.theta, draw.index) if evaluation.apart else base
        sets, places = evaluation.sets(draw.index), evaluation.places(draw.index)
        moved: list[Tally] = []
        logits: list[Tensor] = []
        for cell, move in moves:
            tally = tallies[cell]
            if move is None:
                tally.missed += 1
                continue
            tally.moved(draw.number, evaluation.rows(draw.index), move)
            if move.length == 0:  # θ has not moved: the outputs are those before, bit for bit
                record([tally], here, here, sets, places, draw.number, plan)
                continue
            moved.append(tally)
            logits.append(evaluation.logits(displaced(risk.theta, move.delta), draw.index))
            if len(moved) == together:
                record(moved, here, evaluation.read(logits, draw.index), sets, places, draw.number, plan)
                moved, logits = [], []
        if moved:
            record(moved, here, evaluation.read(logits, draw.index), sets, places, draw.number, plan)
    finite = bool(np.isfinite(base.losses).all())
    rows: list[Row] = []
    for cell, tally in tallies.items():
        rows += summarise(tally, asked, cell, plan, finite=finite)
    if isinstance(evaluation, TokenEvaluation):
        return [replace(row, options={**row.options, **evaluation.told}) for row in rows]
    if not evaluation.by_batch:
        return rows
    return [replace(row, options={**row.options, "bn": "batch"}) for row in rows]


def _check_options(metrics: Sequence[str], gaps: Sequence[str], contrasts: Sequence[str], correction: str) -> None:
    for argument, given, known in (
        ("metrics", metrics, ALL_METRICS),
        ("gaps", gaps, ALL_METRICS),
        ("contrasts", contrasts, ("held_out", "other_train")),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"`{argument}` has {unknown}; choose from {', '.join(known)}.")
    if correction not in get_args(Correction):
        raise ValueError(f"`correction` must be one of {get_args(Correction)}, got {correction!r}.")
