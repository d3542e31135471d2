"""Loss and error of a model on a split, in evaluation mode."""

import math

import torch
from torch import Tensor, nn

from trainers.data.splits import DataBundle, Split
from trainers.tasks.losses import Loss


def predict(model: nn.Module, split: Split, *, batch: int = 2048) -> Tensor:
    """Outputs on many examples, without gradient; the caller sets the mode."""
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in split.batches(size=batch)])


def evaluate(
    model: nn.Module, loss: Loss, train: Split, data: DataBundle, *, held_out: bool
) -> tuple[dict[str, float], Tensor]:
    """Loss and error in evaluation mode, on the training data and, if asked, on validation and test.

    Args:
        model: Left in evaluation mode.
        loss: The training loss.
        train: The training data, on the model's device.
        data: All splits.
        held_out: Evaluate validation and test too; their columns are NaN otherwise, and where a split is empty.

    Returns:
        The columns of the history, and which training examples were right.
    """
    model.eval()
    logits = predict(model, train)
    answers = logits.argmax(-1)
    right = answers == train.y
    row = {
        "train_loss": float(loss(logits, train.y)),
        "train_error": 1 - float(right.float().mean()),
        "train_clean_error": 1 - float((answers == train.clean).float().mean()),
    }
    for name, split in (("validation", data.validation), ("test", data.test)):
        value = error = math.nan
        if held_out and len(split):
            split = split.to(train.device, workers=train.workers)
            logits = predict(model, split)
            value = float(loss(logits, split.y))
            error = 1 - float((logits.argmax(-1) == split.y).float().mean())
        row[f"{name}_loss"], row[f"{name}_error"] = value, error
    return row, right
