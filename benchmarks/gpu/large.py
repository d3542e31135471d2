"""ResNet-18 on images of 32 x 32: images a second, memory, eigenvalues, trace and a surface."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import landscape
from benchmarks.gpu.place import Place, allow_tf32, rate
from benchmarks.gpu.reads import read_in
from benchmarks.gpu.script import Row, failed, not_run
from benchmarks.gpu.training import Step, examples, library_sam, network, ours, plain
from benchmarks.pairing import ratio

SHAPE = (3, 32, 32)
METHODS = ("sgd", "sam", "asam", "gsam")
KINDS: dict[str, tuple[bool, torch.dtype | None, torch.memory_format]] = {  # TF32, autocast, memory format
    "float32": (False, None, torch.contiguous_format),
    "TF32": (True, None, torch.contiguous_format),
    "bfloat16": (False, torch.bfloat16, torch.contiguous_format),
    "bfloat16, channels last": (False, torch.bfloat16, torch.channels_last),
}


def images(place: Place) -> Iterator[Row]:
    """Images a second of the plain loop, our methods and pytorch_optimizer's SAM, by type of numbers."""
    batch = place.size(512, 8)
    for kind, (tf32, autocast, layout) in KINDS.items():
        if tf32 and not place.cuda:
            yield not_run(f"images a second, {kind}", "no CUDA")
            continue
        steps = _steps(place, batch, autocast, layout)
        allow_tf32(tf32)
        try:
            seconds = place.times(steps, rounds=place.size(4, 1), inner=place.size(3, 1), warm_up=place.size(3, 1))
        finally:
            allow_tf32(False)
        for name in steps:
            yield {"what": f"{name}, batch {batch}, {kind}", **rate(batch, seconds[name]), "unit": "images/s"}
        for name in (f"ours, {method}" for method in METHODS):
            yield {"what": f"{name} / plain SGD, {kind}", **ratio(seconds, name, "plain SGD"), "unit": "ratio"}
        if "pytorch_optimizer, SAM" in steps:
            found = ratio(seconds, "ours, sam", "pytorch_optimizer, SAM")
            yield {"what": f"our SAM / pytorch_optimizer's, {kind}", **found, "unit": "ratio", "limit": 1.0}
        else:
            yield not_run(f"pytorch_optimizer, {kind}", "it is not installed")
    yield from _held(place, batch)


def _steps(place: Place, batch: int, autocast: torch.dtype | None, layout: torch.memory_format) -> dict[str, Step]:
    x, y = examples(place, SHAPE, batch)
    x = x.to(memory_format=layout)

    def model() -> nn.Module:
        return _resnet(place).to(memory_format=layout)  # type: ignore[call-overload,no-any-return]

    steps: dict[str, Step] = {"plain SGD": plain(model(), x, y, autocast=autocast)}
    steps |= {f"ours, {method}": ours(method, model(), x, y, autocast=autocast) for method in METHODS}
    other = library_sam(model(), x, y, autocast=autocast)
    return steps if other is None else {**steps, "pytorch_optimizer, SAM": other}


def _held(place: Place, batch: int) -> Iterator[Row]:
    """What a step reads back and holds."""
    x, y = examples(place, SHAPE, batch)
    steps: dict[str, Step] = {"plain SGD": plain(_resnet(place), x, y)}
    steps |= {f"ours, {method}": ours(method, _resnet(place), x, y) for method in METHODS}
    for name, step in steps.items():
        count, waited = read_in(step, place, steps=place.size(5, 1))
        note = "" if waited is None else f"waits for the device {waited:g} times"
        yield {"what": f"numbers read back in a step, {name}", "value": count, "unit": "numbers", "note": note}
        peak = place.peak(step)
        if peak is not None:
            yield {"what": f"peak memory of a step, {name}, batch {batch}", "value": peak, "unit": "MiB"}


