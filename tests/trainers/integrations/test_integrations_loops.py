"""Plain loops and accelerate: schedulers, averages, clipping by hand, thawed layers, copies, compiled models."""

import copy
import io
import warnings

import pytest
import torch
from drop_in import by_hand, need, run_block, take
from networks import flat as weights
from torch import nn

from trainers import Objective, make_optimizer
from trainers.randomness import seeded


def tiny(**options):
    with seeded(0):
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(n=12):
    with seeded(1):
        return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


def closure_of(model, x, y, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


# -- the document's examples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["plain", "scaler"])
def test_the_documents_plain_loops(title):
    losses = run_block(title)["losses"]
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_documents_accelerate_loop():
    need("accelerate")
    names = run_block("accelerate")
    with seeded(0):
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
        x, y = torch.randn(64, 10), torch.randint(3, (64,))
    optimizer = make_optimizer("sam", model, lr=0.1, momentum=0.9, rho=0.05)
    losses = [float(optimizer.step(closure_of(model, x, y, optimizer))) for _ in range(6)]
    assert names["losses"] == losses
    assert losses[-1] < losses[0]


# -- schedulers and averages -----------------------------------------------------------------------------------------

SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "milestones": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3]),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
    "restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "polynomial": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 6),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),  # drives the momentum too
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "warm_up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2), torch.optim.lr_scheduler.CosineAnnealingLR(o, 4)],
        [2],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_drive_the_base_optimizer(kind):
    # rho = 0: the steps are those of SGD, so its weights tell whether learning rate and momentum got there
    x, y = data()
    mine, theirs = tiny(), tiny()
    optimizer = make_optimizer("sam", mine, torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9), rho=0.0)
    base = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    schedulers = SCHEDULERS[kind](optimizer), SCHEDULERS[kind](base)
    rates = []
    for t in range(6):
        losses = optimizer.step(closure_of(mine, x, y, optimizer)), base.step(closure_of(theirs, x, y, base))
        if t == 3:  # as after a resume
            saved = copy.deepcopy((optimizer.state_dict(), schedulers[0].state_dict()))
            optimizer.load_state_dict(saved[0])
            schedulers[0].load_state_dict(saved[1])
        for scheduler, loss in zip(schedulers, losses, strict=True):
            scheduler.step(loss.detach()) if kind == "plateau" else scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
        assert rates[-1] == base.param_groups[0]["lr"]
    assert torch.equal(weights(mine), weights(theirs))
    assert len(set(rates)) > 1


def test_averages_see_clean_weights():
    x, y = data()
    model = tiny()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5)
    average = torch.optim.swa_utils.AveragedModel(model)
    seen = []
    for _ in range(3):
        optimizer.step(closure_of(model, x, y, optimizer))
        average.update_parameters(model)
        seen.append(weights(model))
    torch.testing.assert_close(weights(average), torch.stack(seen).mean(0))


# -- by hand between the passes and the update -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["accumulate", "evaluate"])
def test_clipping_by_hand_is_clipping_by_the_optimizer(way):
    x, y = data()
    models = [tiny(), tiny()]
    cuts = [slice(0, 3), slice(3, 12)]
    byhand = make_optimizer("gsam", models[0], lr=0.5, momentum=0.9, rho=0.1)
    itself = make_optimizer("gsam", models[1], lr=0.5, momentum=0.9, rho=0.1, grad_clip=0.05)
    for _ in range(3):
        closures = [closure_of(models[0], x[c], y[c], byhand) for c in cuts]
        if way == "evaluate":
            loss = byhand.evaluate(closures, sizes=[3, 9])
        else:
            parts = [byhand.accumulate(c, size=n) for c, n in zip(closures, [3, 9], strict=True)]
            loss = 0.25 * parts[0] + 0.75 * parts[1]
        norm = nn.utils.clip_grad_norm_(models[0].parameters(), 0.05)
        assert norm > 0.05
        byhand.step()
        same = itself.step([closure_of(models[1], x[c], y[c], itself) for c in cuts], sizes=[3, 9])
        torch.testing.assert_close(loss, same)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (["evaluate", "evaluate"], "a step has been begun"),
        (["accumulate", "evaluate"], "a step has been begun"),
        (["accumulate", "full"], "a step has been begun"),
        (["evaluate", "accumulate"], "after `evaluate`"),
        (["end"], "`step` needs a closure"),
        (["evaluate", "end", "end"], "`step` needs a closure"),
        (["evaluate", "save"], "in the middle of a step"),
        (["evaluate", "group"], "in the middle of a step"),
    ],
)
def test_a_step_has_an_order(calls, message):
    x, y = data()
    model = tiny()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.1)
    closure = closure_of(model, x, y, optimizer)
    do = {
        "evaluate": lambda: optimizer.evaluate(closure),
        "accumulate": lambda: optimizer.accumulate(closure),
        "full": lambda: optimizer.step(closure),
        "end": lambda: optimizer.step(),
        "save": lambda: optimizer.state_dict(),
        "group": lambda: optimizer.add_param_group({"params": []}),
    }
    for call in calls[:-1]:
        do[call]()
    with pytest.raises(ValueError, match=message):
        do[calls[-1]]()


