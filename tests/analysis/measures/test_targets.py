import math

import numpy as np
import pytest
import torch

from analysis.measures.targets import TARGETS, brier, calibration_error, error, nll, target_rows

CONFIDENCE = np.array([0.95, 0.85, 0.75, 0.65, 0.55, 0.92, 0.81, 0.33])
CORRECT = np.array([1, 1, 0, 1, 0, 1, 0, 0], dtype=bool)


def identity(x):
    """The inputs of these tests are the logits themselves."""
    return x


def made(n, wrong, classes=3):
    """Logits of n examples, `wrong` of which put 2.0 on another class than their label."""
    y = torch.arange(n) % classes
    top = torch.where(torch.arange(n) < wrong, (y + 1) % classes, y)
    return 2.0 * torch.nn.functional.one_hot(top, classes).float(), y


def test_error_and_its_binomial_standard_error():
    e = error(*made(40, 2))
    assert (e.value, e.draws) == (0.05, 40)
    assert e.stderr == pytest.approx(math.sqrt(0.05 * 0.95 / 40), abs=1e-15)
    assert math.sqrt(0.05 * 0.95 / 10000) == pytest.approx(0.00218, abs=5e-6)  # as quoted for 10000 examples


def test_loss_and_brier_score_by_hand():
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]], dtype=torch.float64).log()
    y = torch.tensor([0, 0, 1, 1])
    losses = -np.log([0.9, 0.6, 0.8, 0.7])
    assert nll(logits, y).value == pytest.approx(0.2990011587, abs=1e-10)
    assert nll(logits, y).stderr == pytest.approx(losses.std(ddof=1) / 2, abs=1e-12)
    assert brier(logits, y).value == pytest.approx(2 * np.mean([0.01, 0.16, 0.04, 0.09]), abs=1e-14)


@pytest.mark.parametrize(
    ("bins", "binning", "expected"),
    [(10, "equal-width", 0.34625), (15, "equal-width", 0.34625), (4, "adaptive", 0.25875)],
)
def test_calibration_error_of_eight_examples(bins, binning, expected):
    assert calibration_error(CONFIDENCE, CORRECT, bins=bins, binning=binning).value == pytest.approx(
        expected, abs=1e-12
    )


def test_bins_are_closed_on_the_right():
    # 0.5 falls into the lower of two bins, alone with 0.0; were it in the upper, the errors there would cancel
    found = calibration_error(np.array([0.0, 0.5, 1.0]), np.array([False, False, True]), bins=2)
    assert found.value == pytest.approx(0.5 / 3, abs=1e-15)
    found = calibration_error(np.array([0.5, 0.9]), np.array([True, False]), bins=2)
    assert found.value == pytest.approx((0.5 + 0.9) / 2, abs=1e-15)


def test_standard_error_of_calibration_matches_the_spread_over_samples():
    rng = np.random.default_rng(0)

    def sample():
        c = rng.uniform(0.5, 1.0, 500)
        return calibration_error(c, rng.random(500) < c - 0.2, bins=5)

    repeats = [sample() for _ in range(200)]
    spread = np.std([r.value for r in repeats], ddof=1)
    assert np.mean([r.stderr for r in repeats]) == pytest.approx(spread, rel=0.2)  # 200 repeats: error 5 %


def by_name(rows):
    return {(r.measure, r.options.get("corruption"), r.options.get("severity")): r for r in rows}


SPLITS = {
    "train": made(100, 10),
    "test": made(50, 20),
    "ood": {"noise:1": made(40, 8), "noise:3": made(40, 24), "shift:1": made(20, 16)},
}


def test_rows_of_a_whole_evaluation():
    rows = target_rows(identity, SPLITS, train_clean_labels=(SPLITS["train"][1] + 1) % 3)
    found = by_name(rows)
    assert set(TARGETS) <= {r.measure for r in rows}
    expected = {
        ("train_error", None, None): 0.1,
        ("train_clean_error", None, None): 0.9,  # only the 10 wrong ones agree with the shifted labels
        ("test_error", None, None): 0.4,
        ("gap_error", None, None): 0.3,
        ("ood_error_severity", "noise", 1): 0.2,
        ("ood_error_severity", "noise", 3): 0.6,
        ("ood_error", "noise", None): 0.4,
        ("ood_error", "shift", None): 0.8,
        ("ood_error_mean", None, None): 0.6,
        ("ood_gap", None, None): 0.2,
    }
    for key, value in expected.items():
        assert found[key].value == pytest.approx(value, abs=1e-12), key
    right, wrong = (math.log(math.exp(2) + 2) - (2 if hit else 0) for hit in (True, False))
    gap = (0.4 - 0.1) * (wrong - right)
    assert found["gap_loss", None, None].value == pytest.approx(gap, abs=1e-9)
    assert {r.split for r in rows} == {"train", "test", "ood"}
    assert all(r.warnings == "" for r in rows)


