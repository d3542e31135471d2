"""Runs that several processes train together: as one process alone, stopped, killed and continued, and refused."""

import re
from pathlib import Path

import pytest
import torch
import workers
from stopping import assert_same
from torch.testing import assert_close
from workers import WorkError
from workers_runs import BASE

from landscape.ranks import Ranks
from trainers import Run, fit, read_weights
from trainers.config import train_config
from trainers.runs.sharing import Deal, shared_out

pytestmark = pytest.mark.xdist_group("ranks")

WATCHED = {"model": "workers_runs:watched", "model_options": {}, "method": "sam", "sharing": "global"}


def together(ranks, function, **arguments):
    """What the function gives on each rank; all give the same."""
    first, *others = workers.pool().run("workers_runs", function, ranks=ranks, **arguments)
    assert all(other == first for other in others)
    return first


def refused(ranks, function, **arguments):
    """What a rank raised; afterwards the ranks still work together."""
    with pytest.raises(WorkError) as raised:
        workers.pool().run("workers_runs", function, ranks=ranks, **arguments)
    return str(raised.value)


@pytest.mark.parametrize(("changes", "same"), [
    ({"method": "sgd", "average": "ema", "average_decay": 0.9}, {}),
    ({"method": "sam", "sharing": "global", "evaluate_every": 2, "class_weights": "balanced"}, {}),
    ({"method": "sam", "class_weights": "balanced"}, {"m": True}),  # each rank's batch has its own perturbation: m-SAM
    ({"method": "asam", "m": 2, "sampler": "balanced"}, {}),
    ({"method": "looksam", "sharing": "group", "group_size": 2, "augment": ("mixup:0.4",)}, {"m": True}),
    ({"method": "sam", "sharing": "global", "dataset": "workers_runs:items", "label_noise": 0, "test_size": None,
      "augment": ("crop:1", "flip")}, {}),
    ({"method": "sam", "sharing": "global", "task": "nodes", "dataset": "csbm", "model": "gcn"}, {}),
], ids=["sgd", "global", "batch", "chunk", "group", "read one by one", "nodes"])  # fmt: skip
def test_ranks_train_what_one_process_trains(tmp_path, changes, same):
    for ranks in (2, 4) if same or changes.get("m") else (4,):
        status, reason, folder = together(ranks, "trained", out=str(tmp_path / str(ranks)), changes=changes)
        assert (status, reason) == ("finished", "")
        run = Run(Path(folder))
        assert run.status()["ranks"] == ranks
        alone = {**BASE, **changes}
        if same:  # the examples behind a perturbation are what one process must be told
            alone |= {"m": alone["batch_size"] // ranks * alone.get("group_size", 1), "sharing": None}
            alone |= {"group_size": None}
        one = fit(alone, out=tmp_path / f"1 as {ranks}", trust=True)
        assert (one.run_id == run.run_id) == (changes.get("sharing") != "group")
        for step, place in one.checkpoints().items():
            ours, theirs = (
                read_weights(run.checkpoint(step) / "params.safetensors"),
                read_weights(place / "params.safetensors"),
            )
            for name, tensor in theirs.items():
                assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)
        ours, theirs = run.history(), one.history()
        for name in theirs.columns.difference(["seconds", "m", "m_global"]):
            assert_close(torch.tensor(ours[name]), torch.tensor(theirs[name]), rtol=1e-9, atol=1e-9, equal_nan=True)
        if changes.get("augment") != ("mixup:0.4",):
            assert (run.correctness("presentation") == one.correctness("presentation")).all()
        assert (run.correctness("sweep") == one.correctness("sweep")).all()