def test_a_layer_that_thaws_is_perturbed_from_then_on():
    x, y = data()
    model, theirs = tiny(), tiny()
    for net in (model, theirs):
        net[0].requires_grad_(False)
    optimizer = make_optimizer("sam", model, torch.optim.SGD(model[2].parameters(), lr=0.1), rho=0.3)
    optimizer.step(closure_of(model, x, y, optimizer))
    first = list(theirs[2].parameters())
    base = torch.optim.SGD(first, lr=0.1)
    loss = [lambda: nn.functional.cross_entropy(theirs(x), y)]
    take(first, by_hand(first, loss, [1.0], rho=0.3)[0], base)
    for net in (model, theirs):
        net[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.01})
    base.add_param_group({"params": theirs[0].parameters(), "lr": 0.01})
    optimizer.step(closure_of(model, x, y, optimizer))
    both = list(theirs.parameters())
    take(both, by_hand(both, loss, [1.0], rho=0.3)[0], base)
    torch.testing.assert_close(weights(model), weights(theirs), rtol=1e-12, atol=1e-14)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.01]


def test_copies_and_pickles_are_refused():
    optimizer = make_optimizer("sam", tiny(), lr=0.1)
    with pytest.raises(TypeError, match=r"cannot be copied: .*state_dict"):
        copy.deepcopy(optimizer)
    with pytest.raises(TypeError, match=r"cannot be pickled: .*state_dict"):
        torch.save(optimizer, io.BytesIO())


def test_a_compiled_model_takes_the_same_steps():
    x, y = data()
    model, plain = tiny(), tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = make_optimizer("gsam", compiled, lr=0.1, rho=0.1)
        for _ in range(2):
            optimizer.step(closure_of(compiled, x, y, optimizer))
    reference = make_optimizer("gsam", plain, lr=0.1, rho=0.1)
    for _ in range(2):
        reference.step(closure_of(plain, x, y, reference))
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-12, atol=1e-14)


def test_batches_that_are_dicts():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny()

        def forward(self, *, features, offset):
            return self.net(features) + offset

    x, y = data()
    model, theirs = Two(), Two()
    batch = {"features": x, "offset": torch.linspace(0, 1, 3, dtype=torch.float64).expand(len(x), 3)}
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.1)
    optimizer.step(
        Objective(model=model, parameters=list(model.parameters()), loss=nn.functional.cross_entropy, x=batch, y=y)
    )
    parameters = list(theirs.parameters())
    loss = [lambda: nn.functional.cross_entropy(theirs(**batch), y)]
    take(parameters, by_hand(parameters, loss, [1.0], rho=0.1)[0], torch.optim.SGD(parameters, lr=0.1))
    torch.testing.assert_close(weights(model), weights(theirs), rtol=1e-12, atol=1e-14)
    # and the methods that need each example's loss
    selective = make_optimizer("esam", model, lr=0.1, rho=0.1)
    selective.step(
        Objective(model=model, parameters=list(model.parameters()), loss=nn.functional.cross_entropy, x=batch, y=y)
    )
    assert selective.last.perturbed
