"""Moments of per-example gradients of linear layers, without the gradients: they are outer products."""

from typing import Any

import torch
from torch import Tensor, nn

from landscape.batches import Batch, batch_size, slice_batch
from landscape.calling import hooked
from landscape.functional import PureModel
from landscape.operators.point import Point
from landscape.operators.predictions import weighted
from landscape.precision import own_precision

MIXING = (nn.modules.batchnorm._BatchNorm,)  # what makes one example's loss depend on the others, in training mode


def layer_moments(
    point: Point, batch: Batch, aims: list[tuple[Tensor, Tensor]], sums: list[Tensor], seconds: list[Tensor]
) -> Tensor | None:
    """Squared norms of per-example gradients, and their products with given vectors; None if that needs the gradients.

    With a_i the input of a linear layer for example i and b_i the slope of its loss in the layer's output, the gradient
    is b_i a_iᵀ (bias: b_i), so that ‖b_i a_iᵀ‖² = ‖b_i‖² ‖a_i‖² and ⟨b_i a_iᵀ, V⟩ = b_iᵀ V a_i. It takes one pass
    over the batch, and applies where every parameter belongs to an `nn.Linear` that is called once on rows of examples,
    with a loss that is a mean over examples; a few examples are compared with their gradients alone.

    Args:
        point: Where, and by which parameters.
        batch: The examples.
        aims: For each parameter, the vectors to be multiplied with.
        sums: For each parameter, where Σ_i g_i is added; untouched where None is returned.
        seconds: Where Σ_i g_i² is added; empty if that is not wanted.

    Returns:
        Shape (examples, 1 + number of vectors), in float64.
    """
    owners = _owners(point)
    if owners is None or point.fixed or point.risk.weight is not None or weighted(point.risk.loss, batch[1]):
        return None
    n = batch_size(batch)
    assert isinstance(point.risk.predict, PureModel)
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        seen.setdefault(module, []).append((args[0], out))

    with own_precision(), torch.enable_grad(), hooked(owners.values(), note):  # of our own copy of the model
        loss = point.loss(batch)
    calls = [seen.get(module, []) for module in owners.values()]
    if any(len(c) != 1 or not _rows_of(c[0][0], n) for c in calls) or not loss.requires_grad:
        return None
    slopes = torch.autograd.grad(loss, [c[0][1] for c in calls], materialize_grads=True)
    parts = {name: (calls[i][0][0].detach(), slopes[i] * n) for i, name in enumerate(owners)}
    if not _is_mean(point, batch, parts):
        return None
    rows = torch.zeros(n, 1 + len(aims[0]), dtype=torch.float64, device=loss.device)
    for i, name in enumerate(point.theta):
        a, b = parts[name.rpartition(".")[0]]
        weight = name.endswith("weight")
        sizes = b.double().square().sum(1)
        rows[:, 0] += sizes * a.double().square().sum(1) if weight else sizes
        for j, aim in enumerate(aims[i]):
            rows[:, j + 1] += ((b @ aim * a).sum(1) if weight else b @ aim).double()
        sums[i] += (b.T @ a if weight else b.sum(0)).double()
        if seconds:
            seconds[i] += ((b * b).T @ (a * a) if weight else (b * b).sum(0)).double()
    return rows


def _rows_of(t: Tensor, n: int) -> bool:
    return t.layout == torch.strided and t.ndim == 2 and len(t) == n


def _owners(point: Point) -> dict[str, nn.Module] | None:
    """The linear layers by name; None if some parameter is not theirs, or is tied."""
    predict = point.risk.predict
    if not isinstance(predict, PureModel) or any(isinstance(m, MIXING) for m in predict.module.modules()):
        return None
    owners: dict[str, nn.Module] = {}
    for name in point.theta:
        layer, _, kind = name.rpartition(".")
        module = predict.module.get_submodule(layer)
        if type(module) is not nn.Linear or kind not in ("weight", "bias") or len(predict._slots[name]) != 1:
            return None
        owners[layer] = module
    return owners


def _is_mean(point: Point, batch: Batch, parts: dict[str, tuple[Tensor, Tensor]]) -> bool:
    """Whether examples have the slopes alone that they have among the others, n times over: a few of them.

    One of four may differ: rounding puts a unit to the other side of its kink there.
    """
    n = batch_size(batch)
    few = sorted({0, n // 3, 2 * n // 3, n - 1})
    return sum(not _is_alone(point, batch, parts, i) for i in few) <= len(few) // 4


def _is_alone(point: Point, batch: Batch, parts: dict[str, tuple[Tensor, Tensor]], i: int) -> bool:
    """Whether example i has the slopes alone that it has among the others, n times over."""
    with own_precision(), torch.enable_grad():
        loss = point.loss(slice_batch(batch, i, i + 1))
    alone = torch.autograd.grad(loss, point.leaves, materialize_grads=True)
    for name, g in zip(point.theta, alone, strict=True):
        a, b = parts[name.rpartition(".")[0]]
        ours = torch.outer(b[i], a[i]) if name.endswith("weight") else b[i]
        scale = torch.maximum(ours.abs().max(), g.abs().max())
        if not bool((ours - g).abs().max() <= torch.finfo(g.dtype).eps ** 0.5 * scale.clamp_min(1e-12)):
            return False
    return True
