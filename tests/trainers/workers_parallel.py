"""SAMPa with its two gradients on two processes; each function runs on every rank and returns plain values."""

import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from workers_problem import data

from trainers import Objective, make_optimizer
from trainers.randomness import seeded

F64 = torch.float64


class Noisy(nn.Module):
    """Running statistics, and dropout: both depend on which process ran which pass."""

    def __init__(self, dtype=F64):
        super().__init__()
        self.first = nn.Linear(4, 6, dtype=dtype)
        self.norm = nn.BatchNorm1d(6, dtype=dtype)
        self.second = nn.Linear(6, 3, dtype=dtype)

    def forward(self, x):
        return self.second(F.dropout(torch.tanh(self.norm(self.first(x))), 0.3))


def train(rank, parallel, lam=0.2, steps=5, wrap=False, stop=None, window=None, chunks=1, same_rng=True, scale=None):
    """Train on the same batches on all ranks; `stop` saves and starts afresh after that step."""
    dtype = F64 if scale is None else torch.float32
    with seeded(3):
        model = Noisy(dtype)
        scaler = GradScaler("cpu", init_scale=scale, growth_interval=100) if scale else None

        def made(model):
            return make_optimizer(
                "sampa",
                DistributedDataParallel(model) if wrap else model,
                lr=0.1,
                momentum=0.9,
                weight_decay=0.01,
                rho=0.2,
                lam=lam,
                window=window,
                sharing="batch",
                parallel_gradients=parallel,
                grad_scaler=scaler,
                same_rng=same_rng,
            )

        optimizer = made(model)
        parameters = list(model.parameters())
        losses, passes, overflows = [], [], []
        previous = None
        for t, batches in enumerate(data(steps, (8,))):
            x, y = batches[0]
            pieces = list(zip(x.to(dtype).tensor_split(chunks), y.tensor_split(chunks), strict=True))
            sizes = [len(b) for _, b in pieces]

            def closures(model, parameters, pieces=pieces):
                return [
                    Objective(model, F.cross_entropy, a, b, parameters=parameters, grad_scaler=scaler)
                    for a, b in pieces
                ]

            if stop == t:
                weights, state = model.state_dict(), optimizer.state_dict()
                fresh = Noisy(dtype)
                fresh.load_state_dict(weights)
                model, parameters = fresh, list(fresh.parameters())
                optimizer = made(model)
                optimizer.load_state_dict(state)
                optimizer.remember(closures(optimizer.model, parameters, previous), sizes=sizes)
            previous = pieces
            loss = optimizer.step(closures(optimizer.model, parameters), sizes=sizes)
            losses.append((float(loss), optimizer.last.clean_loss, optimizer.last.perturbed_loss))
            passes.append(optimizer.last.passes)
            overflows.append(optimizer.last.overflow)
        random = torch.get_rng_state().numpy()
    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    tracked = optimizer.state_dict()["sharpness_aware"].get("previous", {}).get("tracked")
    return {
        "tracked": tracked,
        "tensors": tensors,
        "losses": losses,
        "passes": passes,
        "random": random,
        "overflows": overflows,
    }


def timed(rank, parallel, seconds, steps=4):
    """Median time of a step whose forward and backward takes that long, and when this rank's passes ran."""
    with seeded(3):
        model = Noisy()
    optimizer = make_optimizer("sampa", model, lr=0.1, rho=0.2, parallel_gradients=parallel)
    times = []
    for batches in data(steps, (8,)):
        x, y = batches[0]

        def closure(x=x, y=y):
            time.sleep(seconds)
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        with seeded(1):
            begun = time.monotonic()
            optimizer.step(closure)
            times.append(time.monotonic() - begun)
    return sorted(times[1:])[len(times[1:]) // 2]
