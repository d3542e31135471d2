"""The batches of CIFAR are pickles: read here without running anything that a file names.

A pickle says which functions are called to make what it holds, and so can run any code. Here the few names that arrays
of numbers need are answered by stand-ins of our own, which do nothing but keep bytes; every other name is refused.
torchvision's reader calls whatever the file names, and guards against it by the checksums of the files as published, so
that it reads no other batches in this format.
"""

import pickle  # noqa: TID251 - with stand-ins only
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KINDS = frozenset("biuf")  # booleans, whole numbers and floating point


class _Kind:
    """Stands for `numpy.dtype`."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.dtype = np.dtype(_text(text))
        if self.dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"arrays of {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder("<" if _text(state[1]) == "<" else ">" if _text(state[1]) == ">" else "=")


class _Array:
    """Stands for an array: its bytes are kept as they are in the file, and never copied."""

    def __init__(self, *_: Any) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        self.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _buffered(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    found = _Array()
    found.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if _text(order) == "F" else "C")
    return found


def _scalar(kind: Any, raw: Any) -> Any:
    return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, kind.dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if _text(encoding) == "latin1" else "utf-8")


class _Type:
    """Stands for the type `numpy.ndarray`, which is named but not called."""


STANDS_IN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Type,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    STANDS_IN[f"{_core}.multiarray", "_reconstruct"] = _Array
    STANDS_IN[f"{_core}.multiarray", "scalar"] = _scalar
    STANDS_IN[f"{_core}.numeric", "_frombuffer"] = _buffered


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDS_IN:
            raise pickle.UnpicklingError(f"a call of {module}.{name}, which could run code")
        return STANDS_IN[module, name]


def read_pickled(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle, of any protocol: numbers, text, lists, and arrays of numbers, which are read-only.

    Raises:
        ValueError: If the file holds anything else, naming it; nothing of it was run.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(file, encoding="bytes").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"a {type(found).__name__} where a dictionary is expected")
    except Exception as error:  # a damaged pickle fails in any way
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} is no batch of arrays ({said}): nothing of it was run; unpack the data anew."
        ) from None
    return {_text(key): _plain(value) for key, value in found.items()}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [_text(entry) for entry in value]
    return value
