"""Baselines: against sums by hand, always taken with the targets, and told apart from what may explain."""

import math
from dataclasses import replace

import pytest
import torch

from analysis.measures.catalogue.baselines import MEASURES, baselines
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES as ALL
from analysis.measures.registry import (
    expected_sign,
    family_of,
    is_baseline,
    is_candidate,
    marks,
    sees_given_labels,
    sees_held_out,
)
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from analysis.table import to_frame, with_variant
from trainers import build_model, fit, load_dataset

SMALL = {
    "train_size": 60, "validation_size": 40, "test_size": 20, "label_noise": 0.4, "epochs": 8, "batch_size": 20,
    "model_options": {"width": 12}, "lr": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = fit({**SMALL, "method": "sam", "rho": 0.07}, out=tmp_path_factory.mktemp("runs"))
    data = load_dataset("digits", train_size=60, validation_size=40, test_size=20, label_noise=0.4)
    return Subject.of_checkpoint(run, max(run.checkpoints()), data)


def by_split(rows):
    return {(r.measure, r.split): r for r in rows}


def test_each_number_is_its_definition(trained):
    found = by_split(baselines(trained))
    for split, part in (("train", trained.data.train), ("held_out", trained.data.validation)):
        with torch.no_grad():
            p = torch.distributions.Categorical(logits=trained.model(part.x).double())
        entropy, top = p.entropy(), p.probs.max(1).values
        assert found["mean_entropy", split].value == pytest.approx(float(entropy.mean()), rel=1e-5)
        assert found["mean_confidence", split].value == pytest.approx(float(top.mean()), rel=1e-5)
        error = float(entropy.std()) / math.sqrt(len(part.x))
        assert found["mean_entropy", split].stderr == pytest.approx(error, rel=1e-5)
    with torch.no_grad():
        said = trained.model(trained.data.train.x).argmax(1)
    y, clean = trained.data.train.y, trained.data.train.clean
    fitted = [int(a == b) for a, b, c in zip(said, y, clean, strict=True) if b != c]
    row = found["wrong_labels_fitted", "train"]
    assert 0 < sum(fitted) < len(fitted)
    assert (row.value, row.draws) == (pytest.approx(sum(fitted) / len(fitted)), len(fitted))
    set_to = {"rho": 0.07, "lr": 0.2, "batch_size": 20, "steps": 24}
    assert {name: found[name, "train"].value for name in set_to} == set_to


def test_what_there_is_no_number_for_is_left_out():
    data = load_dataset("digits", train_size=40, validation_size=0, test_size=20)
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 4})
    found = by_split(baselines(Subject(model.eval(), data, "x")))
    assert set(found) == {(name, "train") for name in ("mean_confidence", "mean_entropy", "parameter_norm")}


def test_a_plain_method_has_radius_zero_and_outputs_that_are_not_finite_are_said(tmp_path):
    run = fit({**SMALL, "method": "sgd", "epochs": 1}, out=tmp_path)
    data = load_dataset("digits", train_size=60, validation_size=40, test_size=20, label_noise=0.4)
    subject = Subject.of_checkpoint(run, max(run.checkpoints()), data)
    assert by_split(baselines(subject))["rho", "train"].value == 0.0
    with torch.no_grad():
        next(subject.model.parameters()).fill_(math.nan)
    broken = Subject(subject.model, data, "x")
    rows = by_split(measure_subject(broken, plan(["baselines"]))["baselines"])
    for name in ("mean_entropy", "wrong_labels_fitted"):
        assert math.isnan(rows[name, "train"].value)
        assert "finite" in rows[name, "train"].warnings


def test_they_go_with_the_targets_and_with_nothing_else():
    assert "baselines" in plan(["targets"])
    assert "baselines" in plan()
    assert "baselines" not in plan(["top_eigenvalue"])
    assert list(plan(["mean_entropy"])) == ["baselines"]


