"""Options of measures that make no sense are refused by name, whatever the measure; in a study they are marked rows."""

import inspect
import math

import pytest

from analysis.measures.catalogue import checks
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from trainers import build_model, load_dataset

CHEAP = {"draws": 2, "steps": 2, "blocks": 3, "batches": 2, "runs": 2, "examples": 20}
# Zero means something: no perturbation, no resampling, no floor; a negative C means no chance level.
MAY_BE_ZERO = {"rho", "eps", "eta", "gamma", "restarts", "resamples", "level"}


@pytest.fixture(scope="module")
def subject():
    data = load_dataset("digits", train_size=40, validation_size=30, test_size=20)
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 4, "depth": 1})
    return Subject(model.eval(), data, "x")


def bad_options():
    for key, entry in MEASURES.items():
        if key == "spurious_forgetting":  # says first that the data have no shortcut
            continue
        for name, parameter in inspect.signature(entry.function).parameters.items():
            default = parameter.default
            if name in ("subject", "C") or isinstance(default, bool | str):
                continue
            several = isinstance(default, tuple)
            number = isinstance(default[0] if several and default else default, int | float)
            if several:
                yield key, name, ()
            if number or name in ("m", "batches", "examples", "dimension"):
                bad = [-1] if name in MAY_BE_ZERO else [-1, 0]
                if isinstance(default[0] if several else default, float):
                    bad += [math.nan, math.inf]
                yield from ((key, name, (value,) if several else value) for value in bad)


# η is read by adaptive providers alone, and worst-case searches go through the same checks whatever their norm
CASES = [c for c in bad_options() if not (c[1] == "eta" and "forgetting" in c[0])]


@pytest.mark.parametrize(("key", "name", "value"), CASES, ids=[f"{k}-{n}-{v}" for k, n, v in CASES])
def test_a_bad_option_is_refused_by_name(key, name, value, subject):
    function = MEASURES[key].function
    known = inspect.signature(function).parameters
    options = {n: v for n, v in CHEAP.items() if n in known}
    if "providers" in known:
        options |= {"providers": ("sam", "obf"), "m": 10}
    with pytest.raises(ValueError, match=f"`{name}`"):
        function(subject, **options | {name: value})


def test_a_bad_option_of_a_study_is_rows_with_the_reason(subject):
    chosen = plan({"m_sharpness": {"m": [0]}, "ascent_sharpness": {"rho": [-1.0]}, "norms": None})
    found = measure_subject(subject, chosen)
    assert {r.warnings for r in found["m_sharpness"]} == {
        "ValueError: `m` must be at least 1 example a block, or None for all together, got 0."
    }
    assert all(
        math.isnan(r.value) and "`rho` must be a finite radius >= 0" in r.warnings for r in found["ascent_sharpness"]
    )
    assert math.isfinite(found["norms"][0].value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.check_some("rho", ()), "`rho` is empty: give at least one value"),
        (lambda: checks.check_count("draws", 0), "`draws` must be at least 1, got 0"),
        (lambda: checks.check_block_size(-2), "`m` must be at least 1 example a block.*got -2"),
        (lambda: checks.check_share("level", 1.0), "`level` must be at least 0 and below 1, got 1.0"),
        (lambda: checks.check_tolerance("tol", math.nan), "`tol` must be a finite tolerance above 0, got nan"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_may_be_left_open_is_let_through():
    checks.check_count("draws", None)
    checks.check_block_size(None)
    checks.check_share("level", 0.0)


PERTURBING = {  # what kept rows of these measures are known by
    "providers": ("sam", "obf"), "radii": ("own", "iso-loss"), "m": 64, "batches": None, "iso_loss": 0.1,
    "relative": 0.05,
}  # fmt: skip
OWN = {
    "forgetting_distances": {"resamples": 0},
    "forgetting_of_bias": {"resamples": 0},
    "membership": {},
    "feature_forgetting": {"noise": 0.1, "draws": 1, "leave_one_out": False, "layer": None},
    "spurious_forgetting": {"providers": ("sam", "obf", "random")},
}


@pytest.mark.parametrize("key", OWN)
def test_measures_of_a_perturbation_have_its_options_before_their_own(key):
    assert plan([key]) == {key: PERTURBING | OWN[key]}
    assert list(inspect.signature(MEASURES[key].function).parameters) == ["subject", *(PERTURBING | OWN[key])]
    assert plan({key: {"m": 8, "radii": ["own"]}})[key] == PERTURBING | OWN[key] | {"m": 8, "radii": ("own",)}
    with pytest.raises(ValueError, match=r"has no option `relatve`.*Did you mean 'relative'"):
        plan({key: {"relatve": 0.1}})
