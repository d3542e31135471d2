"""Who has which examples, and several processes that agree with one."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.batches import batch_size
from landscape.loaded import cut_batches
from landscape.ranks import Ranks

ROOT = Path(__file__).parents[2]


def share(rank, count, batches, *, whole):
    sizes = [batch_size(batch) for batch in batches]
    return cut_batches(batches, sizes, Ranks(rank, count).places(sizes, whole=whole))


@settings(max_examples=15)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 6))
def test_examples_are_shared_out_evenly_and_in_order(sizes, count):
    total = sum(sizes)
    x = torch.arange(total)
    batches = [(part, -part) for part in x.split(sizes)]
    if total < count:
        with pytest.raises(ValueError, match=f"`data` has {total} examples, too few for {count} processes: use fewer"):
            share(0, count, batches, whole=False)
        return
    shares = [share(rank, count, batches, whole=False) for rank in range(count)]
    assert torch.equal(torch.cat([part for share in shares for part, _ in share]), x)
    assert all(torch.equal(-part, target) for share in shares for part, target in share)
    loads = [sum(map(batch_size, share)) for share in shares]
    assert max(loads) - min(loads) <= 1


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 6))
def test_whole_batches_are_dealt_out_in_turn(many, count):
    batches = [(torch.full((2,), i), torch.zeros(2)) for i in range(many)]
    if many < count:
        with pytest.raises(ValueError, match=f"`data` has {many} batches, too few for {count} processes"):
            share(0, count, batches, whole=True)
        return
    shares = [share(rank, count, batches, whole=True) for rank in range(count)]
    assert sorted(int(x[0]) for share in shares for x, _ in share) == list(range(many))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_sent_and_nothing_changes():
    alone, t = Ranks.of(), torch.tensor([1.0, 2.0])
    assert (alone.rank, alone.count, alone.leads) == (0, 1, True)
    assert alone.led(lambda: 3) == alone.alike(lambda: 3) == 3
    assert alone.each(lambda: 3) == [3]
    assert alone.total(0.1, t.device) == 0.1
    assert alone.average_([t], 5.0, flags := [0.25]) == 5.0
    assert flags == [0.25]
    alone.follow_(alone.sum_(t))
    alone.require_equal(t)
    alone.wait()
    assert t.tolist() == [1.0, 2.0]
    assert alone.block(1).count == 1


def test_without_processes_the_message_says_how_to_start_some():
    from problems import o2

    with pytest.raises(RuntimeError, match=r"`sharded` needs processes .* `torchrun` and call torch.distributed"):
        o2().sharded()


WORKER = """
import os, sys, warnings
from datetime import timedelta
import torch
import torch.distributed as dist
torch.set_num_threads(1)
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
rank = int(sys.argv[1])
dist.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
from problems import F64, case, cosines, o2
from landscape.ranks import PeerError, Ranks
from landscape import EmpiricalFisher, Fisher, GaussNewton, Hessian, flatten, top_eigenpairs, trace


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def refused(kind, text, f):
    try:
        f()
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"not refused: {text}")


def same_everywhere(t):
    parts = [torch.empty_like(t) for _ in range(2)]
    dist.all_gather(parts, t.contiguous())
    assert torch.equal(*parts)


