"""Where modules are found by the program: never in the working folder, unless the user asks for a module there."""

import os
import sys
from importlib.util import find_spec


def leave_working_folder() -> None:
    """Take back that `python -m analysis` puts the working folder first on the path, unless this code lies in it.

    Else whatever lies there under the name of a library, such as jinja2.py, would be run instead of the library.
    """
    here = os.getcwd()  # noqa: PTH109 - pathlib would be imported from the folder
    named = sys.argv[:1] == ["-m"] and "analysis" in sys.orig_argv
    ours = os.path.samefile(here, os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120, PTH121 - likewise
    if named and not ours and not sys.flags.safe_path and sys.path[:1] == [here]:
        del sys.path[0]


def find_own_modules(*names: str | None, trust: bool = False) -> None:
    """Let modules in the working folder be found, after all others, where a `module:function` is named or trusted.

    Args:
        names: What the command line names: models, data sets, metrics.
        trust: Whether what a file names may be imported too.
    """
    from trainers.reference import is_reference  # not before `leave_working_folder`

    here = os.getcwd()  # noqa: PTH109 - the text is what the path holds
    if (trust or any(name and is_reference(name) for name in names)) and here not in sys.path:
        sys.path.append(here)


def refuse_shadows() -> None:
    """Refuse to go on with another's package under the name of one of ours.

    Python looks in the folder of a script, a notebook or `python -c`, and in PYTHONPATH, before it looks where
    packages are installed. A folder without `__init__.py` comes after ours and does no harm.

    Raises:
        ImportError: With the place of the other one.
    """
    ours = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 - as above
    for name in ("trainers", "landscape"):
        found = find_spec(name)
        place = os.path.dirname(found.origin) if found is not None and found.origin else None  # noqa: PTH120
        if place is not None and not os.path.samefile(os.path.dirname(place), ours):  # noqa: PTH120, PTH121
            raise ImportError(
                f"Python finds another `{name}` before that of Landscape: {place}. Rename it, or start from another "
                f"folder (the program `landscape` does not look in the working folder; PYTHONPATH may name it)."
            )


leave_working_folder()
refuse_shadows()
