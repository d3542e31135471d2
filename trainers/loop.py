"""The training loop: one run, from a configuration to checkpoints, readable from top to bottom."""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from landscape.objectives import obf_loss
from trainers.checkpoint import apply_weights, model_state, save_checkpoint
from trainers.config import TrainConfig, train_config
from trainers.data import DataBundle, Split
from trainers.files import read_json, write_atomically, write_json
from trainers.losses import Loss, make_loss
from trainers.models import build_model
from trainers.randomness import derive, seeded, stream
from trainers.runs import Run, load_data
from trainers.schedules import LearningRate
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sharpness_aware.objective import AscentObjective, Objective
from trainers.sharpness_aware.optimizers import make_optimizer
from trainers.tree import join_tensors, split_tensors

Progress = Callable[[dict[str, Any]], None]


def fit(
    config: TrainConfig | Mapping[str, Any],
    *,
    out: str | Path = "runs",
    device: str = "cpu",
    trust: bool = False,
    progress: Progress | None = None,
    stop: Callable[[int], bool] | None = None,
    snapshot_seconds: float = 30.0,
) -> Run:
    """Train one run into the folder `out`/<run id>; skip it if it is finished, continue it if it was interrupted.

    Args:
        config: What decides the result.
        out: Folder of runs.
        device: Where to train.
        trust: Import a model or dataset that the configuration names as module:function.
        progress: Called after each epoch with its row of the history.
        stop: Called after each epoch with its number; True ends the call with a snapshot, and the run can be continued.
        snapshot_seconds: Least time between two snapshots from which a killed run continues.

    Returns:
        The run. Its status says "diverged" where the loss or a weight was no longer finite.

    Raises:
        ValueError: For a bad configuration.
        PermissionError: For a module:function without `trust`.
    """
    config = (config if isinstance(config, TrainConfig) else train_config(config)).resolved()
    run = Run(Path(out) / config.run_id)
    if run.finished:
        return run
    with seeded(derive(config.seed, "training")):
        training = Training(config, run, device=device, trust=trust)
        write_json(run.folder / "config.json", {**config.as_dict(), "run_id": config.run_id})
        if not training.resume():
            training.save_checkpoint()
        saved = time.monotonic()
        while training.epoch < config.epochs:
            row = training.train_epoch()
            if progress is not None:
                progress(row)
            problem = training.problem()
            if problem:
                return training.finish("diverged", problem)
            if training.epoch in config.checkpoints:
                training.save_checkpoint()
            stopping = stop is not None and stop(training.epoch)
            if training.epoch < config.epochs and (stopping or time.monotonic() - saved > snapshot_seconds):
                training.snapshot()
                saved = time.monotonic()
                if stopping:
                    run.write_status("interrupted", reason="stopped on request", epochs=training.epoch)
                    return run
        training.save_checkpoint()
        return training.finish("finished")


