"""A step reads no number back: counted through torch's dispatch, for every method."""

import math

import pytest
import torch
from networks import PERTURBED, closures_of, data, flat, make, network

from benchmarks.reads import counted
from trainers import METHODS

NONE = {"sgd", "sam", "asam", "adamw", "gsam", "wsam", "msam", "s2sam", "looksam", "fsam", "stablesam", "rsam", "crsam"}


def read_in_each(method, steps=3, **options):
    """Reads of each step, the first one apart, in which closures are looked at."""
    model = network(dropout=0.1, dtype=torch.float32)
    optimizer = make(method, model, **(PERTURBED.get(method, {}) | options))
    counts = []
    for x, y in data(steps + 1, dtype=torch.float32):
        descents, sizes, ascents = closures_of(optimizer, model, x, y)
        with counted() as reads:
            optimizer.step(descents, sizes=sizes, ascent=ascents)
        counts.append(reads.count)
    return counts[1:], optimizer


@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_at_most_two_numbers_back(method):
    counts, _ = read_in_each(method)
    assert max(counts) <= (0 if method in NONE else 2), counts


@pytest.mark.parametrize("options", [{"p": 1.0}, {"p": 1.5}, {"p": math.inf}, {"steps": 3}, {"adaptive": "both"}])
def test_neither_do_other_norms_and_more_steps_of_sam(options):
    assert max(read_in_each("sam", **options)[0]) == 0


@pytest.mark.parametrize("method", ["sam", "asam", "gsam", "looksam"])
def test_skipping_what_is_not_finite_costs_two_reads(method):
    assert max(read_in_each(method, skip_nonfinite=True)[0]) <= 2


def test_a_record_is_read_once_and_only_when_it_is_asked():
    _, optimizer = read_in_each("sam", diagnose=True)
    with counted() as reads:
        last = optimizer.last
        numbers = [last.length, last.cosine, last.grad_norm, last.clean_loss, last.perturbed_loss, last.gap]
    assert reads.count == 1
    assert all(map(math.isfinite, numbers))
    assert last.length == pytest.approx(last.rho, rel=1e-6)


def test_the_count_sees_every_kind_of_read():
    t = torch.arange(3.0)
    for read in (lambda: float(t[0]), lambda: bool(t[1]), t.tolist, t.numpy, t.nonzero, lambda: torch.equal(t, t + 1)):
        with counted() as reads:
            read()
        assert reads.count == 1


def test_a_direction_that_is_not_finite_keeps_another_objectives_gradient_out_of_the_weights():
    """Without a guard: OBF's gradient is NaN, the loss's is not, and the step is a plain one."""
    ends = []
    for method, bad in (("sgd", 1.0), ("obf", math.nan)):
        model = network(norm=None)
        optimizer = make(method, model)
        (x, y), *_ = data(1)
        descents, sizes, ascents = closures_of(optimizer, model, x, y)
        if ascents:
            objective = ascents[0].ascent
            ascents[0].ascent = lambda logits, targets: objective(logits, targets) * bad  # noqa: B023
        optimizer.step(descents, sizes=sizes, ascent=ascents)
        ends.append(flat(model))
    assert torch.equal(*ends)
