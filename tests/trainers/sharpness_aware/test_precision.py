"""Mixed precision: true units in every pass, one skipped step for one overflow, nothing else changed by it."""

import copy
import math
import warnings

import pytest
import torch
from networks import flat as weights
from torch import nn
from torch.amp import GradScaler

from trainers import METHODS, AscentObjective, Objective, make_optimizer, obf_loss
from trainers.randomness import seeded

OPTIONS = {
    "mup2": lambda model: {"base_shapes": {n: tuple(p.shape) for n, p in model.named_parameters()}},
}


def network(dtype=torch.float32):
    with seeded(0):
        return nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3)
        ).to(dtype)  # fmt: skip


def data(n=12, dtype=torch.float32):
    with seeded(1):
        return torch.randn(n, 4, dtype=dtype), torch.randint(3, (n,))


class Fuse:
    """A loss that is infinite at chosen calls, so that its gradients are NaN or infinite there."""

    def __init__(self, *, at=()):
        self.at, self.calls = set(at), 0

    def __call__(self, logits, targets):
        if torch.is_grad_enabled():
            self.calls += 1
        loss = nn.functional.cross_entropy(logits, targets)
        return loss * math.inf if self.calls in self.at and torch.is_grad_enabled() else loss


def optimizer_of(method, model, scaler=None, **more):
    needs = OPTIONS.get(method, lambda _: {})(model)
    given = {"total_steps": 20, "steps_per_epoch": 3, "examples": 12, "momentum": 0.9, "lr": 0.05, **needs, **more}
    optimizer = make_optimizer(method, model, grad_scaler=scaler, **given)
    x, y = data(dtype=next(model.parameters()).dtype)
    if optimizer.needs_reference:
        n = 1 if optimizer.needs_reference == "squares" else 6
        cuts = [slice(i, i + n) for i in range(0, 12 if n > 1 else 4, n)]
        optimizer.reference = lambda: ([objective(model, x[c], y[c], scaler) for c in cuts], [n] * len(cuts))
    return optimizer


def objective(model, x, y, scaler=None, loss=nn.functional.cross_entropy, *, ascends=None, autocast=None):
    given = {
        "model": model, "parameters": list(model.parameters()), "loss": loss, "x": x, "y": y,
        "grad_scaler": scaler, "autocast": autocast,
    }  # fmt: skip
    return Objective(**given) if ascends is None else AscentObjective(**given, ascent=ascends)


def step(optimizer, model, scaler=None, loss=nn.functional.cross_entropy, *, chunks=1, autocast=None):
    x, y = data(dtype=next(model.parameters()).dtype)
    cuts = [slice(0, 12)] if chunks == 1 else [slice(0, 5), slice(5, 12)]
    closures = [objective(model, x[c], y[c], scaler, loss, autocast=autocast) for c in cuts]
    ascents = None
    if optimizer.parts.ascent == "obf":
        ascents = [objective(model, x[c], y[c], scaler, loss, ascends=obf_loss, autocast=autocast) for c in cuts]
    return optimizer.step(closures, sizes=[c.stop - c.start for c in cuts], ascent=ascents)


# -- a scale changes nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_loss_scale_does_not_change_the_step(method):
    # a power of two changes no bit of a gradient in float32, unless it makes one subnormal
    ends, losses, scalers = [], [], [None, GradScaler("cpu", init_scale=2.0**13)]
    for scaler in scalers:
        model = network()
        optimizer = optimizer_of(method, model, scaler)
        with seeded(7):
            losses.append([float(step(optimizer, model, scaler, chunks=_chunks(optimizer))) for _ in range(6)])
        ends.append((weights(model), optimizer.last.length))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-6, atol=1e-7)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert scalers[1].state_dict()["_growth_tracker"] == 6  # told of each step once


def _chunks(optimizer):
    return 1 if optimizer.needs_previous else 2


def test_the_scale_is_seen_by_methods_that_do_not_normalise():
    # the test above can fail: USAM with the scale left in the gradient moves 2^13 times as far
    model = network()
    optimizer = make_optimizer("usam", model, lr=0.05, rho=0.05)
    scaler = GradScaler("cpu", init_scale=2.0**13)
    step(optimizer, model, scaler)
    wrong = optimizer.last.length
    model = network()
    step(make_optimizer("usam", model, lr=0.05, rho=0.05), model)
    optimizer = make_optimizer("usam", model, lr=0.05, rho=0.05, grad_scaler=scaler)
    step(optimizer, model, scaler)
    assert wrong > 1000 * optimizer.last.length


# -- an overflow skips the step ----------------------------------------------------------------------------------------


