"""Which measures are to be taken, with all their options filled in."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from analysis.measures.measure import Measure
from analysis.measures.registry import BUILT_IN, MEASURES, entry_of, names
from landscape.naming import nearest
from trainers.options import checked, knobs
from trainers.reference import is_reference, load_reference

Plan = dict[str, dict[str, Any]]  # measure -> options, all filled in
Choice = Mapping[str, Mapping[str, Any] | None] | Sequence[str]
Examples = int | Literal["all"]


def plan(
    measures: Choice | None = None,
    *,
    examples: Examples | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    trust: bool = True,
) -> Plan:
    """Check a choice of measures and fill in their options.

    Args:
        measures: Names, or names with options, or one's own as module:function; None takes the usual ones with their
            defaults, "all" stands for all there are. The name of a row, such as top_eigenvalue, stands for the measure
            that makes it. Where the targets are taken, the baselines go with them: no study is without what its
            measures must beat.
        examples: Training examples that measures go through, a number or "all", where their own option of this name
            does not say it. None leaves it to the data: of more than 2,048 a stratified draw of 2,048 (1,024 for
            searches of the worst case).
        settings: Options of some of the measures, which take the place of those given with them.
        trust: False refuses measures of one's own, for names that come out of a file.

    Raises:
        ValueError: For an unknown measure or option, with the nearest name; for settings of a measure that is not
            taken; or if `examples` is no number above 0.
        PermissionError: For a measure of one's own, if `trust` is False.
    """
    given = [key for key, entry in MEASURES.items() if entry.usual] if measures is None else measures
    if not isinstance(given, Mapping):
        given = dict.fromkeys(given)
    if given.get("all", 0) is None:
        given = {**dict.fromkeys(BUILT_IN), **{name: options for name, options in given.items() if name != "all"}}
    others: dict[str, Mapping[str, Any]] = {
        _key(name, trust=trust): options for name, options in (settings or {}).items()
    }
    taken = {_key(name, trust=trust): options for name, options in given.items()}
    if "targets" in taken and "baselines" not in taken:
        taken["baselines"] = {}
    if missing := [key for key in others if key not in taken]:
        raise ValueError(
            f"`--set {missing[0]}.{next(iter(others[missing[0]]), '')}` is for a measure that is not taken: name it in "
            f"`--measures` too, or set one of {', '.join(taken)}."
        )
    chosen: Plan = {}
    for key, options in taken.items():
        options = {**(options or {}), **others.get(key, {})}
        chosen[key] = _options(MEASURES[key], options, examples, owner=f"measure {key!r}")
    return chosen


def settings_of(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options written as on a command line, measure.option=value with the value in YAML, by measure.

    Raises:
        ValueError: For a text of another form, or an unknown measure, with the nearest name.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        name, dot, option = place.strip().rpartition(".")
        if not (equals and dot and name and option):
            raise ValueError(
                f"`--set` takes measure.option=value, such as hessian_eigenvalues.tol=0.05, got {text!r}: "
                "`landscape list measures` names the measures with their options."
            )
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"`--set {text}` has a value that is not YAML: {' '.join(str(error).split())}.") from None
        found.setdefault(_key(name), {})[option.strip()] = read
    return found


def _key(name: str, *, trust: bool = True) -> str:
    """The registry key of a measure or of a row; a measure of one's own is imported.

    Raises:
        ValueError: If there is none, with the nearest name.
        PermissionError: If it is one's own and `trust` is False.
    """
    if is_reference(name):
        load_reference(name, trust=trust, key="measures")
        _ = MEASURES[name]  # checks it
        return name
    key = entry_of(name)
    if key is None:
        raise ValueError(
            f"measure {name!r} is unknown; there are {sorted(BUILT_IN)}, or your own as module:function."
            f"{nearest(name, names())}"
        )
    return key


def _options(entry: Measure, given: Mapping[str, Any], examples: Examples | None, *, owner: str) -> dict[str, Any]:
    """All options of a measure; `examples` is among them where it was given, or where the measure has its own."""
    if not entry.sampled:
        return checked(entry.function, given, owner=owner)
    own = "examples" in knobs(entry.function)
    rest = {name: value for name, value in given.items() if name != "examples"}
    wanted = given.get("examples", examples)
    if "examples" not in given and wanted is None:
        return checked(entry.function, rest, owner=owner, others=["examples"])
    where = f"option `examples` of {owner}" if "examples" in given else "`examples`"
    count = checked_examples(wanted, where)
    if own:
        return checked(entry.function, {**rest, "examples": None if count == "all" else count}, owner=owner)
    return {**checked(entry.function, rest, owner=owner, others=["examples"]), "examples": count}


def checked_examples(value: Any, where: str = "`examples`") -> Examples:
    """A number of examples, or "all", which None stands for too.

    Raises:
        ValueError: For anything else.
    """
    if value is None or value == "all":
        return "all"
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{where} must be a number of training examples of at least 1, or all, got {value!r}.")
    return number
