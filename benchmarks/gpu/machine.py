"""The device and the software, and how fast the device is at what everything else is made of."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy
import torch

from benchmarks.gpu.bare import ABSENT
from benchmarks.gpu.place import Place
from benchmarks.gpu.script import Row


def run(place: Place) -> Iterator[Row]:
    """What the device is; the rate of one large matrix product, which says whether others use it meanwhile."""
    yield _told(
        "software",
        f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, pandas {pd.__version__}",
    )
    yield _told("libraries replaced by stand-ins", ", ".join(ABSENT) or "none")
    if place.cuda:
        about = torch.cuda.get_device_properties(place.device)
        free, total = torch.cuda.mem_get_info(place.device)
        yield _told(
            "device",
            f"{about.name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} GiB free, {about.multi_processor_count} SMs",
        )
        yield _told("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    else:
        yield _told("device", str(place.device))
    n = place.size(8192, 512)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)):
        a = torch.ones(n, n, dtype=dtype, device=place.device)
        spent = place.times({"product": lambda a=a: a @ a}, rounds=3, inner=2)["product"]  # type: ignore[misc]
        yield {"what": f"matrix product, {n} x {n}, {name}", "value": 2 * n**3 / min(spent) / 1e12, "unit": "TFLOP/s"}


def _told(what: str, text: str) -> Row:
    return {"what": what, "value": None, "unit": text}