class Training:
    """The state of one run, and what is done to it: train an epoch, evaluate, snapshot, resume, finish."""

    def __init__(self, config: TrainConfig, run: Run, *, device: str = "cpu", trust: bool = False) -> None:
        self.config, self.run, self.device = config, run, torch.device(device)
        self.data: DataBundle = load_data(config, trust=trust)
        self.train: Split = self.data.train.to(self.device)
        self.model: nn.Module = build_model(
            config.model,
            shape=self.data.shape,
            classes=self.data.classes,
            generator_seed=config.seed,
            options=config.model_options,
            trust=trust,
        ).to(self.device)
        self.loss: Loss = make_loss(
            config.loss, smoothing=config.label_smoothing, convention=config.smoothing_convention
        )
        self.ascent: Loss = partial(
            obf_loss, C=config.obf_classes, gamma=config.obf_gamma, link=config.obf_link or "softmax"
        )
        self.optimizer: SharpnessAware = optimizer_of(config, self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.batches = math.ceil(len(self.train) / config.batch_size)
        self.rate = LearningRate(
            kind=config.lr_schedule,
            peak=config.lr,
            total=config.epochs * self.batches,
            warmup=round(config.warmup_epochs * self.batches),
            floor=config.lr_min,
            milestones=config.lr_milestones,
            factor=config.lr_factor,
        )
        self.order = stream(config.seed, "order")
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.correct: dict[str, list[np.ndarray]] = {"presentation": [], "sweep": []}

    # -- one epoch -------------------------------------------------------------------------------------------------

    def train_epoch(self) -> dict[str, Any]:
        """Train one epoch and append its row to the history."""
        start = time.monotonic()
        self.model.train()
        order = torch.randperm(len(self.train), generator=self.order)
        x, y = self.train.x[order], self.train.y[order]
        losses: list[Tensor] = []
        logits: list[Tensor] = []
        squared_length = 0.0
        lr = rho = 0.0
        for i in range(0, len(x), self.config.batch_size):
            lr = self.rate(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            batch = slice(i, i + self.config.batch_size)
            loss, seen = self.train_step(x[batch], y[batch])
            losses.append(loss * len(seen))
            logits.append(seen)
            squared_length += self.optimizer.last.length**2
            rho = self.optimizer.last.rho
            self.step += 1
        self.epoch += 1
        right = torch.empty(len(order), dtype=torch.bool)
        right[order] = (torch.cat(logits).argmax(-1) == y).cpu()
        self.correct["presentation"].append(right.numpy())
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "lr": lr,
            "rho": rho,
            "loss": float(torch.stack(losses).sum()) / len(x),
            "perturbation_norm": math.sqrt(squared_length / self.batches),
            **self.evaluate(),
        }
        self.seconds += time.monotonic() - start
        row["seconds"] = self.seconds
        self.history.append(row)
        return row

    def train_step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step on a batch, in chunks of m; returns the loss and the logits at the clean weights."""
        m = self.config.m or len(x)
        chunks = list(zip(x.split(m), y.split(m), strict=True))
        descents = [Objective(self.model, self.parameters, self.loss, *chunk) for chunk in chunks]
        ascents = None
        if self.optimizer.parts.ascent == "obf":
            ascents = [
                AscentObjective(self.model, self.parameters, self.loss, *chunk, ascent=self.ascent) for chunk in chunks
            ]
        loss = self.optimizer.step(descents, sizes=[len(c[0]) for c in chunks], ascent=ascents)
        first = [o.first_logits for o in (ascents if ascents and self.optimizer.last.perturbed else descents)]
        return loss, torch.cat([t for t in first if t is not None])

    def evaluate(self) -> dict[str, float]:
        """Loss and error in evaluation mode: on the training data each epoch, on the rest as configured."""
        self.model.eval()
        row: dict[str, float] = {}
        logits = predict(self.model, self.train.x)
        right = logits.argmax(-1) == self.train.y
        self.correct["sweep"].append(right.cpu().numpy())
        row["train_loss"] = float(self.loss(logits, self.train.y))
        row["train_error"] = 1 - float(right.float().mean())
        row["train_clean_error"] = 1 - float((logits.argmax(-1) == self.train.clean).float().mean())
        due = self.epoch % self.config.evaluate_every == 0 or self.epoch == self.config.epochs
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            loss = error = math.nan
            if due and len(split):
                split = split.to(self.device)
                logits = predict(self.model, split.x)
                loss = float(self.loss(logits, split.y))
                error = 1 - float((logits.argmax(-1) == split.y).float().mean())
            row[f"{name}_loss"], row[f"{name}_error"] = loss, error
        return row

    def problem(self) -> str:
        """Why the run has diverged; empty where it has not."""
        if not math.isfinite(self.history[-1]["loss"]):
            return f"the training loss was {self.history[-1]['loss']} in epoch {self.epoch}"
        for name, tensor in model_state(self.model).items():
            if not bool(torch.isfinite(tensor).all()):
                return f"`{name}` was no longer finite after epoch {self.epoch}"
        return ""

    # -- files -----------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Keep the model as it is now."""
        meta = {
            "run_id": self.config.run_id,
            "step": self.step,
            "epoch": self.epoch,
            "config": self.config.as_dict(),
            "shape": list(self.data.shape),
            "classes": self.data.classes,
        }
        save_checkpoint(self.run.checkpoint(self.step), self.model, meta)

    def snapshot(self) -> None:
        """Write everything that the rest of the run depends on, so that a killed run continues bit for bit."""
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),
            "correct": {k: torch.from_numpy(np.array(v)) for k, v in self.correct.items()},
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        skeleton, tensors = split_tensors(state)
        place = self.run.folder / "resume" / f"{self.step}.safetensors"
        write_atomically(place, lambda aside: save_file(tensors, aside))
        write_json(place.parent / "state.json", {"tensors": place.name, "state": skeleton})
        for old in place.parent.glob("*.safetensors"):
            if old != place:
                old.unlink()

    def resume(self) -> bool:
        """Take over the last snapshot; False where there is none."""
        folder = self.run.folder / "resume"
        if not (folder / "state.json").exists():
            return False
        stored = read_json(folder / "state.json")
        state = join_tensors(stored["state"], load_file(folder / stored["tensors"]))
        apply_weights(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = state["history"]
        self.correct = {k: list(v.numpy()) for k, v in state["correct"].items()}
        return True

    def finish(self, status: Any, reason: str = "") -> Run:
        """Write the records and the status; the snapshot is no longer needed."""
        self.run.write_history(self.history)
        self.run.write_examples(
            index=self.train.index.cpu().numpy(),
            noisy=(self.train.y != self.train.clean).cpu().numpy(),
            **{name: np.array(rows) for name, rows in self.correct.items()},
        )
        self.run.write_status(status, reason=reason, epochs=self.epoch, seconds=self.seconds)
        shutil.rmtree(self.run.folder / "resume", ignore_errors=True)
        return self.run


def optimizer_of(config: TrainConfig, model: nn.Module) -> SharpnessAware:
    """The optimizer of a resolved configuration."""
    knobs: dict[str, Any] = dict(config.method_options)
    return make_optimizer(
        config.method,
        model,
        config.base,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
        rho=config.rho,
        rho_schedule=config.rho_schedule,
        rho_min=config.rho_min,
        lr_min=config.lr_min,
        ascent=config.ascent,
        same_rng=config.same_rng,
        shrink_perturb=config.shrink_perturb,
        grad_clip=config.grad_clip,
        seed=derive(config.seed, "method"),
        **knobs,
    )


def predict(model: nn.Module, x: Tensor, *, batch: int = 2048) -> Tensor:
    """Outputs on many examples, without gradient; the caller sets the mode."""
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch)])
