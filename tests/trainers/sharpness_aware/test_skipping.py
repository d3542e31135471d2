"""Steps that are skipped because something is not finite, steps that are given up, and bases with modes."""

import pytest
import torch
import torch.nn.functional as F
from networks import F64, closures_of, data, flat, make, network, state
from torch.testing import assert_close

from trainers import Objective, make_optimizer
from trainers.files.tree import equal


def closure_of(model, x, y, *, loss=1.0, gradient=1.0):
    """A closure whose loss or gradient is multiplied by a number."""

    def closure():
        model.zero_grad()
        value = F.cross_entropy(model(x), y)
        (value * gradient).backward()
        return value.detach() * loss

    return closure


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", ["loss", "gradient"])
@pytest.mark.parametrize("method", ["sgd", "sam", "randsam", "msam", "gsam"])
def test_a_loss_or_a_gradient_alone_is_enough(method, which, number):
    model = network()
    optimizer = make(method, model, skip_nonfinite=True)
    (x, y), *_ = data(1)
    optimizer.step(closure_of(model, x, y))
    assert not optimizer.last.skipped
    before, steps = state(model), optimizer.steps_taken
    optimizer.step(closure_of(model, x, y, **{which: number}))
    assert optimizer.last.skipped
    assert equal(state(model), before)
    assert optimizer.steps_taken == steps


def test_without_it_nothing_is_looked_at():
    model = network()
    optimizer = make("sam", model)
    (x, y), *_ = data(1)
    optimizer.step(closure_of(model, x, y, loss=torch.nan))
    assert not optimizer.last.skipped
    assert optimizer.steps_taken == 1


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("how", ["accumulate", "chunks"])
def test_one_bad_chunk_skips_the_whole_step(how, bad):
    model = network()
    optimizer = make("sam", model, skip_nonfinite=True)
    (x, y), *_ = data(1)
    before = state(model)
    closures = [closure_of(model, x, y, gradient=torch.nan if i == bad else 1.0) for i in range(2)]
    if how == "chunks":
        optimizer.step(closures, sizes=[1, 3])
    else:
        for closure in closures:
            optimizer.accumulate(closure, size=2)
        optimizer.step()
    assert optimizer.last.overflow == "first pass"
    assert equal(state(model), before)


def test_the_perturbed_pass_alone_is_named():
    model = network(norm=None)
    optimizer = make("sam", model, skip_nonfinite=True)
    (x, y), *_ = data(1)
    clean = flat(model)

    def loss(logits, targets):
        return F.cross_entropy(logits, targets) * (1.0 if torch.equal(flat(model), clean) else torch.nan)

    optimizer.step(Objective(model, loss, x, y))
    assert optimizer.last.overflow == "second pass"
    assert torch.equal(flat(model), clean)


@pytest.mark.parametrize("how", ["evaluate", "accumulate", "nothing"])
@pytest.mark.parametrize("method", ["sam", "esam", "looksam", "fsam", "bsam", "aesam", "ssam_d", "randsam"])
def test_a_step_that_is_given_up_has_never_been(method, how):
    if how == "accumulate" and method == "aesam":
        pytest.skip("sees the whole batch first")
    ends = []
    for given_up in (False, True):
        model = network()
        optimizer = make(method, model)
        batches = data(4)
        for i, (x, y) in enumerate(batches):
            if given_up and i == 2:
                descents, sizes, ascents = closures_of(optimizer, model, *batches[0])
                if how == "evaluate":
                    optimizer.evaluate(descents, sizes=sizes, ascent=ascents)
                elif how == "accumulate":
                    optimizer.accumulate(descents[0], size=sizes[0])
                optimizer.abandon()
                with pytest.raises(ValueError, match="`step` needs a closure"):
                    optimizer.step()
            descents, sizes, ascents = closures_of(optimizer, model, x, y)
            optimizer.step(descents, sizes=sizes, ascent=ascents)
        ends.append(state(model))
    assert equal(*ends)


class ScheduleFree(torch.optim.SGD):
    """Knows two modes, and steps in one."""

    mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def test_modes_reach_the_base():
    model = network()
    base = ScheduleFree(model.parameters(), lr=0.1)
    optimizer = make_optimizer("sam", model, base)
    optimizer.eval()
    assert base.mode == "eval"
    optimizer.train()
    assert base.mode == "train"
    optimizer.evaluate(closure_of(model, *data(1)[0]))
    with pytest.raises(ValueError, match=r"`eval` was called in the middle of a step.*`abandon\(\)`"):
        optimizer.eval()
    optimizer.abandon()
    plain = make_optimizer("sam", model, lr=0.1)
    plain.eval()
    plain.train()


def test_shrinking_is_taken_back_too():
    model = network(norm=None)
    optimizer = make_optimizer("sam", model, lr=0.1, shrink_perturb=0.5, skip_nonfinite=True)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    before = flat(model)
    x, y = torch.full((4, 6), torch.nan, dtype=F64), torch.zeros(4, dtype=torch.int64)
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    assert_close(flat(model), before, rtol=0, atol=0)
