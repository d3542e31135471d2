"""A plane of losses beside the same number of plain forward passes, and beside other libraries on the same grid.

`overhead`: resnet20 (width 16) on 512 images at a few points, since every point costs the same. `many`: small networks
on at most 64 images, where points are evaluated together. `peers`: loss-landscapes, and landscaper's function.
"""

import contextlib
import copy
import gc
import importlib
import importlib.util
import io
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pairing import mirrored, ratio
from benchmarks.peak import CLEAR, RESET_PEAK, fresh, memory
from benchmarks.table import absent
from landscape import EmpiricalRisk
from landscape.params import Params
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.grid import Grid
from landscape.surfaces.scan import Scanner
from trainers import build_model

OVERHEAD = 1.05  # times a plain forward pass
COPIES = 2.0  # of the weights
GAIN = 0.5  # of the time of points evaluated one at a time
SMALL: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "mlp 64-32-10, 64 images": ("mlp", (1, 8, 8), 64, {"width": 32, "depth": 1}),
    "mlp 64-64-64-10, 64 images": ("mlp", (1, 8, 8), 64, {"width": 64, "depth": 2}),
    "cnn width 8, 16 images": ("cnn", (1, 8, 8), 16, {"width": 8}),
}


def run(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """All rows."""
    torch.set_num_threads(1)
    yield from overhead(quick=quick)
    yield from many(quick=quick)
    yield memory_row()
    yield from peers(quick=quick)


def memory_row() -> dict[str, Any]:
    """Peak memory of a scan, from a fresh process: `python -m benchmarks.surfaces`."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.surfaces"], env=fresh(), check=True, capture_output=True, text=True
    )
    return {
        "what": "memory of a scan beyond the model and its directions, mlp of 17 million weights, 64 images",
        "value": float(json.loads(done.stdout)["copies"]), "unit": "copies of the weights", "limit": COPIES,
    }  # fmt: skip


def peak() -> float:
    """Peak of resident memory while a scanner is made and evaluates three points, in copies of the weights."""
    _, _, _, small, short = problem("mlp", (1, 8, 8), 64, {"width": 8, "depth": 2})
    Scanner(small, short).evaluate([(0.0, 0.0)])  # what is imported at the first use stays
    _, _, _, risk, axes = problem("mlp", (1, 8, 8), 64, {"width": 4096, "depth": 2})
    risk.value()
    gc.collect()
    before = memory("VmRSS")
    CLEAR.write_text(RESET_PEAK)
    Scanner(risk, axes).evaluate([(0.0, 0.0), (0.5, -0.5), (1.0, 1.0)])
    weights = sum(t.numel() * t.element_size() for t in risk.theta.values()) / 2**20
    return (memory("VmHWM") - before) / weights


def problem(
    name: str, shape: tuple[int, ...], n: int, options: dict[str, Any]
) -> tuple[nn.Module, Tensor, Tensor, EmpiricalRisk, Axes]:
    """A model in eval mode, images and labels, their risk, and two random axes of a tenth of the weights' length."""
    model = build_model(name, shape=shape, classes=10, generator_seed=0, options=options).eval()
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, *shape, generator=draw), torch.randint(0, 10, (n,), generator=draw)
    risk = EmpiricalRisk.from_model(model, F.cross_entropy, (x, y))

    def direction() -> Params:
        drawn = {k: torch.randn(t.shape, generator=draw) for k, t in risk.theta.items()}
        return {k: 0.1 * t * risk.theta[k].norm() / t.norm() for k, t in drawn.items()}

    return model, x, y, risk, Axes(risk.theta, tuple(Axis(direction(), f"random {i}") for i in range(2)))


