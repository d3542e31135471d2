"""Margins of a classifier on its training data."""

from jaxtyping import Float, Int
from torch import Tensor

from landscape.labels import counted


def margins(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The logit of the label minus the largest other logit, example by example; negative where the label loses.

    Raises:
        ValueError: If there are fewer than two classes, shapes do not match, or a label is no class.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"`logits` must have shape (n, c) with c >= 2 classes and `labels` shape (n,) with n >= 1, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if not bool(counted(labels, logits.shape[1]).all()):
        raise ValueError(
            f"`labels` must be classes from 0 to {logits.shape[1] - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}: leave out examples whose label is ignored."
        )
    at = labels.long()[:, None]
    scores = logits.double()
    others = scores.scatter(1, at, -float("inf")).max(1).values
    return scores.gather(1, at)[:, 0] - others


def low_margin(values: Float[Tensor, " m"], *, share: float = 0.1) -> float:
    """The k-th smallest of m margins with k = ⌊share · m⌋, at least 1: the margin that few examples fall below.

    An order statistic, not an interpolated percentile, so that it is the margin of an example.

    Raises:
        ValueError: If there is no value, or `share` is outside (0, 1].

    Source:
        Jiang et al. (2020), ICLR, with the 10th percentile.
    """
    if not values.numel():
        raise ValueError("`values` must hold at least one margin.")
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be in (0, 1], such as 0.1, got {share!r}.")
    # m // 10 for the usual share, whatever 0.1 * m rounds to
    k = values.numel() // 10 if share == 0.1 else int(share * values.numel())
    return float(values.kthvalue(max(k, 1)).values)
