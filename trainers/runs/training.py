"""One run in the making: its state, a step, the end of an epoch, and the files it leaves."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from landscape.batches import Batch, Batches
from trainers.config import TrainConfig
from trainers.data.augmentation import augmentation
from trainers.data.imbalance import balanced_draw
from trainers.data.splits import DataBundle
from trainers.files.writing import write_json
from trainers.models.averaging import WeightAverage
from trainers.models.building import build_model, check_inputs, check_outputs
from trainers.models.checkpointing import checkpoint_activations as recompute
from trainers.randomness import stream
from trainers.reference import is_reference
from trainers.runs.checkpoint import apply_weights, model_state, remove_checkpoint, save_checkpoint
from trainers.runs.feeding import Feeder, shares
from trainers.runs.folder import Run, load_data
from trainers.runs.initial import start
from trainers.runs.records import STEPS, StepLog, Tally
from trainers.runs.schedules import LearningRate
from trainers.runs.snapshots import read_snapshot, write_snapshot
from trainers.runs.stopping import Best, best_of
from trainers.runtime import device_of
from trainers.sharpness_aware.optimizers import optimizer_of
from trainers.tasks.evaluation import LiveEvaluation
from trainers.tasks.registry import TASKS
from trainers.tasks.task import CLASSIFICATION, check_targets, outputs_of, task_of

NAMED = 5  # skipped steps that the status names
HOPELESS = 100  # steps skipped in a row that count as divergence
PLAIN = (
    "epoch",
    "step",
    "position",
    "order",
    "previous",
    "previous_place",
    "skipped",
    "skips",
    "skips_in_a_row",
    "longest",
    "history",
)  # of the state, what a snapshot holds as it is


class Training:
    """The state of one run, and what is done to it.

    Args:
        config: Resolved.
        run: Its folder; nothing is written before `begin`.
        device: Where to train.
        trust: As for `fit`.
        diagnose: Have the optimizer work out the cosine between clean and perturbed gradient.
        data: That of the configuration, where it is loaded already.
        workers: Processes that read data which are not in memory.
        checkpoint_activations: Compute activations again in backward passes instead of keeping them.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        *,
        device: str = "cpu",
        trust: bool = False,
        diagnose: bool = False,
        data: DataBundle | None = None,
        workers: int = 0,
        checkpoint_activations: bool = False,
    ) -> None:
        self.config, self.run, self.device = config, run, device_of(device)
        self.data = load_data(config, trust=trust) if data is None else data
        for key in ("early_stopping", "keep_best"):
            if getattr(config, key) and not len(self.data.validation):
                raise ValueError(
                    f"`{key}` goes by the validation error, and {self.data.name!r} has no validation examples"
                    f"{' of its own of these `classes`' if self.data.selected else ''}: leave it out, or give the data "
                    f"some."
                )
        self.task = task_of(config, trust=trust, data=self.data)
        check_targets(self.task, self.data)
        self.outputs = outputs_of(self.task, self.data.classes)
        self.augment, self.mixing = augmentation(
            config.augment, self.data.train, classes=self.data.classes, seed=config.seed, fill=self.data.fill,
            name=self.data.name, trust=trust,
        )  # fmt: skip
        alone = self.augment is not None and self.augment.transform is not None
        self.train = self.data.train.to(self.device, workers=workers, resident=not alone)
        self.reader = self.train.reader(self.augment, lasting=True)
        model = self.build(config.model_options, trust=trust)
        model = model.double() if config.precision == "float64" else model
        self.initial = start(model, config, run, classes=self.outputs)
        self.model = model.to(self.device).train()
        inputs = self.train.take(slice(2))[0]
        if not is_reference(config.model):
            check_inputs(inputs, name=config.model)
        elif config.task in TASKS:
            more = config.task == CLASSIFICATION  # further logits are classes that no label names
            check_outputs(self.model, inputs, outputs=self.outputs, name=config.model, more=more)
        self.average = WeightAverage(self.model, config.average, config.average_decay) if config.average else None
        if checkpoint_activations:
            recompute(self.model, name=config.model)
        self.batches = math.ceil(len(self.train) / config.batch_size)
        scaler = torch.amp.GradScaler(self.device.type) if config.precision == "float16" else None
        shapes = None
        if config.base_model_options:
            narrow = self.build({**config.model_options, **config.base_model_options}, trust=trust)
            shapes = {name: tuple(p.shape) for name, p in narrow.named_parameters()}
        examples = len(self.train)
        spec = config.spec(self.batches, base_shapes=shapes, examples=examples, grad_scaler=scaler, diagnose=diagnose)
        self.optimizer = optimizer_of(spec, self.model)
        self.feeder = Feeder(config, self.task, self.model, self.train, scaler, ascends=self.optimizer.parts.ascent)
        self.evaluation = LiveEvaluation(self.model, self.task, self.train, self.data)
        self.evaluation_of_average = (
            None if self.average is None else LiveEvaluation(self.average.model, self.task, self.train, self.data)
        )
        if self.optimizer.needs_reference:
            self.optimizer.reference = self.feeder.reference(self.optimizer.needs_reference, lambda: self.step)
        self.rate = LearningRate(
            kind=config.lr_schedule,
            peak=config.lr,
            total=config.epochs * self.batches,
            warmup=round(config.warmup_epochs * self.batches),
            floor=config.lr_min,
            milestones=config.lr_milestones,
            factor=config.lr_factor,
        )
        self.sharers = shares(config, len(self.train))
        self.generator = stream(config.seed, "order")
        self.epoch = self.step = self.position = 0
        self.order = self.next_order()
        self.ahead: Iterator[Batch] | None = None  # the rest of the epoch, which may be read before its turn
        self.tally = Tally()
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.previous = torch.empty(0, dtype=torch.int64)
        self.previous_place = [0, 0]  # its epoch, and its number there
        self.skipped: list[str] = []
        self.skips = self.skips_in_a_row = 0
        self.history: list[dict[str, Any]] = []
        self.correct: dict[str, list[np.ndarray]] = {"presentation": [], "sweep": []}
        self.earlier, self.started = 0.0, time.monotonic()
        self.longest: dict[str, float] = {}

    def took(self, work: str, seconds: float) -> None:
        """Remember how long a kind of work takes at its slowest, over all calls."""
        self.longest[work] = max(seconds, self.longest.get(work, 0.0))

    def build(self, options: Mapping[str, Any], *, trust: bool) -> nn.Module:
        """The configured model with these sizes, at its first weights."""
        return build_model(
            self.config.model,
            shape=self.data.shape,
            classes=self.outputs,
            generator_seed=self.config.seed,
            options=options,
            trust=trust,
        )

    def clock(self) -> float:
        """Seconds of training so far, over all calls."""
        return self.earlier + time.monotonic() - self.started

    # -- training --------------------------------------------------------------------------------------------------

    def next_order(self) -> Tensor:
        """The order of the next epoch; of a balanced one, some examples come more than once and others not at all."""
        if self.config.sampler == "balanced":
            drawn = balanced_draw(self.train.y, stream(self.config.seed, f"balanced order {self.epoch}"))
            return drawn.to(self.device)
        return torch.randperm(len(self.train), generator=self.generator).to(self.device)

    def shown(self, order: Tensor, epoch: int) -> Batches:
        """The batches of these examples, in turn, as an epoch sees them before they are mixed."""
        augment = self.augment and replace(self.augment, epoch=epoch)
        return self.train.batches(order, self.config.batch_size, augment=augment, reader=self.reader)

    def mixed(self, batch: Batch, epoch: int, number: int) -> Batch:
        """A batch by its number in an epoch, mixed where that is asked for."""
        return batch if self.mixing is None else self.mixing(*batch, epoch=epoch, batch=number)

    def train_step(self) -> None:
        """Take one optimizer step, on the next batch of the epoch."""
        lr = self.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        size = self.config.batch_size
        if self.ahead is None:
            self.ahead = iter(self.shown(self.order[self.position * size :], self.epoch))
        index = self.order[self.position * size : (self.position + 1) * size]
        closures = self.feeder.closures(*self.mixed(next(self.ahead), self.epoch, self.position), self.config.chunk)
        loss = self.optimizer.step(closures.descents, sizes=closures.sizes, ascent=closures.ascents)
        assert loss is not None  # only a step without closures has none
        self.step += 1
        self.position += 1
        if not self.optimizer.last.overflow:  # after a skipped step the optimizer keeps the batch before
            self.previous, self.previous_place = index, [self.epoch, self.position - 1]
        if self.mixing is None and (hits := closures.hits(self.task)) is not None:
            self.hits.append(hits)
        counted = sum(closures.sizes)
        self.tally.add(self.optimizer.last, examples=counted, lr=lr)
        overflow = self.optimizer.last.overflow
        if overflow:
            self.skips += 1
            self.skips_in_a_row += 1
            if len(self.skipped) < NAMED:
                self.skipped.append(f"step {self.step} ({overflow})")
        else:
            self.skips_in_a_row = 0
            self.losses.append(loss * counted)
            if self.config.average == "ema" and self.averages(self.step / self.batches):
                self.take_into_average()

    def averages(self, epochs: float) -> bool:
        """Whether weights are averaged after so many epochs."""
        begins = self.config.average_from
        return begins is not None and epochs > begins * self.config.epochs

    def take_into_average(self) -> None:
        """Take the present weights into the average."""
        assert self.average is not None
        self.average.update(self.model)

    def averaged(self) -> WeightAverage | None:
        """The average, ready to be used; None where there is none, or nothing was averaged yet."""
        if self.average is None or not self.average.count:
            return None
        self.average.recalibrate(self.train.batches(size=self.config.batch_size))
        return self.average

    def step_row(self) -> dict[str, Any]:
        """What the last step did, with the columns of `STEPS`."""
        last = self.optimizer.last
        row: dict[str, Any] = {
            "step": self.step, "epoch": self.epoch + 1, "lr": self.tally.lr, "seconds": self.clock(),
            "mode": str(last.mode),
        }  # fmt: skip
        return {key: row[key] if key in row else getattr(last, key) for key in STEPS}

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate where it is time to, append the epoch's row to the history, and make ready for the next epoch."""
        self.epoch += 1
        if self.hits:
            presented = self.correct["presentation"]
            right = presented[-1].copy() if presented else np.zeros(len(self.train), dtype=bool)
            right[self.order.cpu().numpy()] = torch.cat(self.hits).cpu().numpy()  # of several presentations the last
            presented.append(right)
        self.model.eval()
        self.ahead = None  # which may hold what was read ahead
        if self.config.average == "swa" and self.averages(self.epoch):
            self.take_into_average()
        evaluation, swept = self.evaluation() if self.due(self.epoch) else (self.evaluation.nothing(), None)
        if swept is not None:
            self.correct["sweep"].append(swept.numpy())
        rank, everywhere = self.sharers
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": float(torch.stack(self.losses).sum()) / self.tally.examples if self.losses else math.nan,
            **self.tally.row(),
            **evaluation,
            **self.evaluated_average(),
            "m": rank,
            "m_global": everywhere,
            "seconds": self.clock(),
        }
        self.history.append(row)
        self.model.train()
        self.order, self.position, self.tally = self.next_order(), 0, Tally()
        self.losses, self.hits = [], []
        return row

    def evaluated_average(self) -> dict[str, float]:
        """The columns of the average of weights, NaN where it is not evaluated; none where there is none."""
        if self.evaluation_of_average is None:
            return {}
        ready = self.due(self.epoch) and self.averaged() is not None
        values = self.evaluation_of_average()[0] if ready else self.evaluation_of_average.nothing()
        return {f"average_{name}": value for name, value in values.items()}

    @property
    def best(self) -> Best | None:
        """The best evaluation so far, where a setting goes by it."""
        if not (self.config.keep_best or self.config.early_stopping):
            return None
        return best_of(self.history, self.evaluation.selecting)

    def enough(self) -> str:
        """Why the run is over before its last epoch; empty where it is not."""
        patience, best = self.config.early_stopping, self.best
        if patience is None or best is None or best.waited < patience or self.epoch == self.config.epochs:
            return ""
        return (
            f"stopped after epoch {self.epoch} of {self.config.epochs}: {best.waited} evaluations without a better "
            f"{self.evaluation.selecting.replace('_', ' ')} than {best.score:.4g} after epoch {best.epoch}"
        )

    def due(self, epoch: int) -> bool:
        """Whether an epoch ends with an evaluation."""
        return epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs

    def problem(self) -> str:
        """Why the run has diverged; empty where it has not."""
        row = self.history[-1]
        if self.skips_in_a_row >= HOPELESS:
            return f"{self.skips_in_a_row} steps in a row overflowed {self.config.precision} up to epoch {self.epoch}"
        if not math.isfinite(row["loss"]) and row["skipped"] < self.batches:
            return f"the training loss was {row['loss']} in epoch {self.epoch}"
        for name, tensor in model_state(self.model).items():
            if not bool(torch.isfinite(tensor).all()):
                return f"`{name}` was no longer finite after epoch {self.epoch}"
        return ""

    # -- files -----------------------------------------------------------------------------------------------------

    def begin(self, log: StepLog) -> None:
        """Write the configuration, and continue from the last snapshot or keep the first weights."""
        self.run.tidy()
        (self.run.folder / "status.json").unlink(missing_ok=True)
        write_json(self.run.folder / "config.json", {**self.config.as_dict(), "run_id": self.config.run_id})
        write_json(self.run.folder / "data.json", self.data.described())
        if not self.resume(log):
            log.take_over([])
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Keep the model as it is now."""
        start = time.monotonic()
        rank, everywhere = self.sharers
        meta = {
            "run_id": self.config.run_id,
            "step": self.step,
            "epoch": self.epoch,
            "config": self.config.as_dict(),
            "shape": list(self.data.shape),
            "classes": self.outputs,
            "m": rank,
            "m_global": everywhere,
        }
        if self.initial is not None:
            meta["init"] = self.initial
        save_checkpoint(self.run.checkpoint(self.step), self.model, meta, average=self.averaged())
        self.took("checkpoint", time.monotonic() - start)

    def keep_best(self) -> None:
        """Keep the checkpoint of this epoch where it is the best so far, instead of the one that was."""
        best = self.best
        if not self.config.keep_best or best is None or best.epoch != self.epoch:
            return
        self.save_checkpoint()
        before = best_of(self.history[:-1], self.evaluation.selecting)
        if before is not None and before.epoch not in self.config.checkpoints:
            remove_checkpoint(self.run.checkpoint(before.step))

    def snapshot(self, log: StepLog) -> None:
        """Write everything that the rest of the run depends on, so that a killed run continues bit for bit."""
        state = {
            **{name: getattr(self, name) for name in PLAIN},
            "tally": self.tally.state_dict(),
            "losses": torch.stack(self.losses) if self.losses else None,
            "hits": torch.cat(self.hits) if self.hits else None,
            "seconds": self.clock(),
            "correct": {k: torch.from_numpy(np.array(v)) for k, v in self.correct.items()},
            "model": model_state(self.model),
            "buffers": self.passing_buffers(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "steps": log.flush(),
        }
        write_snapshot(self.run.folder / "resume", self.step, state)
        self.run.write_history(self.history)

    def resume(self, log: StepLog) -> bool:
        """Take over the last snapshot; False where there is none."""
        state = read_snapshot(self.run.folder / "resume")
        if state is None:
            return False
        apply_weights(self.model, state["model"])
        with torch.no_grad():
            for name, tensor in self.passing_buffers().items():
                tensor.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        for name in PLAIN:
            value = state.get(name, getattr(self, name))  # the last came later
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)
        self.tally.load_state_dict(state["tally"])
        self.losses = [] if state["losses"] is None else list(state["losses"].to(self.device).unbind())
        self.hits = [] if state["hits"] is None else [state["hits"].to(self.device)]
        self.earlier, self.started = state["seconds"], time.monotonic()
        self.correct = {k: list(v.numpy()) for k, v in state["correct"].items()}
        if len(sweeps := self.correct["sweep"]) == self.epoch:  # all epochs, as versions before swept them
            self.correct["sweep"] = [row for epoch, row in enumerate(sweeps, 1) if self.due(epoch)]
        if len(self.previous) and self.optimizer.needs_previous:
            epoch, number = self.previous_place
            batch = next(iter(self.shown(self.previous, epoch)))
            last = self.feeder.closures(*self.mixed(batch, epoch, number), self.config.chunk)
            self.optimizer.remember(last.descents, sizes=last.sizes, ascent=last.ascents)
        log.take_over(state["steps"])
        return True

    def passing_buffers(self) -> dict[str, Tensor]:
        """Buffers that checkpoints leave out but a continued run needs."""
        kept = self.model.state_dict()
        return {name: t.detach() for name, t in self.model.named_buffers() if name not in kept}

    def write_status(self, status: Literal["finished", "diverged", "interrupted"], reason: str = "") -> None:
        """Record how this call ended."""
        more: dict[str, Any] = {"steps": self.step}
        if self.skips:
            more |= {"skipped_steps": self.skips, "first_skipped": self.skipped}
        if self.best is not None:
            more["best"] = self.best.as_dict(self.evaluation.selecting)
        self.run.write_status(status, reason=reason, epochs=self.epoch, seconds=self.clock(), **more)

    def finish(self, status: Literal["finished", "diverged"], log: StepLog, reason: str = "") -> None:
        """Write the records, then the status, which makes the run whole; what was for resuming is no longer needed."""
        self.run.write_history(self.history)
        self.run.write_examples(
            index=self.train.index.cpu().numpy(),
            noisy=self.train.noisy.cpu().numpy(),
            swept=np.array([row["epoch"] for row in self.history if self.due(row["epoch"])], dtype=int),
            **{
                name: np.array(rows, dtype=bool).reshape(-1, len(self.train))
                for name, rows in self.correct.items()
                if rows or (self.config.task == CLASSIFICATION and not self.config.mixes)
            },
        )
        log.finish()
        self.write_status(status, reason)
        self.run.tidy()
