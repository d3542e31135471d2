"""Four processes that wait for work, so that the tests of several ranks start torch once."""

import atexit
import importlib
import multiprocessing
import tempfile
import traceback
from pathlib import Path

LIMIT = 40.0  # seconds for one piece of work; a rank that waits for another forever is a failure


class WorkError(Exception):
    """The work raised on some rank; the message is the first such rank's traceback."""


class Pool:
    """Processes that run functions of a module under torch.distributed."""

    def __init__(self, size=4):
        context = multiprocessing.get_context("forkserver")  # imports once; the workers are forked from clean memory
        context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed.fsdp", "trainers"])
        self.pipes, self.processes = [], []
        self.folder = tempfile.TemporaryDirectory()
        self.meetings, self.present = 0, None
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, module, function, *, ranks, backend="gloo", **arguments):
        """What `module.function(rank, **arguments)` returns on each of the ranks, in order."""
        if self.present != (ranks, backend):  # else the process group of the last piece of work goes on
            self.meetings, self.present = self.meetings + 1, (ranks, backend)
        meeting = str(Path(self.folder.name) / str(self.meetings))
        for pipe in self.pipes[:ranks]:
            pipe.send((module, function, ranks, backend, meeting, arguments))
        answers = []
        for pipe in self.pipes[:ranks]:
            try:
                answered = pipe.poll(LIMIT)
                answers.append(pipe.recv() if answered else (False, "no answer: the ranks wait for each other"))
            except EOFError:
                answers.append((False, "the process died"))
        errors = [text for ok, text in answers if not ok]
        if errors:
            self.present = None
            alive = all("no answer" not in text and "died" not in text for text in errors)
            if not alive:
                self.close()
            raise WorkError(errors[0])
        return [value for _, value in answers]

    def close(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()


def serve(rank, pipe):
    """The life of a worker: take work, set up the process group, do it, answer."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    present = None
    while True:
        try:
            module, function, ranks, backend, meeting, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if meeting != present:
                if dist.is_initialized():
                    dist.destroy_process_group()
                dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=ranks)
                present = meeting
            if backend == "nccl":
                torch.cuda.set_device(rank)
            value = getattr(importlib.import_module(module), function)(rank, **arguments)
            answer = (True, value)
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send(answer)


_POOL = None


def pool():
    """The pool of this test process; a new one after a failure that left ranks hanging."""
    global _POOL
    if _POOL is None or not all(p.is_alive() for p in _POOL.processes):
        _POOL = Pool()
        atexit.register(_POOL.close)
    return _POOL
