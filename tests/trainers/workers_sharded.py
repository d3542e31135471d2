"""Models sharded by `fully_shard`; each function runs on every rank and returns plain values."""

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from quadratics import closure_of
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from workers_problem import Network, data, joined

from trainers import make_optimizer, obf_loss

SIZES = (4, 4)  # equal: `fully_shard` takes the plain mean over ranks


def whole(t):
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().numpy()


def shard(model, mesh=None):
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.first, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(rank, method, options, sharded, steps=3, scale=None, mesh=None):
    """Weights and norms of some steps, with all the data in one process or its share on each rank."""
    model = Network()
    if sharded:
        shard(model, init_device_mesh("cpu", tuple(mesh), mesh_dim_names=("copies", "parts")) if mesh else None)
    scaler = GradScaler("cpu", init_scale=scale) if scale else None
    options = dict(options)
    base = options.pop("base", "sgd")
    optimizer = make_optimizer(
        method,
        model,
        base,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
        rho=None if method == "sgd" else 0.3,
        total_steps=steps,
        sharing="global",
        diagnose=True,
        grad_scaler=scaler,
        **options,
    )
    sizes = SIZES * 2 if mesh else SIZES
    lengths = []
    for batches in data(steps, sizes):
        x, y = batches[rank] if sharded else joined(batches)

        def closure(x=x, y=y):
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (loss if scaler is None else scaler.scale(loss)).backward()
            return loss.detach()

        def ascent(x=x, y=y):
            return closure_of(model, lambda: obf_loss(model(x), y))()

        optimizer.reference = lambda closure=closure: ([closure], None)
        optimizer.step(closure, sizes=[len(x)], ascent=ascent if method == "obf" else None)
        last = optimizer.last
        lengths.append((last.length, last.grad_norm, last.m_global))
    return [whole(p) for p in model.parameters()], lengths


def evaluated_between(rank, sharded):
    """A pass without backward before a displacement: the gathered weights must not outlive it."""
    model = Network()
    if sharded:
        shard(model)
    optimizer = make_optimizer("nsam", model, lr=0.1, rho=0.3, sharing="global")
    for batches in data(2, SIZES):
        x, y = batches[rank] if sharded else joined(batches)
        closure = Forward(model, x, y)
        optimizer.reference = lambda closure=closure: ([closure], None)
        optimizer.step(closure)
    return [whole(p) for p in model.parameters()]


class Forward:
    """A closure that can go forward alone."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y = model, x, y

    def __call__(self):
        return closure_of(self.model, lambda: F.cross_entropy(self.model(self.x), self.y))()

    def forward(self):
        return F.cross_entropy(self.model(self.x), self.y)


def refused(rank, method, options):
    model = Network()
    kind = options.pop("model", "sharded")
    if kind == "sharded":
        shard(model)
    elif kind == "in part":
        fully_shard(model.first, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    else:
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    base = options.pop("base", "sgd")
    if base == "fused":
        base = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    try:
        make_optimizer(method, model, base, lr=0.1, **{"sharing": "global", "total_steps": 3, **options})
    except ValueError as error:
        return str(error)
    return ""


def exception(rank):
    """A pass that raises leaves the weights as they were."""
    model = shard(Network())
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.3, sharing="global")
    before = [whole(p) for p in model.parameters()]
    x, y = data(1, SIZES)[0][rank]
    calls = []

    def closure():
        calls.append(1)
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        loss.backward()
        return loss

    with contextlib.suppress(RuntimeError):
        optimizer.step(closure)
    with torch.no_grad():
        value = float(F.cross_entropy(model(x), y))
    plain = Network()
    expected = float(F.cross_entropy(plain(x), y))
    after = [whole(p) for p in model.parameters()]
    return all((a == b).all() for a, b in zip(before, after, strict=True)), abs(value - expected)
