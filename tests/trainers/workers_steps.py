"""What the ranks do in the tests; each function runs on every rank and returns plain arrays."""

import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from workers_problem import Network, data, joined, vector

from trainers import AscentObjective, Objective, make_optimizer, obf_loss


class Counting:
    """Counts all-reduces: the engine's by patching torch.distributed, DistributedDataParallel's own by its hook."""

    def __init__(self):
        self.engine, self.ddp, self.entries = 0, 0, 0

    def watch(self, ddp):
        def hook(state, bucket):
            self.ddp += 1
            size = dist.get_world_size()
            done = ALL_REDUCE(bucket.buffer(), async_op=True).get_future()
            return done.then(lambda f: f.value()[0] / size)

        ddp.register_comm_hook(None, hook)

    def __call__(self, tensor, *args, **kwargs):
        self.engine += 1
        self.entries = tensor.numel()
        return ALL_REDUCE(tensor, *args, **kwargs)

    def __enter__(self):
        dist.all_reduce = self
        return self

    def __exit__(self, *_):
        dist.all_reduce = ALL_REDUCE


ALL_REDUCE = dist.all_reduce


def closures(model, batches, ascends=False):
    p = [p for p in model.parameters() if p.requires_grad]
    descents = [Objective(model, F.cross_entropy, x, y, parameters=p) for x, y in batches]
    ascents = [AscentObjective(model, F.cross_entropy, x, y, parameters=p, ascent=obf_loss) for x, y in batches]
    return descents, [len(y) for _, y in batches], ascents if ascends else None


def chunked(batch, parts):
    x, y = batch
    return list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))


def train(
    rank,
    method,
    options,
    steps=3,
    sizes=None,
    parts=1,
    ascends=False,
    wrap=True,
    lr=0.1,
    momentum=0.9,
    reference=None,
    ddp_options=None,
    accumulate=False,
    whole=False,
):
    """Train for some steps; the weights after each, the records, and the all-reduces of each step."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    model = Network().to(device)
    counting = Counting()
    wrapped = DistributedDataParallel(model, **(ddp_options or {})) if wrap else model
    if wrap:
        counting.watch(wrapped)
    optimizer = make_optimizer(method, wrapped, lr=lr, momentum=momentum, total_steps=steps, **options)
    if reference:
        batches = tuple(t.to(device) for t in data(1, sizes or reference, seed=3)[0][rank])
        single = [(x[None], y[None]) for x, y in zip(*batches, strict=True)]

        def examples():
            return closures(wrapped, single if optimizer.needs_reference == "squares" else [batches])[:2]

        optimizer.reference = examples
    weights, records, reduces = [], [], []
    for step in data(steps, sizes) if sizes else data(steps):
        batch = tuple(t.to(device) for t in (joined(step) if whole else step[rank]))
        descents, counts, ascents = closures(wrapped, chunked(batch, parts), ascends)
        with counting:
            before = counting.engine, counting.ddp
            if accumulate:
                for i, closure in enumerate(descents):
                    optimizer.accumulate(closure, size=counts[i], ascent=ascents[i] if ascents else None)
                optimizer.step()
            else:
                optimizer.step(descents, sizes=counts, ascent=ascents)
            reduces.append((counting.engine - before[0], counting.ddp - before[1]))
        weights.append(vector(model).cpu().numpy())
        last = optimizer.last
        records.append(
            {
                "mode": str(last.mode),
                "m": last.m,
                "m_global": last.m_global,
                "loss": last.clean_loss,
                "length": last.length,
            }
        )
    return {"weights": weights, "records": records, "reduces": reduces}
