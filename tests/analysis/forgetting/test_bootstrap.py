import math

import numpy as np
import pytest
import torch
from forgetting_problems import SAM, classifier, measure

from analysis.forgetting.bootstrap import IntervalRow, Resamples, in_blocks
from analysis.forgetting.metrics import METRICS, Outputs, forgetting_metrics

LABELS = np.array([0] * 4 + [1] * 6 + [0] * 3 + [1] * 2)


def drawn(resamples=200, batches=5, level=0.95):
    return Resamples.draw(LABELS, 10, batches, resamples=resamples, level=level, generator=np.random.default_rng(0))


def test_resamples_keep_classes_and_parts():
    r = drawn()
    for part, y, count in ((slice(0, 10), 0, 4), (slice(0, 10), 1, 6), (slice(10, 15), 0, 3), (slice(10, 15), 1, 2)):
        inside = r.examples[:, part][:, LABELS[part] == y]
        assert (inside.sum(1) == count).all()
        assert inside.mean() == pytest.approx(1.0)
    assert (r.batches.sum(1) == 5).all()
    assert r.count == 200
    assert r.examples.var(0).mean() > 0.5


def test_an_interval_is_moved_to_the_value():
    x = np.random.default_rng(1).normal(3.0, 2.0, 200_000)
    found = drawn().interval(10.0, x)
    assert found.stderr == pytest.approx(2.0, rel=0.01)
    assert (found.low, found.high) == pytest.approx((10 - 3.92, 10 + 3.92), abs=0.05)
    assert math.isnan(drawn().interval(math.nan, x).low)


def test_blocks_make_no_difference(monkeypatch):
    members = drawn().examples
    whole = in_blocks(members, 2, lambda m: {"sum": m.sum(1)})
    monkeypatch.setattr("analysis.forgetting.bootstrap.BLOCK", 100)
    np.testing.assert_array_equal(in_blocks(members, 2, lambda m: {"sum": m.sum(1)})["sum"], whole["sum"])


def test_intervals_of_perturbed_forgetting():
    options = {"providers": ["sam"], "own": SAM, "m": 20, "batches": 5}
    plain = measure(*classifier(), **options)
    found = measure(*classifier(), resamples=300, level=0.9, **options)
    for key, row in found.items():
        assert row.value == plain[key].value or math.isnan(row.value)  # resamples change no value
        if key[-1] in ("eps_norm", "eps_rho"):
            continue
        assert isinstance(row, IntervalRow)
        assert row.options["resamples"] == 300
        assert row.level == 0.9
        if key[-1] not in ("wc", "cw"):  # which may be 0 in every resample
            assert row.low < row.value < row.high
            assert row.stderr > 0
    for name in ("dCE", "KL", "cw"):  # the examples' share comes on top of that of the batches
        key = ("sam", "own", "held_out", name)
        assert found[key].stderr > plain[key].stderr
    whole = measure(*classifier(), providers=["sam"], own=SAM, m=None, resamples=100)
    row = whole["sam", "own", "held_out", "dCE"]
    assert row.stderr > 0  # over examples alone
    assert math.isnan(whole["sam", "own", "other_train", "dCE"].low)


def test_the_error_of_a_mean_is_that_of_the_two_way_layout():
    # dCE on held-out data is a mean over batches b and examples i of x_ib; with independent multiplicities of both, its
    # variance is that of the two margins and, over (n R)², the square of x centred within classes and over batches
    risk, held_out = classifier()
    found = measure(risk, held_out, providers=["sam"], radii=["own"], own=SAM, m=20, batches=6, resamples=4000)
    g = torch.Generator().manual_seed(0)
    x, y = torch.cat([b[0] for b in risk.batches]), risk.targets()
    table = []
    for _ in range(6):
        chosen = torch.randperm(120, generator=g)[:20].sort().values
        delta = SAM.step(risk.theta, risk.on((x[chosen], y[chosen])).gradient())
        moved = {k: t + delta[k] for k, t in risk.theta.items()}
        losses = [
            torch.nn.functional.cross_entropy(risk.predict(t, held_out[0]), held_out[1], reduction="none")
            for t in (moved, risk.theta)
        ]
        table.append((losses[0] - losses[1]).numpy())
    table, labels = np.array(table), held_out[1].numpy()
    within = sum(table.mean(0)[labels == k].var() * (labels == k).sum() for k in range(3)) / 80**2
    between = table.mean(1).var() / 6
    rest = 0.0
    for k in range(3):
        x_k = table[:, labels == k]
        rest += np.square(x_k - x_k.mean(0) - x_k.mean(1, keepdims=True) + x_k.mean()).sum() / (80 * 6) ** 2
    expected = math.sqrt(within + between + rest)
    assert found["sam", "own", "held_out", "dCE"].stderr == pytest.approx(expected, rel=0.05)  # 4000 resamples: 1.1 %


@pytest.mark.parametrize("name", ["F_cmi", "F_mi", "F_use", "dCE"])
def test_intervals_cover_the_truth(name):
    """120 data sets of 4 classes of 60, outputs Dirichlet before and flattened after; 95 % cover 114 ± 2.4."""
    rng = np.random.default_rng(7)
    classes, repeats = 4, 120

    def draw(n_y):
        labels = np.repeat(np.arange(classes), n_y)
        before = rng.dirichlet(np.full(classes, 0.5), len(labels)) * 0.6
        before[np.arange(len(labels)), labels] += 0.4
        mix = rng.uniform(0.2, 0.8, len(labels))[:, None]
        after = (1 - mix) * before + mix / classes
        return labels, *(Outputs.from_logits(torch.from_numpy(np.log(p)), labels) for p in (before, after))

    labels, before, after = draw(40_000)
    truth = float(forgetting_metrics(before, after, labels, metrics=[name])[name])
    hits = 0
    for _ in range(repeats):
        labels, before, after = draw(60)
        value = float(forgetting_metrics(before, after, labels, correction="first-order", metrics=[name])[name])
        r = Resamples.draw(labels, 0, 1, resamples=200, level=0.95, generator=rng)
        draws = forgetting_metrics(before, after, labels, correction="first-order", members=r.examples, metrics=[name])
        ends = r.interval(value, draws[name])
        hits += ends.low <= truth <= ends.high
    assert 105 <= hits <= 120  # 0.95 less 3.8 standard deviations of the count


def test_nothing_is_resampled_by_default():
    found = measure(*classifier(), providers=["sam"], own=SAM, m=20, batches=2)
    assert not any(isinstance(row, IntervalRow) for row in found.values())
    assert {name for *_, name in found} >= set(METRICS)