"""


@pytest.mark.slow
def test_two_processes_agree_with_one_and_refuse_what_would_go_wrong(tmp_path):
    """Values, gradients, products, eigenpairs and traces, to 1e-10; one launch for all of them, to be quick."""
    run_two(
        tmp_path,
        """
        for name in ("o2", "conv:eval", "conv:batch", "language"):
            one = o2((3, 2)) if name == "o2" else case(name).risk()
            if name == "conv:batch":
                one = case("conv:eval").risk(mode="batch")
            two = one.sharded()
            value, gradient = two.value_and_gradient()
            assert abs(value - one.value()) < 1e-12 and abs(two.value() - value) < 1e-12
            close(flatten(gradient), flatten(one.gradient()))
            for path in ("kept", "afresh", "forward", "difference") if name == "o2" else ("kept",):
                for operator in (Hessian, GaussNewton, Fisher, EmpiricalFisher):
                    if path not in operator.paths or (operator is EmpiricalFisher and name == "conv:batch"):
                        continue
                    options = {"likelihood": "categorical"} if operator is Fisher else {}
                    A, B = operator(two, path=path, **options), operator(one, path=path, **options)
                    V = cosines(A.shape[0], 2)
                    product = A @ V
                    if path == "difference":
                        torch.testing.assert_close(product, B @ V, rtol=1e-5, atol=1e-6)
                    else:
                        close(product, B @ V)
                    same_everywhere(product)
        one = o2((3, 2))
        two = one.sharded()
        assert two.n + (3 if rank == 0 else 2) == 5 and two.ranks.count == 2
        assert abs(two.on(one.batches).value() - one.value()) < 1e-12
        half = {k: 0.5 * t for k, t in one.theta.items()}
        assert abs(two.at(half).value() - one.value(half)) < 1e-12
        assert abs(two.in_parts(1).value() - one.value()) < 1e-12
        close(Hessian(two, parameters="2", micro_batch=1).dense(), Hessian(one, parameters="2").dense())
        P = top_eigenpairs(Hessian(two), k=2, which="both", tol=1e-9, generator=seeded())
        Q = top_eigenpairs(Hessian(one), k=2, which="both", tol=1e-9, generator=seeded())
        close(P.values, Q.values)
        same_everywhere(P.values)
        same_everywhere(P.vectors)
        a = trace(Hessian(two), method="hutchinson", draws=10, generator=seeded())
        b = trace(Hessian(one), method="hutchinson", draws=10, generator=seeded())
        assert abs(a.value - b.value) < 1e-10 and abs(a.stderr - b.stderr) < 1e-10
        settled = case("conv:recalibrate").risk()
        refused(ValueError, "use .settled(theta), then .sharded()", settled.sharded)
        close(Hessian(settled.settled().sharded()) @ cosines(126), Hessian(settled) @ cosines(126))
        two = o2((3, 2)).sharded()
        way = "give `generator` the same seed"
        refused(RuntimeError, way, lambda: Hessian(two) @ torch.randn(17, generator=seeded(rank), dtype=F64))
        refused(RuntimeError, way, lambda: trace(Hessian(two), draws=4, generator=seeded(rank)))
        refused(RuntimeError, way, lambda: top_eigenpairs(Hessian(two), generator=seeded(rank)))
        x, y = o2().batches[0]
        few = o2().on((x[:1], y[:1]))
        refused(ValueError, "`data` has 1 examples, too few for 2 processes: use fewer processes", few.sharded)
        refused(ValueError, "`m` needs all data in each process: take the chunks before .sharded()",
                lambda: two.chunks(2))
        refused(ValueError, "`data` has 1 batches, too few for 2 processes",
                case("conv:eval").risk(mode="batch").on(case("conv:eval").batches[0]).sharded)
        ranks = Ranks.of()
        assert (ranks.rank, ranks.count, ranks.leads) == (rank, 2, rank == 0)
        assert [t.tolist() for t in ranks.gather(torch.tensor([rank, 7]))] == [[0, 7], [1, 7]]
        a, b, flags = torch.tensor([float(rank), 3.0]), torch.tensor([2.0 * rank], dtype=torch.bfloat16), [float(rank)]
        assert ranks.average_([a, b], 1.0 + 2 * rank, flags) == 4.0  # weights 1 and 3
        assert a.tolist() == [0.75, 3.0] and b.tolist() == [1.5] and flags == [0.75]
        ranks.follow_(c := torch.tensor([rank + 5]))
        assert c.item() == 5
        assert ranks.each(lambda: rank * 10) == [0, 10] and ranks.alike(lambda: rank) == rank
        assert ranks.led(lambda: f"of {rank}") == "of 0"

        def fails():
            raise KeyError(f"process {rank}")

        refused(KeyError, "process 0", lambda: ranks.led(fails))
        refused(KeyError if rank else PeerError, "process 1" if rank else "process 1 of 2 failed: KeyError",
                lambda: ranks.each(fails if rank else int))
        both = Ranks.of(dist.new_group([0, 1]))
        assert (both.rank, both.block(2), both.block(1).count, ranks.block(1).rank) == (rank, both, 1, 0)
        assert both.led(lambda: rank) == 0
        single = [dist.new_group([member]) for member in range(2)]
        refused(ValueError, "`group` must hold this process's rank", lambda: Ranks.of(single[1 - rank]))
        ranks.wait()
        """,
    )


def run_two(folder, body):
    """Run a script in two processes joined by gloo on a free port, and show what they said if one fails."""
    script = folder / "worker.py"
    script.write_text(WORKER + textwrap.dedent(body) + "\ndist.destroy_process_group()\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(script)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)
