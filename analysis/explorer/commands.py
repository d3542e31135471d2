"""The command line that trains one run again."""

import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from analysis.style import missing
from trainers.config import TrainConfig

FROM_FILES = ("dataset_digest", "init_digest")  # filled in from the data and the weights themselves


def train_again(settings: Mapping[str, Any], out: str) -> str:
    """`landscape train` with the settings that are not the usual ones.

    Args:
        settings: Of a run by name, as its `hp.*` columns hold them: lists and options as JSON, missing as None or NaN.
        out: Folder of runs.

    Returns:
        The command; empty where a setting is none of `TrainConfig`, as of weights that were trained elsewhere.
    """
    if set(settings) - set(TrainConfig.model_fields):
        return ""
    words = ["landscape", "train"]
    for name, usual in _usual().items():
        value = _plain(settings.get(name))
        if name not in settings or name in FROM_FILES or _text(value) == usual:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *_words(value)]
    return shlex.join([*words, "--out", out])


@cache
def _usual() -> dict[str, str]:
    """The defaults of all settings, as text."""
    return {name: _text(f.get_default(call_default_factory=True)) for name, f in TrainConfig.model_fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return json.loads(value)
    if missing(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [word for key, each in value.items() if each is not None for word in (str(key), _text(each))]
    return [_text(each) for each in value] if isinstance(value, list | tuple) else [_text(value)]


def _text(value: Any) -> str:
    """A number without a needless point, for a whole number is a float in a table with gaps."""
    if isinstance(value, Mapping):
        return json.dumps({key: each for key, each in value.items() if each is not None}, sort_keys=True)
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
