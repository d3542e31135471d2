"""Several labels: for each example and each of k labels, whether it applies."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from trainers.tasks.outputs import columns, require_finite


@dataclass(frozen=True)
class Multilabel:
    """Learns k marks y in {0, 1} of each example from k logits f, one binary decision a label.

    The loss is the binary cross-entropy, in nats, as a mean over labels and examples, with weights w of the marks:
    w y log(1 + exp(-f)) + (1 - y) log(1 + exp(f)).

    Attributes:
        pos_weight: w, one number, or one a label as text, "9, 1, 2.5", such as how many examples lack the mark for one
            that has it. It is for training: runs are measured with w = 1, so that all are measured alike.

    Raises:
        ValueError: If a weight is not a finite number above 0.
    """

    _: KW_ONLY
    pos_weight: float | str = 1.0

    weight = None
    decides = False  # an example has several decisions
    distribution = "bernoulli"

    def __post_init__(self) -> None:
        try:
            valid = all(0 < w < math.inf for w in self._given)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(
                f"`pos_weight` must be a finite number above 0, or one a label as text such as '9, 1', got "
                f"{self.pos_weight!r}."
            )

    @property
    def _given(self) -> list[float]:
        """The weights as they were given: one, or one a label."""
        return [float(w) for w in str(self.pos_weight).split(",")]

    @property
    def name(self) -> str:
        """Of the loss, for the rows of measures."""
        return "bce_of_labels" if self.pos_weight == 1 else "weighted_bce_of_labels"

    @property
    def plain(self) -> "Multilabel":
        """The same without weights."""
        return Multilabel()

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
        self._weights(y)

    def each(self, outputs: Float[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The loss of each example."""
        f, y = columns("multilabel", outputs, targets)
        return F.binary_cross_entropy_with_logits(f, y.to(f.dtype), reduction="none", pos_weight=self._weights(f)).mean(
            1
        )

    def _weights(self, of: Shaped[Tensor, "n k"]) -> Tensor | None:
        """The weights of the marks of each label, as what they are for; None where all are 1."""
        if self.pos_weight == 1:
            return None
        given = self._given * (of.shape[1] if len(self._given) == 1 else 1)
        if len(given) != of.shape[1]:
            raise ValueError(
                f"`pos_weight` {self.pos_weight!r} has {len(given)} weights, and there are {of.shape[1]} labels: give "
                f"one number, or one a label."
            )
        return torch.tensor(given, dtype=of.dtype if of.is_floating_point() else torch.float32, device=of.device)

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
