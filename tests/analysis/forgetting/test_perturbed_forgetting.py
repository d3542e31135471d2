import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from forgetting_problems import SAM, classifier, measure, rng
from problems import o1

from analysis.forgetting.metrics import METRICS, Outputs, forgetting_metrics
from analysis.forgetting.perturbed import GAPS, SPLITS, perturbed_forgetting
from analysis.forgetting.providers import PROVIDERS, OwnPerturbation, raw_direction
from analysis.table import to_frame, with_variant
from landscape import AscentStep, displaced, norm

# Softmax regression, full batch, radius 0.5: worked out apart from this code, in float64.
O1 = {
    "sam": (0.5, 0.2853376275, -0.0079487370, -0.0181240393, -0.0101753023, 0.0079639081, 0.0495358124),
    "asam": (0.3235147939, 0.1213191957, -0.0029126994, -0.0065201760, -0.0036074766, 0.0266215439, 0.0209987208),
    "obf, alpha 1": (0.5, 0.1476400518, 0.0045789480, 0.0429477993, 0.0383688514, 0.0832747071, 0.0413358435),
    "obf, alpha 0": (0.5, 0.2675080972, -0.0031657849, 0.0075340385, 0.0106998234, 0.0434913679, 0.0533766397),
}


@pytest.mark.parametrize("case", list(O1))
def test_softmax_regression_full_batch(case):
    provider = case.split(",")[0]
    options = {"C": -1.0, "gamma": 1.0} if case == "obf, alpha 1" else {"gamma": 0.0}
    risk = o1()
    found = measure(
        risk,
        risk.batches[0],
        providers=[provider],
        radii=["own"],
        own=OwnPerturbation(provider, PROVIDERS[provider].step(0.5)),
        m=None,
        correction="plug-in",
        **options,
    )
    length, *expected = O1[case]
    for name, value in zip(("dCE", "F_cmi", "F_mi", "F_use", "dH", "KL"), expected, strict=True):
        for split in ("exposed", "held_out"):  # here they are the same data
            row = found[provider, "own", split, name]
            assert row.value == pytest.approx(value, abs=2e-10), name
            assert (row.stderr, row.draws) == (0.0, 1)
        assert found[provider, "own", "other_train", name].warnings == "no training example lies outside the batch"
    assert found[provider, "own", "exposed", "eps_norm"].value == pytest.approx(length, abs=1e-9)
    assert found[provider, "own", "exposed", "eps_rho"].value == 0.5
    for name in GAPS:
        assert found[provider, "own", "exposed", f"M_gap_{name}"].value == 0.0


def test_softmax_regression_with_the_weights_taken_away():
    risk = o1()
    labels = risk.targets().numpy()
    before = Outputs.from_logits(risk.outputs(), labels)
    after = Outputs.from_logits(risk.outputs({"weight": 0 * risk.theta["weight"]}), labels)
    m = forgetting_metrics(before, after, labels)
    expected = {"dCE": 0.2074327716, "F_cmi": 0.0121109250, "F_mi": 0.0825410249, "F_use": 0.0704300999}
    expected |= {"dH": 0.1272112438, "KL": 0.1272112438}
    for name, value in expected.items():
        assert float(m[name]) == pytest.approx(value, abs=1e-10), name


@pytest.mark.parametrize("rho", [(0.1, 0.1971482867), (0.01, 0.1954912613), (0.001, 0.1952984670)], ids=str)
def test_divergence_over_rho_squared_tends_to_half_the_fisher_curvature(rho):
    rho, expected = rho
    risk = o1()
    found = measure(
        risk, risk.batches[0], providers=["sam"], radii=["own"], own=OwnPerturbation("sam", AscentStep(rho)), m=None
    )
    assert found["sam", "own", "exposed", "KL"].value / rho**2 == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("correction", ["plug-in", "first-order", "jackknife"])
