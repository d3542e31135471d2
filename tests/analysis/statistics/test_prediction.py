import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.statistics.prediction import MODELS, NEIGHBOURS, PENALTIES, STATISTIC, gain_over, leave_one_group_out


def data(n=48, features=5, groups=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) * 10.0 ** np.arange(features)
    return x, x[:, 0] + 0.3 * rng.normal(size=n), np.repeat(np.arange(groups), n // groups).tolist(), rng


@pytest.mark.parametrize("model", MODELS)
def test_predictions_are_those_of_scikit_learn(model):
    x, y, groups, rng = data()
    found = leave_one_group_out(x, y, groups, model=model, draws=0, generator=rng)
    step, name, choices = {
        "ridge": (Ridge(), "ridge__alpha", PENALTIES),
        "neighbours": (KNeighborsRegressor(), "kneighborsregressor__n_neighbors", NEIGHBOURS),
    }[model]
    g = np.array(groups)
    expected = np.empty(len(y))
    for train, test in LeaveOneGroupOut().split(x, y, g):
        search = GridSearchCV(
            make_pipeline(StandardScaler(), step), {name: choices}, scoring="neg_mean_squared_error",
            cv=list(LeaveOneGroupOut().split(x[train], y[train], g[train])),
        )  # fmt: skip
        expected[test] = search.fit(x[train], y[train]).predict(x[test])
    assert_allclose(found.predicted, expected, atol=1e-9)
    base = np.array([y[g != k].mean() for k in g])
    assert found.r2 == pytest.approx(1 - ((y - expected) ** 2).sum() / ((y - base) ** 2).sum(), abs=1e-9)
    assert found.mae == pytest.approx(np.abs(y - expected).mean(), abs=1e-9)
    assert found.mae_baseline == pytest.approx(np.abs(y - base).mean(), abs=1e-12)
    inside = [stats.kendalltau(expected[g == k], y[g == k]).statistic for k in range(4)]
    assert found.tau == pytest.approx(np.mean(inside), abs=1e-9)


def test_nothing_of_the_group_left_out_is_used():
    x, y, groups, _ = data()
    first = leave_one_group_out(x, y, groups, generator=np.random.default_rng(0))
    other_x, other_y = x.copy(), y.copy()
    other_y[:12] += 1e3
    other_x[11] *= 7
    second = leave_one_group_out(other_x, other_y, groups, generator=np.random.default_rng(0))
    assert_allclose(first.predicted[:11], second.predicted[:11], atol=1e-10)
    assert abs(first.predicted[20] - second.predicted[20]) > 1


def test_noise_predicts_nothing_and_the_interval_holds_the_value():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 16).tolist()
    noise = leave_one_group_out(rng.normal(size=(96, 20)), rng.normal(size=96), groups, generator=rng)
    assert noise.r2 < 0.1
    x, y, groups, rng = data(96, groups=6)
    good = leave_one_group_out(x, y, groups, generator=rng)
    assert 0.8 < good.r2_low < good.r2 < good.r2_high < 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y, g: (x, y * 0, g), "constant target"),
        (lambda x, y, g: (x, y, [0] * len(g)), "one method: none to leave out"),
        (lambda x, y, g: (x[:, :0], y, g), "no feature"),
        (lambda x, y, g: (x[:4], y[:4], g[:4]), "fewer than 5 configurations: no claim"),
    ],
    ids=["constant", "one", "none", "few"],
)
def test_not_defined_is_a_reason(change, reason):
    x, y, groups, rng = data()
    found = leave_one_group_out(*change(x, y, groups), generator=rng)
    assert np.isnan(found.r2)
    assert found.warnings == reason


@given(st.integers(0, 9), st.integers(0, 3), st.integers(0, 9))
def test_any_data_gives_a_number_or_a_reason(n, features, seed):
    rng = np.random.default_rng(seed)
    pool = np.array([0.0, 1.0, 2.0, 1e300, np.nan, np.inf])
    p = [0.3, 0.3, 0.2, 0.1, 0.05, 0.05]
    x, y = rng.choice(pool, (n, features), p=p), rng.choice(pool[[0, 1, 2, 4]], n, p=[0.4, 0.3, 0.2, 0.1])
    groups = rng.integers(0, 3, n).tolist()
    for model in MODELS:
        found = leave_one_group_out(x, y, groups, model=model, draws=9, generator=rng)
        assert np.isfinite(found.mae) or found.warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "forest"}, "`model` must be one of"),
        ({"penalties": [0]}, "`penalties` must be numbers > 0"),
        ({"groups": [0]}, "`features`, `y` and `groups` must have a row a unit"),
        ({"draws": -1}, "`draws` must be a whole number of resamples"),
    ],
)
def test_bad_arguments_are_named(options, message):
    x, y, groups, rng = data()
    with pytest.raises(ValueError, match=message):
        leave_one_group_out(x, y, **{"groups": groups, **options}, generator=rng)


def test_what_is_added_is_predicted_as_by_scikit_learn():
    rng = np.random.default_rng(4)
    base, measures, groups = rng.normal(size=(30, 3)), rng.normal(size=(2, 30)), np.repeat(np.arange(5), 6)
    y = base[:, 0] + 0.7 * measures[0] + 0.5 * rng.normal(size=30)

    def predicted(x):
        made = np.empty(30)
        for train, test in LeaveOneGroupOut().split(x, y, groups):
            search = GridSearchCV(
                make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": PENALTIES}, scoring="neg_mean_squared_error",
                cv=list(LeaveOneGroupOut().split(x[train], y[train], groups[train])),
            )  # fmt: skip
            made[test] = search.fit(x[train], y[train]).predict(x[test])
        return made

    found = gain_over(base, measures, y, groups.tolist(), level=0.9)
    mean = np.array([y[groups != k].mean() for k in groups])
    alone, with_first = predicted(base), predicted(np.column_stack([base, measures[0]]))

    def gain(kept):
        return (((y - alone) ** 2 - (y - with_first) ** 2)[kept]).sum() / (((y - mean) ** 2)[kept]).sum()

    assert found.r2[0] == pytest.approx(1 - ((y - with_first) ** 2).sum() / ((y - mean) ** 2).sum(), abs=1e-10)
    assert found.gain[0] == pytest.approx(gain(groups >= 0), abs=1e-10)
    assert found.mae[0] == pytest.approx(np.abs(y - with_first).mean(), abs=1e-10)
    left_out = np.array([gain(groups != k) for k in range(5)])
    half = stats.t.ppf(0.95, 4) * np.sqrt(4 / 5 * ((left_out - left_out.mean()) ** 2).sum())
    assert_allclose([found.low[0], found.high[0]], [gain(groups >= 0) - half, gain(groups >= 0) + half], atol=1e-10)
    taus = [
        np.mean([stats.kendalltau(guess[groups == k], y[groups == k]).statistic for k in range(5)])
        for guess in (alone, with_first)
    ]
    assert_allclose([found.tau[0], found.gain_tau[0]], [taus[1], taus[1] - taus[0]], atol=1e-12)
    assert found.low[0] > 0 > found.low[1]  # the other measure is noise


def test_tables_of_earlier_versions_are_read_without_gains():
    old = pd.DataFrame({"target": ["test_error"], "features": ["measures"], "model": ["ridge"], "r2": [0.5]})
    assert not {"added", "gain", "gain_low", "gain_high"} & set(STATISTIC.needed)
    read = STATISTIC.completed(old)
    assert read["added"].tolist() == [""]
    assert read[["gain", "gain_low", "gain_high", "gain_tau"]].isna().all(axis=None)
    assert len(STATISTIC.chosen(read, ["flat"])) == 1
