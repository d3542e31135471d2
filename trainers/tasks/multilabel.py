"""Several labels: for each example and each of k labels, whether it applies."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from trainers.tasks.outputs import columns, require_finite


@dataclass(frozen=True)
class Multilabel:
    """Learns k marks y in {0, 1} of each example from k logits f, one binary decision a label.

    The loss is the binary cross-entropy, in nats, as a mean over labels and examples: log(1 + exp(f)) - y f.
    """

    name = "bce_of_labels"
    weight = None
    decides = False  # an example has several decisions
    distribution = "bernoulli"

    def check_targets(self, y: Shaped[Tensor, "n ..."], where: str) -> None:
        """Check the targets of a data set.

        Raises:
            ValueError: If they are not one 0 or 1 for each label.
        """
        if y.is_floating_point():
            require_finite(y, where)
        if y.ndim != 2:
            raise ValueError(
                f"`dataset` {where}: targets have shape {tuple(y.shape)}, and `task` 'multilabel' learns one 0 or 1 "
                f"for each example and label, of shape (n, labels): for one label an example take `task` "
                f"'classification'."
            )
        if bool((other := (y != 0) & (y != 1)).any()):
            i, j = (int(place) for place in other.nonzero()[0])
            raise ValueError(
                f"`dataset` {where}: the target of example {i}, label {j}, is {y[i, j].item():g}, and `task` "
                f"'multilabel' learns 0 or 1: for numbers take `task` 'regression'."
            )

    def each(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The loss of each example."""
        f, y = columns("multilabel", outputs, targets)
        return F.binary_cross_entropy_with_logits(f, y.to(f.dtype), reduction="none").mean(1)

    def loss(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> Float[Tensor, ""]:
        """Its mean over the examples."""
        return self.each(outputs, targets).mean()

    def scores(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> dict[str, Tensor]:
        """The share of wrong labels of each example, and whether any is wrong; a label is predicted where f > 0."""
        f, y = columns("multilabel", outputs, targets)
        wrong = (f > 0) != (y > 0)
        return {"label_error": wrong.to(f.dtype).mean(1), "exact_match_error": wrong.any(1).to(f.dtype)}

    def of_set(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> dict[str, Float[Tensor, ""]]:
        """The average precision: of each label that occurs in the set, and the mean over these; NaN where none does.

        Σ_j (R_j - R_{j-1}) P_j over the thresholds j from the largest logit down, with precision P and recall R.
        """
        f, y = columns("multilabel", outputs, targets)
        found = [average_precision(f[:, j], y[:, j]) for j in range(f.shape[1]) if bool((y[:, j] > 0).any())]
        return {"average_precision": torch.stack(found).mean() if found else torch.tensor(math.nan)}

    def divergence(self, before: Float[Tensor, "n ..."], after: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """KL(before ‖ after) of the Bernoulli distribution of each label, in nats."""
        f, g = (t.double().reshape(len(t), -1) for t in (before, after))
        p = torch.sigmoid(f)
        return p * (F.logsigmoid(f) - F.logsigmoid(g)) + (1 - p) * (F.logsigmoid(-f) - F.logsigmoid(-g))


def average_precision(scores: Float[Tensor, " n"], marks: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The area under precision against recall, as a step function; equal scores are one threshold."""
    order = scores.argsort(descending=True)
    ranked, hit = scores[order], (marks[order] > 0).double()
    last = torch.ones(len(ranked), dtype=torch.bool, device=ranked.device)
    last[:-1] = ranked[1:] != ranked[:-1]
    found = hit.cumsum(0)[last]
    seen = torch.arange(1, len(ranked) + 1, device=ranked.device)[last]
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return (gained * found / seen).sum() / hit.sum()
