"""Calls spread over the machines of a Ray cluster that share a file system; an extra, `landscape-lab[ray]`."""

import importlib
import importlib.metadata
import os
import platform
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.files.writing import write_bytes
from trainers.runtime import Runtime
from trainers.sweep.parallel import GRACE, Lost, WorkerDiedError, log, single_threaded, stopped_by_signals

VISIBLE = 15.0  # seconds that a network file system may take to show a new file elsewhere
PROBE = 120.0  # seconds that a machine may take to start a process and import torch
KNOCK = 10.0  # seconds that the cluster's head has to take a connection
MOVES = 3  # times that a call is begun anew elsewhere because its machine went away


@dataclass(frozen=True)
class Shared:
    """What every machine must have in common with the one that started the work.

    Attributes:
        token: A file that the starting machine wrote into the folder of results.
        content: What must stand in it.
        versions: Of the packages on which results depend.
        patience: Seconds to wait for the file.
    """

    token: Path
    content: str
    versions: Mapping[str, str]
    patience: float

    def check(self) -> None:
        """Check the machine that this runs on.

        Raises:
            FileNotFoundError: If it does not see the folder, or another one under the same name.
            PermissionError: If it cannot write there.
            RuntimeError: If a package has another version.
        """
        here, folder = platform.node(), self.token.parent
        end = time.monotonic() + self.patience
        while self._read() != self.content:
            if time.monotonic() > end:
                raise FileNotFoundError(
                    f"`out` {folder} is not shared: machine {here!r} does not see the file {self.token.name} that the "
                    f"starting machine wrote there. Give a folder on a file system that all machines of the Ray "
                    f"cluster mount at the same place."
                )
            time.sleep(0.2)
        if not os.access(folder, os.W_OK):
            raise PermissionError(
                f"`out` {folder} cannot be written on machine {here!r}: mount it for writing, for this user."
            )
        others = versions()
        for name, version in self.versions.items():
            if others[name] != version:
                raise RuntimeError(
                    f"machine {here!r} of the Ray cluster has {name} {others[name]}, and the starting machine "
                    f"{version}: results would differ. Install the same version on all machines."
                )

    def _read(self) -> str:
        with suppress(OSError):
            os.listdir(self.token.parent)  # noqa: PTH208 - makes NFS look again
            return self.token.read_text(encoding="ascii")
        return ""


def on_ray(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    runtime: Runtime,
    *,
    lost: Lost | None,
    folder: Path,
    moved: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None,
) -> Iterator[Any]:
    """Call a function on many argument tuples on a Ray cluster, as it has room; yields results as they come.

    Each takes one core, those that read data ahead beside it, and with `device` cuda one GPU, which Ray alone lets it
    see.

    A call whose machine goes away is begun anew on another one, which is right for calls that continue from files.

    Args:
        function: Importable by name on every machine.
        calls: Argument tuples.
        runtime: How many calls at a time, None as many as the cluster has cores for, and the cluster's address.
        lost: Makes the result of a call whose process died; None raises.
        folder: Where results go; every machine must see it under this name.
        moved: Makes the call that is begun anew from the one whose machine went away; None takes the same.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
        ValueError: If no machine of it has the cores, or the GPU, that a call takes.
        FileNotFoundError, PermissionError, RuntimeError: If a machine fails `Shared.check`.
        WorkerDiedError: If a process died and there is no `lost`.
        Stopped: After a signal. Calls at work are interrupted and have 25 s to end well.
    """
    ray = import_ray()
    jobs = runtime.jobs
    with _connected(ray, runtime.address), _token(folder.absolute()) as shared:
        needs = {"num_cpus": 1 + runtime.workers, "num_gpus": int(runtime.device == "cuda")}
        _require(ray, needs)
        _probe(ray, shared)
        task = ray.remote(**needs, max_retries=0)(_checked_call)
        waiting = deque((call, 0) for call in calls)
        running: dict[Any, tuple[tuple[Any, ...], int]] = {}
        with stopped_by_signals():
            try:
                while waiting or running:
                    while waiting and (jobs is None or len(running) < jobs):
                        call, moves = waiting.popleft()
                        running[task.remote(shared, function, call)] = (call, moves)
                    done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                    for future in done:
                        call, moves = running.pop(future)
                        try:
                            result = ray.get(future)
                        except ray.exceptions.RayTaskError as error:
                            raise _cause(error) from None
                        except ray.exceptions.RayError as error:
                            if isinstance(error, ray.exceptions.NodeDiedError) and moves < MOVES:
                                waiting.appendleft((call if moved is None else moved(call), moves + 1))
                                continue
                            if lost is None:
                                raise WorkerDiedError(f"a process died while it worked ({_why(error)}).") from None
                            result = lost(call, _why(error))
                        yield result
            finally:
                _cancel(ray, list(running))


