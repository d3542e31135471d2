import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from forgetting_problems import SAM, classifier, measure, rng
from problems import F64, o1
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.perturbed import perturbed_forgetting
from analysis.forgetting.providers import PROVIDERS, OwnPerturbation
from landscape import AscentStep, EmpiricalRisk, norm
from landscape.sharpness.worst_case import worst_case_sharpness


def moves(risk, seed=0, **options):
    """Every displacement of the first batch, by cell."""
    asked = Displacements(**{"radii": ["own"], "own": SAM, "m": 20, "batches": 1} | options)
    x, y = torch.cat([b[0] for b in risk.batches]), risk.targets()
    ((draw, found),) = asked.along(risk, x, y, asked.draw(len(x), rng(seed)))
    return dict(found), risk.on((x[torch.from_numpy(draw.index)], y[torch.from_numpy(draw.index)]))


def test_the_weights_taken_away_leave_uniform_outputs():
    # shrinking all the way to zero: eps = -w, whose row of the O1 table was worked out apart from this code
    risk = o1()
    found = measure(
        risk,
        risk.batches[0],
        providers=["shrink"],
        radii=["own"],
        own=OwnPerturbation("sam", AscentStep(1.0897247358851685)),
        initial={"weight": torch.zeros(3, 2, dtype=F64)},
        m=None,
        correction="plug-in",
    )
    expected = {
        "eps_norm": 1.0897247359, "dCE": 0.2074327716, "F_cmi": 0.0121109250, "F_mi": 0.0825410249,
        "F_use": 0.0704300999, "dH": 0.1272112438, "KL": 0.1272112438,
    }  # fmt: skip
    for name, value in expected.items():
        assert found["shrink", "own", "exposed", name].value == pytest.approx(value, abs=1e-9), name


def test_gsam_is_sam():
    found, _ = moves(classifier()[0], providers=["sam", "gsam"])
    for name, t in found["sam", "own"].delta.items():
        torch.testing.assert_close(found["gsam", "own"].delta[name], t, rtol=1e-13, atol=0)


def test_last_update_and_shrink_go_where_they_are_told():
    risk, _ = classifier()
    one = {name: torch.ones_like(t) for name, t in risk.theta.items()}
    zero = {name: torch.zeros_like(t) for name, t in risk.theta.items()}
    found, _ = moves(risk, providers=["last_update", "shrink"], last_update=one, initial=zero)
    p, size = sum(t.numel() for t in one.values()), float(norm(risk.theta))
    for name, t in risk.theta.items():
        torch.testing.assert_close(found["last_update", "own"].delta[name], one[name] * 0.3 / math.sqrt(p))
        torch.testing.assert_close(found["shrink", "own"].delta[name], -0.3 * t / size)


def test_what_is_not_known_is_a_reason_in_the_rows():
    found = measure(*classifier(), providers=["shrink", "last_update"], own=SAM, m=20, batches=2)
    for provider, why in (("shrink", "the initial weights are"), ("last_update", "the run's last update is")):
        for radius in ("own", "iso-loss"):
            row = found[provider, radius, "held_out", "F_mi"]
            assert math.isnan(row.value)
            assert row.warnings == f"{why} not known"


def test_apgd_finds_at_least_what_sam_finds():
    found, batch = moves(classifier()[0], providers=["sam", "apgd"], own=OwnPerturbation("sam", AscentStep(1.0)))
    rise = {p: batch.value({k: t + found[p, "own"].delta[k] for k, t in batch.theta.items()}) for p in ("sam", "apgd")}
    assert rise["apgd"] > rise["sam"]
    exact = worst_case_sharpness(batch, 1.0)
    length = found["apgd", "own"].length
    assert length == pytest.approx(1.0, rel=1e-9)
    if float(norm(exact.displacement)) == pytest.approx(1.0):
        assert rise["apgd"] - batch.value() == pytest.approx(exact.value, rel=1e-9)
    iso = measure(*classifier(), providers=["apgd"], radii=["iso-loss"], m=20, batches=2)
    assert iso["apgd", "iso-loss", "exposed", "dCE"].value == pytest.approx(0.1, rel=1e-3)
    # at iso-loss the ball that is searched is that of sam's iso-loss step
    found, batch = moves(classifier()[0], providers=["sam", "apgd"], radii=["iso-loss"], iso_loss=0.5)
    worst = worst_case_sharpness(batch, found["sam", "iso-loss"].length).displacement
    scale = found["apgd", "iso-loss"].length / float(norm(worst))
    for name, t in found["apgd", "iso-loss"].delta.items():
        torch.testing.assert_close(t, scale * worst[name], rtol=1e-10, atol=1e-14)
    assert found["apgd", "iso-loss"].length < found["sam", "iso-loss"].length


