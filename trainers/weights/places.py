"""Where weights lie: one file, the shards of a Hugging Face folder, or a checkpoint of our own; and their hash."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainers.files.reading import Shape, read_json
from trainers.files.writing import check_digest, digest
from trainers.weights.pickles import load_pickle

ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar", ".tar")
PARAMS, AVERAGE, META = "params.safetensors", "average.safetensors", "meta.json"  # of a checkpoint of our own
WAY_OUT = "take it from a copy, or delete the run's folder and train it again"
WHOLE = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "open_clip_model.safetensors")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
CLUES = {  # of folders whose weights have to be joined first
    ".metadata": "a checkpoint in parts (torch.distributed.checkpoint): join them with "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, 'weights.pt')",
    "adapter_config.json": "an adapter (peft) without the model beneath it: save the whole, with "
    "model.merge_and_unload().save_pretrained(folder)",
    "zero_to_fp32.py": "a checkpoint in parts (DeepSpeed): join them with the zero_to_fp32.py in it",
}


class IndexFile(Shape):
    """The index of a sharded Hugging Face folder."""

    weight_map: dict[str, str]


def ending(name: str) -> str:
    """The ending of a file of weights, the longest that fits; empty for another file."""
    return max((e for e in ENDINGS if name.endswith(e)), key=len, default="")


def files_of(path: str | Path, *, ema: bool = False) -> tuple[Path, ...]:
    """The files that hold the weights of a path, in order.

    Args:
        path: A file of weights; a folder of Hugging Face; a run of ours (its last checkpoint) or RUN/checkpoints/STEP.
        ema: Of a run of ours, the average of weights.

    Raises:
        FileNotFoundError: If there is no such file, or one that an index names is missing.
        ValueError: If it is no file of weights, or a folder of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a file of weights.")
    if path.is_file():
        if not ending(path.name):
            raise ValueError(f"{path}: weights are read from {', '.join(ENDINGS)}, not {path.suffix!r}.")
        return (path,)
    if (path / META).is_file():
        return (_own(path, ema=ema),)
    whole = {int(p.parent.name): p.parent for p in path.glob(f"checkpoints/*/{META}") if p.parent.name.isdigit()}
    if whole:
        return (_own(whole[max(whole)], ema=ema),)
    for name in WHOLE:
        if (path / name).is_file():
            return (path / name,)
    for name in INDEX:
        if (path / name).is_file():
            return tuple(_shards(path / name))
    for name, why in CLUES.items():
        if (path / name).exists():
            raise ValueError(f"{path} holds {why}, and give that.")
    here = sorted(p.name for p in path.iterdir())[:5]
    raise ValueError(
        f"{path} is a folder without weights ({', '.join(here) or 'it is empty'}): looked for "
        f"{', '.join(WHOLE + INDEX)} and for checkpoints of our own; or give a file of weights in it."
    )


def is_own(path: str | Path) -> bool:
    """Whether a path is a folder of ours: a run, or a checkpoint of one."""
    path = Path(path)
    return (path / META).is_file() or any(path.glob(f"checkpoints/*/{META}"))


def _own(checkpoint: Path, *, ema: bool) -> Path:
    if ema and not (checkpoint / AVERAGE).is_file():
        raise ValueError(f"{checkpoint} holds no average of weights (the run had no `average`): take the weights.")
    return checkpoint / (AVERAGE if ema else PARAMS)


def _shards(index: Path) -> Iterator[Path]:
    named = read_json(index, IndexFile, hint="save the model again")["weight_map"]
    for name in sorted(set(named.values())):
        file = index.parent / name
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not in its folder: save the model again.")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which {index.name} names: copy all files of the folder.")
        yield file


def read_content(path: str | Path, *, ema: bool = False) -> Any:
    """What the files of a path hold, not yet searched for weights; arguments as `files_of`.

    Raises:
        FileNotFoundError: As `files_of`.
        ValueError: As `files_of`, or if a file is damaged or cannot be read without running its code.
    """
    files = files_of(path, ema=ema)
    if len(files) == 1:
        return _read(files[0])
    joined: dict[str, Any] = {}
    for file in files:
        joined |= _read(file)
    lacking = sorted(set(_promised(Path(path))) - set(joined))
    if lacking:
        raise ValueError(f"{path} lacks {len(lacking)} tensors that its index names, such as {lacking[0]!r}.")
    return joined


def _promised(folder: Path) -> dict[str, str]:
    index = next(folder / name for name in INDEX if (folder / name).is_file())
    named: dict[str, str] = read_json(index, IndexFile, hint="save the model again")["weight_map"]
    return named


def _read(file: Path) -> Any:
    if file.name == PARAMS and (file.parent / META).exists():
        check_digest(file, read_json(file.parent / META, hint=WAY_OUT).get("sha256"), WAY_OUT)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    return load_pickle(file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}): it is truncated or no safetensors file.") from None


def weights_digest(path: str | Path, *, ema: bool = False) -> str:
    """SHA-256 of the files of a path, whatever they are called; kept as long as size and time of change stay.

    Arguments as `files_of`.

    Raises:
        FileNotFoundError: As `files_of`.
        ValueError: As `files_of`.
    """
    files = files_of(path, ema=ema)
    return _digest(tuple((file.absolute(), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache(maxsize=1024)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    each = [digest(file) for file, _, _ in files]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()
