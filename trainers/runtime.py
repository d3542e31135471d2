"""Where computing happens: devices, processes and ranks, which do not decide the result of a run."""

import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist

from landscape.memory import fullness
from landscape.ranks import Ranks
from trainers.backend import USUAL, Backend
from trainers.sweep.parallel import cores

Executor = Literal["processes", "ray", "population"]

PATIENCE, BRIEFLY = timedelta(minutes=5), timedelta(seconds=10)  # that the store may take to answer
AGENT = "TORCHELASTIC_USE_AGENT_STORE"  # "True" where torchrun keeps the store
LONGEST = timedelta(days=2)  # that processes wait for the slowest; of one that ends they hear at once


@dataclass(frozen=True)
class Runtime:
    """Where computing happens; no part of what a run's id is made of.

    Attributes:
        device: cpu, cuda, cuda:1 or mps; several of a kind as cuda:0,1 or cuda:all, which processes share; or auto:
            CUDA where there is one, else mps, else the CPU.
        workers: Processes that read data ahead for each process that computes, where examples are read or transformed
            one by one; 0 lets each read its own.
        jobs: Processes at a time, at least 1, which computes in this process; None is one a core on the CPU, and one a
            device elsewhere. With Ray None is one a core of the cluster.
        executor: "processes" on this machine, or "ray" on a cluster that shares the folders of results; with device
            cuda each run or checkpoint has one of its GPUs. "population" is "processes", each of which trains many
            small models at once; this alone changes runs, to rounding, and is the setting `executor` of theirs.
        address: Of the Ray cluster; None is the one that this process is connected to, that RAY_ADDRESS names, or that
            runs on this machine.
        checkpoint_activations: Training computes the activations of a model's blocks again in backward passes instead
            of keeping them; the numbers are the same.
        ranks: The processes of `torchrun`, see `joined`.
        backend: How torch computes there.

    Raises:
        ValueError: For a device that is not there, or other arguments that do not go together.
    """

    device: str = "cpu"
    jobs: int | None = None
    executor: Executor = "processes"
    address: str | None = None
    checkpoint_activations: bool = False
    ranks: Ranks = field(default_factory=Ranks, compare=False)
    workers: int = 0
    backend: Backend = USUAL

    def __post_init__(self) -> None:
        if not isinstance(self.workers, int) or isinstance(self.workers, bool) or self.workers < 0:
            raise ValueError(f"`workers` must be a whole number of processes >= 0, got {self.workers!r}.")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"`jobs` must be at least 1, got {self.jobs!r}; leave it out for one a core.")
        if self.executor not in get_args(Executor):
            raise ValueError(f"`executor` must be 'processes', 'ray' or 'population', got {self.executor!r}.")
        if self.address is not None and self.executor != "ray":
            raise ValueError(
                f"`address` is a Ray cluster's, got {self.address!r} with executor {self.executor!r}: use 'ray'."
            )
        if self.executor == "ray":  # whose machines have the devices, not this one
            if self.device not in ("cpu", "cuda"):
                raise ValueError(
                    f"`device` must be 'cpu' or 'cuda' with executor 'ray', which deals out cores and GPUs itself, got "
                    f"{self.device!r}."
                )
            return
        devices = self.devices
        if len(set(devices)) < len(devices):
            raise ValueError(f"`device` {self.device!r} names a device twice: name each once.")
        for name in devices:
            device_of(name)

    @classmethod
    def of(cls, runtime: "Runtime | None" = None, **fields: Any) -> "Runtime":
        """A runtime that was handed over, or one of its fields."""
        return replace(runtime or cls(), **fields)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of this machine by name, one or several."""
        if self.executor == "ray" and self.device == "cuda" and not torch.cuda.is_available():
            return ("cpu",)  # here is only what the cluster's machines need not do
        kind, _, numbers = self.device.partition(":")
        if numbers == "all":
            return tuple(name for name in devices() if name.startswith(f"{kind}:")) or (kind,)
        if "," in numbers:
            return tuple(f"{kind}:{number}" for number in numbers.split(","))
        return (_best() if self.device == "auto" else self.device,)

    @property
    def limit(self) -> int | None:
        """Processes at a time; None is one a core."""
        if self.jobs is None and (self.devices != ("cpu",) or self.ranks.count > 1):
            return len(self.devices)
        return self.jobs

    @property
    def processes(self) -> int:
        """How many processes that is on this machine."""
        return self.limit or cores()

    def single(self) -> str:
        """The one device, for what needs no other.

        Raises:
            ValueError: If there are several.
        """
        if len(self.devices) > 1:
            raise ValueError(f"`device` {self.device!r} names several devices, and one run trains on one: name one.")
        return self.devices[0]

    @contextmanager
    def joined(self) -> Iterator["Runtime"]:
        """The same among the processes that `torchrun` started, each with its share of the devices.

        A group that is there already is used. One that is made here is gone at the end, and its threads with it: one
        that lives on can abort the process while Python shuts down. Messages of numbers on GPUs go through NCCL, all
        others through gloo. A process that ends with an exception leaves word of it for the others.

        Raises:
            ValueError: If processes would share a GPU, or this torch has no NCCL.
        """
        if self.ranks.count > 1 or not started() or dist.is_initialized():
            yield self if self.ranks.count > 1 else self._among(Ranks.of())
            return
        import torch.distributed.nn.functional  # noqa: F401 - imported later, its defaults would hold the group

        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        there = self._among(Ranks(rank, count))
        board = _board(rank, count, f"group {next(_groups)}")
        dist.init_process_group(there._backends(), store=board, rank=rank, world_size=count, timeout=LONGEST)
        try:
            with Ranks.hung_up(board):
                ranks = Ranks.of()
                try:
                    yield replace(there, ranks=ranks)
                except Exception as error:
                    ranks.tell(error)
                    raise
        finally:
            dist.destroy_process_group()

    def _among(self, ranks: Ranks) -> "Runtime":
        """The runtime of one of several processes: those on one machine share its devices."""
        place, here = _place(ranks)
        devices = self.devices
        if devices == ("cuda",) and here > 1:  # whichever there are
            devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        mine = devices[place % len(devices) :: here]
        rest = [name.partition(":")[2] for name in mine[1:]]
        return replace(self, device=",".join([mine[0], *rest]), ranks=ranks)

    def _backends(self) -> str:
        """What carries the messages of the process that has this device."""
        device = torch.device(self.devices[0])
        if device.type != "cuda":
            return "gloo"
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if here > torch.cuda.device_count():
            raise ValueError(
                f"`device` {self.device!r}: {here} processes would share the {torch.cuda.device_count()} GPUs of this "
                f"machine, and NCCL takes one process a GPU: start as many as there are GPUs, or use `device` cpu."
            )
        if not dist.is_nccl_available():
            raise ValueError(
                f"`device` {self.device!r} of several processes needs NCCL, which this build of torch lacks: use "
                f"`device` cpu, or one process."
            )
        torch.cuda.set_device(device)
        return "cpu:gloo,cuda:nccl"


def started() -> bool:
    """Whether `torchrun`, or what sets the same variables, has started this process with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _place(ranks: Ranks) -> tuple[int, int]:
    """Which of the processes of this machine this is, and how many they are."""
    if "LOCAL_RANK" in os.environ and "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return ranks.rank, ranks.count


