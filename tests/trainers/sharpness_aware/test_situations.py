"""Every method in every situation: right by an oracle, or refused in words that name it."""

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from networks import ELSEWHERE, F64, PERTURBED, data, flat, needed, network
from torch import nn
from torch.testing import assert_close

from trainers import METHODS, AscentObjective, Objective, make_optimizer, obf_loss
from trainers.files.tree import equal
from trainers.randomness import seeded
from trainers.sharpness_aware.bsam import BSAM

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
OFF_THE_BALL = ELSEWHERE | {"egsam", "ogsam", "aosam"}  # displaced by more than the radius says
every_method = pytest.mark.parametrize("method", METHODS)


def base_of(method, params, *, lr=0.05, **settings):
    """The base optimizer of a method over some parameters or groups."""
    if method == "bsam":
        return BSAM([{"params": list(params), **settings}] if settings else params, lr, examples=60)
    kind = torch.optim.AdamW if method == "adamw" else torch.optim.SGD
    return kind(params, lr=lr, **({} if method == "adamw" else {"momentum": 0.9}), **settings)


def optimizer_of(method, model, base=None, *, loss=F.cross_entropy, **options):
    """A method's optimizer, of which every step is a perturbed one, with reference data."""
    given = needed(method, model) | PERTURBED.get(method, {}) | options
    if METHODS[method].rho is not None:
        given.setdefault("rho", 0.3)
    if base is not None:
        given.pop("examples", None)
    else:
        base = base_of(method, model.parameters())
    optimizer = make_optimizer(method, model, base, **given)
    if optimizer.needs_reference:
        (x, y), size = data(1)[0], 1 if optimizer.needs_reference == "squares" else 4
        x = x.to(next(iter(model.state_dict().values())).real.dtype)
        pieces = list(zip(x[:8].split(size), y[:8].split(size), strict=True))
        optimizer.reference = lambda: ([Objective(model, loss, a, b) for a, b in pieces], [size] * len(pieces))
    return optimizer


def closures(optimizer, model, x, y, loss=F.cross_entropy, ascent=obf_loss):
    """The closure of a batch, and that of the ascent objective where there is one."""
    descent = Objective(model, loss, x, y)
    ascends = optimizer.parts.ascent == "obf"
    return descent, AscentObjective(model, loss, x, y, ascent=ascent) if ascends else None


def run(optimizer, model, batches, loss=F.cross_entropy, ascent=obf_loss):
    """Steps over batches; returns the losses."""
    losses = []
    for x, y in batches:
        descent, climb = closures(optimizer, model, x, y, loss, ascent)
        losses.append(float(optimizer.step(descent, ascent=climb)))
    return losses


@contextmanager
def right_or_refused(word):
    """A block that may be refused, in words that name the situation."""
    try:
        yield
    except ValueError as error:
        assert word in str(error), error  # noqa: PT017 - either is right


# -- what the base optimizer trains ------------------------------------------------------------------------------------


@every_method
def test_a_base_over_a_part_of_the_model_is_a_step_of_that_part_alone(method):
    ends = []
    for frozen in (True, False):
        model = network(norm=None)
        for p in model[0].parameters():
            p.requires_grad_(not frozen)
        start, seen = flat(model[0]), []
        model.register_forward_pre_hook(lambda m, _, seen=seen: seen.append(flat(m[0])))
        optimizer = optimizer_of(method, model, base_of(method, model[4].parameters()))
        losses = run(optimizer, model, data(3))
        assert all(torch.equal(start, w) for w in seen)
        ends.append((flat(model[4]), torch.tensor(losses)))
    assert_close(ends[1], ends[0], **CLOSE)


@every_method
def test_maximising_a_function_is_minimising_its_negative(method):
    def negative(logits, targets):
        return -F.cross_entropy(logits, targets)

    ends = []
    with right_or_refused("maximize"):
        for up, loss in ((False, negative), (True, F.cross_entropy)):
            model = network(norm=None)
            base = base_of(method, model.parameters(), **({"maximize": True} if up else {}))
            optimizer = optimizer_of(method, model, base, loss=loss)
            losses = run(optimizer, model, data(3), loss)
            ends.append((flat(model), torch.tensor(losses) * (1 if up else -1)))
        assert_close(ends[1], ends[0], **CLOSE)


