import math

import numpy as np
import pytest
import torch

from analysis.measures.catalogue.targets import (
    DESCRIPTIONS,
    SOMETIMES,
    TARGETS,
    brier,
    calibration_error,
    error,
    fit_temperature,
    nll,
    overlap,
    paired_error_difference,
    target_rows,
    targets,
)
from analysis.measures.subject import Subject
from trainers import build_model, fit, load_dataset
from trainers.config import train_config

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
    assert set(TARGETS) - set(SOMETIMES) <= {r.measure for r in rows}
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
    # the inputs of these tests are few different logits, so that nearly all of the test set is in the training set
    said = {r.split: r.warnings for r in rows}
    assert said == {"train": "", "test": "50 of 50 test examples are in the training data too", "ood": ""}


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
        assert row.warnings.startswith("logits are not finite on 2 of 50 examples")
    assert found["ood_gap", None, None].warnings == "logits are not finite on 2 of 50 examples"
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
        (
            lambda: paired_error_difference(CORRECT, CORRECT[:3]),
            r"`correct_a` and `correct_b` .* got \(8,\) and \(3,\)",
        ),
        (lambda: paired_error_difference(CONFIDENCE, CORRECT), "must hold truth values"),
        (lambda: fit_temperature(torch.full((2, 2), math.inf), torch.zeros(2)), "`logits` must be finite"),
        (
            lambda: target_rows(identity, {"test": made(9, 1), "ood": {"noise:1": made(8, 1)}}, paired=True),
            r"`paired` sets must hold the same examples, got sets of \[8, 9\]",
        ),
        (lambda: target_rows(identity, {"dev": made(4, 1)}), "`splits` has an unknown split 'dev'"),
        (
            lambda: target_rows(identity, {"ood": {"noise:high": made(4, 1)}}),
            "'noise:high'; name a set 'corruption:severity'",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Paired sets, the worst set


def test_standard_errors_of_paired_sets_are_over_examples():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (60,), generator=g)
    sets = {name: (torch.randn(60, 3, generator=g), y) for name in ("test", "noise:1", "noise:2", "shift:1")}
    wrong = {name: (x.argmax(1) != y).double().numpy() for name, (x, y) in sets.items()}
    splits = {"test": sets.pop("test"), "ood": sets}
    paired, loose = (by_name(target_rows(identity, splits, paired=p)) for p in (True, False))
    noise = (wrong["noise:1"] + wrong["noise:2"]) / 2
    overall = (noise + wrong["shift:1"]) / 2
    expected = {
        ("ood_error", "noise", None): noise,
        ("ood_error", "shift", None): wrong["shift:1"],
        ("ood_error_mean", None, None): overall,
        ("ood_gap", None, None): overall - wrong["test"],
    }
    for key, each in expected.items():
        assert paired[key].value == pytest.approx(each.mean(), abs=1e-15), key
        assert paired[key].value == pytest.approx(loose[key].value, abs=1e-15), key
        assert paired[key].stderr == pytest.approx(each.std() / math.sqrt(60), abs=1e-15), key
        assert paired[key].draws == 60
    assert paired["ood_error_mean", None, None].stderr < loose["ood_error_mean", None, None].stderr


def test_shifted_copies_that_fail_on_the_same_examples_have_an_exact_gap():
    x, y = made(50, 10)
    found = by_name(target_rows(identity, {"test": (x, y), "ood": {"blur:1": (x, y), "blur:2": (x, y)}}, paired=True))
    assert (found["ood_gap", None, None].value, found["ood_gap", None, None].stderr) == (0.0, 0.0)
    assert found["ood_error", "blur", None].stderr == pytest.approx(math.sqrt(0.2 * 0.8 / 50), abs=1e-15)