def first_to_say(message: str) -> bool:
    """Whether no other of the processes of `torchrun` has said this; True where they cannot ask each other."""
    if os.environ.get(AGENT) != "True":
        return True
    key = f"said/{hashlib.sha256(message.encode()).hexdigest()}"
    try:
        return bool(
            _board(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "messages", BRIEFLY).add(key, 1) == 1
        )
    except (RuntimeError, KeyError, ValueError):
        return True


_groups = itertools.count()  # each has a part of the store for itself


def _board(rank: int, count: int, part: str, patience: timedelta = PATIENCE) -> Any:
    """A part of the store through which the processes find each other; that of `torchrun` outlives them."""
    agent = os.environ.get(AGENT) == "True"
    make: Any = dist  # whose stores are not annotated
    store = make.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None if agent else count,
        is_master=rank == 0 and not agent, timeout=patience,
    )  # fmt: skip
    return make.PrefixStore(f"landscape/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{part}", store)


def device_of(text: str | torch.device) -> torch.device:
    """A device that is there.

    Args:
        text: cpu, cuda, cuda:1, mps, ..., or auto.

    Raises:
        ValueError: If there is no such kind of device, or this machine has none.
        MemoryError: If it is there, and nothing fits on it any more.
    """
    try:
        device = torch.device(_best() if text == "auto" else text)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        if device.type == "cpu" and device.index:
            raise RuntimeError("there is one CPU, whose cores `jobs` shares out")
        torch.empty(1, device=device)
    except torch.OutOfMemoryError:
        raise MemoryError(f"`device` {str(text)!r} is full, {fullness(device)}: free some, or name another.") from None
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        lines = str(error).strip().splitlines()
        why = f" ({lines[0].rstrip('.')[:120]})" if lines else ""
        raise ValueError(
            f"`device` {str(text)!r} is not there{why}; this machine has {', '.join(devices())}."
        ) from None
    return device


def require_float64(device: torch.device, what: str) -> None:
    """Refuse what needs float64 on a device that has none.

    Args:
        device: Where.
        what: Needs it: the subject of the message.

    Raises:
        ValueError: If it has none.
    """
    if device.type == "mps":
        raise ValueError(f"{what} cannot be had on `device` 'mps', which has no float64: take cpu or cuda, or float32.")


def devices() -> list[str]:
    """The devices of this machine."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def _best() -> str:
    """What "auto" is."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


HERE = Runtime()  # the CPU of this machine
