"""Which runs a sweep has: axes of any configuration key, crossed or drawn at random, some only under conditions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from trainers.config import Count, Seed, Strict, TrainConfig, train_config
from trainers.randomness import derive
from trainers.sweep.conditions import Condition, check_key, containers, put
from trainers.sweep.distributions import EXAMPLES, Choice, Distribution, distribution

MOST = 100_000  # runs of a sweep
FRUITLESS = 300  # draws in a row without a new run after which a search gives up


class RandomSearch(Strict):
    """Keys whose values are drawn at random, beside those of a grid."""

    draws: Annotated[Count, Field(le=MOST)]
    """Different draws for each combination of the grid; more of them leave the first ones as they were."""
    seed: Seed = 0
    """Seed of the draws; each key has a stream of its own, so that another key or order changes none."""
    space: dict[str, Any] = Field(default_factory=dict)
    """Keys with their distributions, such as lr: {log_uniform: [0.001, 1.0]}; `when` beside it is a condition."""


@dataclass(frozen=True)
class Axis:
    """A key and the values it takes in a sweep.

    Attributes:
        key: A configuration key, or an option as `model_options.width`.
        values: A list that is crossed with the others, or a distribution.
        when: The runs that it is set in; None is all.
    """

    key: str
    values: tuple[Any, ...] | Distribution
    when: Condition | None = None


def grid_axis(key: str, given: Any) -> Axis:
    """An axis of a grid from a list of values, or {values: [...], when: {...}}."""
    check_key(key)
    values, when = _parts(key, given)
    if isinstance(values, Mapping) and set(values) & set(EXAMPLES):
        raise ValueError(
            f"`grid` crosses lists, and `{key}` is to be drawn, got {values!r}: put it into `random.space`."
        )
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(
            f"`grid` needs a list with at least one value for `{key}`, got {values!r}; "
            f"with a condition it is {{values: [...], when: {{...}}}}."
        )
    return Axis(key, tuple(values), when)


def variant_axis(key: str, given: Any) -> Axis:
    """An axis of one variant: a value, a list, a distribution, or one of these with a condition."""
    check_key(key)
    if not isinstance(given, Mapping) or key in containers():
        return grid_axis(key, given if isinstance(given, list) else [given])
    return drawn_axis(key, given) if set(given) & set(EXAMPLES) else grid_axis(key, given)


def drawn_axis(key: str, given: Any) -> Axis:
    """An axis of a random search from {log_uniform: [...]}, or {log_uniform: [...], when: {...}}."""
    check_key(key)
    values, when = _parts(key, given)
    return Axis(key, distribution(key, values), when)


def _parts(key: str, given: Any) -> tuple[Any, Condition | None]:
    """What an axis was given, and its condition."""
    if not isinstance(given, Mapping) or not set(given) & {"values", "when"}:
        return given, None
    rest = {k: v for k, v in given.items() if k != "when"}
    when = Condition.parse(key, given["when"]) if "when" in given else None
    return (rest["values"] if set(rest) == {"values"} else rest), when


def combinations(
    base: Mapping[str, Any],
    grid: Mapping[str, Any],
    variants: Sequence[Mapping[str, Any]],
    random: RandomSearch | None,
) -> list[TrainConfig]:
    """The configurations of a sweep, without repetition, in order; see `trainers.expand`."""
    if not variants:
        raise ValueError("`methods` is empty: list at least one, such as {method: sgd}.")
    crossed = {key: grid_axis(key, given) for key, given in grid.items()}
    drawn = {key: drawn_axis(key, given) for key, given in (random.space if random else {}).items()}
    twice = sorted(set(crossed) & set(drawn))
    if twice:
        raise ValueError(f"`{twice[0]}` is in `grid` and in `random.space`: leave it in one of them.")
    start: dict[str, Any] = {}
    for key, value in base.items():
        check_key(key)
        start = put(start, key, value)
    sweep = _Sweep(start, random)
    for variant in variants:
        own = {key: variant_axis(key, given) for key, given in variant.items()}
        sweep.add(ordered(list({**crossed, **drawn, **own}.values())))
    sweep.check()
    return list(sweep.configs.values())


class _Sweep:
    """Collects the configurations of one variant after another."""

    def __init__(self, base: dict[str, Any], random: RandomSearch | None) -> None:
        self.base, self.random = base, random
        self.configs: dict[str, TrainConfig] = {}
        self.known: dict[str, TrainConfig] = {}  # by their text before validation, which is slow
        self.met: dict[int, bool] = {}  # by the condition's identity: whether it ever held
        self.conditions: list[Axis] = []
        self.most = 0  # draws of the variant that has the most of them
        self.searched = False

    def add(self, axes: list[Axis]) -> None:
        """Add a variant: its grid, once for every draw."""
        self.conditions += [axis for axis in axes if axis.when is not None and id(axis.when) not in self.met]
        self.met |= {id(axis.when): False for axis in self.conditions if id(axis.when) not in self.met}
        drawn = [axis for axis in axes if not isinstance(axis.values, tuple)]
        if not drawn:
            self.configs |= {c.run_id: c for c in self.crossed(axes, {}) if c.run_id not in self.configs}
            return
        if self.random is None:
            raise ValueError(
                f"`{drawn[0].key}` is to be drawn, but `random` does not say how often: add random: {{draws: 20}}."
            )
        self.searched = True
        configs: dict[str, TrainConfig] = {}
        count = fruitless = 0
        for draw in draws(drawn, self.random.seed):
            new = {c.run_id: c for c in self.crossed(axes, draw) if c.run_id not in configs}
            configs |= new
            count, fruitless = (count + 1, 0) if new else (count, fruitless + 1)
            if count == self.random.draws or fruitless == FRUITLESS:
                break
        self.most = max(self.most, count)
        self.configs |= {run_id: c for run_id, c in configs.items() if run_id not in self.configs}

    def crossed(self, axes: Sequence[Axis], draw: Mapping[str, Any]) -> Iterator[TrainConfig]:
        """The configurations of a grid for one draw, the last axis running fastest."""

        def walk(values: dict[str, Any], chosen: dict[str, Any], place: int) -> Iterator[TrainConfig]:
            if place == len(axes):
                yield self.config(values, chosen)
                return
            axis = axes[place]
            if axis.when is not None:
                if not axis.when.holds(values):
                    yield from walk(values, chosen, place + 1)
                    return
                self.met[id(axis.when)] = True
            for value in axis.values if isinstance(axis.values, tuple) else (draw[axis.key],):
                yield from walk(put(values, axis.key, value), {**chosen, axis.key: value}, place + 1)

        return walk(self.base, {}, 0)

    def config(self, values: dict[str, Any], chosen: dict[str, Any]) -> TrainConfig:
        """A combination, validated."""
        text = json.dumps(values, sort_keys=True, default=repr)
        if text not in self.known:
            if len(self.known) == MOST:
                raise ValueError(
                    f"the sweep has more than {MOST:,} runs: shorten the lists of `grid`, or draw at random."
                )
            try:
                self.known[text] = train_config(values)
            except ValueError as error:
                if len(chosen) < 2:
                    raise
                combination = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
                raise ValueError(
                    f"{error} This is the combination {combination}; a key that not all runs can have takes a "
                    f"condition: {{values: [...], when: {{...}}}}."
                ) from None
        return self.known[text]

    def check(self) -> None:
        """Refuse conditions that no run meets, and more draws than there are."""
        for axis in self.conditions:
            if not self.met[id(axis.when)]:
                raise ValueError(
                    f"`{axis.key}` is never set: no run of the sweep meets its condition `when` {axis.when}; change "
                    f"the condition or remove the key."
                )
        if self.random is None:
            return
        if not self.searched:
            raise ValueError(
                "`random.space` is empty and no method draws a key: add one, such as lr: {log_uniform: [0.001, 1.0]}."
            )
        if self.most < self.random.draws:
            raise ValueError(
                f"`random.draws` is {self.random.draws}, but only {self.most} different ones were found: ask for at "
                f"most {self.most}, or widen the space."
            )


def draws(axes: Sequence[Axis], seed: int) -> Iterator[dict[str, Any]]:
    """Different draws of some axes, one after another, until there are no more.

    Each key has a random stream of its own, so that the draws of one do not depend on which others there are.
    """
    spread = {axis.key: axis.values for axis in axes if not isinstance(axis.values, tuple)}
    streams = {key: np.random.default_rng(derive(seed, f"sweep {key}")) for key in spread}
    total: int | None = 1
    for one in spread.values():
        kinds = len({repr(v) for v in one.values}) if isinstance(one, Choice) else one.size
        total = None if total is None or kinds is None else total * kinds
    seen: set[str] = set()
    while total is None or len(seen) < total:
        draw = {key: one.draw(streams[key]) for key, one in spread.items()}
        text = repr(sorted(draw.items()))
        if text not in seen:
            seen.add(text)
            yield draw


def ordered(axes: Sequence[Axis]) -> list[Axis]:
    """The axes, each after those that its condition names; otherwise as they were.

    Raises:
        ValueError: If conditions go round in a circle.
    """
    done: list[Axis] = []
    waiting = list(axes)
    while waiting:
        free = next((a for a in waiting if not any(_before(b, a) for b in waiting if b is not a)), None)
        if free is None:
            circle = ", ".join(f"`{axis.key}`" for axis in waiting)
            raise ValueError(f"the conditions of {circle} wait for each other: remove one `when`.")
        waiting.remove(free)
        done.append(free)
    return done


def _before(first: Axis, then: Axis) -> bool:
    """Whether one axis must have its value before another: its condition reads it, or it sets one of its options."""
    read = then.when.needs() if then.when else set()
    heads = {key.partition(".")[0] for key in read}
    return then.key.startswith(first.key + ".") or first.key in read or first.key in heads