def test_no_row_of_the_usual_measures_is_there_twice(trained):
    rows = [r for rows in measure_subject(trained, plan(["targets", "output_bias", "norms"])).values() for r in rows]
    assert with_variant(to_frame(rows, run_id="a", step=1, epoch=1))["variant"].is_unique
    assert not any(r.warnings for r in rows if r.measure in MEASURES["baselines"].rows)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train_error", "baseline"),
        ("validation_loss[validation]", "baseline"),
        ("mean_entropy[held_out]", "baseline"),
        ("parameter_norm", "baseline"),
        ("train_squared_error", "baseline"),  # the score of a task of one's own
        ("gap_squared_error", ""),
        ("ood_squared_error[blur]", ""),
        ("batch_size", "baseline"),
        ("train_loss_final", ""),
        ("test_loss", ""),
        ("bottom_eigenvalue", ""),
        ("output_entropy", ""),
        ("dCE[sam, iso-loss, m=64, exposed]", ""),
        ("dCE[sam, iso-loss, m=64, held_out]", "candidate"),
        ("dCE[sam, own, m=64, exposed]", "candidate"),
        ("eps_norm[asam, own, m=64, exposed]", ""),
        ("eps_norm[asam, iso-loss, m=64, exposed]", "candidate"),
        ("eps_rho[sam, relative, m=64, exposed]", ""),
        ("top_eigenvalue", "candidate"),
        ("a_measure_of_mine", "candidate"),
    ],
)
def test_roles(name, role):
    assert ("baseline" if is_baseline(name) else "candidate" if is_candidate(name) else "") == role
    assert not (is_baseline(name) and is_candidate(name))


@pytest.mark.parametrize(
    ("name", "held_out", "given"),
    [
        ("validation_error[validation]", True, False),
        ("train_error", False, True),
        ("train_loss", False, False),
        ("top_eigenvalue", False, False),
        ("F_mi[obf, iso-loss, m=64, held_out]", False, False),  # needs outputs alone
        ("F_cmi[obf, iso-loss, m=64, held_out]", True, False),
        ("F_cmi[obf, iso-loss, m=64, exposed]", False, True),
        ("M_gap_F_cmi[obf, iso-loss, m=64, exposed]", True, True),
        ("M_gap_tr_F_cmi[obf, iso-loss, m=64, exposed]", False, True),
        ("M_gap_F_mi[obf, iso-loss, m=64, exposed]", False, False),
        ("mean_confidence[held_out]", False, False),
        ("overconfidence[held_out]", True, False),
        ("b_marg[held_out]", False, False),
        ("log_prod_of_spec_over_margin", False, True),
        ("membership_auc", True, True),
    ],
)
def test_which_labels_a_row_has_seen(name, held_out, given):
    assert (sees_held_out(name), sees_given_labels(name)) == (held_out, given)
    assert marks(name, noisy=False) == (("held-out labels",) if held_out else ())
    assert ("noisy labels" in marks(name, noisy=True)) == given


def test_rows_that_see_no_held_out_labels_do_not_change_with_them(trained):
    """The claim itself, for every row of the usual measures that can change: validation labels are shuffled."""
    wanted = plan({
        "targets": None, "output_bias": None, "norms": None, "train_outputs": None,
        "perturbed_forgetting": {"providers": ["sam"], "m": 20, "batches": 2},
        "forgetting_distances": {"providers": ["sam"], "radii": ["own"], "m": 20, "batches": 2},
        "forgetting_of_bias": {"providers": ["sam"], "radii": ["own"], "m": 20, "batches": 2},
        "membership": {"providers": ["sam"], "radii": ["own"], "m": 20, "batches": 2},
    })  # fmt: skip
    validation = trained.data.validation
    order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(1))
    shuffled = replace(validation, y=validation.y[order], clean=validation.clean[order])
    other = replace(trained, data=replace(trained.data, validation=shuffled))
    before, after = (
        with_variant(to_frame([r for rows in measure_subject(s, wanted).values() for r in rows],
                              run_id="a", step=1, epoch=1)).set_index("variant")["value"]
        for s in (trained, other)
    )  # fmt: skip
    changed = {name for name in before.index if not math.isclose(before[name], after[name], rel_tol=1e-9, abs_tol=1e-12)
               and not (math.isnan(before[name]) and math.isnan(after[name]))}  # fmt: skip
    assert {name for name in changed if not sees_held_out(name)} == set()
    assert len(changed) > 15
    # shares of classes do not change when labels are shuffled, and counts may happen not to
    blind = {
        n.partition("[")[0] for n in before.index if sees_held_out(n) and n not in changed and before[n] == before[n]
    }
    alike = ("b_prior", "b_prior_count", "F_bias_prior", "F_bias_prior_count", "cw", "wc", "ww", "M_gap_cw")
    assert blind <= set(alike)


def test_families_and_signs():
    assert {family_of(row) for row in MEASURES["baselines"].rows} == {"baseline"}
    assert family_of("bottom_eigenvalue") == "diagnostic"
    assert family_of("fisher_rao_norm") == family_of("top_eigenvalue") == "sharpness"
    assert family_of("no_such_row") is None
    assert (expected_sign("mean_confidence"), expected_sign("mean_entropy"), expected_sign("lr")) == (1, 0, 0)
    rows = [row for entry in ALL.values() for row in entry.rows]
    assert len(rows) == len(set(rows)), "a row of two entries"
