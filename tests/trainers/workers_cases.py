"""Single situations of several ranks; each function runs on every rank and returns plain values."""

import contextlib
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from quadratics import TwoExamples, closure_of
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from workers_problem import Network, data, vector
from workers_steps import Counting, closures

from trainers import Objective, make_optimizer

F64 = torch.float64


def two_examples(rank):
    """m = 1 on problem M: a rank an example."""
    model = TwoExamples()
    optimizer = make_optimizer("sam", DistributedDataParallel(model), lr=1.0, rho=0.5)
    before = model.w.detach().clone()
    optimizer.step(closure_of(model, lambda: model(torch.tensor([rank]))), sizes=[1])
    return (before - model.w.detach()).numpy()


def outside_the_block(rank, broken):
    """Whether the first pass is synchronised when only its backward, or all of it, is inside `no_sync`."""
    model = DistributedDataParallel(Network())
    counting = Counting()
    counting.watch(model)
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.3)
    if broken:
        quiet, optimizer._passes.replicas.quiet = optimizer._passes.replicas.quiet, contextlib.nullcontext
    (x, y) = data(1)[0][rank]

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        with quiet() if broken else contextlib.nullcontext():
            loss.backward()
        return loss

    optimizer.step(closure)
    return counting.ddp


def profiled(rank, sharing):
    """Names of all collectives of a step, as torch's profiler sees them."""
    model = DistributedDataParallel(Network())
    optimizer = make_optimizer("gsam", model, lr=0.1, rho=0.3, sharing=sharing)
    for i, batches in enumerate(data(2)):
        descents, sizes, _ = closures(model, [batches[rank]])
        if i == 0:
            optimizer.step(descents, sizes=sizes)  # the first forward pass of DistributedDataParallel sends buffers
            continue
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step(descents, sizes=sizes)
    return [event.name for event in profile.events() if event.name.startswith("gloo:")]


class Scaled(Network):
    """Its outputs are multiplied by an input; infinity makes the gradient overflow."""

    def forward(self, x):
        return super().forward(x[:, :4]) * x[:, 4:]


def overflow(rank, method, sharing, when, options, skip=""):
    """Three steps with a GradScaler, or with `skip_nonfinite`; in the second, in the given pass, rank 1's gradient is
    not finite, or its loss alone."""
    model = Scaled()
    scaler = GradScaler("cpu", init_scale=4.0, growth_interval=100, enabled=not skip)
    wrapped = DistributedDataParallel(model)
    optimizer = make_optimizer(
        method, wrapped, lr=0.1, momentum=0.9, rho=None if method == "sgd" else 0.3, sharing=sharing,
        grad_scaler=scaler, total_steps=3,
        skip_nonfinite=bool(skip), **options,
    )  # fmt: skip
    out = []
    for t, batches in enumerate(data(3)):
        x, y = batches[rank]
        calls = []

        def closure(x=x, y=y, t=t, calls=calls):
            calls.append(1)
            bad = t == 1 and rank == 1 and len(calls) == when
            model.zero_grad()
            factor = torch.full((len(x), 1), math.inf if bad and skip != "loss" else 1.0, dtype=F64)
            loss = F.cross_entropy(wrapped(torch.cat([x, factor], 1)), y)
            scaler.scale(loss).backward()
            return loss.detach() * (math.nan if bad and skip == "loss" else 1.0)

        before = vector(model)
        optimizer.step(closure, sizes=[len(x)])
        after = vector(model)
        out.append((optimizer.last.overflow, bool(torch.equal(before, after)), scaler.get_scale(), after.numpy()))
    return out


def zero_gradient(rank, sharing):
    """Rank 1 sees a constant loss."""
    model = Network()
    wrapped = DistributedDataParallel(model)
    optimizer = make_optimizer("gsam", wrapped, lr=0.1, rho=0.3, sharing=sharing)
    for batches in data(2):
        x, y = batches[rank]

        def closure(x=x, y=y):
            model.zero_grad()
            loss = F.cross_entropy(wrapped(x), y) * (0.0 if rank == 1 else 1.0)
            loss.backward()
            return loss

        optimizer.step(closure, sizes=[len(x)])
    return vector(model).numpy()


