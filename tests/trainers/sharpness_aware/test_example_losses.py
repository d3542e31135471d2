"""The losses of single examples: their mean is the loss that was given, or they are refused."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import F64, flat, network
from torch import nn
from torch.testing import assert_close

from trainers import Objective, make_optimizer, obf_loss
from trainers.sharpness_aware.selection import InverseSlope, LargestIncrease
from trainers.tasks.losses import each

N, K, T = 12, 3, 4
WEIGHT = torch.tensor([1.0, 5.0, 0.2], dtype=F64)


def _data():
    g = torch.Generator().manual_seed(0)
    z, tokens = torch.randn(N, K, generator=g, dtype=F64), torch.randn(N, K, T, generator=g, dtype=F64)
    y, words = torch.randint(K, (N,), generator=g), torch.randint(K, (N, T), generator=g)
    soft, bits = torch.rand(N, K, generator=g, dtype=F64).softmax(-1), torch.randint(2, (N, K), generator=g).to(F64)
    some, padded = y.clone(), words.clone()
    some[::3], padded[0], padded[1, 2:] = -100, -100, -100
    return {
        "z": z,
        "tokens": tokens,
        "y": y,
        "words": words,
        "soft": soft,
        "bits": bits,
        "some": some,
        "padded": padded,
    }


DATA = _data()
CE = F.cross_entropy
LOSSES = {
    "ignored": (CE, "z", "some"),
    "weights": (nn.CrossEntropyLoss(WEIGHT), "z", "y"),
    "weights in a function": (lambda z, t: CE(z, t, WEIGHT), "z", "y"),
    "weights in a partial": (partial(CE, weight=WEIGHT), "z", "some"),
    "weights and smoothing": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2, ignore_index=1), "z", "y"),
    "weights and smoothing in a function": (lambda z, t: CE(z, t, WEIGHT, label_smoothing=0.2), "z", "some"),
    "a class of weight zero": (lambda z, t: CE(z, t, torch.tensor([1.0, 0.0, 1.0], dtype=F64)), "z", "y"),
    "soft targets": (nn.CrossEntropyLoss(WEIGHT), "z", "soft"),
    "tokens": (nn.CrossEntropyLoss(), "tokens", "words"),
    "padded tokens": (nn.CrossEntropyLoss(WEIGHT), "tokens", "padded"),
    "padded tokens in a function": (lambda z, t: CE(z, t), "tokens", "padded"),
    "tokens in rows": (lambda z, t: CE(z.movedim(1, 2).flatten(0, 1), t.flatten()), "tokens", "padded"),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), "z", "y"),
    "a sum of tokens": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), "tokens", "padded"),
    "a sum in a function": (lambda z, t: CE(z, t, reduction="sum"), "z", "y"),
    "a sum over a number": (lambda z, t: CE(z, t, reduction="sum") / 7, "z", "y"),
    "masked": (lambda z, t: (CE(z, t, reduction="none") * (t >= 0)).sum() / (t >= 0).sum().clamp(min=1), "z", "some"),
    "picked": (lambda z, t: CE(z[t >= 0], t[t >= 0]), "z", "some"),
    "binary with weights": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), "z", "bits"),
    "binary, each example weighted": (nn.BCEWithLogitsLoss(weight=torch.rand(N, 1, dtype=F64)), "z", "bits"),
    "squeezing": (lambda z, t: F.binary_cross_entropy_with_logits(z[:, :1].squeeze(), t[:, 0]), "z", "bits"),
    "squares": (F.mse_loss, "z", "soft"),
    "flat in places": (lambda z, t: F.relu(z - z.gather(1, t[:, None]) - 0.5).sum(1).mean(), "z", "y"),
    "negative": (lambda z, t: -CE(z, t, WEIGHT), "z", "y"),
}
NOT_OF_EXAMPLES = {
    "contrastive": lambda z, _: CE(z @ z.T, torch.arange(len(z))),
    "a root of a mean": lambda z, t: (z - t).square().mean().sqrt(),
    "Dice": lambda z, t: 1 - 2 * (z.sigmoid() * t).sum() / (z.sigmoid() + t).sum(),
    "a variance besides": lambda z, t: F.mse_loss(z, t) + z.var(0, correction=0).mean(),
    "a square of a mean": lambda z, t: F.mse_loss(z, t) ** 2,
    "a sum and a constant": lambda z, t: F.mse_loss(z, t, reduction="sum") + 1.0,
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_the_values_is_the_loss_and_has_its_gradient(name, dtype):
    loss, outputs, targets = LOSSES[name]
    if dtype == torch.float32:
        loss = copied_to(loss, dtype)
    z, t = DATA[outputs].to(dtype).requires_grad_(), DATA[targets]
    t = t.to(dtype) if t.is_floating_point() else t
    values, whole = each(loss)(z, t), loss(z, t)
    assert values.shape == (N,)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    assert_close(values.mean(), whole, **near)
    assert_close(*(torch.autograd.grad(v, z)[0] for v in (values.mean(), whole)), **near)


def copied_to(loss, dtype):
    """A loss whose weights have another type."""
    if isinstance(loss, nn.Module):
        return copy.deepcopy(loss).to(dtype)
    return lambda z, t: loss(z.double(), t.double() if t.is_floating_point() else t).to(dtype)


@pytest.mark.parametrize("name", NOT_OF_EXAMPLES)
def test_a_loss_that_is_no_mean_over_examples_is_refused(name):
    with pytest.raises(ValueError, match=r"`loss` is no mean.*`losses\(index\)`"):
        each(NOT_OF_EXAMPLES[name])(DATA["z"], DATA["bits"])


@pytest.mark.parametrize("method", ["esam", "deltasam"])
def test_a_step_refuses_such_a_loss_and_moves_nothing(method):
    model = network(norm=None)
    optimizer = make_optimizer(method, model, lr=0.1)
    before = flat(model)
    x = torch.randn(8, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="one that compares the examples"):
        optimizer.step(Objective(model, NOT_OF_EXAMPLES["contrastive"], x, None))
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("name", ["weights", "weights in a function", "padded tokens", "padded tokens in a function"])
def test_the_loss_of_chosen_examples_is_that_of_a_batch_of_them(name):
    loss, outputs, targets = LOSSES[name]
    z, t, index = DATA[outputs], DATA[targets], torch.tensor([1, 3, 4, 8])
    values = each(loss)
    values(z, t)
    assert_close(values.chosen(z[index], t[index], index).mean(), loss(z[index], t[index]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", [LOSSES["a sum"][0], LOSSES["a sum in a function"][0]], ids=["module", "function"])
def test_of_a_sum_the_chosen_examples_stand_for_the_whole(loss):
    z, t, index = DATA["z"], DATA["y"], torch.tensor([1, 3, 4, 8])
    values = each(loss)
    values(z, t)
    assert_close(values.chosen(z[index], t[index], index).mean(), N * CE(z[index], t[index]), rtol=1e-9, atol=1e-11)


def test_what_each_example_counts_for():
    values = each(LOSSES["padded tokens in a function"][0])
    values(DATA["tokens"], DATA["padded"])
    counts = (DATA["padded"] >= 0).sum(1).to(F64)
    assert_close(values.weights, counts / counts.mean(), rtol=1e-9, atol=1e-11)
    values = each(CE)
    values(DATA["z"], DATA["y"])
    assert values.weights is None


def test_outputs_that_are_no_tensor_are_refused():
    with pytest.raises(ValueError, match="the outputs are tuple"):
        each(lambda z, t: CE(z[0], t))((DATA["z"],), DATA["y"])


def test_targets_may_be_several():
    def loss(z, t):
        return 0.3 * CE(z, t["a"]) + 0.7 * CE(z, t["b"][0], WEIGHT)

    t = {"a": DATA["y"], "b": (DATA["y"],), "name": "two"}
    assert_close(each(loss)(DATA["z"], t).mean(), loss(DATA["z"], t), rtol=1e-9, atol=1e-11)


# -- in the methods ----------------------------------------------------------------------------------------------------


def test_examples_that_do_not_count_are_no_candidates():
    select = LargestIncrease(0.5)
    rise, counts = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, 0.0, 1.0, 1.0, 2.0])
    assert select(torch.zeros(6), rise, counts).tolist() == [1, 3]
    assert select(torch.zeros(6), rise).tolist() == [0, 1, 2]


@pytest.mark.parametrize("normalise", [True, False])
def test_an_example_that_counts_twice_is_two_in_the_weights_of_slopes(normalise):
    weigh = InverseSlope(torch.Generator(), normalise=normalise)
    slopes, counts = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 2.0])
    doubled = weigh(torch.tensor([2.0, 2.0, 2.0]))  # the slopes of the losses alone: 2, and 4/2 twice
    factors = weigh(slopes, counts)
    assert factors[0] == 0
    assert_close((factors[1], factors[2] * 2), (doubled[0] * 1.0, doubled[1] * 2), rtol=1e-6, atol=0)


def sum_and_mean(method, **options):
    ends = []
    for loss, lr in ((CE, 0.1), (partial(CE, reduction="sum"), 0.1 / 12), (lambda z, t: 12 * CE(z, t), 0.1 / 12)):
        model = network(norm=None)
        optimizer = make_optimizer(method, model, lr=lr, rho=0.3, **options)
        x = torch.randn(12, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            optimizer.step(Objective(model, loss, x, DATA["y"]))
        ends.append(flat(model))
    return ends


@pytest.mark.parametrize(("method", "options"), [("esam", {}), ("deltasam", {}), ("deltasam", {"normalise": False})])
def test_a_sum_at_a_smaller_rate_is_the_mean(method, options):
    mean, *sums = sum_and_mean(method, **options)
    for other in sums:
        assert_close(other, mean, rtol=1e-8, atol=1e-10)


def test_inputs_without_a_row_an_example_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(norm=None)

        def forward(self, x, shift):
            return self.inner(x) + shift

    model = Net()
    x, shift = torch.randn(12, 6, dtype=F64), torch.zeros(3, dtype=F64)
    with pytest.raises(ValueError, match="not a row an example"):
        make_optimizer("esam", model, lr=0.1).step(Objective(model, CE, (x, shift), DATA["y"]))


class Wrong:
    """A closure whose losses of examples leave the weights of classes out."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y = model, x, y

    def __call__(self):
        self.model.zero_grad()
        loss = CE(self.model(self.x), self.y, WEIGHT)
        loss.backward()
        return loss

    def forward(self):
        return CE(self.model(self.x), self.y, WEIGHT)

    def losses(self, index=None):
        losses = CE(self.model(self.x), self.y, reduction="none")
        return losses if index is None else losses[index]


