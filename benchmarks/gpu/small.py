"""Steps of small models: what is read back in each, and what `torch.compile` and CUDA graphs make of them."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.place import Place
from benchmarks.gpu.reads import read_in
from benchmarks.gpu.script import Row, failed, not_run
from benchmarks.gpu.training import Step, examples, network, ours, plain
from benchmarks.many import batched
from benchmarks.pairing import ratio
from trainers import METHODS

SHAPE = (1, 8, 8)
NONE_READ = ("sgd", "sam", "asam")  # the others may read two
METHODS_TIMED = ("sgd", "sam")


def _problem(place: Place) -> tuple[nn.Module, Tensor, Tensor]:
    return network(place, "mlp", SHAPE, {}), *examples(place, SHAPE, 32)


def reads(place: Place) -> Iterator[Row]:
    """Numbers read back in a step of every method: a row each for those that may read none, and for those above two."""
    found: dict[str, tuple[float, float | None]] = {}
    for method in METHODS:
        try:
            found[method] = read_in(ours(method, *_problem(place)), place, steps=place.size(10, 2))
        except Exception as error:
            yield failed(f"numbers read back in a step, {method}", error)
    for method, (count, waited) in found.items():
        if method in NONE_READ or count > 2:
            limit = 0 if method in NONE_READ else 2
            note = "" if waited is None else f"waits for the device {waited:g} times"
            what = f"numbers read back in a step, {method}, MLP, batch 32"
            yield {"what": what, "value": count, "unit": "numbers", "limit": limit, "note": note}
    few = [name for name, (count, _) in found.items() if name not in NONE_READ and count <= 2]
    yield {"what": "other methods that read at most two", "value": len(few), "unit": f"of {len(METHODS) - 3} methods"}


def compiled(place: Place) -> Iterator[Row]:
    """Our step with a compiled model and without, and the plain loop."""
    if place.cuda and importlib.util.find_spec("triton") is None:
        yield not_run("torch.compile", "triton is not installed")
        return
    for method in METHODS_TIMED:
        model, x, y = _problem(place)
        steps: dict[str, Step] = {"eager": ours(method, model, x, y), "plain": plain(*_problem(place))}
        backend = "inductor" if place.full else "aot_eager"  # which compiles nothing
        other = torch.compile(network(place, "mlp", SHAPE, {}), backend=backend)
        steps["compiled"] = ours(method, other, x, y)  # type: ignore[arg-type]
        seconds = place.times(steps, rounds=place.size(7, 2), inner=place.size(50, 2), warm_up=3)
        yield _microseconds(f"{method} step, MLP, batch 32, eager", seconds["eager"])
        yield {
            "what": f"{method} step / plain SGD step, MLP, batch 32",
            **ratio(seconds, "eager", "plain"),
            "unit": "ratio",
        }
        what = f"{method} step, MLP, batch 32: eager / model compiled"
        yield {"what": what, **ratio(seconds, "eager", "compiled"), "unit": "speed-up"}


def captured(step: Step) -> Step:
    """A step recorded once as a CUDA graph: a call replays it on the same tensors.

    Raises:
        RuntimeError: If the step reads a number back, or does something else that cannot be recorded.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


WARM_UP = 3  # steps that `captured` takes before it records one, which it does not take


def graphs(place: Place) -> Iterator[Row]:
    """Steps as CUDA graphs against eager ones: the same weights, and how much faster; first a population of one."""

    def population(model: nn.Module, x: Tensor, y: Tensor) -> Step:
        return batched([model], x, y, rho=0.05, lr=0.01)

    def by_method(method: str) -> Callable[[nn.Module, Tensor, Tensor], Step]:
        return lambda model, x, y: ours(method, model, x, y)

    kinds = {"population's SAM": population, "our sgd": by_method("sgd"), "our sam": by_method("sam")}
    for name, make in kinds.items():
        what = f"{name} step, MLP, batch 32: eager / CUDA graph"
        problems = [_problem(place) for _ in range(2)]
        eager = make(*problems[0])
        try:
            replayed = captured(make(*problems[1]))
        except RuntimeError as error:
            yield not_run(what, f"cannot be recorded ({str(error).splitlines()[0]})")
            continue
        for _ in range(WARM_UP + 5):
            eager()
        for _ in range(5):
            replayed()
        apart = _apart(problems[0][0], problems[1][0])
        wrong: dict[str, Any] = {} if apart < 1e-4 else {"failed": True}
        same = f"{name} step: weights after 5 replays, relative difference from eager"
        yield {"what": same, "value": apart, "unit": "", "limit": 1e-4, **wrong}
        seconds = place.times({"eager": eager, "graph": replayed}, rounds=place.size(7, 2), inner=place.size(50, 2))
        yield {"what": what, **ratio(seconds, "eager", "graph"), "unit": "speed-up"}


def _apart(one: nn.Module, other: nn.Module) -> float:
    a, b = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (one, other))
    return float((a - b).abs().max() / a.abs().max())


def _microseconds(what: str, seconds: list[float]) -> Row:
    return {"what": what, "value": 1e6 * min(seconds), "unit": "µs"}
