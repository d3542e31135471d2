"""The tests marked `gpu`, run in this process, with or without pytest: one row a file, and one for each that failed."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from benchmarks.gpu.place import Place
from benchmarks.gpu.script import Row, failed, not_run

TESTS = Path(__file__).parents[2] / "tests"
FOLDERS = ("gpu", "trainers", "")  # of tests, where helpers of these tests lie


class Skipped(Exception):  # noqa: N818  (pytest's own is no error either)
    """Raised by the stand-in's `skip`."""


@dataclass(frozen=True)
class Case:
    """A test with its arguments."""

    name: str
    function: Callable[..., None]
    arguments: dict[str, Any]


class Marks:
    """pytest's `mark`: notes name and arguments where pytest does."""

    def __getattr__(self, name: str) -> Any:
        def mark(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and callable(args[0]) and not kwargs and name != "parametrize":
                return args[0]

            def noted(function: Any) -> Any:
                function.pytestmark = [*getattr(function, "pytestmark", []), SimpleNamespace(name=name, args=args)]
                return function

            return noted

        return mark


def stand_in() -> ModuleType:
    """What these tests need of pytest: `mark`, `skip`."""

    def skip(reason: str) -> None:
        raise Skipped(reason)

    made = ModuleType("pytest")
    skip.Exception = Skipped  # type: ignore[attr-defined]
    made.__dict__.update(mark=Marks(), skip=skip)
    return made


def cases(module: ModuleType) -> list[Case]:
    """The tests of a module, once for each combination of their parameters."""
    found = []
    for name, function in vars(module).items():
        if not name.startswith("test_") or not callable(function):
            continue
        marks = [m.args[:2] for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
        axes = [[_named(names, value) for value in values] for names, values in marks]
        for chosen in product(*axes):
            given = {key: value for each in chosen for key, value in each.items()}
            label = f"[{'-'.join(map(str, given.values()))}]" if given else ""
            found.append(Case(name + label, function, given))
    return found


def _named(names: str | tuple[str, ...], value: Any) -> dict[str, Any]:
    return {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))


def run(place: Place, file: str) -> Iterator[Row]:
    """All tests of a file of tests/gpu on the device, each beside the others: one that fails stops no other.

    Yields:
        A row for each test that failed or was skipped, and one for all, with the largest relative difference from the
        CPU that was seen.
    """
    os.environ["LANDSCAPE_DEVICE"] = str(place.device)
    sys.path[:0] = [str(TESTS / folder) for folder in FOLDERS]
    if importlib.util.find_spec("pytest") is None:
        sys.modules["pytest"] = stand_in()
    skips: type[BaseException] = importlib.import_module("pytest").skip.Exception
    module, helper = importlib.import_module(file), importlib.import_module("on_device")
    everything, wrong, left_out = cases(module), 0, 0
    for case in everything:
        try:
            case.function(**case.arguments)
        except skips as reason:
            left_out += 1
            yield not_run(case.name, str(reason))
        except Exception as error:
            wrong += 1
            yield failed(f"{file}: {case.name}", error)
    count = len(everything) - left_out
    what = (module.__doc__ or file).splitlines()[0].rstrip(".")
    note = f"largest relative difference {helper.largest:.1e}" if helper.largest else ""
    yield {"what": what, "value": count - wrong, "unit": f"of {count} passed", "note": note}
