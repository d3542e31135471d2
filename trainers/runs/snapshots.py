"""Snapshots: everything that the rest of a run depends on, in `resume/` of its folder.

`resume/<step>.<n>.safetensors` holds the tensors and `resume/state.json` the rest with the name and the checksum of the
tensors' file; putting state.json in place is what makes a snapshot count, and the one before it stays whole until then.
"""

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.files.kept import Kept, OtherVersionError
from trainers.files.tree import join_tensors, split_tensors
from trainers.files.writing import remove_asides

SCHEMA = 2  # raise it when a snapshot comes to hold something else
STATE = "state.json"

log = logging.getLogger(__name__)


def way_out(folder: Path) -> str:
    """What to do about a damaged snapshot."""
    return f"delete {folder} and run the same command again; the run then starts from the beginning"


def kept(folder: Path) -> Kept:
    """The snapshot in `resume/`."""
    return Kept(folder / STATE, ".safetensors", way_out=way_out(folder), key="tensors", schema=SCHEMA)


def write_snapshot(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a nested state (see `trainers.files.tree`) and remove the snapshot before it.

    Raises:
        OSError: As the disk does; the snapshot before then still counts.
    """
    skeleton, tensors = split_tensors(state)
    place = kept(folder).write({"state": skeleton}, lambda aside: save_file(tensors, aside), stem=f"{step}.0")
    for old in folder.glob("*.safetensors"):
        if old != place:
            old.unlink()
    remove_asides(folder)


def read_snapshot(folder: Path) -> dict[str, Any] | None:
    """The snapshot that counts; None where there is none, or only one of another version.

    Raises:
        ValueError: If a file of it was damaged, with the way out.
    """

    def read(place: Path) -> dict[str, Tensor]:
        try:
            return dict(load_file(place))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{place} cannot be read ({error}): {way_out(folder)}.") from None

    try:
        found = kept(folder).read(read)
    except OtherVersionError:
        log.warning("%s is of another version of landscape: this run starts again.", folder)
        return None
    if found is None:
        return None
    stored, tensors = found
    # copies of their own: in the file's buffer tensors begin anywhere, and sums over other alignments round otherwise
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    try:
        state: dict[str, Any] = join_tensors(stored["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / STATE} is no snapshot of a run ({error}): {way_out(folder)}.") from None
    return state
