"""References to a user's own function, written `package.module:function`.

Loading one imports, and so runs, the module: a reference that comes out of a file needs the user's permission.
"""

import hashlib
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landscape.naming import nearest

# What may stand before a colon and is no module: `scheme:rest` names data by their path, or models of a library.
DATA_SCHEMES = (
    "fashion_mnist",
    "mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "imagefolder",
    "npz",
    "hf",
    "csv",
    "pydoc",
    "text",
)
MODEL_SCHEMES = ("timm", "torchvision", "hf")


def scheme_of(name: str) -> str | None:
    """The scheme of a name `scheme:rest`, or of `scheme` alone; None for other names."""
    scheme = name.partition(":")[0]
    return scheme if scheme in DATA_SCHEMES or scheme in MODEL_SCHEMES else None


def is_reference(name: str) -> bool:
    """Whether a name is meant as `module:function` rather than as the name of something built in, or by scheme."""
    return ":" in name and scheme_of(name) is None


def well_formed(text: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    module, colon, path = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *path.split(".")))


def load_reference(text: str, *, trust: bool = True, key: str = "") -> Callable[..., Any]:
    """Import `package.module:function` and return the function.

    The part after the colon may have dots (`module:Class.method`). An exception that the module itself raises while
    it is imported is passed on as it is.

    Args:
        text: The reference.
        trust: False refuses, without importing anything.
        key: The setting that holds it, for messages.

    Raises:
        ValueError: If the text is not of that form, there is no such module or attribute, or it cannot be called; the
            message says which.
        PermissionError: If `trust` is False.
    """
    said = f"`{key}` {text!r}" if key else repr(text)
    module_name, _, path = text.partition(":")
    if not well_formed(text):
        raise ValueError(f"a reference must have the form `package.module:function`, got {said}.")
    if not trust:
        raise PermissionError(
            f"{said} was not imported: that would run its code; allow it with `--trust`.{_misspelt(module_name)}"
        )
    try:
        module = importlib.import_module(module_name)
    except SystemExit as error:
        raise ValueError(
            f"{said}: importing {module_name!r} ended the program: what it runs belongs under "
            f"`if __name__ == '__main__':`."
        ) from error
    except ModuleNotFoundError as error:
        # The module may exist and lack one of its own imports: that message must not be hidden behind ours.
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise
        raise ValueError(
            f"{said}: there is no module {error.name!r}; install it, or put its folder on PYTHONPATH."
            f"{nearest(module_name, (*DATA_SCHEMES, *MODEL_SCHEMES))}"
        ) from error
    target: Any = module
    for part in path.split("."):
        if not hasattr(target, part):
            names = [name for name in dir(target) if not name.startswith("_")]
            place = f" ({module.__file__})" if getattr(module, "__file__", None) else ""
            raise ValueError(f"{said}: {module_name!r}{place} has no attribute {part!r}.{nearest(part, names)}")
        target = getattr(target, part)
    if not callable(target):
        raise ValueError(f"{said} is of type {type(target).__name__}, which cannot be called; name a function.")
    found: Callable[..., Any] = target
    return found


def source_digest(function: Callable[..., Any]) -> str:
    """A digest of the file that a function is in, by which results of it are known; empty where there is no file."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return ""
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]


def _misspelt(module: str) -> str:
    """A hint for what is no module here, and nearly a scheme; nothing is imported."""
    if "." in module or Path(module).is_dir() or Path(f"{module}.py").is_file():
        return ""
    try:
        there = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        there = True
    return "" if there else nearest(module, (*DATA_SCHEMES, *MODEL_SCHEMES))


def call(what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a user's function; what it raises becomes one clear error.

    Args:
        what: What it is, for the message.
        function: To be called.
        *arguments: With these.
        **named: And with these.

    Raises:
        ValueError: With the kind of the error, its text, and its place in the user's file.
    """
    try:
        return function(*arguments, **named)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(
            f"{what} failed: {type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno})."
        ) from error