@pytest.mark.parametrize("method", ["esam", "deltasam"])
def test_losses_of_a_closure_that_do_not_average_to_its_loss_are_refused(method):
    model = network(norm=None)
    x = torch.randn(12, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"the mean of the closure's `losses\(\)`"):
        make_optimizer(method, model, lr=0.1).step(Wrong(model, x, DATA["y"]))


# -- the objective of output-bias forgetting ---------------------------------------------------------------------------


def test_obf_of_tokens_is_that_of_the_tokens_that_count():
    rows, labels = DATA["tokens"].movedim(1, 2).flatten(0, 1), DATA["padded"].flatten()
    kept = labels >= 0
    expected = obf_loss(rows[kept], labels[kept])
    assert_close(obf_loss(DATA["tokens"], DATA["padded"]), expected, rtol=1e-12, atol=0)
    assert_close(obf_loss(rows, labels), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("targets", ["z", "words"])
def test_obf_refuses_targets_that_are_no_labels_of_its_logits(targets):
    with pytest.raises((ValueError, TypeError), match=r"hard labels|targets"):  # the shapes are checked while tests run
        obf_loss(DATA["z"], DATA[targets])


@pytest.mark.parametrize("name", LOSSES)
def test_values_without_a_graph_are_the_same(name):
    loss, outputs, targets = LOSSES[name]
    z, t = DATA[outputs], DATA[targets]
    first, later = each(loss), each(loss)
    later(z.clone().requires_grad_(), t)
    with torch.no_grad():
        for values in (first, later):
            assert_close(values(z, t).mean(), loss(z, t), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", [CE, lambda z, t: CE(z, t)], ids=["known", "unknown"])
def test_a_class_that_comes_late_is_not_missed(loss):
    z, y, some = DATA["z"], DATA["y"], DATA["some"]
    for targets in (y, y, some, y):  # the first find a plain mean
        assert_close(each(loss)(z, targets).mean(), loss(z, targets), rtol=1e-9, atol=1e-11)
