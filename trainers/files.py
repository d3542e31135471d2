"""Writing files so that one that exists is whole."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a file aside and put it in place by rename.

    Args:
        path: Final place; its folder is made.
        write: Writes the whole content to the path it is given.

    Raises:
        OSError: As the disk does; nothing is then left behind, and an old file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    aside = Path(name)
    try:
        write(aside)
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda aside: aside.write_bytes(content))


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused."""
    text = json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: If the file is not JSON, with its path and the way out.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole JSON ({error}): delete it and run the same command again.") from None
