"""The run-time type checker of the tests: beartype, with an int accepted where a float is annotated.

`jaxtyping.jaxtyped` makes two functions without a body for each function, one that checks the arguments and one that
checks all with the result, and binds the arguments of each call to the signature first. For the small functions of this
package that takes longer than they do themselves, and took a third of the time of their tests. `jaxtyped` below has
beartype check the function itself, with the sizes that jaxtyping keeps for a call; generators alone go the old way.
"""

import dataclasses
import functools
import inspect
import sys
import types
import typing
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintViolation
from jaxtyping import TypeCheckError
from jaxtyping._storage import pop_shape_memo, push_shape_memo, shape_str

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
thorough = jaxtyping.jaxtyped

if sys.version_info < (3, 12):  # from where on Python itself remembers what a protocol asks for
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)


def jaxtyped(thing: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped` in less time; dimensions that name an argument's value, `"{n}"`, are an error."""
    if thing is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if dataclasses.is_dataclass(thing) and thing.__init__.__globals__ is not globals():
        thing.__init__ = jaxtyped(thing.__init__, typechecker=typechecker)
        return thing
    if not isinstance(thing, types.FunctionType) or inspect.isgeneratorfunction(thing):
        return thorough(thing, typechecker=typechecker)
    checked = typechecker(_resolved(thing))

    @functools.wraps(thing)
    def call(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return thing(*arguments, **named)
        sizes = push_shape_memo({})
        try:
            return checked(*arguments, **named)
        except BeartypeCallHintViolation as error:
            part = "parameters" if isinstance(error, BeartypeCallHintParamViolation) else "return value"
            name = f"{thing.__module__}.{thing.__qualname__}"
            raise TypeCheckError(f"whilst checking the {part} of {name}: {error}\n{shape_str(sizes)}") from error
        finally:
            pop_shape_memo()

    return call


def _resolved(function: types.FunctionType) -> types.FunctionType:
    """A copy with annotations in place of their strings; what cannot be found yet is not checked, as in jaxtyping."""
    code, names = function.__code__, function.__globals__
    copy = types.FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    functools.update_wrapper(copy, function)
    del copy.__wrapped__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = {name: _annotation(value, names) for name, value in function.__annotations__.items()}
    return copy


def _annotation(value: Any, names: dict[str, Any]) -> Any:
    def one(x: value) -> None: ...  # type: ignore[valid-type]

    try:
        return typing.get_type_hints(one, names, include_extras=True)["x"]
    except Exception:
        return Any