@every_method
def test_a_group_with_radius_zero_is_not_displaced_and_equal_radii_are_one(method):
    if METHODS[method].rho is None:
        pytest.skip("has no radius")
    ends = []
    with right_or_refused("rho"):
        for groups in (
            lambda m: m.parameters(),
            lambda m: [{"params": list(part.parameters()), "rho": 0.3} for part in (m[0], m[4])],
        ):
            model = network(norm=None)
            optimizer = optimizer_of(method, model, base_of(method, groups(model)), rho=0.3)
            run(optimizer, model, data(3))
            ends.append(flat(model))
        assert_close(ends[1], ends[0], **CLOSE)
        model = network(norm=None)
        still = [{"params": list(model[0].parameters()), "rho": 0.0}, {"params": list(model[4].parameters())}]
        optimizer = optimizer_of(method, model, base_of(method, still, lr=0.0))
        moved = {0: [], 4: []}
        (x, y), *_ = data(1)
        for _ in range(2):  # some methods displace from the second step on
            starts = {i: flat(model[i]) for i in moved}
            hook = model.register_forward_pre_hook(
                lambda m, _, s=starts: [moved[i].append(float((flat(m[i]) - s[i]).norm())) for i in moved] and None
            )
            run(optimizer, model, [(x, y)])
            hook.remove()
        assert max(moved[4]) > 0 or method == "ssam_f"  # its first mask is empty
        assert max(moved[0]) == 0 or method in OFF_THE_BALL | {"deltasam"}  # whose noise has a length of its own


# -- the loss that was given -------------------------------------------------------------------------------------------


@every_method
def test_ignored_targets_are_as_if_they_were_not_there(method):
    ends = []
    for dropped in (False, True):
        model = network(norm=None)
        optimizer = optimizer_of(method, model)
        batches = []
        for x, y in data(3):
            counts = torch.arange(len(y)) % 3 > 0
            batches.append((x[counts], y[counts]) if dropped else (x, y.where(counts, -100)))
        losses = run(optimizer, model, batches)
        ends.append((flat(model), torch.tensor(losses)))
    assert_close(ends[0], ends[1], **CLOSE)


@every_method
@pytest.mark.parametrize("form", ["module", "function"])
def test_an_example_of_a_class_of_weight_two_is_two_examples(method, form):
    weight = torch.tensor([1.0, 2.0, 1.0], dtype=F64)
    weighted = nn.CrossEntropyLoss(weight) if form == "module" else lambda z, t: F.cross_entropy(z, t, weight)
    ends = []
    for doubled in (False, True):
        model, loss = network(norm=None), F.cross_entropy if doubled else weighted
        options = {"gamma": 1.0} if method == "esam" else {}  # it picks by share of the loss, and two are picked apart
        optimizer = optimizer_of(method, model, **options)
        batches = []
        for x, y in data(3):
            rows = torch.arange(len(y)).repeat_interleave(1 + (y == 1)) if doubled else torch.arange(len(y))
            batches.append((x[rows], y[rows]))
        losses = run(optimizer, model, batches, loss, ascent=loss)
        ends.append((flat(model), torch.tensor(losses)))
    assert_close(ends[0], ends[1], **CLOSE)


# -- buffers, and what is not finite -----------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts its calls, and keeps a running mean of its inputs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=F64))
        self.register_buffer("mean", torch.zeros(6, dtype=F64))

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.mean = torch.lerp(self.mean, x.detach().mean(0), 0.1)
        return x


def counting():
    return nn.Sequential(Counting(), *network(norm=None))


@every_method
@pytest.mark.parametrize("chunks", [1, 2])
def test_buffers_of_ones_own_are_as_after_one_pass_a_step(method, chunks):
    ends = []
    for name in (method, "sgd"):
        model = counting()
        optimizer = optimizer_of(name, model)
        cut = 12 if method in ("sampa", "nsam") else 12 // chunks
        for x, y in data(3):
            pairs = [closures(optimizer, model, a, b) for a, b in zip(x.split(cut), y.split(cut), strict=True)]
            ascents = [a for _, a in pairs if a is not None]
            optimizer.step([d for d, _ in pairs], sizes=[cut] * len(pairs), ascent=ascents or None)
        ends.append((model[0].seen, model[0].mean))
    assert_close(ends[0], ends[1], rtol=0, atol=0)


def kept(optimizer, model):
    """All that a skipped step must leave as it was."""
    state = copy.deepcopy(optimizer.state_dict())
    state["sharpness_aware"].pop("previous", None)
    return {"optimizer": state, "model": {k: v.clone() for k, v in model.state_dict().items()}}


def breaking(model):
    """A loss that is NaN wherever the weights are displaced."""
    clean = flat(model)

    def loss(logits, targets):
        return F.cross_entropy(logits, targets) * (1.0 if torch.equal(flat(model), clean) else torch.nan)

    return loss


