"""Several processes: how many messages a step sends, and what happens where ranks differ."""

import re

import numpy as np
import pytest
import torch
import workers_by_hand as by_hand
from workers import WorkError, pool
from workers_methods import METHODS, RHO, circles
from workers_problem import data

pytestmark = pytest.mark.xdist_group("ranks")


def run(function, ranks=2, module="workers_cases", **arguments):
    return pool().run(module, function, ranks=ranks, **arguments)


def train(ranks=2, **arguments):
    return run("train", ranks, "workers_steps", **arguments)


def test_a_rank_an_example_is_m_sam_with_m_one():
    for u in run("two_examples"):
        np.testing.assert_allclose(u, [1.737170825, 2.829056942], rtol=1e-9)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("ssam_f",)])
def test_the_local_form_takes_one_all_reduce_a_step(method):
    for result in train(method=method, options={"rho": RHO, **METHODS[method]}, ascends=method == "obf", steps=2):
        scalar = 1 if method == "aesam" else 0  # the statistic of its gate
        assert result["reduces"] == [(1 + scalar, 0)] * 2


@pytest.mark.parametrize("method", ["sam", "asam", "gsam", "obf", "wsam", "fsam", "looksam", "crsam", "bsam"])
def test_the_global_form_takes_two(method):
    options = {"rho": RHO, "sharing": "global", **METHODS[method]}
    for result in train(method=method, options=options, ascends=method == "obf", steps=1):
        assert result["reduces"] == [(2, 0)]


@pytest.mark.parametrize("ddp_options", [{"find_unused_parameters": True}, {"gradient_as_bucket_view": True}])
def test_every_kind_of_wrapper_stays_silent(ddp_options):
    plain = train(method="sam", options={"rho": RHO})
    for result in train(method="sam", options={"rho": RHO}, ddp_options=ddp_options):
        assert result["reduces"] == [(1, 0)] * 3
        np.testing.assert_array_equal(result["weights"], plain[0]["weights"])


@pytest.mark.parametrize("accumulate", [True, False], ids=["accumulate", "list"])
@pytest.mark.parametrize("method", ["gsam", "fsam", "wsam"])
def test_chunks_of_ranks_are_circles_of_their_own(method, accumulate):
    results = train(4, method=method, options={"rho": RHO}, parts=2, accumulate=accumulate)
    steps = []
    for batches in data(3):
        halves = [(x, y) for a, b in batches for x, y in zip(a.tensor_split(2), b.tensor_split(2), strict=True)]
        steps.append(halves)
    expected, _ = by_hand.run(getattr(by_hand, method), steps, rho=RHO, lr=0.1, momentum=0.9)
    for result in results:
        assert result["reduces"] == [(1, 0)] * 3
        np.testing.assert_allclose(result["weights"][-1], expected[-1].numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sharing", ["batch", "global"])
@pytest.mark.parametrize("method", ["gsam", "looksam", "frobsam"])
def test_micro_batches_that_share_are_one_batch(method, sharing):
    options = {"rho": RHO, "sharing": sharing, **METHODS[method]}
    whole, parted = (train(4, method=method, options=options, parts=parts) for parts in (1, 2))
    np.testing.assert_allclose(parted[3]["weights"], whole[0]["weights"], rtol=1e-11, atol=1e-12)
    assert parted[0]["reduces"] == whole[0]["reduces"]
    shared = circles(data(1)[0], "global" if sharing == "global" else "chunk")[0]
    assert parted[0]["records"][0]["m_global"] == len(shared[1])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sampa", {}),
        ("sampa", {"sharing": "batch"}),
        ("msam", {}),
        ("s2sam", {}),
        ("egsam", {}),
        ("ogsam", {}),
        ("vasso", {}),
        ("lookbehind", {}),
        ("sam", {"steps": 2}),
        ("stablesam", {}),
        ("crsam", {"by_loss": True}),
        ("aesam", {"lambda1": by_hand.AE_THRESHOLD, "lambda2": by_hand.AE_THRESHOLD}),
        ("sssam", {"p": 0.5}),
        ("gnp", {"gate": "adaptive", "gate_options": {"lambda1": -1.0, "lambda2": -1.0}}),
    ],
)
def test_the_global_form_is_one_process_with_all_the_data(method, options):
    options = {"rho": RHO, "sharing": "global", **options}
    (alone,) = train(1, method=method, options=options, whole=True, wrap=False, steps=4)
    results = train(4, method=method, options=options, steps=4)
    for result in results:
        np.testing.assert_array_equal(result["weights"], results[0]["weights"])
        np.testing.assert_allclose(result["weights"], alone["weights"], rtol=1e-11, atol=1e-12)
        assert [r["mode"] for r in result["records"]] == [r["mode"] for r in alone["records"]]


def test_only_backward_inside_no_sync_is_not_enough():
    assert run("outside_the_block", broken=False) == [0, 0]
    assert all(count > 0 for count in run("outside_the_block", broken=True))


@pytest.mark.parametrize(("sharing", "count"), [("chunk", 1), ("global", 2)])
def test_the_profiler_sees_no_other_messages(sharing, count):
    for names in run("profiled", sharing=sharing):
        assert names == ["gloo:all_reduce"] * count


