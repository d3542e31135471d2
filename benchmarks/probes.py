"""Memory and time of estimates from random vectors, each in a process of its own: `python -m benchmarks.probes ...`.

Memory is the kernel's high-water mark of resident memory above what was resident before, in vectors of length p; what
is told is what the call says that it needs where nothing is free. Both with a matrix that takes one vector for a
product, and with the Hessian of a network, after a product.
"""

import argparse
import gc
import importlib
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Generator, Tensor, nn

import landscape
from benchmarks.peak import CLEAR, RESET_PEAK, fresh, memory
from benchmarks.peers import HessianEigenthings, PyHessian
from benchmarks.subjects import Subject
from benchmarks.table import Row

DRAWS = 63  # products of a trace; the sketches of Hutch++ take a third
LIMITS = {"hutchinson": 20.0, "hutch++": 40.0, "xtrace": 40.0}
TOLD = 0.2  # how far what is told may be from what is taken
UNITS = ("bytes", "KiB", "MiB", "GiB")


@dataclass(frozen=True, eq=False)
class Scaled:
    """diag(1, ..., 2) + u uᵀ: a product costs no more than its result."""

    p: int
    diagonal: Tensor
    u: Tensor

    @classmethod
    def of(cls, p: int) -> "Scaled":
        """The matrix of p rows."""
        u = torch.randn(p, 1, generator=Generator().manual_seed(0))
        return cls(p, torch.linspace(1, 2, p), u * (3 / p**0.5))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.p, self.p))

    @property
    def dtype(self) -> torch.dtype:
        return self.diagonal.dtype

    @property
    def device(self) -> torch.device:
        return self.diagonal.device

    def __matmul__(self, other: Tensor) -> Tensor:
        v = other.reshape(self.p, -1)
        return (self.diagonal[:, None] * v).addmm_(self.u, self.u.T @ v).view_as(other)