def test_the_worst_set_is_named():
    row = by_name(target_rows(identity, SPLITS))["ood_error_worst", None, None]
    assert (row.value, row.options, row.split) == (0.8, {"set": "shift:1"}, "ood")
    assert row.stderr == pytest.approx(math.sqrt(0.8 * 0.2 / 20))
    broken = {**SPLITS["ood"], "noise:1": (torch.full((4, 3), math.nan), torch.zeros(4))}
    row = by_name(target_rows(identity, {"ood": broken}))["ood_error_worst", None, None]
    assert math.isnan(row.value)
    assert row.options == {"set": "noise:1"}


# Overlap


def test_test_inputs_that_are_training_inputs_are_counted():
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 2, 3, generator=g), torch.randn(20, 2, 3, generator=g)
    assert overlap(train, test) == 0
    test[[3, 7, 8]] = train[[0, 29, 29]]
    assert overlap(train, test) == 3
    test[3, 1, 2] += 1e-6
    assert overlap(train, test) == 2
    assert overlap(train.double(), test) == overlap(train.flatten(1), test) == 0
    assert overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[3, 4], [4, 3]])) == 1
    assert overlap(train[:, :, 0].transpose(0, 1), train[:, :, 0].T.contiguous()) == 2


# Temperature


def noisy_logits(n, temperature, classes=4, seed=0):
    """Logits of which softmax(logits / temperature) is calibrated."""
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, generator=g).double()
    return temperature * z, torch.multinomial(z.softmax(1), 1, generator=g)[:, 0]


@pytest.mark.parametrize("truth", [0.2, 1.0, 5.0])
def test_the_temperature_is_found_within_its_standard_error(truth):
    logits, labels = noisy_logits(4000, truth)
    found = fit_temperature(logits, labels)
    assert abs(found.value - truth) < 4 * found.stderr
    assert 0 < found.stderr < 0.05 * truth
    assert found.converged
    base = nll(logits / found.value, labels).value
    assert all(base < nll(logits / (found.value * factor), labels).value for factor in (0.99, 1.01))
    assert fit_temperature(logits + 1e3 * labels[:, None], labels).value == pytest.approx(found.value, rel=1e-8)


def test_the_standard_error_of_the_temperature_is_its_spread():
    repeats = [fit_temperature(*noisy_logits(300, 2.0, seed=s)) for s in range(120)]
    spread = np.std([r.value for r in repeats], ddof=1)
    assert np.mean([r.stderr for r in repeats]) == pytest.approx(spread, rel=0.25)  # 120 repeats: error 6 %


@pytest.mark.parametrize(("sign", "edge"), [(1, 1e-3), (-1, 1e3)])
def test_no_temperature_where_there_is_no_minimum(sign, edge):
    logits, labels = made(12, 0)
    found = fit_temperature(sign * logits, labels)
    assert (found.value, found.converged) == (edge, False)
    assert math.isnan(found.stderr)


def test_rows_after_scaling_are_those_of_the_scaled_logits():
    held_out, test = noisy_logits(500, 3.0, seed=1), noisy_logits(400, 3.0, seed=2)
    rows = target_rows(identity, {"validation": held_out, "test": test}, bins=10)
    found = {r.measure: r for r in rows}
    temperature = fit_temperature(*held_out)
    assert (found["temperature"].value, found["temperature"].split) == (temperature.value, "validation")
    assert found["temperature"].stderr == temperature.stderr
    after = {r.measure: r for r in target_rows(identity, {"test": (test[0] / temperature.value, test[1])}, bins=10)}
    for name in ("test_loss", "ece", "ece_adaptive", "brier"):
        assert found[f"{name}_scaled"].value == pytest.approx(after[name].value, rel=1e-12), name
        assert found[f"{name}_scaled"].stderr == pytest.approx(after[name].stderr, rel=1e-12), name
        assert found[f"{name}_scaled"].value < found[name].value, name
        assert found[f"{name}_scaled"].options == found[name].options
    assert all(r.converged and not r.warnings for r in rows)