def snapshot(optimizer, model):
    """Everything that a skipped step must leave alone; the scaler is meant to change."""
    state = copy.deepcopy(optimizer.state_dict())
    state["sharpness_aware"].pop("grad_scaler")
    state["sharpness_aware"].pop("previous", None)
    return {"weights": weights(model).clone(), "state": state}


def assert_same(a, b, place=""):
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place


@pytest.mark.parametrize("when", ["first pass", "second pass"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_overflow_leaves_everything_as_it_was(method, when):
    with seeded(3):
        scaler = GradScaler("cpu", init_scale=2.0**8)
        model = network()
        optimizer = optimizer_of(method, model, scaler)
        for _ in range(6 if method in ("looksam", "look_layersam") else 2):
            step(optimizer, model, scaler)
        # LookSAM perturbs every fifth step: five were taken, or six
        before, base = snapshot(optimizer, model), optimizer.steps_taken
        count = _gradients_of_a_step(method)
        fuse = Fuse(at=[1] if when == "first pass" or count < 2 else range(2, 100))
        step(optimizer, model, scaler, fuse)
        assert optimizer.last.overflow == (when if optimizer.last.perturbed and count > 1 else optimizer.last.overflow)
        assert optimizer.last.overflow
        assert_same(snapshot(optimizer, model), before)
        assert optimizer.steps_taken == base
        assert scaler.get_scale() == 2.0**7
        # and the next step is the one that would have followed
        step(optimizer, model, scaler)
        assert optimizer.last.overflow == ""
        assert torch.isfinite(weights(model)).all()
        assert not torch.equal(weights(model), before["weights"])


def _gradients_of_a_step(method):
    """Gradients of the loss that a steady step of the method takes."""
    with seeded(3):
        model = network()
        optimizer = optimizer_of(method, model)
        fuse = Fuse()
        for _ in range(6 if method in ("looksam", "look_layersam") else 2):
            step(optimizer, model)
        step(optimizer, model, None, fuse)
        return fuse.calls


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_overflow_in_one_chunk_skips_the_whole_step(at):
    # two chunks of two passes each
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model = network()
    optimizer = optimizer_of("fsam", model, scaler, rho=0.1)
    step(optimizer, model, scaler, chunks=2)
    before = snapshot(optimizer, model)
    step(optimizer, model, scaler, Fuse(at=[at]), chunks=2)
    assert optimizer.last.overflow == ("first pass" if at in (1, 3) else "second pass")
    assert_same(snapshot(optimizer, model), before)
    assert scaler.get_scale() == 2.0**7


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_overflow_in_an_accumulated_chunk_skips_the_whole_step(at):
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model = network()
    optimizer = optimizer_of("looksam", model, scaler, rho=0.1, k=1)
    x, y = data()
    before = snapshot(optimizer, model)
    fuse = Fuse(at=[at])
    for cut in (slice(0, 5), slice(5, 12)):
        optimizer.accumulate(objective(model, x[cut], y[cut], scaler, fuse), size=cut.stop - cut.start)
    optimizer.step()
    assert optimizer.last.overflow
    assert_same(snapshot(optimizer, model), before)
    assert scaler.get_scale() == 2.0**7
    # what the first chunk had contributed is gone: the next step is a first one
    fresh = network()
    reference = optimizer_of("looksam", fresh, rho=0.1, k=1)
    for o, m, s in ((optimizer, model, scaler), (reference, fresh, None)):
        with seeded(5):
            step(o, m, s, chunks=2)
    mine, theirs = (o.state_dict()["sharpness_aware"]["parts"]["combiner"]["stored"] for o in (optimizer, reference))
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-8)


def test_an_overflow_in_an_inner_step_of_ascent():
    # without a check its direction would be zero, and the step taken with one inner step less
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model = network()
    optimizer = optimizer_of("sam", model, scaler, rho=0.1, steps=3)
    before = snapshot(optimizer, model)
    step(optimizer, model, scaler, Fuse(at=[2]))
    assert optimizer.last.overflow == "second pass"
    assert_same(snapshot(optimizer, model), before)


def test_an_overflow_in_the_reference_gradient():
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model = network()
    optimizer = optimizer_of("nsam", model, scaler, rho=0.1)
    x, y = data()
    optimizer.reference = lambda: ([objective(model, x, y, scaler, Fuse(at=[1]))], None)
    before = snapshot(optimizer, model)
    step(optimizer, model, scaler)
    assert optimizer.last.overflow == "first pass"
    assert_same(snapshot(optimizer, model), before)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_an_overflow_at_the_first_step_leaves_no_state_in_a_fused_optimizer(base):
    # torch's own scaler calls a fused SGD after an overflow, whose momentum then is whatever the memory held
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model, reference = network(), network()
    optimizer = optimizer_of("sam", model, scaler, base=base)
    assert optimizer.base.defaults["fused"]
    step(optimizer, model, scaler, Fuse(at=[2]))
    assert not optimizer.base.state
    plain = optimizer_of("sam", reference, base=base)
    for o, m, s in ((optimizer, model, scaler), (plain, reference, None)):
        with seeded(5):
            step(o, m, s)
            step(o, m, s)
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-6, atol=1e-8)


