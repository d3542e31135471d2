"""Checkpoints: a folder of safetensors and JSON that is whole as soon as its meta.json is there. Nothing is pickled."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from landscape.naming import nearest
from trainers.data.loading import read_graph
from trainers.files.kept import sealed
from trainers.files.reading import Shape, check_shape, read_json
from trainers.files.writing import DAMAGED, check_digest, digest, write_atomically, write_json
from trainers.models.averaging import WeightAverage
from trainers.models.building import build_model, takes_graph
from trainers.models.starting import freeze
from trainers.weights.foreign import read_foreign
from trainers.weights.places import AVERAGE, META, PARAMS, WAY_OUT, read_content

SCHEMA = 1


class Settings(Shape):
    """What of a run's configuration its model is built from."""

    model: str
    model_options: dict[str, Any]
    seed: int
    freeze: tuple[str, ...] | list[str] = ()


class MetaFile(Shape):
    """meta.json."""

    names: list[str]
    run_id: str
    step: int
    epoch: int
    config: Settings
    shape: list[int]
    classes: int
    sha256: str | None = None


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied tensors once."""
    kept = set(model.state_dict())
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: t.detach() for name, t in named if name in kept}


def save_checkpoint(
    folder: Path, model: nn.Module, meta: Mapping[str, Any], *, average: WeightAverage | None = None
) -> Path:
    """Write parameters and buffers, then `meta.json` with their checksum and its own; all aside and by rename.

    Args:
        folder: Of this checkpoint.
        model: Its `named_parameters()` order is kept in the meta, since safetensors keeps an order of its own.
        meta: At least run_id, step, epoch, config, shape and classes.
        average: The average of weights, which is kept in a file of its own.
    """
    (folder / META).unlink(missing_ok=True)  # of an earlier try, whose weights these replace
    more: dict[str, Any] = {"sha256": _save_weights(folder / PARAMS, model)}
    if average is not None:
        checksum = _save_weights(folder / AVERAGE, average.model)
        more["average"] = {"kind": average.kind, "count": average.count, "sha256": checksum}
    names = [name for name, _ in model.named_parameters()]
    write_json(folder / META, sealed({"schema": SCHEMA, "names": names, **meta, **more}), sort=False)
    return folder


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; first what makes it whole."""
    (folder / META).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _save_weights(path: Path, model: nn.Module) -> str:
    """Write parameters and buffers; returns their checksum."""
    state = {name: t.contiguous().cpu().clone() for name, t in model_state(model).items()}
    checksum: list[str] = []

    def write(aside: Path) -> None:
        save_file(state, aside)
        checksum.append(digest(aside))

    write_atomically(path, write)
    return checksum[0]


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta of a checkpoint folder.

    Raises:
        FileNotFoundError: If there is none: the write was cut short, or this is no checkpoint.
        ValueError: If it was written by a later version, or is not what was written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: give the folder of a checkpoint (RUN/checkpoints/STEP).")
    if not (folder / META).exists():
        raise FileNotFoundError(f"{folder} has no {META}: the write was cut short; delete it and train again.")
    meta = read_json(folder / META, hint=WAY_OUT)
    if isinstance(meta.get("schema"), int) and meta["schema"] > SCHEMA:
        raise ValueError(f"{folder} has schema {meta['schema']}, this version reads up to {SCHEMA}: update landscape.")
    noted = meta.pop("checksum", None)
    if noted is not None and sealed(meta)["checksum"] != noted:
        raise ValueError(f"{folder / META} cannot be read ({DAMAGED}): {WAY_OUT}.")
    return meta


def load_checkpoint(
    folder: str | Path, *, average: bool = False, trust: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the model of a checkpoint, in evaluation mode.

    Args:
        folder: RUN/checkpoints/STEP.
        average: Take the average of weights, of a run with the setting `average`; its kind and the number of weights
            are in the meta.
        trust: Import a model that the file names as module:function. Reading a file never runs code otherwise.

    Returns:
        The model, with what training kept as it was frozen again, and the checkpoint's meta.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        PermissionError: If the model, or the graph that it takes, is a module:function and `trust` is False.
        ValueError: If a file is damaged or truncated, or does not fit the model; or there is no average.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    if average and "average" not in meta:
        raise ValueError(
            f"{folder} has no average of weights: train with `average` ema or swa, and take a checkpoint from after "
            f"`average_from`."
        )
    check_shape(meta, MetaFile, folder / META, hint=WAY_OUT)
    config = meta["config"]
    model = build_model(
        config["model"],
        shape=tuple(meta["shape"]),
        classes=meta["classes"],
        generator_seed=config["seed"],
        options=config["model_options"],
        graph=read_graph(config["dataset"], trust=trust) if takes_graph(config["model"], trust=trust) else None,
        trust=trust,
    )
    if config.get("precision") == "float64":
        model.double()
    if average:
        check_digest(folder / AVERAGE, meta["average"].get("sha256"), WAY_OUT)
    apply_weights(model, read_weights(folder / (AVERAGE if average else PARAMS)))
    freeze(model, config.get("freeze", ()))
    return model.eval(), meta


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of ours, compared with the checksum in its `meta.json`, or of a file from elsewhere.

    Of the latter the largest set of tensors is taken, under its own names; see `trainers.read_foreign`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or truncated, or holds no weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and (path.parent / META).exists():
        read_meta(path.parent)
        weights: dict[str, Tensor] = read_content(path)
        return weights
    return read_foreign(path).tensors


def apply_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model, in place; everything must fit.

    Raises:
        ValueError: Naming what is missing, unexpected or of another shape.
    """
    own, every = model_state(model), model.state_dict()
    for name in weights:
        if name not in every:
            raise ValueError(f"the weights hold `{name}`, which the model lacks.{nearest(name, own)}")
    for name, tensor in own.items():
        if name not in weights:
            raise ValueError(f"the weights lack `{name}`, which the model has: is it another model or size?")
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(weights[name].shape)} in the file and {tuple(tensor.shape)} in the model."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
