"""Several runs in the making at once: their data, their methods, and the steps that they take together."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainers.data.splits import Split
from trainers.runs.training import Training
from trainers.sharpness_aware.gates import Mode
from trainers.sharpness_aware.moment import Moment
from trainers.sweep.stacked import Outcome, Rule, Stack, StackedStep
from trainers.tasks.task import Classification


class Population:
    """Several runs that stand at the same step, and the steps that they have taken since.

    The runs' own records lag behind until `settle`; their weights, buffers and momenta never do, see `Stack`.

    Args:
        trainings: The runs, alike in what `group_of` says.
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.trainings = sorted(trainings, key=_method)
        first = self.trainings[0]
        config, device = first.config, first.device
        self.size, self.batches = config.batch_size, first.batches
        self.data, starts = stacked_data([t.train for t in self.trainings])
        self.stack = Stack([t.model for t in self.trainings], [t.optimizer.base for t in self.trainings])
        assert isinstance(first.task, Classification)
        self.take = StackedStep(
            self.stack, rules(self.trainings), first.task.each, config.momentum, config.nesterov, config.grad_clip
        )
        self.draws = not first.optimizer.parts.source.needs_gradient and config.rho is not None
        self.starts = torch.tensor(starts, device=device)[:, None]
        self.begin()

    def begin(self) -> None:
        """Look ahead to the rest of the epoch at whose position the runs stand: their examples, rates and radii."""
        self.position, self.taken = self.trainings[0].position, list[Outcome]()
        self.order = torch.stack([t.order for t in self.trainings]) + self.starts
        ahead = self.batches - self.position
        rates = [[t.rate(t.step + k) for k in range(ahead)] for t in self.trainings]
        radii = [_radii(t, some) for t, some in zip(self.trainings, rates, strict=True)]
        self.rates, self.radii = (torch.tensor(v, dtype=torch.float64).view(-1, ahead) for v in (rates, radii))
        self.lr, self.rho = (t.to(self.order.device, self.stack.weights.dtype) for t in (self.rates, self.radii))

    def step(self) -> None:
        """Take the next step of the epoch."""
        at = len(self.taken)
        positions = self.order[:, self.position * self.size : (self.position + 1) * self.size]
        x, y = self.data.take(positions.flatten())
        drawn = self._drawn(at) if self.draws else None
        inputs, labels = x.view(*positions.shape, *x.shape[1:]), y.view_as(positions)
        self.taken.append(self.take(inputs, labels, self.lr[:, at, None], self.rho[:, at, None], drawn))
        self.position += 1

    def _drawn(self, at: int) -> Tensor:
        """A raw direction for each perturbed row, from the run's own generator."""
        rows = []
        for training, rho in zip(self.trainings, self.radii[:, at].tolist(), strict=True):
            theta = {name: p.detach() for name, p in training.model.named_parameters()}
            moment = Moment(training.step + at, 0.0, rho, theta)
            found = training.optimizer.parts.source.direction(moment, None) if rho > 0 else None
            rows.append(torch.zeros_like(self.stack.weights[0]) if found is None else self.stack.row(found))
        return torch.stack(rows)

    def settle(self) -> None:
        """Let the runs' own records take in the steps since the last time; the one place that reads from the device."""
        count = len(self.taken)
        if not count:
            return
        sizes = [one.hits.shape[1] for one in self.taken]
        gaps = torch.stack([one.gap for one in self.taken])
        finite = torch.isfinite(gaps)
        told = torch.stack(
            [
                torch.stack([one.length for one in self.taken]).double().square().sum(0),
                torch.where(finite, gaps, 0.0).double().sum(0),
                finite.double().sum(0),
            ]
        )
        sums = told.T.tolist()
        losses = torch.stack([one.loss * size for one, size in zip(self.taken, sizes, strict=True)])
        hits = torch.cat([one.hits for one in self.taken], dim=1)
        for i, training in enumerate(self.trainings):
            radii, tally = self.radii[i, :count].tolist(), training.tally
            perturbed = sum(rho > 0 for rho in radii)
            squared, gap, counted = sums[i]
            tally.steps += count
            tally.examples += sum(sizes)
            tally.perturbed += perturbed
            tally.squared_length += squared
            tally.gap += gap
            tally.gaps += round(counted) - (count - perturbed)  # a plain step's, which is zero, does not count
            tally.lr, tally.rho = self.rates[i, count - 1].item(), radii[-1]
            training.losses.extend(losses[:, i].unbind())
            training.hit(hits[i], (self.position - count) * self.size)
            training.step += count
            training.optimizer.steps_taken += count
            training.position = self.position
            training.previous_place = [training.epoch, self.position - 1]
            last = slice((self.position - 1) * self.size, self.position * self.size)
            training.previous = training.order[last]
        self.taken = []
        self.rates, self.radii, self.lr, self.rho = (t[:, count:] for t in (self.rates, self.radii, self.lr, self.rho))


def stacked_data(splits: Sequence[Split]) -> tuple[Split, list[int]]:
    """The training data of all runs one after the other, each different set once, and where that of each run begins.

    Raises:
        ValueError: If they are read one by one, or are of different sizes or kinds.
    """
    starts: dict[tuple[int, int], int] = {}
    kept: list[Split] = []
    places = []
    for split in splits:
        if not isinstance(split.inputs, Tensor):
            raise ValueError(
                "`executor` 'population' needs data that are in memory, and these are read one by one: leave it out."
            )
        if _kind(split) != _kind(splits[0]):
            raise ValueError(
                "`executor` 'population' needs training data of one size and kind, and those of these runs differ: "
                "leave it out."
            )
        key = (split.inputs.data_ptr(), split.y.data_ptr())
        if key not in starts:
            starts[key] = len(kept) * len(split)
            kept.append(split)
        places.append(starts[key])
    if len(kept) == 1:
        return kept[0], places
    inputs, y, clean, index = (
        torch.cat([getattr(s, name) for s in kept]) for name in ("inputs", "y", "clean", "index")
    )
    return replace(kept[0], inputs=inputs, y=y, clean=clean, index=index), places


def _kind(split: Split) -> tuple[object, ...]:
    assert isinstance(split.inputs, Tensor)
    return split.inputs.shape, split.inputs.dtype, split.pixels, split.dtype, split.side


def rules(trainings: Sequence[Training]) -> list[Rule]:
    """The methods of runs that stand in the order of `_method`, each with its rows; none for plain SGD."""
    edges = [i for i, t in enumerate(trainings) if not i or _method(t) != _method(trainings[i - 1])]
    found = []
    for a, b in zip(edges, [*edges[1:], len(trainings)], strict=True):
        config, parts = trainings[a].config, trainings[a].optimizer.parts
        if config.rho is None:
            return []
        obf = (config.obf_classes, config.obf_gamma, config.obf_link) if parts.ascent == "obf" else None
        found.append(Rule(slice(a, b), parts.scaler, parts.combiner, obf))
    return found


def _method(training: Training) -> str:
    """All of a run's method but the radius."""
    config, parts = training.config, training.optimizer.parts
    return repr([parts.scaler, parts.combiner, parts.ascent, config.obf_classes, config.obf_gamma, config.obf_link])


def _radii(training: Training, rates: Sequence[float]) -> list[float]:
    """The radius of each coming step; 0 for plain ones."""
    parts = training.optimizer.parts
    found = []
    for t, lr in enumerate(rates, training.step):
        rho = parts.radius(lr, t)
        found.append(rho if rho and parts.gate(Moment(t, lr, rho, {})) is Mode.PERTURBED else 0.0)
    return found
