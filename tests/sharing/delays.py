"""Random delays where processes touch files that they share, and kills; without a line of it in the product."""

import os
import random
import signal
import sys
import time

JOINTS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock", "shutil.rmtree"}
OFTEN = 0.3  # share of the joints at which it is waited


def begin(folder, seed, longest=0.03):
    """Sleep up to `longest` seconds before this process changes a file under the folder, at random."""
    draw = random.Random(seed)

    def wait(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        reads = event == "open" and str(arguments[0]).startswith(str(folder))
        if (event in JOINTS or writes or reads) and draw.random() < OFTEN:
            time.sleep(draw.uniform(0, longest))

    sys.addaudithook(wait)


def killed_at_random(start, seed, shortest=0.02, longest=0.4, most=15):
    """Start a process again and again, and kill it after a random while, until one ends by itself.

    The whiles grow, so that on a slow machine too there is an end.

    Args:
        start: Starts the process and returns it.

    Returns:
        How many were killed, and the exit code of the one that ended.
    """
    draw = random.Random(seed)
    for kills in range(most):
        process = start(seed * 1000 + kills)
        process.join(draw.uniform(shortest, longest) * 1.25**kills)
        if process.exitcode is not None:
            return kills, process.exitcode
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    process = start(seed * 1000 + most)
    process.join()
    return most, process.exitcode
