"""Snapshots: everything that the rest of a run depends on, in `resume/` of its folder.

`resume/<step>.<n>.safetensors` holds the tensors and `resume/state.json` the rest with the name of the tensors' file;
putting state.json in place is what makes a snapshot count, and the one before it stays whole until then.
"""

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainers.files import remove_asides, write_atomically, write_json
from trainers.reading import Shape, check_shape, read_json
from trainers.tree import join_tensors, split_tensors

SCHEMA = 2  # raise it when a snapshot comes to hold something else
STATE = "state.json"

log = logging.getLogger(__name__)


class StateFile(Shape):
    """state.json."""

    tensors: str
    state: dict[str, Any]


def write_snapshot(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a nested state (see `trainers.tree`) and remove the snapshot before it.

    Raises:
        OSError: As the disk does; the snapshot before then still counts.
    """
    skeleton, tensors = split_tensors(state)
    n = 0
    while (place := folder / f"{step}.{n}.safetensors").exists():
        n += 1
    write_atomically(place, lambda aside: save_file(tensors, aside))
    write_json(folder / STATE, {"schema": SCHEMA, "tensors": place.name, "state": skeleton}, sort=False)
    for old in folder.glob("*.safetensors"):
        if old != place:
            old.unlink()
    remove_asides(folder)


def read_snapshot(folder: Path) -> dict[str, Any] | None:
    """The snapshot that counts; None where there is none, or only one of another version.

    Raises:
        ValueError: If a file of it was damaged, with the way out.
    """
    if not (folder / STATE).exists():
        return None
    again = f"delete {folder} and run the same command again; the run then starts from the beginning"
    stored = read_json(folder / STATE, hint=again)
    if stored.get("schema") != SCHEMA:
        log.warning("%s is of another version of landscape: this run starts again.", folder)
        return None
    check_shape(stored, StateFile, folder / STATE, hint=again)
    try:
        tensors = load_file(folder / stored["tensors"])
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / stored['tensors']} cannot be read ({error}): {again}.") from None
    # copies of their own: in the file's buffer tensors begin anywhere, and sums over other alignments round otherwise
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    try:
        state: dict[str, Any] = join_tensors(stored["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / STATE} is no snapshot of a run ({error}): {again}.") from None
    return state
