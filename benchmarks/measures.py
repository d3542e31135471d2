"""What each measure costs, in gradients over the training set, beside what its definition asks for."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from analysis.measures.taking import measures_of
from benchmarks.pairing import quartiles
from trainers import build_model, load_dataset

ALLOWANCE = 1.2  # times the expected cost
ROUNDS = 5
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp 64-256-256-10, 1000 digits": {"model": "mlp", "options": {"width": 256, "depth": 2}},
    "resnet20 width 8, 1000 digits": {"model": "resnet20", "options": {"width": 8}},
}


def run() -> Iterator[dict[str, Any]]:
    """Each usual measure on fresh checkpoints, the gradient timed before and after it."""
    torch.set_num_threads(1)
    data = load_dataset("digits", train_size=1000, validation_size=300, test_size=400)
    for what, network in NETWORKS.items():
        spent: dict[str, list[float]] = {}
        whole: list[float] = []
        for seed in range(ROUNDS + 1):
            model = build_model(
                network["model"], shape=data.shape, classes=10, generator_seed=seed, options=network["options"]
            )
            _train(model, data)
            subject = Subject(model.eval(), data, f"net{seed}")
            found = dict(_costs(subject))
            if seed:  # the first also imports what is imported late
                whole.append(sum(found.values()))
                for key, gradients in found.items():
                    spent.setdefault(key, []).append(gradients)
        yield {"what": f"the usual measures together, {what}", **quartiles(whole), "unit": "gradients", "limit": 60.0}
        for key, values in sorted(spent.items(), key=lambda item: -statistics.median(item[1])):
            expected = MEASURES[key].gradients
            limit = {"limit": round(ALLOWANCE * expected, 1)} if expected >= 1 else {}
            yield {
                "what": f"{key}, {what} (expected {expected:g})", **quartiles(values), "unit": "gradients", **limit,
            }  # fmt: skip


def _costs(subject: Subject) -> Iterator[tuple[str, float]]:
    """The usual measures in their order, each in gradients; what they share is paid by the first that needs it."""
    before = _seconds(subject.risk.value_and_gradient)
    begun = time.process_time()
    for key, _ in measures_of(
        subject, {k: o for k, o in plan().items() if k not in ("example_forgetting", "training_speed")}
    ):
        took = time.process_time() - begun
        after = _seconds(subject.risk.value_and_gradient)
        yield key, took / ((before + after) / 2)
        before, begun = after, time.process_time()


def _seconds(function: Callable[[], Any]) -> float:
    spent = []
    for _ in range(3):
        begun = time.process_time()
        function()
        spent.append(time.process_time() - begun)
    return statistics.median(spent)


def _train(model: torch.nn.Module, data: Any) -> None:
    """A few epochs of SGD, so that losses and curvatures are those of trained networks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(5):
        for index in torch.randperm(len(data.train), generator=order).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(data.train.x[index]), data.train.y[index]).backward()
            optimizer.step()
