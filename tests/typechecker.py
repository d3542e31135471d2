"""The run-time type checker of the tests: beartype, with an int accepted where a float is annotated.

jaxtyping has a function without a body made and checked for each signature, and again each time that a nested function
is defined, which took most of the time of the tests. What was made for an equal signature is used again.
"""

from collections.abc import Callable, Hashable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))
_made: dict[Hashable, Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which checks its arguments and what it returns."""
    if "<locals>" not in function.__qualname__ or function.__closure__:
        return _beartype(function)
    code = function.__code__
    names = code.co_varnames, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    key = (function.__module__, function.__qualname__, code.co_code, names, *function.__annotations__.items())
    try:
        if key not in _made:
            _made[key] = _beartype(function)
    except TypeError:  # an annotation without a hash
        return _beartype(function)
    return _made[key]
