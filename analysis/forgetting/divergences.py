"""Perturbed forgetting of predictions that are no classes: how far they move, and how much the loss rises.

Our definition, by the batches, perturbations and sets of `analysis.forgetting.perturbed`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from analysis.forgetting.displacements import Cell, Displacements, Move
from analysis.forgetting.evaluation import on_inputs
from analysis.table import Row
from landscape import EmpiricalRisk, Params, displaced
from landscape.randomness import source_of
from trainers.tasks.task import example_weights

METRICS = ("KL", "dloss")
ENTRIES = 32  # of a target, up to which each has a row of its own
SPLITS = ("exposed", "other_train", "held_out")
NOT_FINITE = "the outputs are not finite"

Values = dict[tuple[str, str], np.ndarray]  # of a metric on a split: a number a batch, or one for each entry


@dataclass
class _Cell:
    """What one provider at one radius did, batch by batch."""

    moves: list[Move] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    missed: int = 0


class _Sets:
    """The examples that outputs are compared on, and the outputs before."""

    def __init__(
        self, risk: EmpiricalRisk, held_out: tuple[Tensor, Tensor], asked: Displacements, task: Any, others: int | None
    ) -> None:
        self.risk, self.asked, self.task = risk, asked, task
        pairs: list[Any] = list(risk.batches)
        self.x, self.y = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        k = len(self.x) if others is None else min(others, len(self.x))
        self.others, n_held = k, len(held_out[0])
        inputs = torch.cat([self.x[:k], held_out[0].to(self.x)])
        self.seen = on_inputs(risk, inputs, asked.batch_size)
        self.targets = torch.cat([self.y[:k], held_out[1].to(self.y)]).cpu()
        self.held = np.arange(k, k + n_held)
        self.before = self.outputs(self.seen, risk.theta)

    def outputs(self, on: EmpiricalRisk, theta: Params) -> Tensor:
        """Outputs on the CPU, in order."""
        return self.asked.outputs_of(on, theta).cpu()

    def compared(self, move: Move, chosen: np.ndarray) -> Values:
        """The metrics of one displacement on the three sets."""
        theta = displaced(self.risk.theta, move.delta)
        batch = on_inputs(self.risk, [self.x[torch.from_numpy(chosen).to(self.x.device)]])
        after, y = self.outputs(self.seen, theta), self.y.cpu()[chosen]
        found = self._metrics("exposed", self.outputs(batch, self.risk.theta), self.outputs(batch, theta), y)
        for split, at in (("other_train", np.setdiff1d(np.arange(self.others), chosen)), ("held_out", self.held)):
            if len(at):
                found |= self._metrics(split, self.before[at], after[at], self.targets[at])
        return found

    def _metrics(self, split: str, before: Tensor, after: Tensor, y: Tensor) -> Values:
        moved = self.task.divergence(before, after).double()
        rise = (self.task.each(after.double(), y) - self.task.each(before.double(), y)).double()
        weights = example_weights(self.task, y)
        share = torch.full_like(rise, 1 / len(rise)) if weights is None else weights / weights.sum()
        by_entry = (share[:, None] * moved).sum(0)
        return {
            ("KL", split): by_entry.mean().numpy(),
            ("KL_entry", split): by_entry.numpy(),
            ("dloss", split): (share * rise).sum().numpy(),
        }


def divergence_forgetting(
    risk: EmpiricalRisk,
    held_out: tuple[Tensor, Tensor],
    asked: Displacements,
    task: Any,
    *,
    others: int | None = None,
    generator: Generator | None = None,
) -> list[Row]:
    """Measure what perturbations made from training batches B make predictions without classes forget.

        KL          mean over examples and entries of KL(before ‖ after) of the distributions that the task reads its
                    outputs as, see its `divergence`, in nats; of Gaussians, or of one Bernoulli variable a label
        KL_entry    the same of each entry, where a target has 2 to 32
        dloss       mean rise of the task's loss, weighted as the task weighs examples
        M_gap_*     the value on "exposed" minus that on "held_out"

    Sets, batches and lengths of the displacements are those of `perturbed_forgetting`, where at "iso-loss" it is the
    task's own loss that rises. All numbers are means over batches, with the standard error of a mean, for fixed sets.

    Args:
        risk: Training risk at θ, with pairs of inputs and targets.
        held_out: Inputs and targets that were not trained on.
        asked: The displacements.
        task: With `divergence`, `distribution` and `each`.
        others: Training examples, the first ones, that stand for "other_train", less those in B; None means all.
        generator: Source of batches and noise, on the CPU; None means a fresh one from seed 0.
    """
    sets = _Sets(risk, held_out, asked, task, others)
    cells = {cell: _Cell() for cell in asked.cells}
    for draw, moves in asked.along(risk, sets.x, sets.y, asked.draw(len(sets.x), source_of(generator))):
        for cell, move in moves:
            if move is None:
                cells[cell].missed += 1
            else:
                cells[cell].moves.append(move)
                cells[cell].values.append(sets.compared(move, draw.index))
    finite = bool(torch.isfinite(sets.before).all())
    return [row for cell, did in cells.items() for row in _rows(cell, did, asked, task, finite=finite)]


def _rows(cell: Cell, did: _Cell, asked: Displacements, task: Any, *, finite: bool) -> list[Row]:
    tried, exact = len(did.values) + did.missed, asked.deterministic(cell[0])
    options = {**asked.options(cell), "distribution": task.distribution}
    note = asked.shortfall(cell, did.missed, tried)

    def row(measure: str, split: str, each: list[float], why: str = "", **more: Any) -> Row:
        known = bool(each) and finite and math.isfinite(sum(each))
        value = float(np.mean(each)) if known else math.nan
        spread = 0.0 if exact else float(np.std(each, ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        said = "; ".join(filter(None, [note, why or ("" if known or not each else NOT_FINITE)]))
        return Row(
            measure, value, spread if known else math.nan, len(did.values), split, {**options, **more},
            did.missed <= tried / 5, said,
        )  # fmt: skip

    def on(metric: str, split: str, entry: int | None = None) -> list[float]:
        found = [values[metric, split] for values in did.values if (metric, split) in values]
        return [float(v if entry is None else v[entry]) for v in found]

    rows = []
    for split in SPLITS:
        outside = "no training example lies outside the batch" if did.values and not on("KL", split) else ""
        rows += [row(metric, split, on(metric, split), outside) for metric in METRICS]
        entries = _entries(did.values, split)
        if 1 < entries <= ENTRIES:
            rows += [row("KL_entry", split, on("KL_entry", split, j), entry=j) for j in range(entries)]
    for metric in METRICS:
        gaps = [a - b for a, b in zip(on(metric, "exposed"), on(metric, "held_out"), strict=True)]
        rows.append(row(f"M_gap_{metric}", "exposed", gaps))
    rows.append(row("eps_norm", "exposed", [move.length for move in did.moves]))
    rows.append(row("eps_rho", "exposed", [move.rho for move in did.moves]))
    return rows


def _entries(values: list[Values], split: str) -> int:
    return next((v["KL_entry", split].size for v in values if ("KL_entry", split) in v), 0)