@pytest.mark.parametrize("provider", ["sam", "asam", "random", "obf", "apgd"])
def test_relative_moves_every_tensor_by_its_own_share(provider):
    risk, _ = classifier()
    found, _ = moves(risk, providers=[provider], radii=["relative"], relative=0.1)
    move = found[provider, "relative"]
    for name, t in risk.theta.items():
        assert float(move.delta[name].norm()) == pytest.approx(0.1 * float(t.norm()), rel=1e-12)
    assert move.length == pytest.approx(0.1 * float(norm(risk.theta)), rel=1e-12)
    assert move.rho == 0.1


def test_relative_moves_are_the_same_after_a_rescaling_of_relu_layers():
    # T1: the first layer times 3, the second by 1/3 is the same function; a relative move has the same effect, a move
    # of fixed length has not
    g = rng(1)
    x, y = torch.randn(60, 5, generator=g, dtype=F64), torch.randint(3, (60,), generator=g)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64))
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y))
    names = risk.names
    other = risk.at({names[0]: 3 * risk.theta[names[0]], names[1]: risk.theta[names[1]] / 3})
    options = {"providers": ["sam"], "radii": ["relative", "own"], "own": SAM, "m": 20, "batches": 3}
    a, b = (measure(r, (x, y), **options) for r in (risk, other))
    for name in ("F_mi", "dCE", "KL"):
        key = ("sam", "relative", "held_out", name)
        assert a[key].value == pytest.approx(b[key].value, abs=1e-10)
        key = ("sam", "own", "held_out", name)
        assert abs(a[key].value - b[key].value) > 1e-3


def test_the_scope_of_the_adaptive_metric():
    risk, _ = classifier()
    own = OwnPerturbation("asam", PROVIDERS["asam"].step(0.3, scope="weights"))
    zero_bias = risk.at({k: t * 0 if "bias" in k else t for k, t in risk.theta.items()})
    for scope, still in (("all", True), ("weights", False)):
        found, _ = moves(zero_bias, providers=["asam", "asam_before"], own=replace(own, provider="sam"), scope=scope)
        assert bool((found["asam", "own"].delta["0.bias"] == 0).all()) == still


def test_a_subset_of_the_parameters_is_perturbed_alone():
    g = rng()
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(40, 4, generator=g, dtype=F64), torch.randint(3, (40,), generator=g)
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y), parameters="2.*")
    found, _ = moves(risk, providers=["sam", "random"])
    assert all(set(move.delta) == {"2.weight", "2.bias"} for move in found.values())
    assert measure(risk, (x, y), providers=["sam"], own=SAM, m=20, batches=2)


def test_small_batches_are_drawn_more_often_unless_told():
    assert Displacements(providers=["sam"], radii=["own"], m=16).count == 50
    assert Displacements(providers=["sam"], radii=["own"], m=17).count == 20
    assert Displacements(providers=["sam"], radii=["own"], m=None).count == 20
    assert Displacements(providers=["sam"], radii=["own"], m=1, batches=3).count == 3


def test_batches_of_one_example():
    found = measure(*classifier(), providers=["sam"], radii=["iso-loss"], m=1, batches=8)
    row = found["sam", "iso-loss", "exposed", "dCE"]
    assert row.value == pytest.approx(0.1, rel=1e-3)
    assert math.isfinite(found["sam", "iso-loss", "exposed", "F_mi"].value)


def test_sigmoid_outputs_are_normalised_and_said():
    risk, held_out = classifier()
    normalised = replace(risk, predict=lambda t, x: torch.log(risk.predict(t, x).sigmoid()))
    options = {"providers": ["random"], "own": OwnPerturbation("random", AscentStep(0.5)), "m": 20, "batches": 2}
    found = measure(risk, held_out, outputs="sigmoid", **options)
    same, plain = measure(normalised, held_out, **options), measure(risk, held_out, **options)
    for name in ("F_mi", "dCE", "cw", "eps_norm"):
        for radius in ("own", "iso-loss"):
            split = "exposed" if name == "eps_norm" else "held_out"
            key = ("random", radius, split, name)
            assert found[key].value == pytest.approx(same[key].value, rel=1e-6), key
    assert found[key].options["outputs"] == "sigmoid over its sum"
    assert (
        abs(found["random", "own", "held_out", "F_mi"].value - plain["random", "own", "held_out", "F_mi"].value) > 1e-3
    )


