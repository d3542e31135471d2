"""One process a core, one thread each: for small models far faster than many threads in one process."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import joblib
import torch


def in_parallel(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, jobs: int | None) -> Iterator[Any]:
    """Call a function on many argument tuples in processes of one thread each; yields results as they come.

    One job runs in this process, which is what tests and debuggers want.
    """
    count = max(1, min(cores() if jobs is None else jobs, len(calls)))
    if count == 1:
        for arguments in calls:
            yield single_threaded(function, *arguments)
        return
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        workers = joblib.Parallel(n_jobs=count, return_as="generator_unordered", pre_dispatch="2*n_jobs")
        yield from workers(joblib.delayed(single_threaded)(function, *arguments) for arguments in calls)


def single_threaded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with one torch thread; the setting is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(threads)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