def curvature(place: Place) -> Iterator[Row]:
    """Products, the largest eigenvalues and the trace of the Hessian, and PyHessian's where it is installed."""
    model, batches = _trained(place)
    n = sum(len(x) for x, _ in batches)
    risk = landscape.EmpiricalRisk.from_model(model, F.cross_entropy, batches)
    hessian = landscape.Hessian(risk)
    v = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(0)).to(place.device)
    steps: dict[str, Step] = {"product": lambda: hessian @ v, "gradient": risk.gradient}
    seconds = place.times(steps, rounds=place.size(3, 1), warm_up=1)
    about = f"ResNet-18, {n} images, path {hessian.path}"
    yield {"what": f"Hessian product / gradient, {about}", **ratio(seconds, "product", "gradient"), "unit": "ratio"}
    spent: dict[str, float] = {}
    for k in (1, 5) if place.full else (1,):
        found, spent[str(k)] = _timed(place, lambda k=k: _eigenpairs(hessian, k))  # type: ignore[misc]
        note = f"{found.products} products, converged: {bool(found.converged)}, largest {float(found.values[0]):.6g}"
        yield {"what": f"{k} largest eigenvalues to 1e-3", "value": spent[str(k)], "unit": "s", "note": note}
    estimate, took = _timed(
        place, lambda: landscape.trace(hessian, draws=place.size(64, 12), generator=torch.Generator().manual_seed(0))
    )
    note = f"{estimate.value:.6g} ± {estimate.stderr:.2g} by {estimate.products} products"
    yield {"what": "trace", "value": took, "unit": "s", "note": note}
    yield from _pyhessian(place, model, batches, spent["1"])


def _pyhessian(place: Place, model: nn.Module, batches: list[Any], ours_took: float) -> Iterator[Row]:
    what = "largest eigenvalue to 1e-3, ours / PyHessian at its tol 1e-3"
    from benchmarks.peers import PyHessian
    from benchmarks.subjects import Subject

    missing = PyHessian.missing()
    if missing:
        yield not_run(what, missing)
        return
    peer = PyHessian(Subject("ResNet-18", model, nn.CrossEntropyLoss(), batches))
    answers, took = _timed(place, lambda: peer.top_eigenvalue(1e-3, seed=0))
    note = f"it gives {answers[0].value:.6g}"
    yield {"what": what, "value": ours_took / took, "unit": "ratio", "limit": 0.6, "note": note}


def surface(place: Place) -> Iterator[Row]:
    """A plane of 51 x 51 points, and a point of it beside a plain forward pass."""
    model, batches = _trained(place, images=place.size(256, 8))
    points, n = place.size(51, 5), sum(len(x) for x, _ in batches)
    risk = landscape.EmpiricalRisk.from_model(model, F.cross_entropy, batches)
    axes = landscape.Axes(risk.theta, landscape.random_axes(risk.theta, torch.Generator().manual_seed(0)))
    grid = landscape.Grid.around(1.0, points, axes=2)

    def forward() -> None:
        with torch.inference_mode():
            for x, y in batches:
                F.cross_entropy(model(x), y)

    alone = place.times({"pass": forward}, rounds=place.size(5, 2), inner=place.size(10, 1))["pass"]
    made, took = _timed(place, lambda: landscape.scan(risk, axes, grid))
    yield {"what": f"surface of {points} x {points} points, ResNet-18, {n} images", "value": took, "unit": "s"}
    each = took / points**2 / min(alone)
    yield {"what": "a point of it / a plain forward pass", "value": each, "unit": "ratio", "limit": 1.5}
    centre = float(made.values["loss"][points // 2, points // 2])
    if not abs(centre - risk.value()) < 1e-3 * max(1.0, abs(centre)):
        yield failed("loss in the middle of the surface", AssertionError(f"{centre} is not {risk.value()}"))


def _trained(place: Place, images: int | None = None) -> tuple[nn.Module, list[Any]]:
    """A model after some steps on random labels, in eval mode, and the data in batches."""
    count = images or place.size(1024, 16)
    x, y = examples(place, SHAPE, count)
    model = _resnet(place)
    step = ours("sgd", model, x[:256], y[:256])
    for _ in range(place.size(20, 1)):
        step()
    model.zero_grad(set_to_none=True)
    size = place.size(256, 8)
    return model.eval(), list(zip(x.split(size), y.split(size), strict=True))


def _resnet(place: Place) -> nn.Module:
    return network(place, "resnet18", SHAPE, {} if place.full else {"width": 4})


def _eigenpairs(hessian: landscape.Hessian, k: int) -> landscape.Eigenpairs:
    return landscape.top_eigenpairs(hessian, k, tol=1e-3, generator=torch.Generator().manual_seed(0))


def _timed(place: Place, work: Callable[[], Any]) -> tuple[Any, float]:
    kept: list[Any] = []
    took = place.seconds(lambda: kept.append(work()))
    return kept[0], took
