import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.ceiling import across_seeds, noise_ceiling, without_draws

ALL = ["kendall", "spearman", "pearson"]


def ceiling(seeds, **options):
    return noise_ceiling(seeds, generator=np.random.default_rng(0), **options)


@pytest.mark.parametrize(("k", "half"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_classical_reliability(k, half):
    # True variance 1, noise variance 1: halves of h seeds correlate by 1/(1 + 1/h), all k seeds have reliability
    # 1/(1 + 1/k); the oracle adds noise 1/k to an observed variance 1 + 1/k.
    rng = np.random.default_rng(1)
    seeds = rng.normal(size=(1500, 1)) + rng.normal(size=(1500, k))
    found = ceiling(seeds, coefficient="pearson")
    assert found.n_configurations == 1500
    assert found.split_half == pytest.approx(1 / (1 + 1 / half), abs=0.07)
    assert found.spearman_brown == pytest.approx(1 / (1 + 1 / k), abs=0.05)
    assert found.oracle_with_noise == pytest.approx(((1 + 1 / k) / (1 + 2 / k)) ** 0.5, abs=0.03)
    assert found.warnings == ""


@pytest.mark.parametrize(("name", "plain"), [("kendall", stats.kendalltau), ("spearman", stats.spearmanr)])
def test_two_seeds_are_their_own_halves(name, plain):
    # With two seeds a split only swaps sides inside configurations. Where one seed is the other plus a number far
    # below the gaps, no swap changes an order, and the halves agree wholly up to the one configuration that jumps.
    base = np.arange(8.0)
    seeds = np.stack([base, base + 1e-3], axis=1)
    assert ceiling(seeds, coefficient=name).split_half == pytest.approx(1.0, abs=1e-14)
    seeds[0, :] = 8.0  # both halves move alike
    assert ceiling(seeds, coefficient=name).split_half == pytest.approx(1.0, abs=1e-14)
    seeds[0, :] = [0.0, 8.0]  # one half has it first, the other last, whatever the split
    expected = plain(base, [8.0, *base[1:]])[0]
    assert ceiling(seeds, coefficient=name).split_half == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("coefficient", ALL)
def test_no_noise_no_ceiling_below_one(coefficient):
    found = ceiling(np.tile(np.arange(6.0)[:, None], (1, 3)), coefficient=coefficient)
    assert_allclose([found.split_half, found.spearman_brown, found.oracle_with_noise], 1.0, atol=1e-12)


@pytest.mark.parametrize("coefficient", ALL)
def test_pure_noise_has_nothing_to_explain(coefficient):
    seeds = np.tile([[-1.0, 1.0]], (6, 1))  # halves are mirror images
    found = ceiling(seeds, coefficient=coefficient)
    assert found.split_half == pytest.approx(-1.0, abs=1e-12)
    assert found.spearman_brown == 0.0
    assert "the target is noise" in found.warnings


@pytest.mark.parametrize("coefficient", ALL)
def test_constant_target(coefficient):
    found = ceiling(np.full((6, 3), 0.1), coefficient=coefficient)
    assert np.isnan([found.split_half, found.spearman_brown, found.oracle_with_noise]).all()
    assert found.warnings == "constant target"


def test_missing_seeds_are_left_out():
    rng = np.random.default_rng(2)
    seeds = rng.normal(size=(8, 3)) + 5 * np.arange(8)[:, None]
    padded = np.full((10, 5), np.nan)
    padded[:8, [0, 2, 4]] = seeds
    padded[8, 1] = 3.0  # one seed: of no use
    padded[9, :2] = [np.inf, 1.0]
    found = ceiling(padded)
    assert found.n_configurations == 8
    assert found.split_half == pytest.approx(1.0, abs=1e-14)
    assert np.isfinite(found.oracle_with_noise)


def test_one_seed_says_why():
    found = ceiling(np.arange(9.0)[:, None])
    assert np.isnan(found.split_half)
    assert found.warnings == "one seed a configuration: no noise ceiling"


@pytest.mark.parametrize(("n", "finite"), [(2, False), (4, True)])
def test_few_configurations_say_so(n, finite):
    found = ceiling(np.arange(2.0 * n).reshape(n, 2))
    assert np.isfinite(found.split_half) == finite
    assert "fewer than" in found.warnings


def test_generator_decides():
    seeds = np.random.default_rng(3).normal(size=(10, 4))
    first, again = (noise_ceiling(seeds, generator=np.random.default_rng(5)) for _ in range(2))
    assert first == again
    assert first != noise_ceiling(seeds, generator=np.random.default_rng(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"coefficient": "tau"}, "`coefficient` must be one of"), ({"splits": 0}, "`splits` must be at least 1")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ceiling(np.zeros((5, 2)), **options)


@pytest.mark.parametrize(("coefficient", "plain"), [("kendall", stats.kendalltau), ("spearman", stats.spearmanr),
                                                    ("pearson", stats.pearsonr)])  # fmt: skip
def test_true_values_reach_the_ceiling_of_independent_runs(coefficient, plain):
    rng = np.random.default_rng(1)
    true = rng.normal(size=(600, 1))
    seeds = true + rng.normal(size=(600, 4))
    reached = plain(true[:, 0], seeds.mean(axis=1))[0]
    assert ceiling(seeds, coefficient=coefficient, splits=10).independent == pytest.approx(reached, abs=0.02)


def test_what_a_draw_of_the_data_does_to_all_models_alike_is_no_noise():
    rng = np.random.default_rng(2)
    seeds = rng.normal(size=(30, 1)) + 0.7 * rng.normal(size=(30, 4))
    order = np.array([rng.permutation(4) for _ in range(30)])  # the runs lie in any order
    draws = np.take_along_axis(np.tile(np.arange(4), (30, 1)), order, axis=1)
    moved = seeds + np.array([0.0, 5.0, -3.0, 40.0])[draws]
    options = {"coefficient": "pearson", "draw_of": draws, "splits": 50}
    plain, shifted = ceiling(seeds, **options), ceiling(moved, **options)
    assert_allclose([*vars(shifted).values()][:4], [*vars(plain).values()][:4], atol=1e-9)
    assert ceiling(moved, coefficient="pearson", splits=50).split_half < plain.split_half - 0.2
    # of complete draws the effects are the means of columns
    table = rng.normal(size=(5, 3))
    left, levels = without_draws(table, np.tile([4, 7, 9], (5, 1)))
    assert levels == 3
    assert_allclose(left - left.mean(), table - table.mean(axis=0), atol=1e-12)


def test_missing_runs_hide_no_effect_of_a_draw():
    rng = np.random.default_rng(3)
    table = np.arange(6.0)[:, None] + np.array([0.0, 2.0, -1.0])
    table[rng.random(table.shape) < 0.2] = np.nan
    left, _ = without_draws(table, np.tile(np.arange(3), (6, 1)))
    assert_allclose(np.nanmax(left, axis=1) - np.nanmin(left, axis=1), 0.0, atol=1e-12)  # models differ, draws do not


def test_noise_that_measure_and_target_share_is_not_left_across_seeds():
    rng = np.random.default_rng(4)
    true, noise = rng.normal(size=(1000, 1)), 2 * rng.normal(size=(1000, 4))
    target = true + noise
    measure = true + noise + 0.1 * rng.normal(size=(1000, 4))  # as validation error: of the same runs
    found = ceiling(target, coefficient="pearson", splits=20)
    on_the_same = np.corrcoef(measure.mean(axis=1), target.mean(axis=1))[0, 1]
    assert on_the_same > 0.99 > found.independent + 0.2
    left = across_seeds(measure, target, coefficient="pearson", splits=20, generator=np.random.default_rng(0))
    assert left == pytest.approx(1 / 3, abs=0.06)  # variances 1 and 4/2 on each side
    assert left == pytest.approx(found.split_half, abs=0.03)
    assert np.isnan(across_seeds(measure[:2], target[:2]))
    assert np.isnan(across_seeds(measure[:, :1], target[:, :1]))