@pytest.mark.parametrize("when", [1, 2], ids=["first pass", "second pass"])
@pytest.mark.parametrize("sharing", ["chunk", "global"])
@pytest.mark.parametrize("method", ["gsam", "fsam", "wsam", "looksam", "bsam", "aesam", "ssam_d"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(method, sharing, when):
    options = {**METHODS[method]}
    if method == "looksam":
        options["k"] = 1
    if method == "aesam":
        options.update(lambda1=-float("inf"), lambda2=-float("inf"))
    results = run("overflow", method=method, sharing=sharing, when=when, options=options)
    for result in results:
        assert [bool(overflow) for overflow, *_ in result] == [False, True, False]
        assert [same for _, same, *_ in result] == [False, True, False]
        assert [scale for _, _, scale, _ in result] == [4.0, 2.0, 2.0]
        np.testing.assert_array_equal(result[2][3], results[0][2][3])
        assert np.isfinite(result[2][3]).all()


@pytest.mark.parametrize("skip", ["gradient", "loss"])
@pytest.mark.parametrize("when", [1, 2], ids=["first pass", "second pass"])
@pytest.mark.parametrize("sharing", ["chunk", "global"])
@pytest.mark.parametrize("method", ["gsam", "fsam", "sgd"])
def test_what_is_not_finite_on_one_rank_skips_the_step_on_all(method, sharing, when, skip):
    if method == "sgd" and when == 2:
        pytest.skip("it has one pass")
    results = run("overflow", method=method, sharing=sharing, when=when, options={}, skip=skip)
    for result in results:
        assert [bool(overflow) for overflow, *_ in result] == [False, True, False]
        assert [same for _, same, *_ in result] == [False, True, False]
        np.testing.assert_array_equal(result[2][3], results[0][2][3])
        assert np.isfinite(result[2][3]).all()


@pytest.mark.parametrize("sharing", ["chunk", "global"])
def test_a_rank_whose_gradient_is_zero_neither_breaks_nor_diverges(sharing):
    first, second = run("zero_gradient", sharing=sharing)
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sam", {}),
        ("gsam", {}),
        ("gsam", {"sharing": "global"}),
        ("looksam", {"k": 2}),
        ("wsam", {}),
        ("fsam", {}),
        ("fsam", {"sharing": "global"}),
        ("egsam", {}),
        ("vasso", {}),
        ("vasso", {"sharing": "global"}),
    ],
)
def test_parameters_that_one_rank_does_not_use(method, options):
    first, second = run("unused", method=method, options=options, world=2)
    (alone,) = run("unused", 1, method=method, options=options, world=1)
    start = run("unused", 1, method=method, options={**options, "window": (0, 0)}, world=1)[0]
    for name, values in alone.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], values, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(first["heads.2"], start["heads.2"])  # no gradient anywhere: not even decayed


def test_buffers_are_averaged_where_they_are_statistics_and_rank_zero_s_elsewhere():
    results = run("running_statistics", 4)
    means = np.stack([own for own, *_ in results])
    assert np.ptp(means, axis=0).max() > 1e-3
    for _, mean, variance, batches, table in results:
        np.testing.assert_allclose(mean, means.mean(0), rtol=1e-12)
        np.testing.assert_array_equal(variance, results[0][2])
        assert batches == 1
        np.testing.assert_array_equal(table, [0.1, 0.2, 0.7])


@pytest.mark.parametrize(
    ("what", "ranks", "message"),
    [
        ("static graph", 2, "static_graph"),
        ("group size", 4, "`group_size` must divide the number of ranks, 4, .* got 3"),
        ("pair of four", 4, "`parallel_gradients` needs two processes.* got 4"),
        ("pair of synchronised", 2, "SyncBatchNorm mixes activations of two processes"),
        ("different batches", 2, "first losses differ"),
        ("sam", 2, "SyncBatchNorm mixes activations .*sharing='global'"),
        ("sgd", 2, "^$"),  # nothing is perturbed, so nothing is mixed
    ],
)
def test_what_cannot_work_is_refused(what, ranks, message):
    for text in run("refused", ranks, what=what):
        assert re.search(message, text), text


@pytest.mark.parametrize(("sharing", "size", "alike"), [("chunk", None, 1), ("group", 2, 2), ("global", None, 4)])
def test_noise_is_shared_exactly_where_the_perturbation_is(sharing, size, alike):
    results = run("draws", 4, sharing=sharing, group_size=size)
    for rank, (first, second, resumed) in enumerate(results):
        for other in range(4):
            same = rank // alike == other // alike
            assert np.array_equal(first, results[other][0]) == same
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(resumed, second)  # from rank 0's state, each rank goes on with its own draws


def test_a_wrapper_made_after_the_optimizer():
    told = run("wrapped_later", told=True)
    silent = train(method="sam", options={"rho": RHO})
    loud = run("wrapped_later", told=False)
    assert [count for count, _ in told] == [0, 0]
    np.testing.assert_array_equal(told[0][1], silent[0]["weights"][-1])
    assert loud[0][0] > 0
    np.testing.assert_array_equal(loud[0][1], loud[1][1])


def test_half_precision_gradients_are_added_up_in_single():
    exact = torch.tensor((300 * 1.0 + 157 * 2.0) / 457).to(torch.bfloat16)
    assert run("halves") == [float(exact)] * 2


def test_a_failure_on_a_rank_reaches_the_test():
    with pytest.raises(WorkError, match="no_such"):
        run("no_such_function")