def test_values_and_errors_against_one_batch_at_a_time(correction):
    risk, held_out = classifier()
    found = measure(risk, held_out, providers=["sam"], radii=["own"], own=SAM, m=20, batches=5, correction=correction)
    x, y = torch.cat([b[0] for b in risk.batches]), risk.targets()
    g = rng()
    each = {split: [] for split in SPLITS}
    befores, afters, labels = [], [], []
    for _ in range(5):
        chosen = torch.randperm(120, generator=g)[:20].sort().values
        delta = SAM.step(risk.theta, risk.on((x[chosen], y[chosen])).gradient())
        outside = torch.tensor([i for i in range(120) if i not in chosen.tolist()])
        for split, (xs, ys) in {"other_train": (x[outside], y[outside]), "held_out": held_out}.items():
            before, after = (
                Outputs.from_logits(risk.predict(t, xs), ys.numpy()) for t in (risk.theta, displaced(risk.theta, delta))
            )
            each[split].append(forgetting_metrics(before, after, ys.numpy(), correction=correction))
        befores.append(risk.predict(risk.theta, x[chosen]))
        afters.append(risk.predict(displaced(risk.theta, delta), x[chosen]))
        labels.append(y[chosen].numpy())

    def pool(parts):
        y = np.concatenate([labels[i] for i in parts])
        b, a = (Outputs.from_logits(torch.cat([z[i] for i in parts]), y) for z in (befores, afters))
        return forgetting_metrics(b, a, y, correction=correction)

    whole = pool(range(5))
    parts = [pool([i for i in range(5) if i != k]) for k in range(5)]
    for name in METRICS:
        row = found["sam", "own", "exposed", name]
        assert row.value == pytest.approx(float(whole[name]), abs=1e-12), name
        left = np.array([float(p[name]) for p in parts])
        assert row.stderr == pytest.approx(math.sqrt(0.8 * np.sum((left - left.mean()) ** 2)), abs=1e-12), name
        if name == "selectivity":
            continue
        for split in ("other_train", "held_out"):
            values = np.array([float(m[name]) for m in each[split]])
            row = found["sam", "own", split, name]
            assert row.value == pytest.approx(values.mean(), abs=1e-12), (split, name)
            assert row.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(5), abs=1e-12), (split, name)
    f_cmi, f_use = (found["sam", "own", "held_out", n].value for n in ("F_cmi", "F_use"))
    share = f_cmi / (abs(f_cmi) + abs(f_use))
    assert found["sam", "own", "held_out", "selectivity"].value == pytest.approx(share, abs=1e-12)
    gap = found["sam", "own", "exposed", "cw"].value - found["sam", "own", "held_out", "cw"].value
    assert found["sam", "own", "exposed", "M_gap_cw"].value == pytest.approx(gap, abs=1e-15)


