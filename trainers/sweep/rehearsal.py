"""A look ahead: everything that a sweep needs is loaded and built once before its first run."""

from collections.abc import Sequence
from pathlib import Path

from trainers.config import TrainConfig
from trainers.data.augmentation import Given
from trainers.data.shifted import Shifted, check_fit
from trainers.randomness import seeded
from trainers.reference import is_reference, load_reference
from trainers.runs.folder import Run, data_options, load_data
from trainers.runs.training import Training
from trainers.sharpness_aware.methods.own import import_methods


def rehearse(
    configs: Sequence[TrainConfig],
    *,
    out: Path | None = None,
    trust: bool = False,
    checkpoint_activations: bool = False,
    shifted: Sequence[Shifted] = (),
) -> None:
    """Load the data, and build model and optimizer, of every configuration of a sweep, for one seed.

    Args:
        configs: All runs of the sweep.
        out: Folder of the runs: one that has begun has its initial weights there. None looks for none.
        trust: As for `fit`.
        checkpoint_activations: As for `fit`.
        shifted: Shifted test sets on which all are to be measured.

    Raises:
        ValueError: If something does not fit, naming the configuration.
        PermissionError: For a module:function without `trust`.
        ImportError: If a package for the data is missing.
    """
    check_trust(configs, trust=trust)
    groups: dict[str, dict[str, TrainConfig]] = {}
    for config in configs:
        values = {key: value for key, value in config.as_dict().items() if key not in ("seed", "data_seed")}
        data_of = {key: value for key, value in data_options(config).items() if key != "seed"}
        group = groups.setdefault(repr([data_of, config.precision]), {})
        group.setdefault(repr(values), config)
    varied = [key for key in TrainConfig.model_fields if len({repr(getattr(c, key)) for c in configs}) > 1]
    for group in groups.values():
        data = None
        for config in group.values():
            try:
                if data is None:
                    data = load_data(config, trust=trust, shifted=shifted)
                    check_fit(data, shifted)
                with seeded(0):
                    Training(
                        config.resolved(), Run(Path() if out is None else out / config.run_id), trust=trust, data=data,
                        checkpoint_activations=checkpoint_activations,
                    )  # fmt: skip
            except ValueError as error:
                cell = ", ".join(f"{key}={getattr(config, key)}" for key in varied)
                raise ValueError(f"{error} This is the run {cell}." if cell else str(error)) from error


def check_trust(configs: Sequence[TrainConfig], *, trust: bool) -> None:
    """Import the modules of the user's own that configurations name.

    Raises:
        PermissionError: If there is one, and `trust` is False.
        ValueError: If there is no such module or function.
    """
    import_methods(configs, trust=trust)
    own = [("dataset", config.dataset) for config in configs if is_reference(config.dataset)]
    own += [("model", config.model) for config in configs if is_reference(config.model)]
    own += [
        ("augment", given.name) for config in configs for given in map(Given.read, config.augment) if given.needs_trust
    ]
    for key, name in dict.fromkeys(own):
        load_reference(name, trust=trust, key=key)
