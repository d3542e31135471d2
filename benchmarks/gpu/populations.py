"""Many equal small models trained with SAM together by vmap, against one at a time."""

from collections.abc import Iterator

from torch import Tensor, nn

from benchmarks.gpu.place import Place
from benchmarks.gpu.script import Row, not_run
from benchmarks.gpu.small import SHAPE, captured
from benchmarks.gpu.training import examples
from benchmarks.many import batched, one_by_one
from benchmarks.pairing import quartiles
from trainers import build_model

ALONE = 8  # models that are trained one at a time, for the time of one
GOAL = "goal 20"


def run(place: Place) -> Iterator[Row]:
    """Speed-up by the number of models; on CUDA also as a graph of the joint step."""
    for batch in (32, 128):
        x, y = examples(place, SHAPE, batch)
        for count in (16, 64, 256) if place.full else (8,):
            yield from _compared(place, count, x, y)


def _compared(place: Place, count: int, x: Tensor, y: Tensor) -> Iterator[Row]:
    what = f"{count} MLPs under SAM, batch {len(x)}: one at a time / together"
    steps = {
        "one": one_by_one(_models(place, ALONE), x, y, rho=0.05, lr=0.01),
        "together": batched(_models(place, count), x, y, rho=0.05, lr=0.01),
    }
    refused = ""
    if place.cuda:
        try:
            steps["graph"] = captured(batched(_models(place, count), x, y, rho=0.05, lr=0.01))
        except RuntimeError as error:
            refused = f"cannot be recorded ({str(error).splitlines()[0]})"
    seconds = place.times(steps, rounds=place.size(5, 2), inner=place.size(10, 1))
    for name, how in (("together", " by vmap"), ("graph", " by vmap in a CUDA graph")):
        if name in steps:
            one_model = zip(seconds["one"], seconds[name], strict=True)
            gains = quartiles([(one / ALONE) / (several / count) for one, several in one_model])
            yield {"what": what + how, **gains, "unit": "speed-up", "note": GOAL}
        else:
            yield not_run(what + how, refused or "no CUDA")


def _models(place: Place, count: int) -> list[nn.Module]:
    return [build_model("mlp", shape=SHAPE, classes=10, generator_seed=seed).to(place.device) for seed in range(count)]
