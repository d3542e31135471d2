"""Which measures are to be taken, with all their options filled in."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.measures.registry import MEASURES, entry_of, names
from trainers.naming import nearest
from trainers.options import checked

Plan = dict[str, dict[str, Any]]  # measure -> options, all filled in
Choice = Mapping[str, Mapping[str, Any] | None] | Sequence[str]


def plan(measures: Choice | None = None) -> Plan:
    """Check a choice of measures and fill in their options.

    Args:
        measures: Names, or names with options; None takes the usual ones with their defaults, "all" stands for all
            there are. The name of a row, such as top_eigenvalue, stands for the measure that makes it. Where the
            targets are taken, the baselines go with them: no study is without what its measures must beat.

    Raises:
        ValueError: For an unknown measure or option, with the nearest name.
    """
    given = [key for key, entry in MEASURES.items() if entry.usual] if measures is None else measures
    if not isinstance(given, Mapping):
        given = dict.fromkeys(given)
    if given.get("all", 0) is None:
        given = {**dict.fromkeys(MEASURES), **{name: options for name, options in given.items() if name != "all"}}
    chosen: Plan = {}
    for name, options in given.items():
        key = entry_of(name)
        if key is None:
            raise ValueError(f"measure {name!r} is unknown; there are {sorted(MEASURES)}.{nearest(name, names())}")
        chosen[key] = checked(MEASURES[key].function, options or {}, owner=f"measure {key!r}")
    if "targets" in chosen and "baselines" not in chosen:
        chosen["baselines"] = checked(MEASURES["baselines"].function, {}, owner="measure 'baselines'")
    return chosen