def test_ranks_weigh_sequences_by_their_tokens(tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("".join("ab c"[i % 3 :] + "x" * (i * 7 % 23) + "\n" for i in range(60)))
    changes = {
        "task": "language", "dataset": f"text:{text}", "model": "gpt", "method": "sam", "sharing": "global",
        "model_options": {"width": 8, "depth": 1, "heads": 2}, "task_options": {"context": 32, "packing": "padded"},
        "train_size": 37, "label_noise": 0, "lr": 0.02,
    }  # fmt: skip
    run = Run(Path(together(2, "trained", out=str(tmp_path / "2"), changes=changes)[2]))
    one = fit({**BASE, **changes}, out=tmp_path / "1", trust=True)
    assert one.run_id == run.run_id
    ours, theirs = (read_weights(r.checkpoint(max(r.checkpoints())) / "params.safetensors") for r in (run, one))
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)
    for name in one.history().columns.difference(["seconds", "m", "m_global"]):
        assert_close(torch.tensor(run.history()[name]), torch.tensor(one.history()[name]), rtol=1e-9, atol=1e-9,
                     equal_nan=True)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two ranks that nothing disturbed; dropout draws on each."""
    return Run(Path(together(2, "trained", out=str(tmp_path_factory.mktemp("whole")), changes=WATCHED)[2]))


def test_ranks_stopped_anywhere_go_on_bit_for_bit(tmp_path, whole):
    out = {"out": str(tmp_path / "epoch"), "changes": WATCHED}
    status, reason, folder = together(2, "stopped_after_an_epoch", **out)
    assert (status, reason.partition(";")[0]) == ("interrupted", "stopped on request after step 5 of 10")
    together(2, "trained", **out)
    assert_same(Run(Path(folder)), whole)
    out = {"out": str(tmp_path / "step"), "changes": WATCHED}
    assert together(2, "happens", at="1:7:SIGTERM", work="stopped_by_a_signal", **out) == 128 + 15
    run = Run(Path(out["out"]) / whole.run_id)
    assert "stopped by SIGTERM after step" in run.status()["reason"]
    assert "was begun by 2 processes (until step" in (said := refused(4, "trained", **out))
    assert "and here are 4: start 2, or let others go on with `other_ranks` (--other-ranks)" in said
    with pytest.raises(ValueError, match="was begun by 2 processes"):
        fit({**BASE, **WATCHED}, out=out["out"], trust=True)
    assert run.status()["status"] == "interrupted"
    together(2, "trained", **out)
    assert_same(run, whole)


@pytest.mark.parametrize("count", [1, 4])
def test_another_number_of_ranks_goes_on_where_it_is_asked_to(tmp_path, count):
    changes = {"method": "sam", "sharing": "global"}
    out = {"out": str(tmp_path / "a"), "changes": {**changes, "model": "workers_runs:plain", "model_options": {}}}
    assert together(2, "happens", at="1:14:SIGTERM", work="stopped_by_a_signal", **out) == 128 + 15
    folder = next(Path(out["out"]).glob("*/config.json")).parent
    assert Run(folder).status()["steps"] % 5, "in the middle of an epoch"
    if count == 1:
        fit({**BASE, **out["changes"]}, out=out["out"], trust=True, other_ranks=True)
    else:
        together(count, "trained", other_ranks=True, **out)
    run, one = Run(folder), fit({**BASE, **out["changes"]}, out=tmp_path / "b", trust=True)
    last = max(one.checkpoints())
    for name, tensor in read_weights(one.checkpoint(last) / "params.safetensors").items():
        assert_close(read_weights(run.checkpoint(last) / "params.safetensors")[name], tensor, rtol=1e-9, atol=1e-11)
    assert (run.correctness("presentation") == one.correctness("presentation")).all()
    assert_close(torch.tensor(run.history()["loss"]), torch.tensor(one.history()["loss"]), rtol=1e-9, atol=0)


def test_killed_ranks_end_the_others_and_the_run_goes_on_bit_for_bit(tmp_path, whole):
    out = {"out": str(tmp_path), "changes": WATCHED, "snapshot_seconds": 0}
    for at, said in (("1:5:SIGKILL", "another process of `torchrun` has ended"), ("0:4:SIGKILL 1:4:SIGKILL", "died")):
        pool = workers.Pool(2)
        try:
            with pytest.raises(WorkError, match=said):
                pool.run("workers_runs", "happens", ranks=2, at=at, work="trained", **out)
        finally:
            pool.close()
    together(2, "trained", **out)
    assert_same(Run(tmp_path / whole.run_id), whole)


def test_what_ranks_must_see_alike_is_compared(tmp_path):
    out = str(tmp_path)
    said = refused(2, "trained", out=out, changes={"model": "workers_runs:other_weights", "model_options": {}})
    assert "process 1 of 2 sees other initial weights than process 0" in said
    changes = {"dataset": "workers_runs:other_data", "label_noise": 0, "test_size": None}
    assert "process 1 of 2 sees other data than process 0" in refused(2, "trained", out=out, changes=changes)
    changes = {"model": "workers_runs:plain", "model_options": {}}
    assert "sees other weights after step 10 than process 0" in refused(2, "drifting", out=out, changes=changes)
    assert "BusyError" in refused(2, "busy", out=out, changes={"method": "sgd"})


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_size": 18}, "`batch_size` 18 cannot be shared evenly by 4 processes: make it a multiple of 4"),
    ({"m": 3}, "`m` 3 does not divide the 4 examples that each of 4 processes has of a batch of 16"),
    ({"m": 8}, "`m` 8 does not divide the 4 examples"),
    ({"sharing": "group", "group_size": 3}, "`group_size` must divide the number of processes, 4, got 3"),
    ({"sharing": "global", "micro_batch": 8}, "`micro_batch` 8 does not divide the 4 examples"),
])  # fmt: skip
def test_batches_that_cannot_be_shared_are_refused(changes, message):
    config = train_config({**BASE, "method": "sam", **changes}).resolved()
    with pytest.raises(ValueError, match=re.escape(message)):
        shared_out(config, 4, normalised=False)


def test_the_configuration_says_what_is_computed_whoever_does_it():
    base = {**BASE, "method": "sam"}
    config = train_config(base).resolved()
    assert shared_out(config, 4, normalised=True) == train_config({**base, "m": 4}).resolved()
    everywhere = train_config({**base, "sharing": "global"}).resolved()
    assert shared_out(everywhere, 4, normalised=False) == everywhere
    assert shared_out(everywhere, 4, normalised=True).micro_batch == 4  # BatchNorm sees 4 examples
    plain = train_config({**BASE, "method": "sgd"}).resolved()
    assert shared_out(plain, 4, normalised=False).run_id == plain.run_id


@pytest.mark.parametrize("chunk", [None, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_example_is_dealt_out_once_and_in_order(chunk, count):
    order = torch.arange(100, 100 + 37)  # full batches of 16, and one of 5
    deals = [Deal(Ranks(rank, count), 16, chunk) for rank in range(count)]
    for size in (16, 5, 3):
        places = [deal.place(size) for deal in deals]
        assert [places[0][0], *(b for _, b in places)] == [*(a for a, _ in places), size]
    parts = [deal.shown(order).split(16 // count) for deal in deals]
    for number, batch in enumerate(order.split(16)):
        busy = [deal.place(len(batch))[0] < deal.place(len(batch))[1] for deal in deals]
        mine = [part[number] for part, works in zip(parts, busy, strict=True) if works]
        assert torch.equal(torch.cat(mine), batch)
