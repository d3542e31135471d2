"""Hashes of weights that runs began from, so that a run keeps its name when the file has moved."""

from pathlib import Path

from trainers.files.reading import read_json
from trainers.weights.places import weights_digest

_noted: dict[tuple[str, bool], set[str]] = {}  # by absolute path, and whether the average there was taken


def remember(folder: str | Path, *places: str | None) -> None:
    """Note the weights that the runs in a folder began from, from their config.json, if some of the places are gone."""
    if places and all(place is None or Path(place).exists() for place in places):
        return
    folder = Path(folder)
    for path in (*folder.glob("*/config.json"), *folder.glob("runs/*/config.json")):
        try:
            stored = read_json(path)
        except (OSError, ValueError):
            continue  # said where the run is read
        place, digest = stored.get("init"), stored.get("init_digest")
        if isinstance(place, str) and isinstance(digest, str):
            key = str(Path(place).absolute()), bool(stored.get("init_ema"))
            _noted.setdefault(key, set()).add(digest)


def known_digest(place: str, *, ema: bool = False) -> str:
    """The hash of the weights at a place, or where they are gone, the one that runs noted when they began.

    Args:
        place: Its absolute path.
        ema: Whether the average of weights there is meant.

    Raises:
        FileNotFoundError: If they are gone and no run, or runs with different weights, began from there.
        ValueError: If there is something else.
    """
    if Path(place).exists():
        return weights_digest(place, ema=ema)
    noted = sorted(_noted.get((place, ema), ()))
    if len(noted) == 1:
        return noted[0]
    if noted:
        said = f"runs began there from different weights, {' and '.join(noted)}: say which with `init_digest`."
    else:
        said = (
            "give a file of weights; or to go on with a run that began from it, also the `init_digest` in its "
            "config.json."
        )
    raise FileNotFoundError(f"`init` {place} does not exist: {said}")
