"""Fisher matrices: exact against the definition by sums over labels, sampled by their mean and by repetition."""

import inspect

import pytest
import torch
from problems import F64, case, cosines, dense_matrix, o1, o2, small
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.testing import assert_close

from landscape import EmpiricalFisher, EmpiricalRisk, Fisher, GaussNewton

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def linear(risk):
    """Inputs and outputs of a linear model without bias, over all batches."""
    x = torch.cat([x for x, _ in risk.batches])
    return x, x @ risk.theta["weight"].T


def test_gaussian_is_the_second_moment_of_the_jacobians():
    """Unit variance on each output, whatever constants the loss has: (1/n) Σ I ⊗ x xᵀ."""
    for loss in (mse_loss, nn.MSELoss()):
        risk = small(
            nn.Linear(3, 2, bias=False), sizes=(4, 2), loss=lambda out, _, f=loss: f(out, torch.ones_like(out))
        )
        x, _ = linear(risk)
        F = Fisher(risk, likelihood="gaussian")
        assert_close(F.dense(), torch.kron(torch.eye(2, dtype=F64), x.T @ x / 6), **EXACT)


def test_bernoulli_is_the_variance_of_each_label():
    def loss(out, y):
        return binary_cross_entropy_with_logits(out, torch.stack([y, 1 - y], 1).double())

    risk = small(nn.Linear(3, 2, bias=False), sizes=(4, 2), loss=loss)
    x, f = linear(risk)
    s = f.sigmoid()
    blocks = [(x.T * s[:, j] * (1 - s[:, j])) @ x / 6 for j in range(2)]
    assert_close(Fisher(risk, likelihood="bernoulli").dense(), torch.block_diag(*blocks), **EXACT)


def test_categorical_is_gauss_newton_of_cross_entropy():
    for risk in (o1(), o2((3, 2)), case("conv:eval").risk()):
        v = cosines(sum(t.numel() for t in risk.theta.values()))
        assert_close(Fisher(risk) @ v, GaussNewton(risk) @ v, **EXACT)


@pytest.mark.parametrize(
    ("loss", "likelihood"),
    [
        (cross_entropy, "categorical"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "categorical"),
        (mse_loss, "gaussian"),
        (nn.MSELoss(), "gaussian"),
        (binary_cross_entropy_with_logits, "bernoulli"),
        (nn.BCEWithLogitsLoss(), "bernoulli"),
    ],
)
def test_the_likelihood_is_told_from_the_loss(loss, likelihood):
    risk = small(nn.Linear(3, 2))
    x, y = risk.batches[0]
    target = y if likelihood == "categorical" else torch.zeros(6, 2, dtype=F64)
    F = Fisher(EmpiricalRisk.from_model(nn.Linear(3, 2).to(F64), loss, (x, target)))
    assert F.likelihood == likelihood


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_the_sampled_trace_is_unbiased(likelihood):
    """The mean over generators is the exact trace (categorical: 1.2617902526) within four standard errors."""
    risk = o1()
    exact = float(Fisher(risk, likelihood=likelihood).dense().trace())
    if likelihood == "categorical":
        assert exact == pytest.approx(1.2617902525891436, rel=1e-10)
    draws = torch.tensor(
        [
            float(Fisher(risk, likelihood=likelihood, samples=2, generator=seeded(s), probe=False).dense().trace())
            for s in range(60)
        ],
        dtype=F64,
    )
    error = draws.std() / len(draws) ** 0.5
    assert float(error) > 0
    assert abs(float(draws.mean()) - exact) < 4 * float(error)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_many_samples_come_close_entry_by_entry(likelihood):
    risk = o1()
    exact = Fisher(risk, likelihood=likelihood).dense()
    sampled = Fisher(risk, likelihood=likelihood, samples=5_000, generator=seeded(1)).dense()
    # the standard deviation of one sample's entries is about 1 here, over four examples
    assert_close(sampled, exact, rtol=0, atol=6 / (4 * 5_000) ** 0.5)


@pytest.mark.parametrize("path", ["kept", "afresh", "difference"])
def test_the_sampled_matrix_is_one_matrix(path):
    """The same labels at each product, symmetric and positive semidefinite, different between batches."""
    F = Fisher(o2((3, 2)), samples=1, generator=seeded(4), path=path)
    A = F.dense()
    assert torch.equal(A, F.dense())
    tight = {"rtol": 1e-6, "atol": 1e-7} if path == "difference" else EXACT
    assert_close(A, A.T, **tight)
    assert_close(A, Fisher(o2((3, 2)), samples=1, generator=seeded(4)).dense(), **tight)
    assert torch.linalg.eigvalsh((A + A.T) / 2)[0] > -1e-9
    assert torch.linalg.matrix_rank((A + A.T) / 2, atol=1e-6) <= 5  # one label for each of five examples
    other = Fisher(o2((3, 2)), samples=1, generator=seeded(5)).dense()
    assert (A - other).abs().max() > 1e-2


