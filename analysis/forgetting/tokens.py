"""The tokens that a language model's outputs are compared on: a draw of the targets of each sequence, rare ones pooled.

An example of `analysis.forgetting.perturbed` is then one token, its class the token itself.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.evaluation import on_inputs
from analysis.forgetting.metrics import FEW, Outputs
from landscape import EmpiricalRisk, Params
from landscape.labels import IGNORED
from landscape.randomness import source_of
from trainers.tasks.evaluation import batch_of

Array = np.ndarray

SEQUENCES = 128  # at most, of the training and of the held-out data each, beside those of a batch
PLACES = 32  # of a sequence, at most


class TokenEvaluation:
    """What `analysis.forgetting.evaluation.Evaluation` is for classifiers, with a few tokens of each sequence as rows.

    A token is a class of its own where at least 20 of the rows of the training data outside a batch, and of the
    held-out data, have it as their target; all others are one class, whose probability is the sum of theirs. By the
    data-processing inequality information and divergences are at most those between all tokens.

    Attributes:
        x: Training sequences.
        y: Their targets.
        labels: Class of each row: of the training sequences, then of the held-out ones.
        n_train: Rows of the training sequences.
        others: Of these, the first ones, that stand for those outside a batch.
        apart: True: a batch is evaluated by itself.
        by_batch: False: there is no BatchNorm.
        told: What rows say of it: the number of classes, and the share of the tokens that are pooled.

    Args:
        risk: Model, loss and training data: pairs of tokens (n, T) and targets (n, T).
        held_out: Sequences and targets that were not trained on.
        asked: How outputs are read.
        task: Gives the tokens of outputs.
        generator: Draws the places, on the CPU; None means a fresh one from seed 0.

    Raises:
        ValueError: If no token is common enough to be a class.
    """

    apart, by_batch = True, False

    def __init__(
        self, risk: EmpiricalRisk, held_out: tuple[Tensor, Tensor], asked: Displacements, task: Any,
        generator: Generator | None = None,
    ) -> None:  # fmt: skip
        self.risk, self.asked, self.task = risk, asked, task
        pairs: list[Any] = list(risk.batches)
        self.x, self.y = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        k = min(SEQUENCES, len(self.x))
        held_x, held_y = (t[:SEQUENCES].to(self.x.device) for t in held_out)
        self.seen = torch.cat([self.x[:k], held_x])
        targets = torch.cat([self.y, held_y]).cpu()
        there = targets != IGNORED
        self.per = min(PLACES, int(there.sum(1).min()))
        keys = torch.rand(targets.shape, generator=source_of(generator)).masked_fill(~there, -1)
        self.at = keys.topk(self.per, dim=1).indices.sort(1).values  # which places of each sequence are rows
        found = targets.gather(1, self.at)
        self.n_train, self.others, self.count = len(self.x) * self.per, k * self.per, len(self.seen) * self.per
        common = [
            np.bincount(part.flatten(), minlength=int(targets.max()) + 1) for part in (found[:k], found[-len(held_x) :])
        ]
        self.classes = np.flatnonzero(np.minimum(*common) >= FEW)
        if not len(self.classes):
            raise ValueError(
                f"no token is the target of {FEW} rows of {k} training and {len(held_x)} held-out sequences: keep more "
                f"by `validation_size`, or take a tokenizer of fewer tokens."
            )
        number = np.full(max(len(c) for c in common), len(self.classes))
        number[self.classes] = np.arange(len(self.classes))
        self.labels: Int[Array, " n"] = number[found.flatten().numpy()]
        rare = self.labels == len(self.classes)
        self.told = {"classes": len(self.classes) + bool(rare.any()), "pooled": round(float(rare.mean()), 4)}
        self.held = len(self.x) + np.arange(len(held_x))
        self._base: Tensor | None = None

    def rows(self, chosen: Int[Array, " m"]) -> Int[Array, " k"]:
        """The rows of some sequences, by their numbers among all."""
        return (chosen[:, None] * self.per + np.arange(self.per)).ravel()

    def logits(self, theta: Params, chosen: Int[Array, " m"]) -> Float[Tensor, "k c"]:
        """Log-probabilities of the classes at the rows that are seen, and then at those of a batch."""
        if theta is not self.risk.theta:
            found = self._read(self.seen, self._seen_numbers(), theta)
        else:
            found = self._base = (
                self._read(self.seen, self._seen_numbers(), theta) if self._base is None else self._base
            )
        x = self.x[torch.from_numpy(chosen).to(self.x.device)]
        return torch.cat([found, self._read(x, chosen, theta)])

    def outputs(self, theta: Params, chosen: Int[Array, " m"] | None = None) -> Outputs:
        """Outputs at θ."""
        chosen = np.empty(0, dtype=np.int64) if chosen is None else chosen
        return Outputs.from_logits(self.logits(theta, chosen), self.labels[self.places(chosen)])

    def read(self, logits: list[Tensor], chosen: Int[Array, " m"]) -> Outputs:
        """Outputs of several models at once."""
        return Outputs.from_logits(torch.stack(logits), self.labels[self.places(chosen)])

    def places(self, chosen: Int[Array, " m"]) -> Int[Array, " k"]:
        """Which of all rows each output is of."""
        return self.rows(np.concatenate([self._seen_numbers(), chosen]))

    def sets(self, chosen: Int[Array, " m"]) -> dict[str, Int[Array, " k"]]:
        """Positions of the three sets in the outputs."""
        k = self.others // self.per
        outside = np.setdiff1d(np.arange(k), chosen)
        exposed = self.count + np.arange(len(chosen) * self.per)
        return {"exposed": exposed, "other_train": self.rows(outside), "held_out": np.arange(self.others, self.count)}

    def _seen_numbers(self) -> Int[Array, " k"]:
        return np.concatenate([np.arange(self.others // self.per), self.held])

    def _read(self, x: Tensor, numbers: Int[Array, " n"], theta: Params) -> Float[Tensor, "k c"]:
        """Log-probabilities of the classes at the rows of sequences, on the CPU, a few sequences at a time."""
        at = self.at[torch.from_numpy(numbers)]
        parts = zip(x.split(self._size(x)), at.split(self._size(x)), strict=True) if len(x) else ()
        found = [self._pooled(self._outputs(some, theta), places) for some, places in parts]
        return torch.cat(found) if found else torch.empty(0, int(self.told["classes"]))

    def _outputs(self, x: Tensor, theta: Params) -> Float[Tensor, "n v t"]:
        return self.asked.outputs_of(on_inputs(self.risk, [x]), theta)

    def _size(self, x: Tensor) -> int:
        if not hasattr(self, "_vocabulary"):
            self._vocabulary = self._outputs(x[:1], self.risk.theta).shape[1]
        return batch_of(x, self._vocabulary * x.shape[1])

    def _pooled(self, logits: Float[Tensor, "n v t"], places: Int[Tensor, "n k"]) -> Float[Tensor, "r c"]:
        """The rows of some sequences."""
        index = places.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
        all_logs = logits.gather(2, index).movedim(1, 2).flatten(0, 1).double().log_softmax(-1)
        chosen = torch.from_numpy(self.classes).to(logits.device)
        logs = all_logs[:, chosen]
        if self.told["classes"] == len(self.classes):
            return logs.cpu()
        rest = torch.ones(all_logs.shape[1], dtype=torch.bool, device=logits.device)
        rest[chosen] = False
        return torch.cat([logs, all_logs[:, rest].logsumexp(1, keepdim=True)], 1).cpu()
