"""Which runs a sweep has: nested keys, conditions, random draws against their distributions, and clear refusals."""

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.study import StudyConfig, read_study
from trainers.config import train_config
from trainers.sweep.conditions import Condition
from trainers.sweep.distributions import distribution
from trainers.sweep.running import expand
from trainers.sweep.search import drawn_axis, draws, grid_axis, ordered

TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 1, "model_options": {"width": 4}}


def chosen(configs, *keys):
    return [tuple(getattr(c, key) for key in keys) for c in configs]


# -- keys ------------------------------------------------------------------------------------------------------------


def test_an_option_is_a_key_of_its_own_and_leaves_the_others():
    base = {"model_options": {"width": 4, "depth": 2}, "method_options.eta": 0.5}
    configs = expand(base, {"model_options.width": [8, 16]}, [{"method": "asam"}])
    assert [c.model_options for c in configs] == [{"width": 8, "depth": 2}, {"width": 16, "depth": 2}]
    assert all(c.method_options == {"eta": 0.5} for c in configs)
    assert base == {
        "model_options": {"width": 4, "depth": 2},
        "method_options.eta": 0.5,
    }  # nothing of the caller's moves


def test_whole_options_come_before_single_ones_however_they_are_written():
    grid = {"model_options.width": [8, 16], "model_options": [{"depth": 1}, {"depth": 2}]}
    found = [(c.model_options["depth"], c.model_options["width"]) for c in expand({}, grid)]
    assert found == [(1, 8), (1, 16), (2, 8), (2, 16)]


def test_a_list_may_be_one_value():
    assert chosen(expand({"epochs": 9}, {"checkpoints": [[2, 4], []]}), "checkpoints") == [((2, 4),), ((),)]


# -- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [
    {"method": ["sam", "gsam"]}, {"method": {"not": "sgd"}}, {"takes_rho": True}, {"takes_rho": {"not": [False]}},
])  # fmt: skip
@pytest.mark.parametrize("first", ["method", "rho"])
def test_a_radius_only_for_methods_that_have_one(when, first):
    axes = {"method": ["sgd", "sam", "gsam"], "rho": {"values": [0.1, 0.2], "when": when}}
    grid = {first: axes[first], **axes}
    configs = expand(TINY, grid)
    wanted = {("sgd", None)} | set(itertools.product(("sam", "gsam"), (0.1, 0.2)))
    assert len(configs) == len(wanted) == 5
    assert set(chosen(configs, "method", "rho")) == wanted


def test_all_of_several_conditions_must_hold_and_defaults_count():
    grid = {
        "method": ["sam", "asam"],
        "base": ["sgd", "adamw"],
        "nesterov": {"values": [True], "when": {"base": "sgd", "method": "sam"}},
        "lr_factor": {"values": [0.5], "when": {"lr_schedule": "step"}},
        "weight_decay": {"values": [0.0], "when": {"momentum": [0.9], "model_options.depth": 2}},
    }
    configs = expand({"lr_schedule": "step"}, grid)
    assert set(chosen(configs, "method", "base", "nesterov")) == {
        ("sam", "sgd", True), ("sam", "adamw", False), ("asam", "sgd", False), ("asam", "adamw", False),
    }  # fmt: skip
    assert {c.lr_factor for c in configs} == {0.5}
    assert {c.weight_decay for c in configs} == {0.0}  # 2 is the depth of an MLP by default


def test_a_condition_on_a_key_that_is_itself_conditioned():
    grid = {
        "method_options.eta": {"values": [0.1, 0.2], "when": {"method_options.adaptive": "both"}},
        "method_options.adaptive": {"values": ["none", "both"], "when": {"method": "sam"}},
        "method": ["sgd", "sam"],
    }
    found = [c.method_options for c in expand({}, grid)]
    assert found == [{}, {"adaptive": "none"}, {"adaptive": "both", "eta": 0.1}, {"adaptive": "both", "eta": 0.2}]


@pytest.mark.parametrize(("given_value", "value", "same"), [
    (0.1, "1e-1", True), (1, 1.0, True), (0.1, 0.10001, False),
])  # fmt: skip
def test_values_are_compared_as_a_configuration_reads_them(given_value, value, same):
    assert Condition.parse("rho", {"lr": given_value}).holds({"lr": value}) is same


def test_true_is_not_one():
    condition = Condition.parse("rho", {"method_options.steps": 1})
    assert condition.holds({"method": "sam", "method_options": {"steps": 1}})
    assert condition.holds({"method": "sam"})  # by default
    assert not condition.holds({"method": "sam", "method_options": {"steps": True}})
    assert not condition.holds({"method": "none such"})