def import_ray() -> Any:
    """The module `ray`.

    Raises:
        ImportError: With the line that installs it.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            f"executor 'ray' needs Ray ({error}): pip install 'landscape-lab[ray]', on every machine; on one machine "
            f"executor 'processes' does the same without it."
        ) from None


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    result = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("landscape-lab", "torch", "numpy"):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = "from source"
    return result


def _checked_call(shared: Shared, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    shared.check()
    return single_threaded(function, *arguments)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster; one that was there stays."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"no Ray cluster at `address` {address!r} ({reason}): start one with `ray start --head`, and "
            f"`ray start --address=HEAD:6379` on the other machines, or give the address of one."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise an OSError where nothing listens; Ray itself tries for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^/\s]+):(\d+)", address)
    if match:
        socket.create_connection((match.group(1).strip("[]"), int(match.group(2))), timeout=KNOCK).close()


@contextmanager
def _token(folder: Path) -> Iterator[Shared]:
    """A file in the folder by which other machines recognise it."""
    content = secrets.token_hex(16)
    path = folder / f".shared-{content[:8]}"
    write_bytes(path, content.encode("ascii"))
    try:
        yield Shared(path, content, versions(), VISIBLE)
    finally:
        path.unlink(missing_ok=True)


def _require(ray: Any, needs: Mapping[str, int]) -> None:
    """Refuse calls for which no machine is large enough, and which would wait for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = needs["num_cpus"], needs["num_gpus"]
    if gpus and not any(found.get("GPU", 0) >= gpus for found in machines):
        raise ValueError(
            "`device` 'cuda': no machine of the Ray cluster has a GPU: use `device` cpu, or start Ray on one that has "
            "(`ray start --num-gpus=1` where it does not find them)."
        )
    if cores > 1 and not any(found.get("CPU", 0) >= cores and found.get("GPU", 0) >= gpus for found in machines):
        raise ValueError(
            f"`workers` {cores - 1}: no machine of the Ray cluster has {cores} cores for a call and the processes that "
            f"read for it: use fewer."
        )


def _probe(ray: Any, shared: Shared) -> None:
    """Check every machine that has cores before any work is done; those that join later are checked by each call."""
    strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    if not machines:
        log.warning("the Ray cluster has no machine with cores yet: waiting for one")
    check = ray.remote(num_cpus=0, max_retries=0)(_check)
    probes = {
        check.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(shared): node[
            "NodeManagerAddress"
        ]
        for node in machines
    }
    for probe, place in probes.items():
        try:
            ray.get(probe, timeout=PROBE)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayError as error:
            raise RuntimeError(
                f"machine {place} of the Ray cluster cannot work ({_why(error)}): is landscape installed there?"
            ) from None


def _check(shared: Shared) -> None:
    shared.check()


def _cause(error: Any) -> BaseException:
    """The exception that a call raised on the other machine."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else RuntimeError(str(error).strip().splitlines()[-1])


def _why(error: BaseException) -> str:
    """The kind of an error of Ray's and its first sentence; the others are on how to debug Ray."""
    first = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _cancel(ray: Any, running: Sequence[Any]) -> None:
    """End calls: as by Ctrl-C at first, by force for those that do not answer."""
    if not running:
        return
    log.warning("stopping: calls at work write what they need to go on later")
    try:
        for future in running:
            ray.cancel(future, force=False)
        ray.wait(list(running), num_returns=len(running), timeout=GRACE)
    except KeyboardInterrupt:
        log.warning("stopping at once")
    finally:
        for future in running:
            ray.cancel(future, force=True)
