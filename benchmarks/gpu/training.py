"""Training steps on the device: ours, the plain loop's and a library's, on the same model and data."""

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.place import Place
from trainers import METHODS, AscentObjective, Objective, build_model, make_optimizer, obf_loss

Step = Callable[[], object]
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def network(place: Place, name: str, shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    """A model on the device, in train mode; the same weights each time."""
    return build_model(name, shape=shape, classes=10, generator_seed=0, options=options).train().to(place.device)


def examples(place: Place, shape: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Random inputs and labels on the device."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, *shape, generator=draw), torch.randint(10, (count,), generator=draw)
    return x.to(place.device), y.to(place.device)


def ours(method: str, model: nn.Module, x: Tensor, y: Tensor, *, autocast: torch.dtype | None = None) -> Step:
    """A step of a method, with what each method of the registry cannot be made without."""
    needs: dict[str, Any] = {"total_steps": 1000, "steps_per_epoch": 50}
    if method == "bsam":
        needs["examples"] = 1000
    if method == "mup2":
        needs["base_shapes"] = {n: tuple(p.shape) for n, p in model.named_parameters()}
    if method == "sam_on":
        needs["layers"] = "*"
    parameters = list(model.parameters())
    base = METHODS[method].base or "sgd"
    optimizer = make_optimizer(method, model, base, **SGD, **needs)  # type: ignore[arg-type]
    single = optimizer.needs_reference == "squares"

    def objective(rows: slice, **ascent: Any) -> Objective:
        kind = AscentObjective if ascent else Objective
        return kind(model, F.cross_entropy, x[rows], y[rows], parameters=parameters, autocast=autocast, **ascent)

    if optimizer.needs_reference:
        size = 1 if single else 8
        optimizer.reference = lambda: ([objective(slice(0, size))], [size])
    everything = slice(None)

    def step() -> Tensor:
        ascent = [objective(everything, ascent=obf_loss)] if optimizer.parts.ascent == "obf" else None
        return optimizer.step([objective(everything)], ascent=ascent)

    return step


def plain(model: nn.Module, x: Tensor, y: Tensor, *, autocast: torch.dtype | None = None) -> Step:
    """The loop that everyone writes: forward, backward, torch's SGD with its fused kernel."""
    optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)

    def step() -> None:
        optimizer.zero_grad()
        _loss(model, x, y, autocast).backward()
        optimizer.step()

    return step


def library_sam(model: nn.Module, x: Tensor, y: Tensor, *, autocast: torch.dtype | None = None) -> Step | None:
    """pytorch_optimizer's SAM, where it is installed."""
    if importlib.util.find_spec("pytorch_optimizer") is None:
        return None
    kind = importlib.import_module("pytorch_optimizer").SAM
    optimizer = kind(list(model.parameters()), torch.optim.SGD, rho=0.05, **SGD)

    def closure() -> Tensor:
        loss = _loss(model, x, y, autocast)
        loss.backward()
        return loss

    def step() -> None:
        closure()
        optimizer.step(closure)
        optimizer.zero_grad()

    return step


def _loss(model: nn.Module, x: Tensor, y: Tensor, autocast: torch.dtype | None) -> Tensor:
    with nullcontext() if autocast is None else torch.autocast(x.device.type, autocast):
        return F.cross_entropy(model(x), y)