# -- distributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given_as", "cdf"), [
    ({"uniform": [-1, 3]}, lambda x: (x + 1) / 4),
    ({"log_uniform": ["1e-4", 1.0]}, lambda x: 1 + np.log10(x) / 4),
])  # fmt: skip
def test_numbers_have_their_distribution(given_as, cdf):
    generator = np.random.default_rng(0)
    one = distribution("lr", given_as)
    sample = [one.draw(generator) for _ in range(2000)]
    assert all(isinstance(x, float) for x in sample)
    assert one.size is None
    assert stats.kstest(sample, cdf).pvalue > 0.01


@pytest.mark.parametrize(("given_as", "weight"), [
    ({"integers": [2, 6]}, lambda _: 1.0),
    ({"log_integers": [1, 5]}, lambda n: math.log((n + 0.5) / (n - 0.5))),
    ({"choice": [3, 5, 5]}, lambda n: (n - 1) // 2),
])  # fmt: skip
def test_whole_numbers_and_choices_have_their_weights(given_as, weight):
    generator = np.random.default_rng(0)
    one = distribution("batch_size", given_as)
    sample = [one.draw(generator) for _ in range(3000)]
    assert all(type(x) is int for x in sample)
    ((name, bounds),) = given_as.items()
    support = sorted(set(bounds)) if name == "choice" else range(bounds[0], bounds[1] + 1)
    weights = np.array([weight(n) for n in support])
    counts = [sample.count(n) for n in support]
    assert sum(counts) == len(sample)
    assert stats.chisquare(counts, len(sample) * weights / weights.sum()).pvalue > 0.01


@given(low=st.floats(1e-12, 1e6), factor=st.sampled_from([1 + 1e-15, 2.0, 1e9]), seed=st.integers(0, 999))
def test_bounds_are_kept_to_the_last_bit(low, factor, seed):
    high = low * factor  # for the first, exp(log(low)) often lies outside
    one = distribution("lr", {"log_uniform": [low, high]})
    generator = np.random.default_rng(seed)
    assert all(low <= one.draw(generator) <= high for _ in range(20))


# -- random search ---------------------------------------------------------------------------------------------------

SPACE = {"lr": {"log_uniform": [0.01, 1.0]}, "model_options.width": {"integers": [4, 64]}}


def test_draws_are_crossed_with_the_grid_and_the_same_for_every_combination():
    configs = expand(TINY, {"method": ["sgd", "sam"], "seed": [0, 1, 2]}, random={"draws": 5, "space": SPACE})
    assert len({c.run_id for c in configs}) == len(configs) == 30
    drawn = {}
    for c in configs:
        drawn.setdefault((c.method, c.seed), []).append((c.lr, c.model_options["width"]))
    assert len({tuple(some) for some in drawn.values()}) == 1
    assert len(set(drawn["sgd", 0])) == 5


def test_more_draws_another_order_or_another_key_change_no_draw():
    few = expand(TINY, {}, random={"draws": 4, "seed": 3, "space": SPACE})
    more = expand(TINY, {}, random={"draws": 9, "seed": 3, "space": SPACE})
    assert [c.run_id for c in more[:4]] == [c.run_id for c in few]
    backwards = expand(TINY, {}, random={"draws": 4, "seed": 3, "space": dict(reversed(SPACE.items()))})
    assert [c.run_id for c in backwards] == [c.run_id for c in few]
    wider = expand(TINY, {}, random={"draws": 4, "seed": 3, "space": {"momentum": {"uniform": [0, 0.9]}, **SPACE}})
    assert chosen(wider, "lr") == chosen(few, "lr")
    other = expand(TINY, {}, random={"draws": 4, "seed": 4, "space": SPACE})
    assert not set(chosen(other, "lr")) & set(chosen(few, "lr"))


def test_draws_do_not_repeat_and_find_all_there_are():
    space = {"batch_size": {"choice": [8, 16, 8]}, "seed": {"integers": [0, 2]}}
    configs = expand(TINY, {}, random={"draws": 6, "space": space})
    assert sorted(chosen(configs, "batch_size", "seed")) == list(itertools.product((8, 16), range(3)))
    with pytest.raises(ValueError, match=r"`random\.draws` is 7, but only 6 different ones were found"):
        expand(TINY, {}, random={"draws": 7, "space": space})


def test_the_last_of_many_values_is_found_too():
    found = [draw["seed"] for draw in draws([drawn_axis("seed", {"integers": [0, 499]})], 0)]
    assert sorted(found) == list(range(500))


def test_values_that_come_to_the_same_run_count_once():
    space = {"rho": {"uniform": [0.0, 1.0], "when": {"method": "sam"}}, "seed": {"choice": [0, 1]}}
    configs = expand(TINY, {"method": ["sgd", "sam"]}, random={"draws": 6, "space": space})
    assert len([c for c in configs if c.method == "sam"]) == 6
    assert len([c for c in configs if c.method == "sgd"]) == 2  # it has no radius to draw
    space = {"seed": {"choice": [0, 1]}, "obf_gamma": {"uniform": [0, 1]}}  # SGD does not read the latter
    with pytest.raises(ValueError, match="only 2 different ones were found"):
        expand(TINY, {}, random={"draws": 3, "space": space})


def test_each_variant_has_a_distribution_of_its_own_and_as_many_draws():
    variants = [{"method": "sam", "rho": {"uniform": [0.0, 0.1]}}, {"method": "asam", "rho": {"uniform": [1.0, 2.0]}}]
    configs = expand(TINY, {}, [*variants, {"method": "sgd"}], random={"draws": 7, "space": {}})
    radii = {m: [c.rho for c in configs if c.method == m] for m in ("sam", "asam", "sgd")}
    assert [len(some) for some in radii.values()] == [7, 7, 1]
    assert max(radii["sam"]) < 0.1 < 1.0 < min(radii["asam"])


def test_each_key_has_a_stream_of_its_own():
    axes = [drawn_axis(key, {"uniform": [0.0, 0.9]}) for key in ("lr", "momentum")]
    both = list(itertools.islice(draws(axes, 0), 400))
    a, b = ([d[key] for d in both] for key in ("lr", "momentum"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
    assert [d["lr"] for d in itertools.islice(draws(axes[:1], 0), 400)] == a


# -- refusals --------------------------------------------------------------------------------------------------------

RHO = {"values": [0.1]}


@pytest.mark.parametrize(("grid", "message"), [
    ({"lrr": [0.1]}, r"unknown key `lrr`\. Did you mean 'lr'"),
    ({"model_optins.width": [1]}, r"unknown key `model_optins\.width`\. Did you mean 'model_options'"),
    ({"lr.x": [1]}, r"unknown key `lr\.x`: only .*model_options.* have options"),
    ({"model_options.": [1]}, "only .*model_options.* have options"),
    ({"model_options.widht": [1]}, r"no option `widht`.* Did you mean 'width'"),
    ({"lr": {"value": [1]}}, "`grid` needs a list with at least one value for `lr`, got {'value'"),
    ({"lr": {"values": []}}, "at least one value for `lr`"),
    ({"lr": {"uniform": [0, 1]}}, r"`lr` is to be drawn, got .*: put it into `random\.space`"),
    ({"rho": {**RHO, "when": {}}}, "`when` of `rho` needs keys with values"),
    ({"rho": {**RHO, "when": {"methd": "sam"}}}, "unknown key `methd`. Did you mean 'method'"),
    ({"rho": {**RHO, "when": {"method": []}}}, "`when` of `rho` needs at least one value for `method`"),
    ({"rho": {**RHO, "when": {"method": "samm"}}}, "`method` 'samm' is unknown.*Did you mean 'sam'"),
    ({"rho": {**RHO, "when": {"lr": "big"}}}, "`when` of `rho`: `lr` cannot be 'big'"),
    ({"rho": {**RHO, "when": {"rho": 1}}}, "`rho` cannot be given `when` it has a value itself"),
    ({"rho": {**RHO, "when": {"method": "gsam"}}, "method": ["sam"]}, r"`rho` is never set.*\{method: \['gsam'\]"),
    ({"rho": {**RHO, "when": {"m": 3}}, "m": {"values": [3], "when": {"rho": 0.1}}}, "`rho`, `m` wait for each other"),
    ({"rho": [0.1], "method": ["sgd", "sam"]}, r"`rho` has no meaning .* combination rho=0\.1, method='sgd'.*when"),
])  # fmt: skip
def test_bad_axes(grid, message):
    with pytest.raises(ValueError, match=message):
        expand(TINY, grid)


@pytest.mark.parametrize(("space", "message"), [
    ({"lr": 0.1}, r"`lr` needs one distribution .* such as \{log_uniform: \[0\.001, 1\.0\]\}, got 0\.1"),
    ({"lr": {"uniform": [0, 1], "choice": [1]}}, "`lr` needs one distribution"),
    ({"lr": {"unifrom": [0, 1]}}, "`lr` has no distribution 'unifrom'.* Did you mean 'uniform'"),
    ({"lr": {"uniform": 1}}, "`lr`: `uniform` needs a list.*got 1"),
    ({"lr": {"uniform": [1]}}, r"`lr`: `uniform` needs two numbers.*got \[1\]"),
    ({"lr": {"uniform": [1, 1]}}, "the smaller one first"),
    ({"lr": {"uniform": [0, float("inf")]}}, "needs two numbers"),
    ({"lr": {"uniform": ["a", 1]}}, "needs two numbers"),
    ({"lr": {"uniform": [False, True]}}, "needs two numbers"),
    ({"lr": {"log_uniform": [0, 1]}}, "needs bounds above 0.*`uniform` takes any"),
    ({"batch_size": {"integers": [1, 2.5]}}, "needs whole numbers"),
    ({"batch_size": {"log_integers": [0, 2]}}, "needs bounds above 0"),
    ({"batch_size": {"choice": []}}, "`choice` needs at least one value"),
    ({"seed": {"integers": [0, 9]}}, r"`seed` is in `grid` and in `random\.space`"),
    ({"lrr": {"uniform": [0, 1]}}, "unknown key `lrr`"),
    ({}, r"`random\.space` is empty"),
])  # fmt: skip
def test_bad_spaces(space, message):
    with pytest.raises(ValueError, match=message):
        expand(TINY, {"seed": [0]}, random={"draws": 2, "space": space})


def test_bad_searches():
    with pytest.raises(ValueError, match="`random`: `draws` got 0"):
        expand(TINY, {}, random={"draws": 0, "space": SPACE})
    with pytest.raises(ValueError, match=r"unknown key `drawss`\. Did you mean 'draws'"):
        expand(TINY, {}, random={"drawss": 3, "space": SPACE})
    with pytest.raises(ValueError, match=r"`lr` is to be drawn, but `random` does not say how often"):
        expand(TINY, {}, [{"lr": {"uniform": [0, 1]}}])


# -- order -----------------------------------------------------------------------------------------------------------


@given(st.permutations(range(4)))
def test_conditioned_axes_come_after_what_they_read_and_others_stay(order):
    axes = [
        grid_axis("seed", [0]),
        grid_axis("method", ["sam"]),
        grid_axis("rho", {"values": [1], "when": {"takes_rho": True}}),
        grid_axis("m", {"values": [1], "when": {"rho": 1}}),
    ]
    shuffled = [axes[i] for i in order]
    keys = [axis.key for axis in ordered(shuffled)]
    assert sorted(keys) == ["m", "method", "rho", "seed"]
    assert keys.index("method") < keys.index("rho") < keys.index("m")
    if order == [1, 2, 3, 0]:
        assert keys == ["method", "rho", "m", "seed"]


def test_configurations_without_search_keep_their_names():
    assert expand(TINY, {"seed": [1]})[0].run_id == train_config({**TINY, "seed": 1}).run_id


# -- study files -----------------------------------------------------------------------------------------------------

STUDIES = Path(__file__).parents[3] / "studies"


def test_a_study_file_can_search():
    study = read_study(STUDIES / "search.yaml")
    configs = study.configs()
    count = {m: len([c for c in configs if c.method == m]) for m in ("sgd", "sam", "asam", "gsam")}
    assert count == {"sgd": 12, "sam": 12, "asam": 12, "gsam": 24}  # 6 draws, 2 seeds; GSAM with 2 values of alpha
    again = StudyConfig.parse(json.loads(json.dumps(study.model_dump(mode="json"))))  # as study.json keeps it
    assert [c.run_id for c in again.configs()] == [c.run_id for c in configs]


def test_folders_of_studies_without_search_still_belong_to_them():
    study = read_study(STUDIES / "smoke.yaml")
    values = study.model_dump(mode="json")
    for later in ("random", "surfaces", "weights", "examples", "shifted"):
        del values[later]  # as a version without these keys wrote it
    for later in ("correction", "representatives"):
        del values["statistics"][later]
    values["statistics"]["permutations"] = values["statistics"]["permutations"] or 9999
    assert study.digest == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    searching = StudyConfig.parse({**values, "random": {"draws": 2, "space": {"momentum": {"uniform": [0, 0.9]}}}})
    assert searching.digest != study.digest


def test_a_bad_search_in_a_study_file_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: x\nrandom: {draws: many}\n")
    with pytest.raises(ValueError, match=r"`random\.draws` got 'many'"):
        read_study(tmp_path / "bad.yaml")