def test_batches_of_any_sizes_are_the_same_risk():
    a, b = (measure(*classifier(sizes), own=SAM, m=20, batches=3) for sizes in ((120,), (64, 50, 6)))
    assert a.keys() == b.keys()
    for key, row in a.items():
        assert row.value == pytest.approx(b[key].value, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("own", ["sam", "asam", "obf", "random"])
def test_own_radius_gives_every_provider_the_length_of_the_runs_own_step(own):
    risk, held_out = classifier()
    step = replace(PROVIDERS[own].step(0.05), p=math.inf)  # not what the provider itself would do
    found = measure(risk, held_out, radii=["own"], own=OwnPerturbation(own, step), m=30, batches=4)
    lengths = {p: r.value for (p, *_, name), r in found.items() if p != "zero" and name == "eps_norm"}
    assert list(lengths.values()) == pytest.approx([lengths[own]] * 4, rel=1e-12)
    assert found[own, "own", "exposed", "eps_rho"].value == pytest.approx(0.05)
    if own != "random":
        x, y = torch.cat([b[0] for b in risk.batches]), risk.targets()
        g, rises = rng(), []
        for _ in range(4):
            chosen = torch.randperm(120, generator=g)[:30].sort().values
            batch = risk.on((x[chosen], y[chosen]))
            point = displaced(risk.theta, step(risk.theta, raw_direction(PROVIDERS[own].objective, batch)))
            rises.append(batch.value(point) - batch.value())
        assert found[own, "own", "exposed", "dCE"].value == pytest.approx(np.mean(rises), abs=1e-12)


def test_iso_loss_raises_the_loss_by_as_much_for_every_provider():
    risk, held_out = classifier()
    found = measure(risk, held_out, radii=["iso-loss"], m=30, batches=4, iso_loss=0.2)
    assert {p for p, *_ in found} == {"sam", "asam", "obf", "random"}  # no control: it cannot raise the loss
    for provider in ("sam", "asam", "obf", "random"):
        row = found[provider, "iso-loss", "exposed", "dCE"]
        assert row.value == pytest.approx(0.2, rel=1e-3)
        assert row.converged
        assert (row.draws, row.options["iso_loss"]) == (4, 0.2)
    sam, random = (found[p, "iso-loss", "exposed", "eps_norm"].value for p in ("sam", "random"))
    assert random > 2 * sam


def test_a_rise_out_of_reach_is_left_out_and_said():
    risk, held_out = classifier()
    bounded = replace(risk, predict=lambda theta, x: torch.tanh(risk.predict(theta, x)))  # loss at most ln 3 + 2
    found = measure(bounded, held_out, providers=["random"], radii=["iso-loss"], m=30, batches=3, iso_loss=5.0)
    row = found["random", "iso-loss", "exposed", "F_mi"]
    assert math.isnan(row.value)
    assert math.isnan(row.stderr)
    assert (row.draws, row.converged) == (0, False)
    assert row.warnings == "no radius raised the loss by 5 nats on 3 of 3 batches"
    assert math.isnan(found["random", "iso-loss", "exposed", "eps_rho"].value)


def test_the_control_forgets_exactly_nothing():
    risk, held_out = classifier(dtype=torch.float32)
    for m in (20, None):
        found = measure(risk, held_out, providers=["zero"], own=SAM, m=m, batches=4)
        for (*_, split, name), row in found.items():
            if m is None and split == "other_train":
                continue
            assert name == "selectivity" or (row.value == 0.0 and row.stderr == 0.0), (split, name)


def test_a_radius_of_zero_forgets_exactly_nothing():
    risk, held_out = classifier(dtype=torch.float32)
    found = measure(risk, held_out, radii=["own"], own=OwnPerturbation("sam", AscentStep(0.0)), m=20, batches=3)
    assert all(row.value == 0.0 for (*_, name), row in found.items() if name != "selectivity")
    row = found["sam", "own", "held_out", "selectivity"]
    assert math.isnan(row.value)
    assert row.warnings.endswith("nothing was forgotten")


def test_a_run_without_perturbation_has_no_own_rows_but_says_so():
    found = measure(*classifier(), own=None, m=20, batches=2)
    own = [row for (_, radius, *_), row in found.items() if radius == "own"]
    assert len(own) == 5 * (3 * len(METRICS) + len(GAPS) + 2)
    assert all(math.isnan(r.value) and r.warnings == "the run has no perturbation of its own" for r in own)
    assert not any(math.isnan(r.value) for (_, radius, *_), r in found.items() if radius == "iso-loss")


def test_a_diverged_model_is_rows_that_say_so():
    risk, held_out = classifier()
    broken = risk.at({k: t * math.nan for k, t in risk.theta.items()})
    for m in (20, None):
        found = measure(broken, held_out, own=SAM, m=m, batches=2)
        assert all(math.isnan(row.value) and row.warnings for row in found.values())
        assert "the outputs are not finite" in found["sam", "own", "held_out", "F_mi"].warnings


def test_equal_seeds_give_equal_batches_to_every_model_and_choice_of_providers():
    risk, held_out = classifier()
    seen = []

    def watch(theta, x):
        if len(x) == 20:
            seen.append(x)
        return risk.predict(theta, x)

    few = measure(
        replace(risk, predict=watch), held_out, providers=["random"], radii=["iso-loss"], own=SAM, m=20, batches=3
    )
    first = torch.stack(seen).unique(dim=0)
    many = measure(risk, held_out, own=SAM, m=20, batches=3)
    for key, row in few.items():
        assert row.value == pytest.approx(many[key].value, abs=1e-12), key
        assert row.options == many[key].options
    seen.clear()
    other, _ = classifier(seed=1)
    measure(replace(risk, predict=watch).at(other.theta), held_out, own=SAM, m=20, batches=3)
    assert torch.equal(torch.stack(seen).unique(dim=0), first)
    assert len(first) == 3


def test_the_whole_training_set_is_used_once_but_by_random_directions():
    found = measure(*classifier(), own=SAM, m=None, batches=3)
    for provider, draws in (("sam", 1), ("obf", 1), ("random", 3)):
        for radius in ("own", "iso-loss"):
            row = found[provider, radius, "held_out", "F_mi"]
            assert (row.draws, row.options["batches"]) == (draws, draws)
            assert (row.stderr == 0.0) == (draws == 1)


def test_one_batch_has_no_standard_error():
    found = measure(*classifier(), providers=["sam"], own=SAM, m=20, batches=1)
    assert all(math.isnan(row.stderr) for row in found.values())
    assert not math.isnan(found["sam", "own", "exposed", "F_mi"].value)


def test_few_examples_of_a_class_are_a_warning_on_information_alone():
    risk, held_out = classifier()
    found = measure(risk, held_out, providers=["sam"], radii=["own"], own=SAM, m=20, batches=2)
    assert "examples of a class" in found["sam", "own", "exposed", "F_cmi"].warnings  # 40 examples in four classes
    assert "examples of a class" in found["sam", "own", "exposed", "M_gap_F_cmi"].warnings
    assert held_out[1].bincount().min() == 25
    for split, name in [
        *((s, "cw") for s in SPLITS),
        ("exposed", "F_mi"),
        ("exposed", "F_bias"),
        ("held_out", "F_cmi"),
    ]:
        assert found["sam", "own", split, name].warnings == ""


def test_nothing_happens_behind_the_callers_back():
    risk, held_out = classifier()
    before, state = {k: t.clone() for k, t in risk.theta.items()}, torch.get_rng_state()
    measure(risk, held_out, providers=list(PROVIDERS), own=SAM, m=20, batches=2)
    assert torch.equal(torch.get_rng_state(), state)
    for k, t in risk.theta.items():
        assert torch.equal(t, before[k])
        assert t.grad is None
        assert not t.requires_grad
    assert float(norm(risk.theta)) == float(norm(before))


def test_rows_fit_the_table_and_have_names_of_their_own():
    rows = perturbed_forgetting(*classifier(), own=SAM, m=20, batches=2, eta=0.01, generator=rng())
    table = with_variant(to_frame(rows, run_id="a", step=1, epoch=1))
    assert table["variant"].is_unique
    assert "F_mi[obf, iso-loss, m=20, held_out]" in set(table["variant"])
    options = {p: next(r.options for r in rows if r.options["provider"] == p) for p in ("asam", "obf", "sam")}
    assert options["asam"]["eta"] == 0.01
    assert (options["obf"]["C"], options["obf"]["gamma"], options["obf"]["link"]) == (None, 1.0, "softmax")
    assert "eta" not in options["sam"]
    assert json.dumps(options["sam"], allow_nan=False)


RISK, HELD_OUT = classifier()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"providers": ["sgd"]}, "`providers` has no 'sgd'"),
        ({"providers": []}, "`providers` is empty"),
        ({"radii": ["fixed"]}, r"`radii` must be some of .*'fixed'"),
        ({"m": 0}, "`m` must be between 1 and the number of training examples 120, got 0"),
        ({"m": 121}, "`m` must be between 1 .* got 121"),
        ({"batches": 0}, "`batches` must be at least 1, .* got 0"),
        ({"iso_loss": -0.1}, "`iso_loss` must be a finite rise .* got -0.1"),
        ({"gamma": 2.0}, "`gamma` must be in"),
        ({"eta": -1.0}, "`eta` must be a finite radius"),
        ({"correction": "none"}, "`correction` must be one of .*'none'"),
        ({"held_out": (HELD_OUT[0], HELD_OUT[1].double())}, "`held_out` must have one integer label .*float64"),
        ({"held_out": (HELD_OUT[0], HELD_OUT[1][:5])}, r"`held_out` must have one integer label .* shape \(5,\)"),
        ({"held_out": (HELD_OUT[0], HELD_OUT[1] + 1)}, "`risk` must predict logits .* labels from 0 to 3"),
        ({"risk": RISK.on([({"x": torch.zeros(1)}, torch.zeros(1))])}, "`risk` must hold pairs of tensors"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_bad_arguments_are_named(options, message):
    given = {"risk": RISK, "held_out": HELD_OUT, "m": 20, "batches": 2, "generator": rng()} | options
    with pytest.raises(ValueError, match=message):
        perturbed_forgetting(given.pop("risk"), given.pop("held_out"), **given)
