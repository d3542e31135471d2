"""A method of one's own: a function of a `Setting` that returns a `Composition`, named as module:function."""

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

from landscape.naming import nearest
from trainers.options import checked, require_typed
from trainers.reference import is_reference, load_reference, well_formed
from trainers.sharpness_aware.methods.registry import METHODS, Method, Setting


def _refused(setting: Setting) -> NoReturn:  # noqa: ARG001 - as all methods have it
    raise PermissionError(
        "a method of one's own was not imported: that would run its code; allow it with `--trust`, in Python with "
        "`trust=True`."
    )


NOT_IMPORTED = Method(_refused, "One's own, not imported.", "not known", "one's own", "ours")


def import_methods(values: Any, *, trust: bool) -> None:
    """Import the methods of one's own that configurations name, so that they are methods like the others.

    The function is called as those in `trainers.sharpness_aware.methods`: with a `Setting`, and its keyword-only
    parameters are the method's options.

    Args:
        values: A configuration, or mappings and lists in which some stand, as in a study file.
        trust: False refuses.

    Raises:
        PermissionError: If there is one, and `trust` is False.
        ValueError: If there is no such module or function, or an option has no type or default.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            named = value if isinstance(value, list | tuple) else [value]
            if key == "method":
                _import([name for name in named if isinstance(name, str)], trust=trust)
            else:
                import_methods(value, trust=trust)
    elif isinstance(values, list | tuple):
        for value in values:
            import_methods(value, trust=trust)
    elif isinstance(name := getattr(values, "method", None), str):
        _import([name], trust=trust)


def _import(names: list[str], *, trust: bool) -> None:
    for name in names:
        if name in METHODS or not is_reference(name):
            continue
        function = load_reference(name, trust=trust, key="method")
        require_typed(function, f"`method` {name!r}")
        says = (inspect.getdoc(function) or "One's own.").partition("\n")[0]
        METHODS[name] = Method(function, says, "not known", name, "ours")


def options_of(entry: Method, given: Mapping[str, Any], *, owner: str, **how: Any) -> dict[str, Any]:
    """All options of a method, see `trainers.options.checked`; of one that is not imported those given, unchecked."""
    return dict(given) if entry is NOT_IMPORTED else checked(entry.compose, given, owner=owner, **how)


def method_named(name: Any) -> Method:
    """A method of the registry; of one's own that was not imported an entry that cannot be used.

    Raises:
        ValueError: If there is none of that name, with the nearest.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    if isinstance(name, str) and is_reference(name) and well_formed(name):
        return NOT_IMPORTED
    raise ValueError(
        f"`method` {name!r} is unknown; there are {sorted(METHODS)}, or your own as module:function."
        f"{nearest(str(name), METHODS)}"
    )
