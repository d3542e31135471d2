"""Many runs: a grid of configurations, trained one process a core."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.config import TrainConfig, train_config
from trainers.files import write_json
from trainers.loop import fit
from trainers.parallel import in_parallel
from trainers.runs import Run


def expand(
    base: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    variants: Sequence[Mapping[str, Any]] = ({},),
) -> list[TrainConfig]:
    """All combinations of a grid, for each variant, on top of a base configuration.

    Args:
        base: Keys and values common to all runs.
        grid: Key to list of values; crossed with everything.
        variants: Further keys, such as a method with its radii; a list as value is crossed within the variant.

    Returns:
        The configurations without repetition, in order.

    Raises:
        ValueError: For an empty list, or a configuration that is not valid.
    """
    configs: dict[str, TrainConfig] = {}
    if not variants:
        raise ValueError("`methods` is empty: list at least one, such as {method: sgd}.")
    for variant in variants:
        axes = {**grid, **{k: v if isinstance(v, list) else [v] for k, v in variant.items()}}
        for key, values in axes.items():
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"`grid` needs a list with at least one value for `{key}`, got {values!r}.")
        for values in itertools.product(*axes.values()):
            config = train_config({**base, **dict(zip(axes, values, strict=True))})
            configs.setdefault(config.run_id, config)
    return list(configs.values())


def train_all(
    configs: Sequence[TrainConfig], *, out: str | Path, jobs: int | None = None, trust: bool = False
) -> Iterator[Run]:
    """Train runs in parallel, one process a core and one thread each; yields each as it ends.

    Finished runs are skipped. A run that fails does not stop the others: its status says why.

    Args:
        configs: What to train.
        out: Folder of runs.
        jobs: Processes; None is one a core.
        trust: As for `fit`.
    """
    done = {c.run_id for c in configs if Run(Path(out) / c.run_id).finished}
    for config in configs:
        if config.run_id in done:
            yield Run(Path(out) / config.run_id)
    todo = [c for c in configs if c.run_id not in done]
    yield from in_parallel(train_one, [(c, str(out), trust) for c in todo], jobs=jobs)


def train_one(config: TrainConfig, out: str, trust: bool) -> Run:
    """Train one run of a sweep; an exception becomes its status."""
    run = Run(Path(out) / config.run_id)
    try:
        return fit(config, out=out, trust=trust)
    except Exception as error:  # the sweep goes on, and says which run failed
        write_json(run.folder / "config.json", {**config.as_dict(), "run_id": config.run_id})
        run.write_status("failed", reason=f"{type(error).__name__}: {error}")
        return run
