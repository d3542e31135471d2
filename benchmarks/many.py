"""Many small models at once: equal-shaped networks under SAM in one process by vmap, against one at a time."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from benchmarks.pairing import Step, mirrored, ratio
from trainers import Objective, build_model, make_optimizer


def batched(models: list[Any], x: Tensor, y: Tensor, *, rho: float, lr: float) -> Step:
    """A SAM step with plain SGD of all models on the same batch."""
    parameters, buffers = stack_module_state(models)
    skeleton = models[0]

    def loss(p: Any, b: Any) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (p, b), (x,)), y)

    slopes = vmap(grad_and_value(loss))

    @torch.no_grad()
    def step() -> None:
        g, _ = slopes(parameters, buffers)
        size = torch.stack([t.flatten(1).square().sum(1) for t in g.values()]).sum(0).sqrt()
        moved = {n: p + rho * g[n] / size.view(-1, *[1] * (p.ndim - 1)) for n, p in parameters.items()}
        g, _ = slopes(moved, buffers)
        for n, p in parameters.items():
            p.sub_(lr * g[n])  # in place, so that a CUDA graph of the step goes on where it left off

    return step


def one_by_one(models: list[Any], x: Tensor, y: Tensor, *, rho: float, lr: float) -> Step:
    """The same with an optimizer each."""
    made = [(model, list(model.parameters()), make_optimizer("sam", model, lr=lr, rho=rho)) for model in models]

    def step() -> None:
        for model, parameters, optimizer in made:
            optimizer.step(Objective(model, F.cross_entropy, x, y, parameters=parameters))

    return step


def many_models() -> Iterator[dict[str, Any]]:
    """Speed-up at 16 default MLPs, by batch size; no limit, for a CPU."""
    for size in (8, 32, 128):
        draw = torch.Generator().manual_seed(0)
        x, y = torch.randn(size, 1, 8, 8, generator=draw), torch.randint(10, (size,), generator=draw)
        made = [
            [build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=i, options={}) for i in range(16)]
            for _ in range(2)
        ]
        steps = {
            "one": one_by_one(made[0], x, y, rho=0.05, lr=0.01),
            "all": batched(made[1], x, y, rho=0.05, lr=0.01),
        }
        seconds = mirrored(steps, rounds=7, inner=4, warm_up=2)
        yield {
            "what": f"16 MLPs under SAM: one by one / all at once by vmap, batch {size}",
            **ratio(seconds, "one", "all"),
            "unit": "speed-up", "limit": None,
        }  # fmt: skip
