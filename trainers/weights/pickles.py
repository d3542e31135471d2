"""Files of `torch.save`, read without running anything that is in them.

torch's `weights_only` refuses every class and function but its own. What training scripts customarily keep beside the
weights is on a list here, and is read as a blank: nothing of that name is imported, made or called.
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

FIRST = 120  # characters of torch's own message


class Blank:
    """What is read in place of an object that does not matter here."""

    def __init__(self, *given: Any) -> None:
        """Take whatever the object is made of."""

    def __setstate__(self, state: Any) -> None:
        """Forget whatever the object holds."""


class BlankMapping:
    """What is read in place of a dict of another kind: an ordered one with the same keys."""

    def __new__(cls, *_: Any) -> Any:
        """An `OrderedDict` instead, which the reader fills."""
        return OrderedDict()


class BlankList:
    """What is read in place of a list of another kind: a plain one."""

    def __new__(cls, *_: Any) -> Any:
        """A list instead, which the reader fills."""
        return []


MAPPINGS = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
)
BLANKS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "typing.Any",
    "builtins.dict", "builtins.list", "builtins.tuple", "builtins.int", "builtins.float", "builtins.str",
    "builtins.bool", "builtins.slice", "builtins.range",
    "_codecs.encode",
    "copyreg._reconstructor", "builtins.object",
    "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    *(
        f"{module}.{kind}"
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"{module}.multiarray.{kind}" for module in ("numpy.core", "numpy._core") for kind in ("scalar", "_reconstruct")),
    "numpy.ndarray", "numpy.dtype",
    *(
        f"numpy.dtypes.{kind}DType"
        for kind in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float16",
                     "Float32", "Float64", "LongDouble", "Str", "Bytes", "Object")
    ),
    *(f"omegaconf.{kind}" for kind in (
        "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode",
        "nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode", "nodes.EnumNode",
        "nodes.PathNode", "nodes.BytesNode", "nodes.InterpolationResultNode",
    )),
)  # fmt: skip
ALLOWED: list[Any] = [
    *((BlankMapping, name) for name in MAPPINGS),
    *((Blank, name) for name in BLANKS),
    (BlankList, "collections.deque"),
]


@contextmanager
def _allowed() -> Iterator[None]:
    """Let torch read what is on the list, and nothing under its names that others have allowed, such as NumPy's types.

    torch keeps a set: of two things of one name either might be taken.
    """
    theirs = torch.serialization.get_safe_globals()
    ours = {name for _, name in ALLOWED}
    try:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*(one for one in theirs if _name(one) not in ours), *ALLOWED])
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(theirs)


def _name(allowed: Any) -> str:
    """What a file calls something that torch may read."""
    return str(allowed[1]) if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__qualname__}"


def load_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds; no code of it is run, and nothing that it names is imported.

    Raises:
        ValueError: If it is damaged, or holds objects that are not on the list, with the way to convert it.
    """
    try:
        with warnings.catch_warnings(), _allowed():
            warnings.simplefilter("ignore")  # of the pickle's version
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - the one place, without code
    except Exception as error:  # torch raises many kinds here
        said = str(error)
        first = ((said.splitlines() or [""])[0].split(". ")[0][:FIRST]).rstrip(".:") or type(error).__name__
        asked = re.search(r"GLOBAL ([\w.]+)", said)
        if asked:
            why = f"it holds `{asked[1]}`, which is not on the list of what is read without running code"
        elif "TorchScript" in said:
            why = "it is a TorchScript archive, which holds code"
        elif type(error).__name__ == "UnpicklingError":
            why = "it is no file of torch.save, or holds more than weights"
        else:
            raise ValueError(
                f"{path} cannot be read ({first}): it is truncated, or was not made by torch.save."
            ) from None
    raise ValueError(f"{path} cannot be read without running its code ({why}). {conversion(path)}")


def conversion(path: Path) -> str:
    """How to write the weights alone, where the file is trusted."""
    return (
        f"If you trust the file, write its weights alone, where the code that made it can be imported: found = "
        f"torch.load({path.name!r}, weights_only=False); torch.save(found.state_dict() if hasattr(found, "
        f"'state_dict') else found['state_dict'], 'weights.pt'), with its own key; and give weights.pt."
    )
