"""Conditions of a sweep: a key is set only in the runs where other keys have given values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pydantic

from landscape.naming import nearest
from trainers.config import TrainConfig
from trainers.models.building import MODELS
from trainers.options import knobs
from trainers.sharpness_aware.methods import METHODS
from trainers.sharpness_aware.methods.own import method_named

TAKES_RHO = "takes_rho"  # no configuration key: whether the method has a radius
MISSING: Any = object()  # an option whose default is not known, such as that of a user's own model


@cache
def containers() -> tuple[str, ...]:
    """The configuration keys that hold options of their own, such as `model_options`."""
    fields = TrainConfig.model_fields.items()
    return tuple(key for key, field in fields if isinstance(field.get_default(call_default_factory=True), dict))


def check_key(key: str, *, also: Iterable[str] = ()) -> None:
    """Check that a key names something in a configuration: `lr`, or `model_options.width` for an option.

    Raises:
        ValueError: Naming the key, and the nearest that there is.
    """
    if not isinstance(key, str):
        raise ValueError(f"unknown key `{key}`: keys are names of settings, such as lr.")
    head, dot, rest = key.partition(".")
    keys = [*TrainConfig.model_fields, *also]
    if head not in keys:
        raise ValueError(f"unknown key `{key}`.{nearest(head, keys) or f' Known keys: {sorted(keys)}.'}")
    if dot and (head not in containers() or not rest):
        raise ValueError(
            f"unknown key `{key}`: only {', '.join(containers())} have options, written as model_options.width."
        )


def put(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The values with one more; a key with a dot changes one option and leaves the others."""
    head, dot, rest = key.partition(".")
    if not dot:
        return {**values, key: value}
    old = values.get(head)
    return {**values, head: {**(old if isinstance(old, Mapping) else {}), rest: value}}


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value of a key in an unfinished configuration: what was given, or the default."""
    method = METHODS.get(str(values.get("method", "sgd")))
    if key == TAKES_RHO:
        return method is not None and method.rho is not None
    head, dot, rest = key.partition(".")
    if not dot:
        return values.get(key, TrainConfig.model_fields[key].get_default(call_default_factory=True))
    given = values.get(head)
    if isinstance(given, Mapping) and rest in given:
        return given[rest]
    model = MODELS.get(str(values.get("model", "mlp")))
    owner = {"method_options": method and method.compose, "model_options": model and model.build}.get(head)
    parameter = knobs(owner).get(rest) if owner else None
    return MISSING if parameter is None else parameter.default


@dataclass(frozen=True)
class Condition:
    """Which values other keys must have; all of them must hold.

    Attributes:
        wanted: Key to the values of which it must have one.
        unwanted: Key to the values of which it must have none.
    """

    wanted: Mapping[str, tuple[Any, ...]]
    unwanted: Mapping[str, tuple[Any, ...]]

    @classmethod
    def parse(cls, owner: str, given: Any) -> "Condition":
        """A condition from {key: value, key: [value, value], key: {not: value}}.

        Args:
            owner: The key that is conditioned.
            given: What stands after `when`.

        Raises:
            ValueError: For an unknown key, a value that the key cannot have, or a condition on the key itself.
        """
        if not isinstance(given, Mapping) or not given:
            raise ValueError(
                f"`when` of `{owner}` needs keys with values, such as {{method: [sam, gsam]}}, got {given!r}."
            )
        wanted: dict[str, tuple[Any, ...]] = {}
        unwanted: dict[str, tuple[Any, ...]] = {}
        for key, value in given.items():
            check_key(key, also=[TAKES_RHO])
            if key == owner:
                raise ValueError(f"`{owner}` cannot be given `when` it has a value itself: name other keys.")
            place = wanted
            if isinstance(value, Mapping) and set(value) == {"not"}:
                value, place = value["not"], unwanted
            accepted = tuple(value) if isinstance(value, list | tuple) else (value,)
            if not accepted:
                raise ValueError(f"`when` of `{owner}` needs at least one value for `{key}`, got {value!r}.")
            place[key] = tuple(_checked(owner, key, one) for one in accepted)
        return cls(wanted, unwanted)

    def needs(self) -> set[str]:
        """The keys that must have their values before this can be judged."""
        needed = {*self.wanted, *self.unwanted}
        if TAKES_RHO in needed or any(key.startswith("method_options.") for key in needed):
            needed.add("method")  # defaults of options depend on it
        if any(key.startswith("model_options.") for key in needed):
            needed.add("model")
        return needed - {TAKES_RHO}

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it holds in a configuration, with defaults for what is not given."""
        actual = {key: _plain(key, lookup(values, key)) for key in (*self.wanted, *self.unwanted)}
        return all(any(_same(actual[k], one) for one in some) for k, some in self.wanted.items()) and not any(
            _same(actual[k], one) for k, some in self.unwanted.items() for one in some
        )

    def __str__(self) -> str:
        parts = [f"{key}: {list(some)}" for key, some in self.wanted.items()]
        parts += [f"{key}: {{not: {list(some)}}}" for key, some in self.unwanted.items()]
        return "{" + ", ".join(parts) + "}"


@cache
def _field(key: str) -> Any:
    """A model of one field, with the type and the range that the key has in a configuration."""
    if key == TAKES_RHO:
        return pydantic.create_model("One", value=(bool, ...))
    field: Any = TrainConfig.model_fields[key]
    return pydantic.create_model("One", value=(field.annotation, field))


def _checked(owner: str, key: str, value: Any) -> Any:
    """A value in the type of its key."""
    if "." in key:
        return value
    if key == "method":
        try:
            method_named(value)
        except ValueError as error:
            raise ValueError(f"`when` of `{owner}`: {error}") from None
    try:
        return _typed(key, value)
    except pydantic.ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"`when` of `{owner}`: `{key}` cannot be {value!r}: {message}.") from None


def _typed(key: str, value: Any) -> Any:
    return _field(key).model_validate({"value": value}).value


def _plain(key: str, value: Any) -> Any:
    """What a configuration would make of a value, so that 1, 1.0 and "1e0" are one learning rate."""
    if "." in key or value is MISSING:
        return value
    try:
        return _typed(key, value)
    except pydantic.ValidationError:
        return value  # the configuration itself says what is wrong with it


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)  # True is not 1 here
