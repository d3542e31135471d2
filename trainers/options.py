"""Check keyword options against the signature of the function that will take them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from trainers.naming import nearest


def knobs(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function: what a user may set."""
    return {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


def checked(function: Callable[..., Any], options: Mapping[str, Any], *, owner: str) -> dict[str, Any]:
    """All knobs of `function` with their values: those given, validated against the annotations, and the defaults.

    Args:
        function: Its keyword-only parameters are the knobs; they need annotations and defaults.
        options: What the user gave.
        owner: What to call the function in messages, such as "method 'sam'".

    Raises:
        ValueError: For an unknown name, with the nearest, or a value of the wrong type.
    """
    known = knobs(function)
    for name in options:
        if name not in known:
            have = f"it has {sorted(known)}" if known else "it has none"
            raise ValueError(f"{owner} has no option `{name}`; {have}.{nearest(name, known)}")
    resolved = {}
    for name, parameter in known.items():
        value = options.get(name, parameter.default)
        adapter = pydantic.TypeAdapter(parameter.annotation, config=pydantic.ConfigDict(strict=False))
        try:
            resolved[name] = adapter.validate_python(value)
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f"option `{name}` of {owner} got {value!r}: {reason}.") from None
    return resolved
