"""With one rank of NCCL (gloo on a CPU), a step of data-parallel training and curvature are those of one process."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import networks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from on_device import CUDA, DEVICE, close, moved
from torch.nn.parallel import DistributedDataParallel

import landscape
from landscape.ranks import Ranks

pytestmark = pytest.mark.gpu


@contextmanager
def one_rank():
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("nccl" if CUDA else "gloo", store=store, rank=0, world_size=1)
        try:
            yield Ranks.of()
        finally:
            dist.destroy_process_group()


def trained(method, sharing, *, wrapped):
    model = networks.network().to(DEVICE)
    given = DistributedDataParallel(model, device_ids=[DEVICE] if CUDA else None) if wrapped else model
    optimizer = networks.make(method, given, sharing=sharing)
    networks.train(given, optimizer, moved(networks.data(3), DEVICE))
    return networks.state(model)


def test_steps_and_sums_of_one_rank_are_those_of_none():
    cases = [(method, sharing) for method in ("sgd", "sam", "asam", "gsam") for sharing in ("chunk", "batch", "global")]
    alone = [trained(method, sharing, wrapped=False) for method, sharing in cases]
    with one_rank() as ranks:
        close([trained(method, sharing, wrapped=True) for method, sharing in cases], alone)
        values = torch.arange(5.0, device=DEVICE)
        summed = values.clone()
        dist.all_reduce(summed)
        close(summed, values)
        close(ranks.gather(values), [values])
        ranks.wait()


def test_curvature_by_one_rank_is_that_of_none():
    def measured(shared):
        model = networks.network().to(DEVICE).eval()
        risk = landscape.EmpiricalRisk.from_model(model, F.cross_entropy, moved(networks.data(2), DEVICE))
        risk = shared(risk)
        hessian = landscape.Hessian(risk)
        generator = torch.Generator().manual_seed(0)
        return [landscape.top_eigenpairs(hessian, 2, generator=generator).values, risk.value()]

    alone = measured(lambda risk: risk)
    with one_rank():
        close(measured(lambda risk: risk.sharded()), alone, rtol=1e-6)