def overhead(*, quick: bool) -> Iterator[dict[str, Any]]:
    """A point of the scan in plain forward passes."""
    shape, n, points, rounds = ((3, 16, 16), 32, 2, 2) if quick else ((3, 32, 32), 512, 2, 3)
    model, x, _, risk, axes = problem("resnet20", shape, n, {"width": 16})
    where = list(Grid.around(1.0, 51, axes=2).points())[:: 51**2 // points][:points]
    scanner = Scanner(risk, axes)
    parts = scanner.context["parts"][""]

    def forward(part: int, *, last: bool = False) -> Callable[[], None]:
        network = copy.deepcopy(model).to(memory_format=torch.channels_last) if last else model
        images = x.contiguous(memory_format=torch.channels_last) if last else x

        def step() -> None:
            with torch.inference_mode():
                for _ in where:
                    for some in images.split(part):
                        network(some)

        return step

    seconds = mirrored(
        {
            "scan": lambda: scanner.evaluate(where),
            "plain": forward(n),
            "best": forward(max(parts), last=True),
        },
        rounds=rounds,
    )
    what = f"a point of resnet20 width 16, {n} images, loss and error with their errors"
    yield {
        "what": f"{what}, in plain forward passes",
        **ratio(seconds, "scan", "plain"),
        "unit": "x",
        "limit": OVERHEAD,
    }
    yield {
        "what": f"{what}, in passes by parts of {max(parts)}, channels last", **ratio(seconds, "scan", "best"),
        "unit": "x",
    }  # fmt: skip


def many(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Points together against points one at a time."""
    for name, (model, shape, n, options) in list(SMALL.items())[: 1 if quick else None]:
        _, _, _, risk, axes = problem(model, shape, n, options)
        where = list(Grid.around(1.0, 8 if quick else 16, axes=2).points())
        together, alone = Scanner(risk, axes), Scanner(risk, axes, batch_points=1)
        seconds = mirrored(
            {"together": lambda s=together, w=where: s.evaluate(w), "alone": lambda s=alone, w=where: s.evaluate(w)},
            rounds=2 if quick else 7,
        )
        yield {
            "what": f"{together.batch_points} points at once, {name}, in time of one at a time",
            **ratio(seconds, "together", "alone"), "unit": "x", "limit": GAIN,
        }  # fmt: skip


def peers(*, quick: bool) -> Iterator[dict[str, Any]]:
    """The same grid of the same model by other libraries: loss alone, which is what they give."""
    cases = {"mlp 64-64-64-10, 64 images": SMALL["mlp 64-64-64-10, 64 images"]}
    if not quick:
        cases["resnet20 width 16, 128 images"] = ("resnet20", (3, 32, 32), 128, {"width": 16})
    for name, (model, shape, n, options) in cases.items():
        network, x, y, risk, axes = problem(model, shape, n, options)
        side = 3 if n > 64 else 12
        where = list(Grid.around(1.0, side, axes=2).points())
        for peer, make in {"loss-landscapes": _loss_landscapes, "landscaper": _landscaper}.items():
            what = f"a plane by landscape, {name}, in time of {peer}"
            try:
                theirs = make(copy.deepcopy(network), x, y, axes, side)
            except ImportError as error:
                yield absent(what, error)
                continue
            seconds = mirrored(
                {
                    "ours": lambda r=risk, a=axes, w=where: Scanner(r, a, metrics=["loss"]).evaluate(w),
                    "theirs": theirs,
                },
                rounds=2 if quick else 3,
            )
            yield {"what": what, **ratio(seconds, "ours", "theirs"), "unit": "x", "limit": 1.0}


def _loss_landscapes(model: nn.Module, x: Tensor, y: Tensor, _: Axes, side: int) -> Callable[[], object]:
    library = importlib.import_module("loss_landscapes")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3)  # it divides by the length of each bias
    metric = importlib.import_module("loss_landscapes.metrics").Loss(F.cross_entropy, x, y)
    return lambda: library.random_plane(model, metric, distance=10, steps=side, normalization="filter")


def _landscaper(model: nn.Module, x: Tensor, y: Tensor, axes: Axes, side: int) -> Callable[[], object]:
    spec = importlib.util.find_spec("landscaper")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("landscaper is not installed")
    package = types.ModuleType("landscaper")  # its __init__ asks for topology libraries that a scan needs not
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules["landscaper"] = package
    compute = importlib.import_module("landscaper.compute").compute_loss_landscape
    directions = [[axis.direction[k].clone() for k, _ in model.named_parameters()] for axis in axes.axes]

    def loss(network: nn.Module, _: Any) -> float:
        return float(F.cross_entropy(network(x), y))

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            compute(model, None, directions, loss, steps=side, distance=0.1, dim=2, device="cpu")

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"copies": peak()}))