class Branches(nn.Module):
    """Two heads over one body; a third that nobody uses."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.body, *self.heads = (nn.Parameter(torch.randn(2, 3, dtype=F64, generator=generator)) for _ in range(4))
        self.heads = nn.ParameterList(self.heads)

    def forward(self, x, head):
        return torch.tanh(x @ self.body) @ self.heads[head].T


def unused(rank, method, options, world):
    """Each rank uses its own head, in step 1 all the first; with one process both, as two chunks.

    The third has no gradient, but a decay.
    """
    model = Branches()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
    optimizer = make_optimizer(
        method, wrapped, lr=0.1, momentum=0.9, rho=0.3, weight_decay=0.5, decay_all=True, total_steps=3, **options
    )
    generator = torch.Generator().manual_seed(4)
    sizes = (4, 2)
    for t in range(3):
        heads = (0, 0) if t == 1 else (0, 1)
        batches = [torch.randn(n, 2, dtype=F64, generator=generator) for n in sizes]
        chosen = [rank] if world > 1 else [0, 1]
        steps = [
            closure_of(model, lambda x=batches[i], head=heads[i]: wrapped(x, head).square().mean()) for i in chosen
        ]
        optimizer.step(steps, sizes=[sizes[i] for i in chosen])
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


class Normalised(nn.Module):
    def __init__(self, sync=False):
        super().__init__()
        self.first = nn.Linear(4, 3, dtype=F64)
        self.norm = (nn.SyncBatchNorm if sync else nn.BatchNorm1d)(3, dtype=F64)
        self.register_buffer("table", torch.tensor([0.1, 0.2, 0.7], dtype=F64))

    def forward(self, x):
        return self.norm(self.first(x)) + self.table


def running_statistics(rank):
    """Running means before and after they are synchronised, and a buffer that is none."""
    model = Normalised()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.3)
    optimizer = make_optimizer("sam", DistributedDataParallel(model), lr=0.1, rho=0.1)
    (x, y) = data(1)[0][rank]
    optimizer.step(
        Objective(optimizer.model, F.cross_entropy, x, y, parameters=list(model.parameters())), sizes=[len(y)]
    )
    own = model.norm.running_mean.clone().numpy()
    model.table += rank
    optimizer.synchronise_buffers()
    batches = int(model.norm.num_batches_tracked)
    return own, model.norm.running_mean.numpy(), model.norm.running_var.numpy(), batches, model.table.numpy()


def refused(rank, what):
    """The message with which something that cannot work is refused."""
    try:
        if what == "static graph":
            make_optimizer("sam", DistributedDataParallel(Network(), static_graph=True), lr=0.1)
        elif what == "group size":
            make_optimizer("sam", Network(), lr=0.1, sharing="group", group_size=3)
        elif what == "pair of four":
            make_optimizer("sampa", Network(), lr=0.1, parallel_gradients=True)
        elif what == "pair of synchronised":
            make_optimizer("sampa", Normalised(sync=True), lr=0.1, parallel_gradients=True)
        elif what == "different batches":
            model = Network()
            optimizer = make_optimizer("sampa", model, lr=0.1, parallel_gradients=True)
            descents, sizes, _ = closures(model, [data(1)[0][rank]])
            optimizer.step(descents, sizes=sizes)
        else:
            make_optimizer(what, Normalised(sync=True), lr=0.1, sharing="batch")
    except ValueError as error:
        return str(error)
    return ""


def draws(rank, sharing, group_size=None):
    """The directions of three steps of RandSAM, the last after a resume from rank 0's state."""
    options = {"sharing": sharing, "group_size": group_size, "rho": 1.0, "lr": 0.0}
    model = Network()
    optimizer = make_optimizer("randsam", model, **options)
    seen = []

    def step(optimizer):
        def closure():
            seen.append(vector(model).numpy())
            model.zero_grad()
            loss = vector_loss(model)
            loss.backward()
            return loss

        optimizer.step(closure)

    step(optimizer)
    state = [optimizer.state_dict()]
    step(optimizer)
    dist.broadcast_object_list(state, 0)
    resumed = make_optimizer("randsam", model, **options)
    resumed.load_state_dict(state[0])
    step(resumed)
    return seen


def vector_loss(model):
    return sum(p.square().sum() for p in model.parameters())


def wrapped_later(rank, told):
    """The optimizer is made before DistributedDataParallel, as some trainers do."""
    model = Network()
    optimizer = make_optimizer("sam", model, lr=0.1, momentum=0.9, rho=0.3)
    wrapped = DistributedDataParallel(model)
    counting = Counting()
    counting.watch(wrapped)
    if told:
        optimizer.wrapped_in(wrapped)
    for batches in data(3):
        descents, sizes, _ = closures(wrapped, [batches[rank]])
        optimizer.step(descents, sizes=sizes)
    return counting.ddp, vector(model).numpy()


def halves(rank):
    """The average of bfloat16 gradients with 300 and 157 examples."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    optimizer = make_optimizer("sgd", model, lr=1.0)

    def closure():
        model.zero_grad()
        (model.weight.sum() * [1.0, 2.0][rank]).backward()
        return torch.zeros(())

    optimizer.step(closure, sizes=[[300, 157][rank]])
    return float(model.weight.grad)
