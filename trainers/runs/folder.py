"""Run folders: what is in them, and how they are read.

config.json (resolved), data.json (what is known about the data), status.json, history.parquet (one row an epoch),
examples.npz (per-example correctness, packed), checkpoints/<step>/, steps.parquet (one row a logged step) where asked
for; while a run is not finished also resume/ (the last snapshot), steps/ (parts of steps.parquet) and lock.json (while
a process trains it).
"""

import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool

from landscape.showing import html_table
from trainers.config import TrainConfig, fits, train_config
from trainers.data.loading import DataBundle, load_dataset
from trainers.data.shifted import Shifted, with_shifted
from trainers.data.splits import ShiftedSplits, Split
from trainers.files.lock import LOCK
from trainers.files.reading import Shape, read_arrays, read_json, read_table
from trainers.files.writing import check_digest, digest, remove_asides, write_atomically, write_json
from trainers.runs.records import read_parts
from trainers.tasks.registry import learns_labels, targets_of, text_of
from trainers.weights.places import META, WAY_OUT

HISTORY = (
    "epoch", "step", "lr", "rho", "loss", "train_loss", "train_error", "train_clean_error", "validation_loss",
    "validation_error", "test_loss", "test_error", "perturbation_norm", "seconds", "perturbed_share", "reused_share",
    "skipped", "mean_gap", "m", "m_global",
)  # fmt: skip
ERROR = "error"  # the leading score of classification
FILES = ("config.json", "data.json", "status.json", "history.parquet", "examples.npz", "steps.parquet")
RECORDS = ("history.parquet", "examples.npz", "steps.parquet")
State = Literal["finished", "diverged", "failed", "interrupted"]
THEIRS = {"model_type", "architectures", "transformers_version", "architecture"}  # of config.json; the last is timm's
AGAIN = "delete it and run the same command again that trained the run"


def leading_score(columns: Iterable[str]) -> str:
    """The score that runs are compared by, of a history with these columns: the one taken on true labels too."""
    clean = (c.removeprefix("train_clean_") for c in columns if c.startswith("train_clean_") and c not in HISTORY)
    return next(clean, ERROR)


class ConfigFile(Shape):
    """config.json, beside the keys of the configuration."""

    run_id: str