def test_after_an_exception_nothing_is_left_of_the_step():
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model = network()
    optimizer = optimizer_of("looksam", model, scaler, rho=0.1, k=1)
    step(optimizer, model, scaler)
    before = snapshot(optimizer, model)
    x, y = data()
    good = objective(model, x, y, scaler)

    def bad():
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step([good, bad])
    assert_same(snapshot(optimizer, model), before)
    step(optimizer, model, scaler)
    assert optimizer.last.overflow == ""


# -- the scale itself --------------------------------------------------------------------------------------------------


def test_the_scale_grows_after_its_interval_and_halves_once():
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
    model = network()
    optimizer = optimizer_of("gsam", model, scaler)
    scales = []
    for t in range(9):
        step(optimizer, model, scaler, Fuse(at=[2] if t == 4 else []))
        scales.append(math.log2(scaler.get_scale()))
    # an overflow starts the count anew
    assert scales == [8, 8, 9, 9, 8, 8, 8, 9, 9]


def test_the_scalers_state_is_in_the_optimizers():
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
    model = network()
    optimizer = optimizer_of("sam", model, scaler)
    for t in range(4):
        step(optimizer, model, scaler, Fuse(at=[2] if t == 1 else []))
    other = GradScaler("cpu", init_scale=2.0**4)
    loaded = optimizer_of("sam", model, other)
    loaded.load_state_dict(optimizer.state_dict())
    assert other.state_dict() == scaler.state_dict()
    assert other.get_scale() == 2.0**7
    step(loaded, model, other)
    assert other.get_scale() == 2.0**8  # the third good step in a row


def test_clipping_acts_once_on_true_units():
    ends = []
    for scaler in (None, GradScaler("cpu", init_scale=2.0**13)):
        model = network()
        optimizer = make_optimizer("usam", model, lr=0.5, rho=0.5, grad_clip=0.1, grad_scaler=scaler, diagnose=True)
        before = weights(model)
        with seeded(2):
            step(optimizer, model, scaler, chunks=2)
        assert optimizer.last.grad_norm > 0.1
        # the step of plain SGD is lr times the clipped gradient
        assert float((weights(model) - before).norm()) == pytest.approx(0.5 * 0.1, rel=1e-4)
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-8)


def test_a_scaler_that_is_switched_off_is_none():
    ends = []
    for scaler in (None, GradScaler("cpu", enabled=False)):
        model = network()
        optimizer = optimizer_of("gsam", model, scaler)
        with seeded(2):
            step(optimizer, model, scaler)
        ends.append(weights(model))
    assert torch.equal(*ends)


# -- real half precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["sam", "usam", "gsam", "wsam", "looksam", "fsam", "obf", "asam"])
def test_autocast_follows_float32(method, kind):
    # eight steps: bfloat16 keeps 8 bits of a product, float16 11; the losses agree to about that
    runs = []
    for autocast in (None, kind):
        scaler = GradScaler("cpu", init_scale=2.0**10) if autocast is torch.float16 else None
        model = network()
        optimizer = optimizer_of(method, model, scaler, rho=0.05)
        with seeded(4):
            runs.append([float(step(optimizer, model, scaler, autocast=autocast)) for _ in range(8)])
        assert optimizer.last.overflow == ""
    assert runs[1] == pytest.approx(runs[0], rel=3e-2 if kind is torch.bfloat16 else 5e-3)
    assert runs[1][-1] < runs[1][0]


def test_float16_overflows_until_the_scale_fits():
    scaler = GradScaler("cpu", init_scale=2.0**22)
    model = network()
    optimizer = optimizer_of("sam", model, scaler, rho=0.05)
    said = []
    with seeded(4):  # dropout decides which step is the last to overflow
        for _ in range(12):
            step(optimizer, model, scaler, autocast=torch.float16)
            said.append(optimizer.last.overflow)
    skipped = sum(bool(s) for s in said)
    assert 1 < skipped < 10
    assert said[0] == "first pass"
    assert said[-1] == ""
    assert scaler.get_scale() == 2.0 ** (22 - skipped)
    assert optimizer.steps_taken == 12 - skipped


