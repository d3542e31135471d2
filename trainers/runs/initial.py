"""The weights that a run starts from: those of its own first checkpoint once that is there, before that the file's."""

from contextlib import suppress
from typing import Any

from torch import nn

from trainers.config import TrainConfig
from trainers.models.starting import freeze, start_from
from trainers.runs.checkpoint import apply_weights, read_meta, read_weights
from trainers.runs.folder import Run
from trainers.tasks.registry import TASKS
from trainers.weights.places import PARAMS, weights_digest


def start(model: nn.Module, config: TrainConfig, run: Run, *, classes: int) -> dict[str, Any] | None:
    """Put a run's initial weights into its model, and freeze what stays as it is.

    Args:
        model: As it was built, in the precision of the run.
        config: Resolved.
        run: Its folder; checkpoint 0, where it is there, holds the initial weights.
        classes: Number of outputs.

    Returns:
        What the first checkpoint's meta says of them: `file`, `sha256`, `taken`, `notes`; None where the run starts
        from random weights.

    Raises:
        FileNotFoundError: If the file of weights is gone before the run has begun.
        ValueError: As `start_from` and `freeze`, if the file holds other weights than those that name the run, or if
            no parameter is left to train.
    """
    told = None
    if config.init is not None:
        told = _continued(model, config, run) or _read(model, config, classes=classes)
    freeze(model, config.freeze)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"`model` {config.model!r} has no parameters to train: its own code sets `requires_grad` of "
            f"{'those that `freeze` leaves' if config.freeze else 'all of them'} to False."
        )
    return told


def _continued(model: nn.Module, config: TrainConfig, run: Run) -> dict[str, Any] | None:
    """Take the weights of the run's first checkpoint; None where it has none, or is another run's."""
    folder = run.checkpoint(0)
    with suppress(FileNotFoundError):
        meta = read_meta(folder)
        if meta.get("run_id") == config.run_id:
            apply_weights(model, read_weights(folder / PARAMS))
            return dict(meta.get("init") or {"sha256": config.init_digest})
    return None


def _read(model: nn.Module, config: TrainConfig, *, classes: int) -> dict[str, Any]:
    assert config.init is not None
    digest = weights_digest(config.init, ema=config.init_ema)
    if digest != config.init_digest:
        raise ValueError(
            f"`init` {config.init} holds other weights (SHA-256 {digest[:12]}...) than `init_digest` says "
            f"({str(config.init_digest)[:12]}...): leave `init_digest` out to start from what is there now."
        )
    outputs = classes if config.task in TASKS else None
    weights = start_from(
        model, config.init, ema=config.init_ema, reset_head=config.reset_head, head=config.head, classes=outputs
    )
    notes = list(weights.notes)
    return {"file": config.init, "sha256": digest, "taken": weights.taken, "average": weights.average, "notes": notes}
