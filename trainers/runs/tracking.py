"""Experiment trackers beside the files of a run: TensorBoard and Weights & Biases, imported only when asked for."""

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Protocol

from landscape.naming import nearest
from trainers.config import TrainConfig
from trainers.runs.folder import Run

TrackerName = Literal["tensorboard", "wandb"]


class Tracker(Protocol):
    """Where the numbers of a run go besides its files."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers at a step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in `tensorboard/` of the run; after a resume, what is taken again replaces what was shown.

    Args:
        run: Its folder.
        config: Shown as text.
        step: Steps taken so far.
    """

    def __init__(self, run: Run, config: Mapping[str, Any], step: int) -> None:
        module = _import("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            self.writer.add_text("configuration", "\n".join(f"    {k}: {v}" for k, v in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases with the id of this run, so that a continued run continues there too.

    Where it goes is up to W&B's own environment variables (WANDB_PROJECT, by default "landscape"; WANDB_MODE=offline
    where there is no network).

    Args:
        run: Its folder, which W&B writes to as well.
        config: Shown as the configuration.
        step: Steps taken so far.
    """

    def __init__(self, run: Run, config: Mapping[str, Any], step: int) -> None:  # noqa: ARG002 - W&B keeps its own count
        module = _import("wandb", "wandb")
        self.run = module.init(
            project=os.environ.get("WANDB_PROJECT", "landscape"),
            id=run.folder.name,
            name=f"{config['method']} {run.folder.name}",
            config=dict(config),
            dir=str(run.folder),
            resume="allow",
        )
        # our own axis: W&B drops rows whose step it has seen, and a resumed run takes some steps again
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log a row."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_trackers(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, each known and installed.

    Raises:
        ValueError: For an unknown name.
        ImportError: If a package is missing, with the line that installs it.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"`track` {name!r} is unknown; there are {sorted(TRACKERS)}.{nearest(name, TRACKERS)}")
        _import("torch.utils.tensorboard" if name == "tensorboard" else name, name)
    return names


class Trackers(ExitStack):
    """The trackers of one call of `fit`, closed together.

    Args:
        names: As `check_trackers` takes them.
        run: The run that they show.
        config: Its configuration.
        step: Steps taken so far.
    """

    def __init__(self, names: str | Sequence[str], run: Run, config: TrainConfig, step: int) -> None:
        super().__init__()
        self.each: list[Tracker] = [TRACKERS[name](run, config.as_dict(), step) for name in check_trackers(names)]
        for tracker in self.each:
            self.callback(tracker.close)

    def log(self, row: Mapping[str, Any], group: str, step: int) -> None:
        """Show the numbers of a row at a step."""
        for tracker in self.each:
            tracker.log(numbers(row, group), step)


def numbers(row: Mapping[str, Any], group: str) -> dict[str, float]:
    """The finite numbers of a row, named group/column."""
    return {
        f"{group}/{key}": float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`track` {package!r} needs the package {package}: pip install 'landscape-lab[track]' "
            f"or pip install {package} ({error})."
        ) from error