@every_method
@pytest.mark.parametrize(("where", "how"), [("inputs", "step"), ("displaced", "evaluate"), ("inputs", "abandon")])
def test_a_step_with_nan_is_as_if_it_had_not_been(method, where, how):
    if where == "displaced" and METHODS[method].rho is None:
        pytest.skip("displaces nothing")
    first, bad, *rest = data(4)
    ends = []
    for met in (False, True):
        with seeded(3):
            model = counting() if method == "ssam_f" else nn.Sequential(Counting(), *network())
            shrink = 0.1 if where == "inputs" else 0.0
            optimizer = optimizer_of(method, model, skip_nonfinite=how != "abandon", shrink_perturb=shrink)
            run(optimizer, model, [first, first])
            if met:
                before = kept(optimizer, model)
                x, y = bad[0].clone(), bad[1]
                if where == "inputs":
                    x[2, 1] = torch.nan
                loss = F.cross_entropy if where == "inputs" else breaking(model)
                descent, climb = closures(optimizer, model, x, y, loss)
                (optimizer.step if how == "step" else optimizer.evaluate)(descent, ascent=climb)
                if how == "evaluate":
                    optimizer.step()
                if how == "abandon":
                    optimizer.abandon()
                assert how == "abandon" or optimizer.last.skipped
                assert equal(kept(optimizer, model), before)
                assert all(p.grad is None for p in model.parameters())
            ends.append([*run(optimizer, model, rest), *flat(model).tolist()])
    assert ends[0] == ends[1]


# -- other numbers -----------------------------------------------------------------------------------------------------


class Complex(nn.Module):
    """|W x|, W complex in one tensor, or in pairs of real numbers."""

    def __init__(self, pairs):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        w = torch.randn(3, 6, dtype=torch.complex128, generator=g) / 3
        self.pairs = pairs
        self.weight = nn.Parameter(torch.view_as_real(w).clone() if pairs else w)
        self.bias = nn.Parameter(torch.zeros(3, dtype=F64))

    def forward(self, x):
        w = torch.view_as_complex(self.weight) if self.pairs else self.weight
        return (x.to(w.dtype) @ w.T).abs() + self.bias


@every_method
def test_complex_weights_are_pairs_of_real_ones_or_refused(method):
    ends = []
    with right_or_refused("complex"):
        for pairs in (True, False):
            model = Complex(pairs)
            options = (
                {"base_shapes": {"weight": (3, 6, 2) if pairs else (3, 6), "bias": (3,)}} if method == "mup2" else {}
            )
            optimizer = optimizer_of(method, model, **options)
            losses = run(optimizer, model, data(3))
            ends.append((torch.view_as_real(torch.view_as_complex(model.weight) if pairs else model.weight), losses))
        assert_close(ends[1][0].detach(), ends[0][0].detach(), **CLOSE)
        assert_close(ends[1][1], ends[0][1], **CLOSE)


def tensors_of(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [t for v in tree.values() for t in tensors_of(v)]
    return [t for v in tree for t in tensors_of(v)] if isinstance(tree, list | tuple) else []


@every_method
def test_a_model_that_changes_its_type_goes_on_as_one_that_always_had_it(method):
    model = network(norm=None, dtype=torch.float32)
    optimizer = optimizer_of(method, model)
    run(optimizer, model, data(2, dtype=torch.float32))
    twin = copy.deepcopy(model).double()
    other = optimizer_of(method, twin)
    other.load_state_dict(optimizer.state_dict())
    model.double()
    wide = data(4)[2:]
    if optimizer.needs_previous:  # the batch before was of the old type: it starts anew
        run(optimizer, model, wide)
        assert torch.isfinite(flat(model)).all()
        return
    for o, m in ((optimizer, model), (other, twin)):
        if o.needs_reference:  # data of the new type
            fresh = optimizer_of(method, m)
            o.reference = fresh.reference
        run(o, m, wide)
    assert flat(model).dtype == F64
    assert_close(flat(model), flat(twin), rtol=1e-5, atol=1e-7)  # SGD's momentum stays in float32, as torch has it


@every_method
def test_a_loaded_state_shares_no_tensor_with_its_source(method):
    batches = data(4)
    model = network(norm=None)
    optimizer = optimizer_of(method, model, shrink_perturb=0.01)
    run(optimizer, model, batches[:2])
    lent = optimizer.state_dict()
    twin = copy.deepcopy(model)
    other = optimizer_of(method, twin, shrink_perturb=0.01)
    other.load_state_dict(lent)
    ours, theirs = (tensors_of(o.state_dict()) for o in (optimizer, other))
    assert not {t.data_ptr() for t in ours if t.numel()} & {t.data_ptr() for t in theirs}
    before = copy.deepcopy(lent)
    if other.needs_previous:
        for o, m in ((optimizer, model), (other, twin)):
            o.remember(closures(o, m, *batches[1])[0])
    run(other, twin, batches[2:])
    assert equal(lent["state"], before["state"])
    run(optimizer, model, batches[2:])
    assert torch.equal(flat(model), flat(twin))
