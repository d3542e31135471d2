"""Import the packages where only torch, numpy, scipy and pandas are: a stand-in for each library that is absent.

A GPU is often lent without a way to install anything. What is checked and timed there needs of the other libraries
only that `import` finds them, and of three of them a little more: annotations of shapes (jaxtyping), free memory
(psutil), and types of options, which are then taken as they are (pydantic). A stand-in that is used for anything else
says that its library is not installed.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

LIBRARIES = (
    "PIL", "jaxtyping", "joblib", "matplotlib", "psutil", "pyarrow", "pydantic", "pydantic_core", "rich", "safetensors",
    "sklearn", "yaml",
)  # fmt: skip


class Absent(Exception):  # noqa: N818  (an exception, so that `except` may name one)
    """A class of a library that is not there: it can be named, subscripted and inherited from, but not made."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"{type(self).__module__} is not installed: {type(self).__name__} cannot be used.")

    def __class_getitem__(cls, item: object) -> Any:
        return Any


class StandIn(ModuleType):
    """A module whose every name is an `Absent` class, unless it is given."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Absent,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Model:
    """pydantic's `BaseModel`, as far as modules ask for it when they are imported."""

    model_fields: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **_: object) -> None:
        cls.model_fields = {**cls.model_fields, **inspect.get_annotations(cls)}


class _Adapter:
    """pydantic's `TypeAdapter`: takes a value as it is."""

    def __init__(self, *_: object, **__: object) -> None:
        """Types are not checked."""

    def __class_getitem__(cls, item: object) -> Any:
        return Any

    def validate_python(self, value: Any) -> Any:
        return value


def _unchanged(*_: object, **__: object) -> Callable[[Any], Any]:
    return lambda function: function


def _nothing(*_: object, **__: object) -> None:
    return None


def _free() -> SimpleNamespace:
    return SimpleNamespace(available=os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


GIVEN: dict[str, dict[str, Any]] = {
    "psutil": {"virtual_memory": _free},
    "pydantic": {
        "BaseModel": _Model, "ConfigDict": dict, "Field": _nothing, "TypeAdapter": _Adapter,
        "field_validator": _unchanged, "model_validator": _unchanged,
    },
}  # fmt: skip


class Finder(MetaPathFinder, Loader):
    """Finds a stand-in for a library that nobody else found; the last to be asked."""

    def __init__(self, libraries: Sequence[str] = LIBRARIES) -> None:
        self.libraries = libraries

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        if name.partition(".")[0] not in self.libraries:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        made = StandIn(spec.name)
        made.__dict__.update(GIVEN.get(spec.name, {}))
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Everything is there already."""


@contextmanager
def standing_in(libraries: Sequence[str] = LIBRARIES) -> Iterator[list[str]]:
    """Stand-ins while a block imports the packages; afterwards who asks for such a library hears that it is absent.

    Yields:
        The names of the libraries that are absent, complete at the end of the block.
    """
    import pandas  # noqa: F401  (it looks for pyarrow itself)
    import torch  # noqa: F401

    finder, absent = Finder(libraries), list[str]()
    sys.meta_path.append(finder)
    try:
        yield absent
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, StandIn)]:
            del sys.modules[name]
            if "." not in name:
                absent.append(name)


with standing_in() as ABSENT:
    import trainers  # noqa: F401  (and landscape with it)
