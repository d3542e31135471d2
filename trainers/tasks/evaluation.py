"""Loss and error of a model on a split, in evaluation mode."""

import math

import torch
from torch import Tensor, nn

from trainers.data.splits import DataBundle, Split
from trainers.tasks.losses import Loss

COLUMNS = (
    "train_loss", "train_error", "train_clean_error", "validation_loss", "validation_error", "test_loss", "test_error",
)  # fmt: skip


def batch_of(x: Tensor) -> int:
    """Examples a forward pass without gradient, for inputs like these.

    Large batches of large inputs fall out of a processor's cache, which makes a pass of a convolutional network two to
    three times slower; small inputs, and other devices, are as fast in one batch.
    """
    return 2048 if x.device.type != "cpu" else max(128, min(2048, 2**17 // max(1, x[:1].numel())))


def predict(model: nn.Module, split: Split) -> Tensor:
    """Outputs on many examples, without gradient; the caller sets the mode."""
    size = batch_of(split.take(slice(1))[0])
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in split.batches(size=size)])


def evaluate(model: nn.Module, loss: Loss, train: Split, data: DataBundle) -> tuple[dict[str, float], Tensor]:
    """Loss and error in evaluation mode on the training data, validation and test; NaN where a split is empty.

    Args:
        model: Left in evaluation mode.
        loss: The training loss.
        train: The training data, on the model's device.
        data: All splits.

    Returns:
        The `COLUMNS` of the history, and which training examples were right.
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
        if len(split):
            split = split.to(train.device, workers=train.workers)
            logits = predict(model, split)
            value = float(loss(logits, split.y))
            error = 1 - float((logits.argmax(-1) == split.y).float().mean())
        row[f"{name}_loss"], row[f"{name}_error"] = value, error
    return row, right