def normalised_network():
    g = rng(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64))
    x, y = torch.randn(60, 4, generator=g, dtype=F64) + 1, torch.randint(3, (60,), generator=g)
    return model, (x[:40], y[:40]), (x[40:], y[40:])


def test_batch_statistics_are_those_of_each_batch():
    model, (x, y), held_out = normalised_network()
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    risk = EmpiricalRisk.from_model(model, cross_entropy, batches, mode="batch")
    state = {k: t.clone() for k, t in model.state_dict().items()}
    found = measure(risk, held_out, providers=["sam", "zero"], own=SAM, m=10, batches=3)
    assert found["sam", "iso-loss", "exposed", "dCE"].value == pytest.approx(0.1, rel=1e-3)
    assert found["sam", "own", "held_out", "F_mi"].options["bn"] == "batch"
    assert found["zero", "own", "exposed", "F_mi"].value == 0.0
    g, rises = rng(), []
    for _ in range(3):  # the loss on held-out data, as one batch of 20
        chosen = torch.randperm(40, generator=g)[:10].sort().values
        delta = SAM.step(risk.theta, risk.on((x[chosen], y[chosen])).gradient())
        other = risk.on(held_out)
        rises.append(other.value({k: t + delta[k] for k, t in risk.theta.items()}) - other.value())
    assert found["sam", "own", "held_out", "dCE"].value == pytest.approx(np.mean(rises), abs=1e-12)
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    fixed = measure(EmpiricalRisk.from_model(model, cross_entropy, batches), held_out, providers=["sam"], own=SAM, m=10)
    assert "bn" not in fixed["sam", "own", "held_out", "F_mi"].options
    for mode in ("recalibrate", "train"):
        with pytest.raises(ValueError, match=f"`risk` must be in mode 'eval' or 'batch' .* got '{mode}'"):
            measure(EmpiricalRisk.from_model(model, cross_entropy, batches, mode=mode), held_out, m=10)


def test_contrasts_and_any_metric():
    found = measure(
        *classifier(), providers=["sam"], own=SAM, m=20, batches=3, metrics=["JS", "ww", "F_rel"],
        gaps=["JS", "cw_correct"], contrasts=["held_out", "other_train"],
    )  # fmt: skip
    names = {name for *_, name in found}
    assert names == {
        "JS", "ww", "F_rel", "M_gap_JS", "M_gap_cw_correct", "M_gap_tr_JS", "M_gap_tr_cw_correct",
        "eps_norm", "eps_rho",
    }  # fmt: skip
    cell = found["sam", "own", "exposed", "JS"].value - found["sam", "own", "other_train", "JS"].value
    assert found["sam", "own", "exposed", "M_gap_tr_JS"].value == pytest.approx(cell, abs=1e-15)


def test_outputs_are_recorded_in_groups_without_a_difference(monkeypatch):
    whole = measure(*classifier(), own=SAM, m=20, batches=2)
    monkeypatch.setattr("analysis.forgetting.perturbed.HELD", 1)
    one_by_one = measure(*classifier(), own=SAM, m=20, batches=2)
    assert whole.keys() == one_by_one.keys()
    for key, row in whole.items():
        assert row.value == pytest.approx(one_by_one[key].value, abs=1e-12, nan_ok=True), key


RISK, HELD_OUT = classifier()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relative": 0.0}, "`relative` must be a finite length above 0.* got 0.0"),
        ({"metrics": ["F_all"]}, r"`metrics` has \['F_all'\]"),
        ({"gaps": ["F_all"]}, r"`gaps` has \['F_all'\]"),
        ({"contrasts": ["test"]}, r"`contrasts` has \['test'\]; choose from held_out, other_train"),
        ({"resamples": 1}, "`resamples` must be 0 for none, or at least 2"),
        ({"resamples": 5, "level": 1.0}, "`level` must be between 0 and 1, got 1.0"),
        ({"outputs": "tanh"}, "`outputs` must be one of .*'tanh'"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        perturbed_forgetting(RISK, HELD_OUT, generator=rng(), **{"m": 20, "batches": 2} | options)


def test_nothing_happens_without_what_a_direction_is_made_from():
    from analysis.forgetting.providers import raw_direction

    for objective, name in (("initial", "initial"), ("last update", "last_update")):
        with pytest.raises(ValueError, match=f"`{name}` must be the"):
            raw_direction(objective, o1())