def test_norms_of_half_precision_weights_are_summed_in_float32():
    # 100 000 entries of 1/32: their squares sum to 97.7 exactly, where float16 sums would stall
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(100_000, dtype=torch.bfloat16))

    model = Flat()
    with pytest.warns(UserWarning, match=r"below half a unit in the last place"):
        optimizer = make_optimizer("usam", model, lr=0.1, rho=1.0)

    def closure():
        model.zero_grad()
        loss = (model.w * 0.03125).float().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.last.length == pytest.approx(math.sqrt(100_000) / 32, rel=1e-4)


def test_what_is_lost_in_bfloat16_weights():
    # the limit that the warning names: 1 + 0.003 is 1 in bfloat16, whose next number is 1.0078
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make_optimizer("sam", model, lr=0.0, rho=0.003)
    seen = []

    def closure():
        model.zero_grad()
        seen.append(float(model.weight.detach()))
        loss = model.weight.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == [1.0, 1.0]


def test_a_scaler_with_float16_weights_is_refused():
    with pytest.raises(ValueError, match="`grad_scaler` needs float32 weights"):
        make_optimizer("sam", network(torch.float16), lr=0.1, grad_scaler=GradScaler("cpu"))


# -- loops that drive the scaler themselves ----------------------------------------------------------------------------


def unscaled_by_hand(scaler, optimizer):
    scaler.unscale_(optimizer)
    optimizer.step()


@pytest.mark.parametrize("drive", [unscaled_by_hand, lambda scaler, optimizer: scaler.step(optimizer)])
def test_the_scalers_own_step_is_refused(drive):
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model = network()
    optimizer = optimizer_of("sam", model, scaler)
    x, y = data()
    optimizer.accumulate(objective(model, x, y, scaler))
    with pytest.raises(ValueError, match="which does both itself"):
        drive(scaler, optimizer)


def test_a_step_of_the_scaler_without_a_closure_says_what_to_call():
    scaler = GradScaler("cpu", init_scale=2.0**8)
    model = network()
    optimizer = optimizer_of("sam", model)
    x, y = data()
    objective(model, x, y, scaler)()
    with pytest.raises(ValueError, match=r"not `scaler.step"):
        scaler.step(optimizer)


def test_a_closure_that_does_not_scale_is_told_so():
    model = network()
    optimizer = optimizer_of("sam", model, GradScaler("cpu"))
    with pytest.raises(ValueError, match="must multiply the loss by its scale"):
        step(optimizer, model)


# -- weights of half precision -----------------------------------------------------------------------------------------

HALF = (torch.float16, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:.*entries of the perturbation")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("gradient", [0.0, 1e-7, 1e-4, 1.0])
def test_a_small_gradient_moves_half_precision_weights_by_rho(gradient, dtype):
    """1 over its length is beyond what float16 holds."""
    model = nn.Linear(4, 1, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    seen = []

    def closure():
        seen.append(model.weight.detach().double())
        model.weight.grad = torch.full_like(model.weight, gradient)
        return model.weight.detach().float().sum()

    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5, skip_nonfinite=True)
    optimizer.step(closure)
    torch.testing.assert_close(seen[1], torch.full_like(seen[1], 1.25 if gradient else 1.0), rtol=1e-2, atol=0)
    assert not optimizer.last.overflow


@pytest.mark.filterwarnings("ignore:.*entries of the perturbation")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("given", ["by name", "fused", "halved later", "a group more"])
def test_momentum_of_half_precision_weights(given, dtype):
    """torch's fused SGD has other momenta on the CPU; v = 0.9 v + g by hand, to the rounding of the type."""
    with seeded(0):
        model = nn.Linear(48, 1, bias=True).to(torch.float32 if given == "halved later" else dtype)
        gradients = torch.randn(3, 48).to(dtype)
    base = "sgd"
    if given in ("fused", "a group more"):
        parts = [model.weight] if given == "fused" else [model.bias]
        base = torch.optim.SGD(parts, lr=0.1, momentum=0.9, fused=True)
    optimizer = make_optimizer("sgd", model, base=base, **({"lr": 0.1, "momentum": 0.9} if base == "sgd" else {}))
    if given == "halved later":
        model.to(dtype)
    if given == "a group more":
        optimizer.add_param_group({"params": [model.weight], "fused": True})
    momentum = torch.zeros(48, dtype=torch.float64)
    for gradient in gradients:

        def closure(gradient=gradient):
            model.bias.grad = torch.ones_like(model.bias)
            model.weight.grad = gradient.clone().view(1, 48)
            return torch.tensor(1.0)

        optimizer.step(closure)
        momentum = 0.9 * momentum + gradient.double()
    kept = optimizer.base.state[model.weight]["momentum_buffer"].double().flatten()
    torch.testing.assert_close(kept, momentum, rtol=0, atol=0.03)
