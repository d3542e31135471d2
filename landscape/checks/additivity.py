"""Whether the loss of data is the weighted mean of the losses of the parts they are cut into: checked, not supposed."""

import math
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from landscape.batches import Batch, batch_size, slice_batch
from landscape.checks.pieces import Pieces, mean_of, shares_of

if TYPE_CHECKING:
    from landscape.risk import EmpiricalRisk

MEANS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.soft_margin_loss,
)
MODULES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.MultiMarginLoss,
)

WAY_OUT = (
    "use reduction='mean', or give `weight`, what a batch counts for, such as the sum of its class weights or the "
    "number of its tokens or targets that are not ignored, as in weight=lambda x, y: w[y].sum(); for a loss that "
    "compares the examples of a batch, weight=lambda x, y: 1.0 says that the batch is the example and is never cut."
)


class NotAdditiveError(ValueError):
    """The loss of a whole is not the weighted mean of the losses of its parts."""


def require_additive(risk: "EmpiricalRisk") -> None:
    """Check that the risk does not depend on how the user's data are cut into batches.

    Neighbouring batches are put together, at outputs of perturbed weights: the value, and its slopes in the outputs,
    must be the weighted means of theirs. That is one forward pass over the data, and none for torch's own mean losses.
    A `weight` that is the same for all batches makes the batch the example, and nothing is checked.

    Raises:
        NotAdditiveError: If it does, with `weight` named as the way out.
    """
    counting = [bool(w and n) for w, n in zip(risk.weights, risk.sizes, strict=True)]
    weights = list(compress(risk.weights, counting))
    given = risk.weight is not None
    if len(weights) < 2 or (given and max(weights) - min(weights) <= 1e-9 * max(weights)):
        return
    if plain_mean(risk.loss, compress(risk.batches, counting)):
        return
    for whole, parts in Pieces(risk).together(compress(risk.batches, counting), weights):
        shares, sizes = shares_of(p.weight for p in parts), shares_of(p.n for p in parts)
        if whole.is_mean_of(parts, shares) or (given and whole.is_mean_of(parts, sizes)):
            continue
        _require_shapes(risk, next(compress(risk.batches, counting)))
        own = whole.own_shares(parts)
        if given and own is None:  # a loss over pairs of examples, or a sum, which the user weighs as wished
            continue
        if given:
            raise NotAdditiveError(
                f"`weight` gives neighbouring batches the shares {_numbers(shares)}, but by the loss of their examples "
                f"together these are {_numbers(own or [])}: let it give what the loss divides by, such as the sum of "
                "the class weights or the number of targets that are not ignored; or 1.0 for all batches, which says "
                "that the batch is the example and is never cut."
            )
        raise NotAdditiveError(
            "`loss` of a batch is not the mean of the losses of its parts, weighted by their sizes "
            f"({whole.value:.6g} for {whole.n} examples together, {mean_of(parts, sizes):.6g} from its {len(parts)} "
            f"parts), so the risk would depend on how the data are cut: {WAY_OUT}"
        )


def _require_shapes(risk: "EmpiricalRisk", batch: Batch) -> None:
    """Check first what else may be the cause: targets that torch broadcasts."""
    x, y = batch
    risk.findings.without_graph(lambda: risk.loss_on(risk.predict(risk.theta, x), y))


def require_cut(risk: "EmpiricalRisk", bounds: Sequence[Sequence[tuple[int, int]]], what: str) -> None:
    """Check that each batch may be cut at these places.

    Args:
        risk: The risk.
        bounds: For each batch, where its parts begin and end.
        what: What cuts, for the message: "`micro_batch` = 20".

    Raises:
        NotAdditiveError: If the parts' losses would not average to the batch's, by sizes or the risk's `weight`.
    """
    pieces = None
    for batch, places in zip(risk.batches, bounds, strict=True):
        if len(places) < 2:
            continue
        parts = [slice_batch(batch, a, b) for a, b in places]
        weights = [float(risk.weight(*p)) if risk.weight else float(batch_size(p)) for p in parts]
        whole = float(risk.weight(*batch)) if risk.weight else float(batch_size(batch))
        if not math.isclose(math.fsum(weights), whole, rel_tol=1e-6):
            raise NotAdditiveError(
                f"{what} would cut a batch of weight {whole:.6g} into parts of weights {_numbers(weights)}, which do "
                "not add up to it: by that `weight` the batch is the example and is never cut; give one that adds up "
                "over examples."
            )
        if plain_mean(risk.loss, [batch]):
            ratios = [w / batch_size(p) for w, p in zip(weights, parts, strict=True)]
            good = max(ratios) - min(ratios) <= 1e-6 * max(ratios)
        else:
            pieces = pieces or Pieces(risk)
            found = pieces.apart(batch, places, weights)
            good = found is None or found[0].is_mean_of(found[1], shares_of(weights))
        if not good:
            raise NotAdditiveError(_cannot(what))


def require_chunks(risk: "EmpiricalRisk", chunks: Sequence[Batch], order: Tensor | None, m: int) -> None:
    """Check that the data, put together and cut into chunks of m, have the chunks' losses as parts of theirs.

    Args:
        risk: The risk.
        chunks: What they are cut into.
        order: The order in which the examples were cut; None means their own.
        m: Examples a chunk.

    Raises:
        NotAdditiveError: If not.
    """
    if len(chunks) < 2 and len(risk.batches) < 2:
        return
    weights = [float(risk.weight(*c)) if risk.weight else float(batch_size(c)) for c in chunks]
    if not math.isclose(math.fsum(weights), math.fsum(risk.weights), rel_tol=1e-6):
        raise NotAdditiveError(_cannot(f"`m` = {m}"))
    if plain_mean(risk.loss, risk.batches):
        ratios = [w / batch_size(c) for w, c in zip(weights, chunks, strict=True)]
        if risk.weight is None or max(ratios) - min(ratios) <= 1e-6 * max(ratios):
            return
        raise NotAdditiveError(_cannot(f"`m` = {m}"))
    for whole, parts in Pieces(risk).chunked(chunks, weights, order, m):
        if not whole.is_mean_of(parts, shares_of(p.weight for p in parts)):
            raise NotAdditiveError(_cannot(f"`m` = {m}"))


def plain_mean(loss: Any, batches: Iterable[Batch]) -> bool:
    """Whether a loss is one of torch's means over examples, with no target among these batches that it leaves out."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        if loss.weight is not None or loss.reduction != "mean":
            return False
        ignored = loss.ignore_index
    elif loss is F.cross_entropy or loss is F.nll_loss:
        ignored = -100
    else:
        weighted = isinstance(loss, nn.MultiMarginLoss) and loss.weight is not None
        known = type(loss) in MODULES and loss.reduction == "mean" and not weighted
        return known or any(loss is f for f in MEANS)
    for _, y in batches:
        if not isinstance(y, Tensor):
            return False
        if not y.is_floating_point() and bool((y == ignored).any()):
            return False
    return True


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{v:.4g}" for v in values[:4])
    return f"[{shown}, ...]" if len(values) > 4 else f"[{shown}]"


def _cannot(what: str) -> str:
    return (
        f"{what} would cut batches whose loss is not the weighted mean of the losses of their parts, which changes the "
        f"risk: {WAY_OUT}"
    )