def test_standard_errors_of_differences_and_means():
    found = by_name(target_rows(identity, SPLITS))
    binomial = [math.sqrt(e * (1 - e) / n) for e, n in ((0.1, 100), (0.4, 50), (0.2, 40), (0.6, 40), (0.8, 20))]
    assert found["gap_error", None, None].stderr == pytest.approx(math.hypot(*binomial[:2]), abs=1e-15)
    assert found["ood_error", "noise", None].stderr == pytest.approx((binomial[2] + binomial[3]) / 2, abs=1e-15)
    mean = ((binomial[2] + binomial[3]) / 2 + binomial[4]) / 2
    assert found["ood_error_mean", None, None].stderr == pytest.approx(mean, abs=1e-15)


def test_calibration_rows_are_those_of_the_test_split():
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(60, 4, generator=g), torch.randint(4, (60,), generator=g)
    found = by_name(target_rows(identity, {"test": (logits, y)}, bins=6))
    top = logits.double().softmax(1).max(1)
    right = (top.indices == y).numpy()
    assert found["ece", None, None].value == calibration_error(top.values.numpy(), right, bins=6).value
    adaptive = calibration_error(top.values.numpy(), right, bins=6, binning="adaptive")
    assert found["ece_adaptive", None, None].value == adaptive.value
    assert found["brier", None, None].value == pytest.approx(brier(logits, y).value)
    assert found["ece", None, None].options == {"bins": 6}
    assert not any(name.startswith(("train", "gap", "ood")) for name, *_ in found)


def test_large_splits_are_evaluated_in_parts_without_gradient():
    sizes = []

    def predict(x):
        sizes.append(len(x))
        assert not torch.is_grad_enabled()
        return x

    rows = target_rows(predict, {"validation": made(5000, 50)})
    assert sizes == [4096, 904]
    assert {r.measure: r.value for r in rows}["validation_error"] == pytest.approx(0.01)
    assert torch.is_grad_enabled()


def test_logits_that_are_not_finite_are_nan_with_a_warning():
    x, y = made(50, 5)
    x[3, 1] = math.inf
    x[7, 0] = math.nan
    rows = target_rows(identity, {**SPLITS, "test": (x, y)})
    found = by_name(rows)
    for name in ("test_error", "test_loss", "gap_error", "gap_loss", "ece", "ece_adaptive", "brier", "ood_gap"):
        row = found[name, None, None]
        assert math.isnan(row.value), name
        assert math.isnan(row.stderr), name
        assert row.warnings == "logits are not finite on 2 of 50 examples"
    assert found["train_error", None, None].value == pytest.approx(0.1)
    assert found["ood_error_mean", None, None].value == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: error(torch.zeros(3, 2), torch.zeros(2)), r"`logits` must have shape .* got \(3, 2\) and \(2,\)"),
        (lambda: nll(torch.zeros(0, 2), torch.zeros(0)), "with n >= 1"),
        (lambda: brier(torch.zeros(3), torch.zeros(3)), r"got \(3,\) and \(3,\)"),
        (
            lambda: calibration_error(CONFIDENCE, CORRECT[:3]),
            "`confidence` and `correct` must be one number an example",
        ),
        (lambda: calibration_error(CONFIDENCE + 1, CORRECT), r"`confidence` must be in \[0, 1\], got 1.33 to 1.95"),
        (lambda: calibration_error(CONFIDENCE, CORRECT, bins=0), "`bins` must be at least 1, got 0"),
        (lambda: calibration_error(CONFIDENCE, CORRECT, binning="log"), "`binning` must be one of .*'log'"),
        (lambda: target_rows(identity, {"dev": made(4, 1)}), "`splits` has an unknown split 'dev'"),
        (lambda: target_rows(identity, {"ood": {"noise": made(4, 1)}}), "'noise'; name a set 'corruption:severity'"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