def test_scaling_that_cannot_be_done_is_said():
    scaled = {"test_loss_scaled", "ece_scaled", "ece_adaptive_scaled", "brier_scaled"}
    right = {r.measure: r for r in target_rows(identity, {"validation": made(9, 0), "test": made(9, 3)})}
    for name in (*scaled, "temperature"):
        assert not right[name].converged
        assert right[name].warnings.startswith("no minimum")
        assert math.isfinite(right[name].value)
    x, y = made(9, 3)
    x[0, 0] = math.nan
    for splits, reason in (
        ({"validation": (x, y), "test": made(9, 3)}, "on validation, logits are not finite on 1 of 9 examples"),
        ({"validation": made(9, 3), "test": (x, y)}, "logits are not finite on 1 of 9 examples"),
    ):
        found = {r.measure: r for r in target_rows(identity, splits)}
        assert all(math.isnan(found[name].value) and found[name].warnings == reason for name in scaled)


# Two models


def test_paired_difference_by_hand():
    a = np.array([1, 1, 1, 1, 1, 0, 0, 1, 1, 1], dtype=bool)
    b = np.array([1, 1, 0, 0, 0, 1, 0, 1, 1, 0], dtype=bool)
    found = paired_error_difference(a, b)
    assert (found.only_a, found.only_b, found.n) == (4, 1, 10)
    assert found.value == pytest.approx((1 - a.mean()) - (1 - b.mean()))
    assert found.stderr == pytest.approx((a.astype(float) - b).std() / math.sqrt(10))
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)  # at most one of five, both ends
    swapped = paired_error_difference(b, a)
    assert (swapped.value, swapped.stderr, swapped.p_value) == (-found.value, found.stderr, found.p_value)


def test_paired_difference_of_equal_models_and_against_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    same = paired_error_difference(CORRECT, CORRECT)
    assert (same.value, same.stderr, same.p_value) == (0.0, 0.0, 1.0)
    rng = np.random.default_rng(0)
    a, b = rng.random(80) < 0.8, rng.random(80) < 0.6
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert paired_error_difference(a, b).p_value == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-10)


# The measure


SETTINGS = {
    "train_size": 40, "validation_size": 20, "test_size": 30, "epochs": 3, "batch_size": 20,
    "model_options": {"width": 4},
}  # fmt: skip


def test_all_rows_of_a_run_and_of_foreign_weights(tmp_path):
    run = fit(train_config(SETTINGS), out=tmp_path)
    data = load_dataset("digits", train_size=40, validation_size=20, test_size=30)
    first = Subject.of_checkpoint(run, 0, data)
    found = {r.measure: r for r in targets(first)}
    assert set(found) == {*TARGETS, *DESCRIPTIONS} - set(SOMETIMES)
    ends = run.history()["train_loss"].iloc[-1]
    assert found["train_loss_final"].value == pytest.approx(ends)
    assert found["train_loss"].value > ends  # of the checkpoint before training
    assert found["ood_gap"].stderr < math.hypot(found["ood_error_mean"].stderr, found["test_error"].stderr)
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0)
    foreign = {r.measure: r for r in targets(Subject(model.eval(), data, "x"))}
    assert foreign["train_loss_final"].value == foreign["train_loss"].value
    assert foreign["train_loss_final"].options == {"from": "weights"}


def test_a_shifted_set_may_have_a_name_of_its_own():
    # as the one in which a spurious patch names a random class
    x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
    wrong = y.roll(1)
    sets = {"train": (x, y), "test": (x, y), "ood": {"spurious": (x, wrong), "noise:1": (x, y)}}
    rows = target_rows(lambda inputs: inputs, sets)
    found = {(r.measure, r.options.get("corruption")): r.value for r in rows}
    assert found["ood_error", "spurious"] == 1.0
    assert found["ood_error", "noise"] == 0.0
    assert found["ood_error_mean", None] == 0.5
    assert ("ood_error_severity", "spurious") not in found