def test_one_generator_gives_new_labels_each_time():
    g = seeded(0)
    first, second = (Fisher(o2(), samples=1, generator=g).dense() for _ in range(2))
    assert (first - second).abs().max() > 1e-3


def test_sampling_leaves_the_global_state_alone():
    risk, before = o2(), torch.random.get_rng_state()
    Fisher(risk, samples=3, generator=seeded(0)) @ cosines(17)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ignored_targets_do_not_count():
    risk = small(nn.Linear(3, 2), sizes=(6,))
    x, y = risk.batches[0]
    some = risk.on((x, torch.where(torch.arange(6) < 2, -100, y)))
    rest = risk.on((x[2:], y[2:]))
    assert_close(Fisher(some).dense(), Fisher(rest).dense(), **EXACT)
    assert_close(GaussNewton(some).dense(), GaussNewton(rest).dense(), **EXACT)
    sampled = Fisher(some, samples=5_000, generator=seeded(0)).dense()
    assert_close(sampled, Fisher(rest).dense(), rtol=0, atol=0.2)


def test_ignored_tokens_of_dict_batches_do_not_count():
    """The labels are somewhere in the batch; which predictions count, only the loss can tell."""
    c = case("language")
    F = Fisher(c.risk(), likelihood="categorical")
    v = cosines(F.shape[0])
    assert_close(F @ v, dense_matrix(c, "Fisher") @ v, **EXACT)
    assert_close(F @ v, GaussNewton(c.risk()) @ v, **EXACT)


def test_predictions_may_lie_along_more_axes():
    """cross_entropy takes classes along axis 1: a dense prediction of 2 × 3 places."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return self.conv(x)

    g = seeded(2)
    x = torch.randn(4, 1, 2, 3, generator=g, dtype=F64)
    y = torch.randint(0, 3, (4, 2, 3), generator=g)
    y[0, 0] = -100
    model = Places().to(F64)
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y))
    assert_close(Fisher(risk).dense(), GaussNewton(risk).dense(), **EXACT)
    rows = risk.predict(risk.theta, x).movedim(1, -1)[y != -100]
    inputs = x.movedim(1, -1)[y != -100]
    designs = torch.cat([inputs, torch.ones_like(inputs)], 1)
    expected = torch.zeros(6, 6, dtype=F64)
    for f, z in zip(rows, designs, strict=True):
        p = f.softmax(-1)
        expected += torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(z, z)) / len(rows)
    order = [0, 2, 4, 1, 3, 5]  # weights of the three classes, then their biases
    assert_close(Fisher(risk).dense(), expected[order][:, order], **EXACT)


def test_the_empirical_matrix_is_not_the_fisher_matrix():
    """At interpolation it vanishes; the Fisher matrix does not depend on the data's labels at all."""
    risk = o2()
    x, y = risk.batches[0]
    flipped = risk.on((x, 1 - y))
    assert_close(Fisher(flipped).dense(), Fisher(risk).dense(), **EXACT)
    assert (EmpiricalFisher(flipped).dense() - EmpiricalFisher(risk).dense()).abs().max() > 0.1


def test_refused_arguments():
    risk = o2()
    with pytest.raises(ValueError, match="`likelihood` cannot be told from the loss '<lambda>': give likelihood="):
        Fisher(small(nn.Linear(3, 2), loss=lambda out, y: cross_entropy(out, y)))
    with pytest.raises(ValueError, match="`likelihood` cannot be told from the loss HuberLoss"):
        Fisher(small(nn.Linear(3, 2), loss=nn.HuberLoss()))
    make = inspect.unwrap(Fisher.__init__)
    with pytest.raises(ValueError, match=r"`likelihood` must be 'categorical', .* got 'poisson'"):
        make(Fisher.__new__(Fisher), risk, likelihood="poisson")
    with pytest.raises(ValueError, match="`samples` must be at least 1, or None for the exact matrix, got 0"):
        Fisher(risk, samples=0, generator=seeded(0))
    with pytest.raises(ValueError, match="`generator` draws labels, and there are no `samples`"):
        Fisher(risk, generator=seeded(0))
    pair = EmpiricalRisk(
        lambda theta, x: (risk.predict(theta, x), 2 * risk.predict(theta, x)),
        lambda out, y: cross_entropy(out[0] + out[1], y),
        risk.batches,
        risk.theta,
    )
    with pytest.raises(ValueError, match="`risk` must have a model with one output tensor that the loss uses, got 2"):
        Fisher(pair, likelihood="categorical") @ cosines(17)
    v = cosines(17)
    assert float(v @ (GaussNewton(pair) @ v)) > 0  # it has no such limit
