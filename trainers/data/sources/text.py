"""Text as tokens: `pydoc`, which comes with every Python, and `text:FILE`; bytes, or a tokenizer of Hugging Face."""

import functools
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from landscape.labels import IGNORED
from trainers.data.sources.files import Files, single_file
from trainers.data.sources.source import Source, bounds, held_out

BYTES = 256
LIBRARY = ("types", "bltin", "string-methods", "formatstrings")  # topics that stem from the library's reference
REGISTER = "library"
HIDDEN = 0.15  # of the tokens, as BERT hides them
MASK_SEED = 0


@dataclass(frozen=True)
class TextReading:
    """How text becomes sequences.

    Attributes:
        context: Tokens of a sequence.
        tokenizer: "bytes", or the folder or name of a tokenizer of Hugging Face that is on this machine.
        tokenizer_digest: Fingerprint of the tokenizer's files; filled in where they lie in a folder.
        packing: "packed" joins all documents and cuts them into whole sequences; "padded" makes each its own.
        objective: "next" has each token's successor as its target; "masked" hides 15 % of the tokens, which are drawn
            once, and has these as targets.
    """

    context: Annotated[int, Field(ge=2)] = 128
    tokenizer: str = "bytes"
    tokenizer_digest: str = ""
    packing: Literal["packed", "padded"] = "packed"
    objective: Literal["next", "masked"] = "next"

    def resolved(self) -> "TextReading":
        """The same with the place and the fingerprint of the tokenizer's files, where they lie in a folder."""
        folder = Path(self.tokenizer).expanduser()
        if self.tokenizer == "bytes" or not folder.is_dir():
            return self
        names = tuple(sorted(path.name for path in folder.iterdir() if path.is_file()))
        digest = self.tokenizer_digest or Files(folder, names).fingerprint
        return replace(self, tokenizer=str(folder.absolute()), tokenizer_digest=digest)


def find_pydoc(name: str, rest: str) -> Files:
    """The file of Python's documentation, whose text is another one in each version of Python.

    Raises:
        ValueError: If a path is given.
        FileNotFoundError: If this Python comes without it.
    """
    if rest:
        raise ValueError(f"`dataset` {name!r} takes no path: write pydoc, or text:FILE for a text of your own.")
    found = importlib.util.find_spec("pydoc_data.topics")
    if found is None or found.origin is None:
        raise FileNotFoundError(f"`dataset` {name!r}: this Python comes without pydoc_data: take text:FILE.")
    return Files(Path(found.origin).parent, (Path(found.origin).name,))


def find_text(name: str, rest: str) -> Files:
    """The file, see `single_file`."""
    return single_file(name, rest, "a text in UTF-8")


