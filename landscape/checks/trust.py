"""What has been found of a risk already, so that it is not asked again."""

from collections.abc import Callable, Hashable
from typing import Any


class Trust:
    """Checks that have passed, and what was made on the way, by what they are of: the same objects, not equal ones.

    Risks made from one another share one, so that what holds of a loss and its batches is found once, whatever the
    point or the operator. A key is a tuple; its strings and numbers are compared by value, all else by identity, and
    kept alive.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}

    def once(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """What was found under a key; it is found now if it has not been. What raises is not kept."""
        mark = _mark(key)
        if mark not in self._known:
            self._known[mark] = key, find()
        return self._known[mark][1]

    def without(self, thing: Any) -> "Trust":
        """A copy that has nothing that was found of a thing, for a risk which has another in its place."""
        other = Trust()
        other._known = {m: held for m, held in self._known.items() if not any(part is thing for part in held[0])}
        return other


def _mark(key: tuple[Any, ...]) -> Hashable:
    return tuple(part if isinstance(part, str | int) else id(part) for part in key)
