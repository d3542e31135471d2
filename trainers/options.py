"""Check keyword options against the signature of the function that will take them."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

import pydantic

from landscape.naming import nearest
from trainers.files.reading import short


def knobs(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function: what a user may set."""
    return {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


def require_typed(function: Callable[..., Any], what: str) -> None:
    """Check that the knobs of a user's function can be validated.

    Raises:
        ValueError: If one has no type or no default.
    """
    for option, parameter in knobs(function).items():
        if parameter.annotation is parameter.empty or parameter.default is parameter.empty:
            raise ValueError(f"{what}: option `{option}` needs a type and a default, such as `{option}: float = 1`.")


def checked(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    owner: str,
    text: bool = True,
    others: Iterable[str] = (),
) -> dict[str, Any]:
    """All knobs of `function` with their values: those given, validated against the annotations, and the defaults.

    Args:
        function: Its keyword-only parameters are the knobs; they need annotations and defaults.
        options: What the user gave.
        owner: What to call the function in messages, such as "method 'sam'".
        text: Numbers may be given as text, as YAML gives 1e-3; else it is refused, as is True for 1.
        others: Further names that the writer of an unknown one may have meant.

    Raises:
        ValueError: For an unknown name, with the nearest, or a value of the wrong type.
    """
    known = knobs(function)
    for name in options:
        if name not in known:
            have = f"it has {sorted(known)}" if known else "it has none"
            raise ValueError(f"{owner} has no option `{name}`; {have}.{nearest(name, [*known, *others])}")
    resolved = {}
    for name, parameter in known.items():
        value = options.get(name, parameter.default)
        if text and name in options:
            refuse_booleans(f"option `{name}` of {owner}", value, parameter.annotation)
        resolved[name] = validated(value, parameter.annotation, f"option `{name}` of {owner}", text=text)
    return resolved


def validated(value: Any, annotation: Any, name: str, *, text: bool = True) -> Any:
    """A value in the type that an annotation asks for.

    Raises:
        ValueError: For another type; without `text` also for a number written as text or as True.
    """
    try:
        result = _adapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        raise ValueError(f"{name} got {value!r}: {error.errors()[0]['msg']}.") from None
    if not text and isinstance(value, str | bool) and type(value) is not type(result):
        raise ValueError(
            f"{name} must be {'a number' if type(result) is not bool else 'True or False'}, got {value!r}."
        )
    return result


class Frozen(Mapping[str, Any]):
    """Options that nobody changes: those that were given, and the defaults of the others.

    Args:
        values: All of them.
        given: The names of those given; None means all.
    """

    def __init__(self, values: Mapping[str, Any], given: Iterable[str] | None = None) -> None:
        self._values = dict(values)
        self._given = frozenset(values if given is None else given)

    @property
    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in self._values.items() if name in self._given}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


@functools.cache
def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(strict=False))


def refuse_booleans(what: str, value: Any, annotation: Any) -> None:
    """Refuse true and false where a number or a word is meant: YAML makes them of yes, no, on and off.

    Args:
        what: What the value is given for, for the message.
        value: It, or a list of such.
        annotation: The type that it should have.

    Raises:
        ValueError: If it is true or false, and the type has no place for them.
    """
    given = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, bool) for one in given) and not _may_be(annotation, bool):
        raise ValueError(
            f"{what} got {short(value)}: true and false are no value of it; YAML makes them of yes, no, on and off, "
            f"which belong into quotes where they are meant as words."
        )


def _may_be(annotation: Any, kind: type) -> bool:
    """Whether a type, or one of those that it is made of, takes values of a kind."""
    return annotation in (kind, Any) or any(_may_be(part, kind) for part in get_args(annotation))