def network(p: int) -> Subject:
    """A multilayer perceptron of about p weights on 64 random examples."""
    wide = int(p**0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # noqa: TID251  (a fixed network, and the state is put back)
        model = nn.Sequential(
            nn.Linear(64, wide), nn.Tanh(), nn.Linear(wide, wide - 80), nn.Tanh(), nn.Linear(wide - 80, 10)
        )
    draw = Generator().manual_seed(0)
    data = torch.randn(64, 64, generator=draw), torch.randint(10, (64,), generator=draw)
    return Subject(f"MLP with {p / 1e6:.2g} million weights", model.eval(), nn.CrossEntropyLoss(), [data])


OURS: dict[str, Callable[[Any, Generator], object]] = {
    "hutchinson": lambda A, g: landscape.trace(A, method="hutchinson", draws=DRAWS, generator=g),
    "hutch++": lambda A, g: landscape.trace(A, method="hutch++", draws=DRAWS, generator=g),
    "xtrace": lambda A, g: landscape.trace(A, method="xtrace", draws=DRAWS, generator=g),
    "xnystrace": lambda A, g: landscape.trace(A, method="xnystrace", draws=DRAWS, generator=g),
    "auto": lambda A, g: landscape.trace(A, draws=DRAWS, generator=g),
    "diagonal": lambda A, g: landscape.diagonal(A, draws=16, generator=g),
    "density": lambda A, g: landscape.spectral_density(A, runs=2, steps=30, generator=g),
    "eigenpairs": lambda A, g: landscape.top_eigenpairs(A, 2, basis=30, tol=1e-6, max_products=40, generator=g),
}


def work(subject: str, p: int, what: str) -> tuple[int, Callable[[], object]]:
    """The number of entries of a vector, and the call; a product is behind it."""
    library, _, name = what.partition(", ")
    if subject == "matrix":
        A = Scaled.of(p)
        A @ A.u[:, 0]
        if library == "landscape":
            return p, lambda: OURS[name](A, Generator().manual_seed(0))
        things = importlib.import_module("hessian_eigenthings")
        operators = importlib.import_module("hessian_eigenthings.operators")
        B = operators.LambdaOperator(lambda v: A @ v, p)
        return p, lambda: things.trace(B, num_matvecs=DRAWS, method=name, seed=0)
    given = network(p)
    v = given.vector()
    if library == "landscape":
        H = landscape.Hessian(given.risk())
        H @ v
        return given.p, lambda: OURS[name](H, Generator().manual_seed(0))
    if library == "PyHessian":
        peer = PyHessian(given)
        peer.product(v)
        return given.p, lambda: peer.peer.trace(maxIter=DRAWS, tol=-1.0)  # all of them
    other = HessianEigenthings(given)
    other.product(v)
    return given.p, lambda: other.things.trace(other.peer, num_matvecs=DRAWS, method=name, seed=0)


def measure(subject: str, p: int, what: str) -> dict[str, float | None]:
    """Peak in vectors, processor seconds, and what is told, in vectors."""
    warnings.simplefilter("ignore")
    work("matrix", 1000, what.replace("PyHessian", "landscape"))[1]()  # so that code is loaded
    p, call = work(subject, p, what)
    vector = 4 * p / 2**20
    told = None
    if what.startswith("landscape") and what != "landscape, auto":  # which takes more as long as there is more
        with mock.patch("landscape.memory.free_bytes", return_value=0):
            try:
                call()
            except MemoryError as error:
                told = bytes_of(str(error)) / 2**20 / vector
    gc.collect()
    before = memory("VmRSS")
    CLEAR.write_text(RESET_PEAK)
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    return {"vectors": (memory("VmHWM") - before) / vector, "seconds": seconds, "told": told}


def bytes_of(message: str) -> float:
    """The bytes that a refusal says are needed."""
    found = re.search(r"needs ([\d.,]+) (bytes|[KMG]iB)", message)
    assert found is not None, message
    return float(found[1].replace(",", "")) * 1024 ** UNITS.index(found[2])


def measured(subject: str, p: int, what: str) -> dict[str, Any]:
    """The same, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.probes", subject, str(p), what]
    done = subprocess.run(command, env=fresh(), check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def probes(quick: bool) -> Iterator[Row]:
    """Memory and seconds of estimates, what is told of the memory, and ratios to the peers."""
    for subject, p in [("matrix", 200_000)] if quick else [("matrix", 4_000_000), ("network", 1_000_000)]:
        theirs = [
            f"hessian-eigenthings, {name}" for name in ("hutchinson", "hutch++") if HessianEigenthings.available()
        ]
        if subject == "network" and PyHessian.available():
            theirs.append("PyHessian, hutchinson")
        chosen = [name for name in OURS if name != "xnystrace" or subject == "matrix"]  # a Hessian is not definite
        about = f"{'matrix' if subject == 'matrix' else 'MLP'}, p = {p / 1e6:g} million"
        found = {}
        for what in [*(f"landscape, {name}" for name in (chosen[:2] if quick else chosen)), *theirs]:
            found[what] = one = measured(subject, p, what)
            yield {
                "what": f"peak memory, {about}: {what}", "value": one["vectors"], "unit": "vectors",
                "limit": LIMITS.get(what.removeprefix("landscape, ")),
                "note": f"{one['seconds']:.2f} s" + (f", told {one['told']:.1f}" if one["told"] else ""),
            }  # fmt: skip
            if one["told"]:
                yield {
                    "what": f"memory told is off by, {about}: {what}", "unit": "of the peak", "limit": TOLD,
                    "value": abs(one["told"] / one["vectors"] - 1),
                }  # fmt: skip
        for peer in theirs:
            ours = found[f"landscape, {peer.partition(', ')[2]}"]
            for key in ("vectors", "seconds"):
                what = "peak memory" if key == "vectors" else "time"
                yield {
                    "what": f"{what}, {about}: ours / {peer}", "unit": "ratio", "value": ours[key] / found[peer][key],
                    "limit": 1.0 if "eigenthings" in peer else None,
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=["matrix", "network"])
    parser.add_argument("p", type=int)
    parser.add_argument("what")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(asked.subject, asked.p, asked.what)))


if __name__ == "__main__":
    main()
