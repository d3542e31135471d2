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
from landscape.ranks import Ranks
from trainers.backend import USUAL, Backend
from trainers.config import TrainConfig
from trainers.data.augmentation import augmentation
from trainers.data.imbalance import balanced_draw
from trainers.data.splits import DataBundle
from trainers.files.writing import write_json
from trainers.machine import machine
from trainers.models.averaging import WeightAverage
from trainers.models.building import build_model, check_inputs, check_outputs
from trainers.models.checkpointing import checkpoint_activations as recompute
from trainers.randomness import stream
from trainers.reference import is_reference
from trainers.runs.checkpoint import apply_weights, model_state, remove_checkpoint, save_checkpoint
from trainers.runs.digests import WHOLE, digest_of
from trainers.runs.feeding import Closures, Feeder, shares
from trainers.runs.folder import Run, load_data
from trainers.runs.initial import start
from trainers.runs.ownership import buffer_state, owned, places_of
from trainers.runs.records import STEPS, StepLog, Tally
from trainers.runs.schedules import LearningRate
from trainers.runs.sharing import IDLE, Deal
from trainers.runs.snapshots import read_snapshot, write_snapshot
from trainers.runs.stopping import Best, best_of
from trainers.runtime import device_of, require_float64
from trainers.sharpness_aware.optimizers import optimizer_of
from trainers.tasks.evaluation import LiveEvaluation
from trainers.tasks.language import Language
from trainers.tasks.registry import TASKS, learns_labels
from trainers.tasks.task import check_targets, outputs_of, task_of