class StatusFile(Shape):
    """status.json."""

    status: State
    reason: str = ""
    epochs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """A folder that holds one run.

    Attributes:
        folder: Its place; the name is the run id for runs of a sweep.
    """

    folder: Path

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """What was trained, how, and where it stands, for a notebook."""
        settings, status = self.settings(), self.status()
        shown = ("model", "dataset", "task", "method", "rho", "lr", "batch_size", "epochs", "seed")
        rows = [(key, settings[key]) for key in shown if settings.get(key) is not None]
        last: Mapping[str, Any] | pd.Series = (
            self.history().iloc[-1] if (self.folder / "history.parquet").exists() else {}
        )
        scores = ("train_loss", "train_error", "test_loss", "test_error")
        rows += [(key, f"{last[key]:.4g}") for key in scores if key in last]
        state = " ".join(part for part in (status["status"], status["reason"]) if part)
        return html_table([*rows, ("status", state)], caption=f"run {self.run_id}")

    @property
    def run_id(self) -> str:
        """The hash of the configuration."""
        return str(self._stored()["run_id"])

    def settings(self) -> dict[str, Any]:
        """The resolved configuration as it was written, without the run id.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If config.json is damaged, or not one of a run.
        """
        values = self._stored()
        del values["run_id"]
        return values

    def _stored(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{self.folder} holds no run (no config.json): give a folder that `landscape train` made."
            )
        if hugging_face(self.folder):
            raise ValueError(
                f"{self.folder} holds a model of Hugging Face, no run of ours: measure it with "
                f"`landscape measure hf:{self.folder}`."
            )
        found = read_json(path, ConfigFile, hint=AGAIN)
        run_id = found["run_id"]
        if not fits({key: value for key, value in found.items() if key != "run_id"}, run_id):
            raise ValueError(
                f"{path} is not the configuration of run {run_id} any more, whose name is its hash: {WAY_OUT}."
            )
        return found

    def config(self) -> TrainConfig:
        """The configuration, validated.

        Raises:
            ValueError: As `settings`, or if it is no valid configuration.
        """
        return train_config(self.settings(), where=str(self.folder / "config.json"))

    def status(self) -> dict[str, Any]:
        """How the run ended: `status`, `reason`, `epochs` and `seconds`; "interrupted" where it has not ended.

        Runs of this version also say `steps`, `sha256` of what they recorded, and `skipped_steps` with `first_skipped`,
        a few of them by name, where float16 overflowed; with `keep_best` or `early_stopping` the `best` evaluation.
        """
        path = self.folder / "status.json"
        if not path.exists():
            return {"status": "interrupted", "reason": "the run has not ended", "epochs": 0, "seconds": 0.0}
        stored = read_json(path, StatusFile, hint="delete it and train the run again")
        return {"reason": "", "epochs": 0, "seconds": 0.0, **stored}

    def write_status(
        self, status: State, *, reason: str = "", epochs: int = 0, seconds: float = 0.0, **more: Any
    ) -> None:
        """Record how the run ended; last of all files, since it is what makes the folder whole."""
        values = {"status": status, "reason": reason, "epochs": epochs, "seconds": round(seconds, 3), **more}
        if status in ("finished", "diverged"):  # what changes no more
            records = [self.folder / name for name in RECORDS]
            values["sha256"] = {path.name: digest(path) for path in records if path.exists()}
        write_json(self.folder / "status.json", values)

    def check(self, name: str) -> Path:
        """The place of one of `RECORDS`, compared with the checksum that the status of an ended run holds.

        Raises:
            FileNotFoundError: If an ended run lacks it.
            ValueError: If it is damaged, or another run's.
        """
        noted = self.status().get("sha256")
        check_digest(self.folder / name, noted.get(name) if isinstance(noted, dict) else None, WAY_OUT)
        return self.folder / name

    def missing(self) -> str:
        """Why the last checkpoint of a finished run cannot be used; empty where it can, or the run goes on."""
        status = self.status()
        if status["status"] != "finished":
            return ""
        kept = self.checkpoints()
        last = status.get("steps")
        if last is None:  # of a version before: the last that was begun
            begun = [int(p.name) for p in (self.folder / "checkpoints").glob("*") if p.name.isdigit()]
            last = max(begun, default=0)
            with suppress(OSError, ValueError, TypeError, IndexError):
                last = max(last, int(self.history()["step"].iloc[-1]))
        if last in kept:
            return ""
        return (
            f"the run is finished, but its last checkpoint {self.checkpoint(last) / META} is missing (there are "
            f"{sorted(kept)}): {WAY_OUT}"
        )

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: the run ended, well or by diverging."""
        return self.status()["status"] in ("finished", "diverged")

    def history(self) -> pd.DataFrame:
        """One row an epoch, with the columns of `HISTORY`; NaN in those that an earlier version did not write.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, or another run's.
        """
        found = read_table(self.check("history.parquet"), ("epoch", "step"), hint=WAY_OUT)
        return found.reindex(columns=[*HISTORY, *(c for c in found.columns if c not in HISTORY)])

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write the history, whole, with the columns of `HISTORY`, and those that the rows have besides."""
        more = [name for name in (rows[0] if rows else ()) if name not in HISTORY]
        frame = pd.DataFrame(rows, columns=[*HISTORY, *more])
        write_atomically(self.folder / "history.parquet", lambda aside: frame.to_parquet(aside, index=False))

    def steps(self) -> pd.DataFrame:
        """One row a logged step, see `trainers.runs.records`; of a run that has not ended, up to its last snapshot.

        Raises:
            FileNotFoundError: If no steps were logged.
            ValueError: If a file is damaged, or another run's.
        """
        whole, parts = self.check("steps.parquet"), self.folder / "steps"
        if whole.exists():
            return read_table(whole, hint=WAY_OUT)
        if not parts.is_dir():
            raise FileNotFoundError(f"{self.folder} holds no log of steps: train with `log_steps` (--log-steps 1).")
        return read_parts(parts)

    def tidy(self) -> None:
        """Remove what only a running run needs, and what killed processes left aside."""
        if self.finished:
            shutil.rmtree(self.folder / "resume", ignore_errors=True)
            shutil.rmtree(self.folder / "steps", ignore_errors=True)
            (self.folder / LOCK).unlink(missing_ok=True)  # of a process that died between its last two breaths
        remove_asides(self.folder, (*FILES, LOCK))
        for folder in (self.folder / "checkpoints").glob("*"):
            remove_asides(folder)

    def correctness(
        self, protocol: Literal["presentation", "sweep"], *, until: int | None = None
    ) -> Bool[np.ndarray, "t n"]:
        """Whether each training example was right, epoch by epoch.

        "presentation": on the training minibatch, as it was augmented, before the update, in training mode; there is no
        such record where examples were mixed. "sweep": on the whole training
        set at the end of the epochs that `evaluate_every` names and of the last, in evaluation mode; examples.npz
        lists them as `swept`, and without it they are all epochs. Both against the label given to training.

        Args:
            protocol: Which record.
            until: The last epoch to count; None takes all.

        Raises:
            FileNotFoundError: If there is no record.
            ValueError: If it is damaged, or another run's.
        """
        path = self.check("examples.npz")
        config, hint = self.config(), WAY_OUT
        if not learns_labels(config.task):
            hint = "the run's task may not tell right from wrong"
        elif config.mixes and protocol == "presentation":
            hint = "examples were mixed when they were presented, and none had a label of its own: take 'sweep'"
        stored = read_arrays(path, ("n", protocol), hint=hint)
        bits, n = stored[protocol], stored["n"]
        if bits.dtype != np.uint8 or bits.ndim != 2 or n.shape or not 0 <= n <= 8 * bits.shape[1]:
            raise ValueError(f"{path} holds something else than bits of examples over epochs: {WAY_OUT}.")
        matrix = np.unpackbits(bits, axis=1, count=int(n)).astype(bool)
        epochs = np.arange(1, len(matrix) + 1)
        if protocol == "sweep":
            epochs = stored.get("swept", epochs)
        if epochs.shape != (len(matrix),):
            raise ValueError(f"{path} holds {len(matrix)} sweeps, and {epochs.shape} epochs of them: {WAY_OUT}.")
        return matrix if until is None else matrix[epochs <= until]

    def write_examples(
        self, *, index: np.ndarray, noisy: np.ndarray, swept: np.ndarray, **protocols: np.ndarray
    ) -> None:
        """Write correctness matrices (epochs × examples) as bits, with the examples' index and noise flags.

        `swept` are the epochs of the matrix "sweep".
        """
        packed: dict[str, Any] = {name: np.packbits(matrix, axis=1) for name, matrix in protocols.items()}

        def write(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez_compressed(file, n=np.array(len(index)), index=index, noisy=noisy, swept=swept, **packed)

        write_atomically(self.folder / "examples.npz", write)

    def best(self) -> int | None:
        """The step of the checkpoint with the smallest validation error; None where the run kept none (`keep_best`)."""
        best = self.status().get("best")
        step = best.get("step") if isinstance(best, dict) else None
        return step if step in self.checkpoints() else None

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after a step."""
        return self.folder / "checkpoints" / f"{step}"

    def checkpoints(self) -> dict[int, Path]:
        """Whole checkpoints by step, in order."""
        folders = (self.folder / "checkpoints").glob("*/" + META)
        found = {int(path.parent.name): path.parent for path in folders if path.parent.name.isdigit()}
        return dict(sorted(found.items()))


def has_runs(folder: str | Path) -> bool:
    """Whether `list_runs` finds any."""
    try:
        return bool(list_runs(folder))
    except FileNotFoundError:
        return False


def list_runs(folder: str | Path) -> list[Run]:
    """The runs in a folder: itself, or its subfolders, or those of its `runs` subfolder; in order of name.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        return [Run(folder)]
    for place in (folder / "runs", folder):
        found = (path.parent for path in sorted(place.glob("*/config.json")))
        runs = [Run(path) for path in found if not hugging_face(path)]
        if runs:
            return runs
    raise FileNotFoundError(f"{folder} holds no run: train some with `landscape train` or `landscape study`.")


def hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of Hugging Face, or of timm, whose config.json is of another kind."""
    path = folder / "config.json"
    if not path.is_file() or (folder / "checkpoints").is_dir():
        return False
    try:
        found = read_json(path)
    except ValueError:
        return False
    return "run_id" not in found and bool(THEIRS & set(found))


def data_options(config: TrainConfig) -> dict[str, Any]:
    """What a configuration asks of `load_dataset`: runs that ask for the same have the same data.

    Their precision is not part of it.
    """
    return {
        "name": config.dataset,
        "train_size": config.train_size,
        "validation_size": config.validation_size,
        "test_size": config.test_size,
        "classes": config.classes,
        "label_noise": config.label_noise,
        "spurious": config.spurious,
        "seed": config.data_seed,
        **targets_of(config.task),
        "columns": config.target_columns,
        "input_size": config.input_size,
        "on_corrupt": config.on_corrupt,
        "digest": config.dataset_digest,
        "text": text_of(config.task, config.task_options),
    }


def load_data(config: TrainConfig, *, trust: bool = False, shifted: Sequence[Shifted] = ()) -> DataBundle:
    """The data of a configuration, with further shifted sets; inputs are float64 where its precision is.

    Raises:
        ValueError: If its files are not those that the configuration was resolved with, or shifted sets do not fit.
    """
    data = load_dataset(**data_options(config), trust=trust)
    data = with_shifted(data, shifted)
    if config.precision != "float64":
        return data
    return replace(
        data,
        train=in_double(data.train),
        validation=in_double(data.validation),
        test=in_double(data.test),
        ood=ShiftedSplits({name: functools.partial(_shifted_in_double, data.ood, name) for name in data.ood}),
    )


def in_double(split: Split) -> Split:
    """The same examples with inputs in float64; tokens stay what they are."""
    return split.double()


def _shifted_in_double(ood: Mapping[str, Split], name: str) -> Split:
    return in_double(ood[name])
