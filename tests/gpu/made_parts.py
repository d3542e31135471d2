"""Parts of a script that end in every way a part can."""

import os
import time

from benchmarks.gpu.script import failed


def told(what, value):
    return {"what": what, "value": value, "unit": "s"}


def good(place, about):
    yield told(f"good {about} on {place.device}", 1.0)


def raising(place):
    yield told("before", 2.0)
    raise ValueError("one reason\nand more")


def dying(place):
    yield told("alive", 3.0)
    time.sleep(0.2)
    os._exit(7)


def hanging(place):
    yield told("busy", 4.0)
    time.sleep(600)


def wrong(place):
    yield failed("sum", AssertionError("1 is not 2"))
    yield told("after", 5.0)