ALONE = Ranks()
FIRST = 8  # examples by which processes compare inputs that are not in memory
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
    "machines",
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
        backend: How torch computes.
        ranks: The processes that train it together, each on its part of every batch; the leader writes.
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
        backend: Backend = USUAL,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.run, self.device, self.ranks = config, run, device_of(device), ranks
        if config.precision == "float64":
            require_float64(self.device, "`precision` 'float64'")
        self.deal = Deal.of(config, ranks)
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
        self.model = backend.laid_out(model.to(self.device)).train()
        inputs = self.train.take(slice(2))[0]
        if not is_reference(config.model):
            check_inputs(inputs, name=config.model, graph=self.data.graph is not None)
        if isinstance(self.task, Language):
            self.task.check_memory(inputs, vocabulary=self.outputs, chunk=config.chunk)
            self.task.check_model(self.model, inputs, vocabulary=self.outputs, name=config.model)
        elif is_reference(config.model) and config.task in TASKS:
            more = learns_labels(config.task)  # further logits are classes that no label names
            check_outputs(self.model, inputs, outputs=self.outputs, name=config.model, more=more)
        self.average = WeightAverage(self.model, config.average, config.average_decay) if config.average else None
        if checkpoint_activations:
            recompute(self.model, name=config.model)
        backend.compiled(self.model)
        self.batches = math.ceil(len(self.train) / config.batch_size)
        scaler = torch.amp.GradScaler(self.device.type) if config.precision == "float16" else None
        shapes = None
        if config.base_model_options:
            narrow = self.build({**config.model_options, **config.base_model_options}, trust=trust)
            shapes = {name: tuple(p.shape) for name, p in narrow.named_parameters()}
        examples = len(self.train)
        spec = config.spec(self.batches, base_shapes=shapes, examples=examples, grad_scaler=scaler, diagnose=diagnose)
        self.optimizer = optimizer_of(spec, self.model)
        self.feeder = Feeder(
            config, self.task, self.model, self.train, scaler, ascends=self.optimizer.parts.ascent, ranks=ranks
        )
        self.evaluation = LiveEvaluation(self.model, self.task, self.train, self.data, ranks)
        self.evaluation_of_average = (
            None
            if self.average is None
            else LiveEvaluation(self.average.model, self.task, self.train, self.data, ranks)
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
        self.sharers = shares(config, len(self.train), world=ranks.count)
        self.generator = stream(config.seed, "order")
        self.epoch = self.step = self.position = 0
        self.order = self.next_order()
        self.ahead: Iterator[Batch] | None = None  # the rest of the epoch, which may be read before its turn
        self.tally = Tally()
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.places: list[list[int]] = []  # stretches of the epoch's order that these are of
        self.previous = torch.empty(0, dtype=torch.int64)
        self.previous_place = [0, 0]  # its epoch, and its number there
        self.skipped: list[str] = []
        self.skips = self.skips_in_a_row = 0
        self.history: list[dict[str, Any]] = []
        self.machines = [machine(self.device, backend)]  # those that have computed, in turn
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
            graph=self.data.graph,
            trust=trust,
        )

    def clock(self) -> float:
        """Seconds of training so far, over all calls."""
        return self.earlier + time.monotonic() - self.started

    def facts(self) -> dict[str, str]:
        """What several processes must see alike: digests of the data, of the weights, and of the order."""
        train, first = self.train, self.train.take(slice(FIRST))[0]
        stored = [train.inputs] if isinstance(train.inputs, Tensor) and train.inputs.nbytes <= WHOLE else [first]
        held_out = [t for split in (self.data.validation, self.data.test) for t in (split.y, split.index)]
        graph = [] if self.data.graph is None else [self.data.graph.x, self.data.graph.edges]
        return {
            "data": digest_of([train.y, train.clean, train.index, *stored, *held_out, *graph]),
            "initial weights": digest_of(self.model.parameters()),
            "order of the examples": digest_of([self.order]),
        }

    # -- training --------------------------------------------------------------------------------------------------

    def next_order(self) -> Tensor:
        """The order of the next epoch; of a balanced one, some examples come more than once and others not at all."""
        if self.config.sampler == "balanced":
            drawn = balanced_draw(self.train.y, stream(self.config.seed, f"balanced order {self.epoch}"))
            return drawn.to(self.device)
        return torch.randperm(len(self.train), generator=self.generator).to(self.device)

    def shown(self, order: Tensor, epoch: int) -> Batches:
        """This process's part of the batches of these examples, in turn, as an epoch sees them, not mixed yet."""
        augment = self.augment and replace(self.augment, epoch=epoch)
        size = self.config.batch_size if self.ranks.count == 1 else self.deal.shown_of_each
        return self.train.batches(self.deal.shown(order), size, augment=augment, reader=self.reader)

    def mixed(self, batch: Batch, epoch: int, number: int) -> Batch:
        """A batch by its number in an epoch, mixed where that is asked for."""
        if self.mixing is None:
            return batch
        x, y = self.mixing(*batch, epoch=epoch, batch=number)
        return x[self.deal.before :], y[self.deal.before :]

    def closures(self, batch: Batch, epoch: int, number: int, *, idle: bool) -> Closures:
        """The closures of this process's part of a batch, which counts for nothing where it has none."""
        closures = self.feeder.closures(*self.mixed(batch, epoch, number), self.deal.chunk or self.config.chunk)
        if idle:
            closures.sizes = [IDLE] * len(closures.sizes)
        return closures

    def train_step(self) -> None:
        """Take one optimizer step, on the next batch of the epoch."""
        lr = self.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        size = self.config.batch_size
        if self.ahead is None:
            self.ahead = iter(self.shown(self.order[self.position * size :], self.epoch))
        index = self.order[self.position * size : (self.position + 1) * size]
        first, last = self.deal.place(len(index))
        closures = self.closures(next(self.ahead), self.epoch, self.position, idle=first == last)
        loss = self.optimizer.step(closures.descents, sizes=closures.sizes, ascent=closures.ascents)
        assert loss is not None  # only a step without closures has none
        self.step += 1
        self.position += 1
        if not self.optimizer.last.overflow:  # after a skipped step the optimizer keeps the batch before
            self.previous, self.previous_place = index, [self.epoch, self.position - 1]
        if self.mixing is None and first < last and (hits := closures.hits(self.task)) is not None:
            self.hit(hits, size * (self.position - 1) + first)
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

    def hit(self, hits: Tensor, first: int) -> None:
        """Keep which examples were right, in the epoch's order from this place on."""
        self.hits.append(hits)
        if self.places and self.places[-1][1] == first:
            self.places[-1][1] += len(hits)
        else:
            self.places.append([first, first + len(hits)])

    def _presented(self) -> Tensor | None:
        """Which examples of the epoch were right, in its order, from the hits of all processes."""

        def own() -> tuple[list[list[int]], Tensor] | None:
            return (self.places, torch.cat(self.hits).cpu()) if self.hits else None

        found = [part for part in self.ranks.each(own) if part is not None]
        if not found:
            return None
        presented = torch.zeros(len(self.order), dtype=torch.bool)
        for places, hits in found:
            for (first, last), some in zip(places, hits.split([b - a for a, b in places]), strict=True):
                presented[first:last] = some
        return presented

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
        if (hits := self._presented()) is not None:
            presented = self.correct["presentation"]
            right = presented[-1].copy() if presented else np.zeros(len(self.train), dtype=bool)
            right[self.order.cpu().numpy()] = hits.numpy()  # of several presentations the last
            presented.append(right)
        self.optimizer.synchronise_buffers()
        self.model.eval()
        self.ahead = None  # which may hold what was read ahead
        if self.config.average == "swa" and self.averages(self.epoch):
            self.take_into_average()
        evaluation, swept = self.evaluation() if self.due(self.epoch) else (self.evaluation.nothing(), None)
        if swept is not None:
            self.correct["sweep"].append(swept.numpy())
        rank, everywhere = self.sharers
        loss = self._summed()
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": math.nan if loss is None else loss / self.tally.examples,
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
        self.losses, self.hits, self.places = [], [], []
        return row

    def _summed(self) -> float | None:
        """The sum of the epoch's losses over all processes, None without any; the tally becomes that of all as well."""

        def own() -> tuple[float | None, dict[str, Any]]:
            loss = float(torch.stack(self.losses).sum()) if self.losses else None
            return loss, self.tally.state_dict() if self.ranks.count > 1 else {}

        found = self.ranks.each(own)
        if len(found) > 1:
            self.tally.load_state_dict(found[0][1])
            self.tally.join(tally for _, tally in found[1:])
        losses = [loss for loss, _ in found if loss is not None]
        return math.fsum(losses) if losses else None

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
        state = model_state(self.model)
        whole = torch.stack([torch.isfinite(tensor).all() for tensor in state.values()]).tolist()  # all at once
        for name, finite in zip(state, whole, strict=True):
            if not finite:
                return f"`{name}` was no longer finite after epoch {self.epoch}"
        return ""

    # -- files -----------------------------------------------------------------------------------------------------

    def begin(self, log: StepLog, *, other_ranks: bool = False) -> None:
        """Write the configuration, and continue from the last snapshot or keep the first weights.

        Args:
            log: Of steps.
            other_ranks: Also from a snapshot of another number of processes.

        Raises:
            ValueError: In all processes, if the snapshot is of another number of them; nothing is written then.
        """

        def read() -> dict[str, Any] | None:
            state = read_snapshot(self.run.folder / "resume")
            before = 1 if state is None else len(state.get("others", ())) + 1
            if state is not None and before != self.ranks.count and not other_ranks:
                raise ValueError(
                    f"{self.run.folder} was begun by {before} process{'es' * (before > 1)} (until step "
                    f"{state['step']}), and here are {self.ranks.count}: start {before}, or let others go on with "
                    f"`other_ranks` (--other-ranks); the rest then differs by rounding and random draws."
                )
            self.run.tidy()
            (self.run.folder / "status.json").unlink(missing_ok=True)
            write_json(self.run.folder / "config.json", {**self.config.as_dict(), "run_id": self.config.run_id})
            write_json(self.run.folder / "data.json", self.data.described())
            if state is None:
                log.take_over([])
            else:
                log.take_over(state["steps"])
            return state

        state = self.ranks.led(read)
        if state is None:
            self.save_checkpoint()
        else:
            self.resume(state)

    def save_checkpoint(self) -> None:
        """Keep the model as it is now, once it is known to be the same in all processes.

        Raises:
            ValueError: If it is not.
        """
        if self.ranks.count > 1:
            self.ranks.require_same(lambda: {f"weights after step {self.step}": digest_of(self.model.parameters())})
        self.ranks.led(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
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
            "machine": self.machines[-1],
        }
        if self.ranks.count > 1:
            meta["ranks"] = self.ranks.count
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
        if self.ranks.leads and before is not None and before.epoch not in self.config.checkpoints:
            remove_checkpoint(self.run.checkpoint(before.step))

    def snapshot(self, log: StepLog) -> None:
        """Write everything that the rest of the run depends on, so that a killed run continues bit for bit."""
        first, *others = self.ranks.each(self.own)

        def write() -> None:
            state = {
                **{name: getattr(self, name) for name in PLAIN},
                **first,
                "seconds": self.clock(),
                "correct": {k: torch.from_numpy(np.array(v)) for k, v in self.correct.items()},
                "model": model_state(self.model),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "generator": self.generator.get_state(),
                "steps": log.flush(),
            }
            write_snapshot(self.run.folder / "resume", self.step, {**state, "others": others} if others else state)
            self.run.write_history(self.history)

        self.ranks.led(write)

    def own(self) -> dict[str, Any]:
        """What of the state each of several processes has of its own."""
        state = {
            "tally": self.tally.state_dict(),
            "losses": torch.stack(self.losses) if self.losses else None,
            "hits": torch.cat(self.hits) if self.hits else None,
            "places": self.places,
            "buffers": self.passing_buffers(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        if self.ranks.count > 1:
            kept = self.optimizer.state_dict()["sharpness_aware"]
            state |= {"kept_buffers": buffer_state(self.model), "kept_previous": kept.get("previous")}
        return state

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over a snapshot."""
        here = self.machines
        own = owned(state, self.ranks, self.config.seed)
        apply_weights(self.model, {**state["model"], **own.get("kept_buffers", {})})
        with torch.no_grad():
            for name, tensor in self.passing_buffers().items():
                tensor.copy_(own["buffers"][name])
        optimizer = dict(state["optimizer"])
        if own.get("kept_previous") is not None:
            optimizer["sharpness_aware"] = {**optimizer["sharpness_aware"], "previous": own["kept_previous"]}
        self.optimizer.load_state_dict(optimizer)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(own["random"])
        if own["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["random_cuda"], self.device)
        for name in PLAIN:
            value = state.get(name, getattr(self, name))  # the last came later
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)
        self.machines = [m for m in self.machines if m not in here] + here
        self.tally.load_state_dict(own["tally"])
        self.losses = [] if own["losses"] is None else list(own["losses"].to(self.device).unbind())
        self.hits = [] if own["hits"] is None else [own["hits"].to(self.device)]
        self.places = places_of(own)
        self.earlier, self.started = state["seconds"], time.monotonic()
        self.correct = {k: list(v.numpy()) for k, v in state["correct"].items()}
        if len(sweeps := self.correct["sweep"]) == self.epoch:  # all epochs, as versions before swept them
            self.correct["sweep"] = [row for epoch, row in enumerate(sweeps, 1) if self.due(epoch)]
        if len(self.previous) and self.optimizer.needs_previous:
            epoch, number = self.previous_place
            batch = next(iter(self.shown(self.previous, epoch)))
            begins, ends = self.deal.place(len(self.previous))
            last = self.closures(batch, epoch, number, idle=begins == ends)
            self.optimizer.remember(last.descents, sizes=last.sizes, ascent=last.ascents)

    def passing_buffers(self) -> dict[str, Tensor]:
        """Buffers that checkpoints leave out but a continued run needs."""
        kept = self.model.state_dict()
        return {name: t.detach() for name, t in self.model.named_buffers() if name not in kept}

    def write_status(self, status: Literal["finished", "diverged", "interrupted"], reason: str = "") -> None:
        """Record how this call ended."""
        more: dict[str, Any] = {"steps": self.step, "machines": self.machines}
        if self.ranks.count > 1:
            more["ranks"] = self.ranks.count
        if self.skips:
            more |= {"skipped_steps": self.skips, "first_skipped": self.skipped}
        if self.best is not None:
            more["best"] = self.best.as_dict(self.evaluation.selecting)
        self.run.write_status(status, reason=reason, epochs=self.epoch, seconds=self.clock(), **more)

    def finish(self, status: Literal["finished", "diverged"], log: StepLog, reason: str = "") -> None:
        """Write the records, then the status, which makes the run whole; what was for resuming is no longer needed."""
        self.ranks.led(lambda: self._finish(status, log, reason))

    def _finish(self, status: Literal["finished", "diverged"], log: StepLog, reason: str) -> None:
        self.run.write_history(self.history)
        self.run.write_examples(
            index=self.train.index.cpu().numpy(),
            noisy=self.train.noisy.cpu().numpy(),
            swept=np.array([row["epoch"] for row in self.history if self.due(row["epoch"])], dtype=int),
            **{
                name: np.array(rows, dtype=bool).reshape(-1, len(self.train))
                for name, rows in self.correct.items()
                if rows or (learns_labels(self.config.task) and not self.config.mixes)
            },
        )
        log.finish()
        self.write_status(status, reason)
        self.run.tidy()