def load_pydoc(name: str, _files: Files, reading: TextReading | None) -> Source:
    """Python's own documentation: the language's reference to learn and test on, the library's as a shifted register.

    Topics repeat each other; each paragraph is taken where it first stands, so that none is learned and tested on.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    registers: dict[str, list[str]] = {"train": [], REGISTER: []}
    for topic in sorted(topics):
        part = REGISTER if topic.startswith(LIBRARY) else "train"
        fresh = [text for text in topics[topic].split("\n\n") if text.strip() and text.strip() not in seen]
        seen |= {text.strip() for text in fresh}
        registers[part] += fresh
    return of_documents(name, registers, reading)


def load_text(name: str, files: Files, reading: TextReading | None) -> Source:
    """A text in UTF-8; padded, each line that is not empty is a document.

    Raises:
        ValueError: If it is no text, or too short.
    """
    path = files.path(files.names[0])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`dataset` {name!r}: {path} is no text in UTF-8 ({error.reason}): save it so.") from None
    lines = [line for line in text.splitlines() if line.strip()]
    return of_documents(name, {"train": lines if reading and reading.packing == "padded" else [text]}, reading)


def of_documents(name: str, parts: Mapping[str, Sequence[str]], reading: TextReading | None) -> Source:
    """Sequences of documents.

    Args:
        name: Of the data, for messages.
        parts: Documents by the part they belong to: "train", and "validation" and "test" where the data have them; by
            any other name they are a shifted test set.
        reading: How they become sequences; None, for a task that takes no text, is refused.

    Raises:
        ValueError: If they are too short or too long, or the tokenizer cannot be had.
    """
    if reading is None:
        raise ValueError(f"`dataset` {name!r} is text, for `task` language: give --task language.")
    encode, vocabulary = tokenizer_of(reading)
    if reading.packing == "packed":
        parts = {part: ["\n\n".join(documents)] for part, documents in parts.items()}
    tokens = {part: [encode(document) for document in documents] for part, documents in parts.items()}
    own = held_out(tokens)
    kinds = [part for part in tokens if part not in ("train", "validation", "test")]
    made = {part: sequences(name, found, reading, vocabulary) for part, found in own.items()}
    shifted = {part: sequences(name, tokens[part], reading, vocabulary) for part in kinds}
    x, y = (torch.cat([pair[i] for pair in made.values()]) for i in (0, 1))
    count = sum(len(one) for documents in tokens.values() for one in documents)
    size = sum(len(document.encode()) for documents in parts.values() for document in documents)
    origin = {
        "tokens": count, "vocabulary": vocabulary, "tokenizer": reading.tokenizer, "context": reading.context,
        "bytes_per_token": size / max(1, count),
    }  # fmt: skip
    hidden = reading.objective == "masked"
    return Source(
        x, y, vocabulary + hidden, **bounds({part: len(pair[0]) for part, pair in made.items()}), images=False,
        origin=origin, shared=False, registers=shifted, text=reading,
    )  # fmt: skip


def sequences(
    name: str, documents: Sequence[Int[np.ndarray, " _"]], reading: TextReading, vocabulary: int
) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Inputs and targets, with `IGNORED` where there is no target; each token is a target once at most.

    Packed, sequence i has the tokens iT to (i + 1)T - 1, and what is left at the end is left out. A hidden token is
    shown as the number `vocabulary`.

    Raises:
        ValueError: If there is no whole sequence, a document is longer than the context, or has no target.
    """
    length, ahead = reading.context, int(reading.objective == "next")
    if reading.packing == "packed":
        joined = np.concatenate(documents) if documents else np.empty(0, dtype=np.int64)
        n = (len(joined) - ahead) // length
        if n < 1:
            raise ValueError(
                f"`dataset` {name!r}: its {len(joined)} tokens are less than one sequence of `context` {length}: "
                f"make it smaller, such as --task-options context {max(2, (len(joined) - ahead) // 8)}."
            )
        x = torch.from_numpy(joined[: n * length]).reshape(n, length)
        y = torch.from_numpy(joined[ahead : n * length + ahead]).reshape(n, length).clone()
    else:
        longest = max((len(one) - ahead for one in documents), default=0)
        if longest > length:
            raise ValueError(
                f"`dataset` {name!r}: a document has {longest + ahead} tokens, and `context` {length} shows {length}: "
                f"raise it by --task-options context {longest}, or take packing packed, which cuts."
            )
        kept = [one for one in documents if len(one) > ahead]
        if not kept:
            raise ValueError(f"`dataset` {name!r}: no document has {1 + ahead} tokens, so that nothing is a target.")
        x, y = torch.zeros(len(kept), length, dtype=torch.int64), torch.full((len(kept), length), IGNORED)
        for i, one in enumerate(kept):
            shown, told = torch.from_numpy(one[: len(one) - ahead]), torch.from_numpy(one[ahead:])
            x[i, : len(shown)], y[i, : len(told)] = shown, told
    if reading.objective == "masked":
        there = y != IGNORED
        hidden = (torch.rand(x.shape, generator=torch.Generator().manual_seed(MASK_SEED)) < HIDDEN) & there
        first = torch.zeros_like(hidden)
        first[torch.arange(len(x)), there.int().argmax(1)] = True
        hidden |= first & ~hidden.any(1, keepdim=True)  # each sequence has a target
        x, y = torch.where(hidden, vocabulary, x), torch.where(hidden, y, IGNORED)
    return x, y


def tokenizer_of(reading: TextReading) -> tuple[Any, int]:
    """What turns a document into whole numbers, and how many there are.

    Raises:
        ImportError: If transformers is missing.
        ValueError: If there is no such tokenizer on this machine, or its files have changed.
    """
    if reading.tokenizer == "bytes":
        return lambda text: np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64), BYTES
    if reading.tokenizer_digest and replace(reading, tokenizer_digest="").resolved().tokenizer_digest != (
        reading.tokenizer_digest
    ):
        raise ValueError(
            f"`tokenizer` {reading.tokenizer!r} has changed: its files have another fingerprint than "
            f"{reading.tokenizer_digest}, of when the run began: put back what was there, or train a new run."
        )
    found = _hugging_face(reading.tokenizer)

    def encode(text: str) -> Int[np.ndarray, " _"]:
        ids: Int[np.ndarray, " _"] = np.asarray(found.encode(text, add_special_tokens=False), dtype=np.int64)
        return ids

    return encode, len(found)


@functools.lru_cache(maxsize=4)
def _hugging_face(name: str) -> Any:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(f"`tokenizer` {name!r} needs transformers: pip install 'landscape-lab[text]'.") from error
    try:
        return transformers.AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:150]
        raise ValueError(
            f"`tokenizer` {name!r} is not on this machine ({said}): give bytes, or a folder that `save_pretrained` "
            f"wrote; nothing is downloaded."
        ) from None
