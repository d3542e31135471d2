"""Running statistics of normalisation layers: hold them still during an extra pass, or estimate them afresh.

Layers without running statistics (LayerNorm, GroupNorm, RMSNorm) need nothing and are never touched.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from landscape.batches import batch_size, read_batches
from landscape.calling import call

_NOTHING: AbstractContextManager[None] = nullcontext()


def tracking_modules(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that hold running statistics: BatchNorm, SyncBatchNorm, and InstanceNorm that tracks.

    Frozen, non-affine and eval-mode layers are among them. Find them once, and pass the list to `frozen_statistics`.
    """
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


def frozen_statistics(modules: Sequence[nn.Module] | nn.Module) -> AbstractContextManager[None]:
    """Leave running statistics alone inside a `with` block; what the layers compute stays the same.

    In train mode they go on normalising with the statistics of the batch, in eval mode with the running ones; neither
    `running_mean`, `running_var` nor `num_batches_tracked` changes, whatever the momentum (None, the cumulative
    average, included). Blocks may be nested and may raise. With an empty list the call costs next to nothing.

    Args:
        modules: What `tracking_modules` found.

    Raises:
        ValueError: If a model is passed instead of a list.

    Source:
        For BatchNorm by `track_running_stats = False`, as in the code of MSAM (Becker et al. 2024); setting the
        momentum to zero instead would still move `num_batches_tracked`, and with it a cumulative average.
    """
    if isinstance(modules, nn.Module):
        raise ValueError("`modules` must be a list of layers: pass `tracking_modules(model)`, not the model.")
    return _frozen(modules) if modules else _NOTHING


@contextmanager
def _frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    undo: list[tuple[Any, bool, dict[str, Tensor | None]]] = []
    try:
        for module in modules:
            if not isinstance(module, _NormBase):
                continue
            lent: dict[str, Tensor | None] = {}
            undo.append((module, module.track_running_stats, lent))
            if isinstance(module, _InstanceNorm):
                # InstanceNorm reads `track_running_stats` in eval mode too, and updates whenever it has buffers, so it
                # gets copies to write into (a momentum of zero would still let a NaN through: 0 · NaN is NaN).
                for name in ("running_mean", "running_var"):
                    original = module._buffers[name]
                    lent[name] = original
                    module._buffers[name] = None if original is None else original.clone()
            else:
                module.__dict__["track_running_stats"] = False  # Module.__setattr__ takes ten times as long
        yield
    finally:
        for module, tracked, lent in reversed(undo):
            module.__dict__["track_running_stats"] = tracked
            if lent:
                module._buffers.update(lent)


def recalibrate(model: nn.Module, data: Any) -> None:
    """Estimate the running statistics afresh, as averages over the batches at the model's present weights.

    With n_b examples in batch b, running_mean = Σ_b n_b mean_b / Σ_b n_b, and likewise running_var from the batches'
    unbiased variances: ragged batches are weighted by their size, and the momentum does not matter. The result depends
    on the batch size, as training does: the variance between batches is not in it, and a layer sees inputs that the
    layers below normalised with batch statistics. Only normalisation layers run in train mode, so dropout is off.
    Modes and momenta are back on return; if a batch raises, so are the old statistics.

    Args:
        model: The model; its running statistics are replaced in place. One without any is left alone.
        data: A pair (inputs, targets), a list of batches, or a DataLoader, on the model's device; targets are not
            used, dict batches are passed by keyword. A DataLoader is read once.

    Raises:
        ValueError: If there is no example.

    Source:
        Izmailov et al. (2018), "Averaging weights leads to wider optima", sec. 3.2; the weights by size are ours.
    """
    layers: list[Any] = tracking_modules(model)
    if not layers:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    before = [{name: b.clone() for name, b in layer.named_buffers(recurse=False)} for layer in layers]
    seen = 0
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
        with torch.no_grad():
            for inputs, size in _sized(data, model):
                seen += size
                for layer in layers:
                    layer.momentum = size / seen
                call(model, inputs)
        if not seen:
            raise ValueError("`data` has no example: running statistics need at least one batch.")
    except BaseException:
        for layer, buffers in zip(layers, before, strict=True):
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _sized(data: Any, model: nn.Module) -> Iterator[tuple[Any, int]]:
    """Inputs and their number, batch by batch; a DataLoader is not held in memory, inputs may be without targets."""
    several = isinstance(data, Iterable) and not isinstance(data, tuple | Mapping)
    pairs = ((b, None) if isinstance(b, Tensor) else b for b in data) if several else data
    for inputs, targets in read_batches(pairs, model):
        size = batch_size((inputs, targets))
        if size:
            yield inputs, size
