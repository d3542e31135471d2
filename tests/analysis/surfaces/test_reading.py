"""The reading note: every sentence where it belongs, and not where it does not, with the right numbers."""

import math

import numpy as np
import pytest
import torch
from made_surfaces import banana, bowl, hole, made
from scipy.stats import beta

from analysis.surfaces.reading import (
    ANSWERS,
    LEVELS,
    Remark,
    local_fit,
    prediction_of,
    reading,
    reading_together,
    to_markdown,
    verdict,
)
from landscape.surfaces import Grid, Surface


def said(surface, topic, metric=None):
    return [r for r in reading(surface, metric) if r.topic == topic]


def one(surface, topic, metric=None):
    (remark,) = said(surface, topic, metric)
    return remark


QUADRATIC = {"value": 0.1, "slope": [0.0, 0.0], "curvature": [[2.0, 0.0], [0.0, 0.5]], "note": ""}


# whole, finite, noise -------------------------------------------------------------------------------------------------


def test_a_whole_surface_is_fine_and_an_unfinished_one_is_not():
    assert one(made(), "whole") == Remark("whole", "fine", "All 441 points were evaluated.")

    def unfinished(t, x, y):
        t[x > 0] = math.nan
        return t

    remark = one(made(spoil=unfinished, computed=lambda x, _: x <= 0), "whole")
    assert remark.level == "wrong"
    assert "Only 231 of 441 points were evaluated: run the same command again" in remark.text
    refined = one(made(computed=lambda x, _: x.abs() > 0.5, refined=True), "whole")
    assert refined.level == "fine"
    assert refined.text.startswith("210 of 441 points were evaluated; the others are interpolated")


def test_values_that_are_not_finite_are_counted():
    assert not said(made(), "finite")
    remark = one(made(spoil=hole), "finite")
    count = int((~made(spoil=hole).values["loss"].isfinite()).sum())
    assert remark.level == "mind"
    assert remark.text.startswith(f"{count} points of 441")
    assert f"({count - 1} NaN, 1 infinite)" in remark.text


def test_a_model_without_a_finite_loss_is_wrong():
    (remark,) = [
        r for r in said(made(lambda x, y: bowl(x, y) / (x.abs() + y.abs() > 0)), "finite") if r.level == "wrong"
    ]
    assert "The model itself has no finite loss" in remark.text


@pytest.mark.parametrize(("stderr", "level"), [(0.01, "fine"), (0.31, "fine"), (0.32, "mind")])
def test_the_range_is_held_against_the_noise(stderr, level):
    remark = one(made(stderr=stderr), "noise")  # the range is 1.25
    assert remark.level == level
    assert remark.text.startswith("From the lowest to the highest point it is 1.25, ")


def test_no_word_of_noise_without_an_error():
    assert not said(made(stderr=0.0), "noise")
    assert not said(made(stderr=math.nan), "noise")


# the minimum ----------------------------------------------------------------------------------------------------------


def test_the_model_is_the_lowest_point():
    remark = one(made(), "minimum")
    assert remark == Remark("minimum", "fine", "The model, at 0.1, is the lowest point of the picture.")


@pytest.mark.parametrize(("stderr", "level"), [(0.0, "mind"), (0.001, "mind"), (0.03, "fine"), (math.nan, "mind")])
def test_a_lower_point_counts_against_the_error(stderr, level):
    surface = made(lambda x, y: bowl(x, y, slope=(-0.2, 0.0)), stderr=stderr)  # x = 0.1, 0.01 below
    remark = one(surface, "minimum")
    assert remark.level == level
    assert "at (0.1, 0), 0.01 below the model's 0.1" in remark.text
    assert ("the model is not the minimum" in remark.text) == (level == "mind")


def test_the_minimum_of_an_error_is_in_percent():
    surface = made()
    surface.values["error"][3, 3] = 0.0
    assert "2 % below the model's 2 %" in one(surface, "minimum", "error").text


# resolution -----------------------------------------------------------------------------------------------------------


def test_a_grid_too_coarse_is_told():
    assert one(made(), "resolution").level == "fine"
    sharp = made(lambda x, y: bowl(x, y, curvature=(200.0, 0.5)), points=21)  # step 0.1, 1/√200 = 0.07
    remark = one(sharp, "resolution")
    assert remark.level == "wrong"
    assert "A step along axis 1, 0.1, is longer than the bend there, 1/√(curvature) = 0.0707" in remark.text
    assert one(made(lambda x, y: bowl(x, y, curvature=(90.0, 0.5))), "resolution").level == "fine"


def test_jumps_between_neighbours_are_told():
    remark = one(made(lambda x, y: 0.1 + 1.0 * (x > 0.3) + 0.01 * y), "resolution")
    assert remark.level == "mind"
    assert "changes by up to 100 % of the drawn range" in remark.text


# curvature ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [9, 10, 21])
def test_the_fit_of_a_quadratic_is_exact(points):
    K = torch.tensor([[3.0, 0.7], [0.7, -1.0]], dtype=torch.float64)

    def quadratic(x, y):
        a = torch.stack([x, y], -1)
        return 0.4 + 0.2 * x - 0.5 * y + ((a @ K) * a).sum(-1) / 2

    fit = local_fit(made(quadratic, points=points, dtype="float64"), "loss")
    torch.testing.assert_close(fit.expansion.curvature, K, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        fit.expansion.slope, torch.tensor([0.2, -0.5], dtype=torch.float64), rtol=1e-10, atol=1e-10
    )
    assert fit.expansion.value == pytest.approx(0.4)
    assert fit.stderr.max() < 1e-9


def test_the_error_of_the_fit_covers_terms_of_higher_order():
    for power, curvature in ((4, 2.0), (6, 2.0)):
        surface = made(lambda x, y, p=power: x**2 + y**2 + 3 * x**p, points=21, dtype="float64")
        fit = local_fit(surface, "loss")
        off = abs(fit.expansion.curvature[0, 0].item() - curvature)
        assert 0 < off < 3 * fit.stderr[0, 0]
        assert off < 0.15


def test_axes_of_another_length_and_angle_are_taken_out_of_the_curvature():
    # H = diag(5, 1) in the plane, d1 = (2, 0), d2 = (0.6, 0.8): K = DᵀHD
    D = torch.tensor([[2.0, 0.6], [0.0, 0.8]], dtype=torch.float64)
    K = D.T @ torch.diag(torch.tensor([5.0, 1.0], dtype=torch.float64)) @ D

    def quadratic(x, y):
        a = torch.stack([x, y], -1)
        return ((a @ K) * a).sum(-1) / 2

    surface = made(quadratic, lengths=(2.0, 1.0), cosine=0.6, dtype="float64")
    value, error = local_fit(surface, "loss").largest
    assert value == pytest.approx(5.0, abs=1e-9)
    assert error < 1e-9
    assert "bends by at most 5" in one(surface, "curvature").text


def test_interpolated_points_do_not_enter_the_fit():
    def wrong_between(t, x, y):
        t[(x * 10).round() % 2 == 1] += 0.3
        return t

    surface = made(spoil=wrong_between, computed=lambda x, _: (x * 10).round() % 2 == 0, refined=True)
    assert local_fit(surface, "loss").expansion.curvature[0, 0].item() == pytest.approx(2.0)


def test_too_few_points_give_no_fit():
    assert local_fit(made(points=2), "loss") is None
    assert not said(made(points=2), "curvature")


@pytest.mark.parametrize(
    ("top", "level", "text"),
    [
        (2.0, "fine", ", 100 % of the largest Hessian eigenvalue λ_max = 2."),
        (40.0, "mind", ", 5 % of the largest"),
        (1.0, "wrong", "No direction can bend more than λ_max"),
    ],
)
def test_the_slice_is_held_against_the_largest_eigenvalue(top, level, text):
    remark = one(made(top_eigenvalue=top), "curvature")
    assert remark.level == level
    assert text in remark.text
    assert "(fitted to the 25 points around the centre)" in remark.text
    exact = one(made(top_eigenvalue=top, second_order=QUADRATIC), "curvature")
    assert exact.level == level
    assert "bends by at most 2 per squared length of weights (by Hessian products)" in exact.text


def test_without_an_eigenvalue_the_curvature_stands_alone():
    remark = one(made(), "curvature")
    assert remark.level == "fine"
    assert "eigenvalue" not in remark.text
    assert not said(made(top_eigenvalue=2.0), "curvature", "error")  # of losses only


def test_the_mean_curvature_is_held_against_that_of_a_random_direction():
    remark = one(made(trace=100.0, parameters=1000), "trace")
    assert remark.text == (
        "Its mean curvature is 1.25, where a random direction of 1,000 weights has tr(H)/p = 0.1 on average (12 times "
        "as much); the slice holds 2.5 % of the trace."
    )
    assert not said(made(), "trace")
    assert not said(made(trace=100.0), "trace")


def test_a_saddle_and_a_quadratic_that_does_not_hold_are_told():
    assert not said(made(second_order=QUADRATIC), "negative curvature")
    saddle = {**QUADRATIC, "curvature": [[2.0, 0.0], [0.0, -0.5]]}
    remark = one(made(second_order=saddle), "negative curvature")
    assert "downwards somewhere, by −0.5" in remark.text
    far = [
        r.text for r in said(made(second_order={**QUADRATIC, "curvature": [[9.0, 0.0], [0.0, 0.5]]}), "second order")
    ]
    assert any("points around the centre bend by 2" in text and "say 9" in text for text in far)
    assert any("nowhere in the picture" in text for text in far)
    assert [r.text for r in said(made(second_order=QUADRATIC), "second order")] == [
        "Gradient and Hessian at the centre predict the whole picture, with an error of at most a fifth of the rise."
    ]


def test_how_far_the_second_order_holds():
    surface = made(lambda x, y: bowl(x, y) + 1.0 * x**4, second_order=QUADRATIC)  # x⁴ < x²/4 up to 0.5
    (remark,) = said(surface, "second order")
    assert "up to 50 % of the way to the picture's edge" in remark.text
    assert remark.level == "fine"


def test_the_prediction_belongs_to_the_first_loss_alone():
    surface = made(metric="train loss", second_order=QUADRATIC)
    assert prediction_of(surface, "train loss").value == 0.1
    assert prediction_of(surface, "train error") is None
    assert prediction_of(made(), "loss") is None


# directions -----------------------------------------------------------------------------------------------------------


def test_what_chance_misses_is_that_of_random_axes():
    remark = one(made(parameters=100), "random directions")
    assert "|cos| of about 1/√p = 0.1" in remark.text
    chance = beta.sf(0.01, 1, 49)
    assert chance == pytest.approx(0.99**49)
    assert f"is {chance:.2g}" in remark.text
    assert "less than 10⁻⁹" in one(made(parameters=10**6), "random directions").text
    assert not said(made(), "random directions")
    assert not said(made(parameters=100, kind="eigenvector"), "random directions")


def test_the_chance_is_that_of_a_simulation():
    generator = np.random.default_rng(0)
    planes = np.linalg.qr(generator.normal(size=(4000, 20, 2)))[0]
    share = (planes[:, 0] ** 2).sum(-1)  # squared cosine of the first unit vector with the plane
    expected = beta.sf(0.01, 1, 9)
    assert abs((share > 0.01).mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


@pytest.mark.parametrize(
    ("cosine", "level", "text"),
    [
        (0.003, "fine", "89.8° (cosine 0.003)"),
        (-0.2, "mind", "101.5° (cosine −0.2)"),
        (0.995, "wrong", "a line drawn twice"),
    ],
)
def test_the_angle_of_the_axes(cosine, level, text):
    remark = one(made(cosine=cosine, parameters=10000), "angle")
    assert remark.level == level
    assert text in remark.text
    assert ("±0.01 is chance" in remark.text) == (level != "wrong")
    assert "chance" not in one(made(cosine=cosine, parameters=10000, kind="given"), "angle").text


def test_a_line_has_no_angle():
    assert not said(made(lambda x: bowl(x), axes=1), "angle")


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("filter norms", "each filter moves by its own norm"),
        ("weights", "a move of length 1 in weight space"),
        ("‖ε‖ = 0.05", "‖ε‖ = 0.05"),
        ("1/√|λ|", "changes the loss by ± 1/2"),
    ],
)
def test_what_coordinate_one_means(unit, text):
    assert text in one(made(unit=unit, lengths=(3.0, 2.0)), "unit").text
    assert ("3 long" in one(made(unit=unit, lengths=(3.0, 2.0)), "unit").text) == (unit != "weights")


def test_scale_invariance_is_told_of_random_directions():
    assert one(made(recipe={"normalise": "filter"}), "scale").level == "fine"
    unscaled = one(made(recipe={"normalise": "none"}), "scale")
    assert unscaled.level == "mind"
    assert "Compare no widths between models" in unscaled.text
    assert not said(made(kind="eigenvector"), "scale")
    assert not said(made(), "scale")  # unknown


def test_the_mode_of_normalisation_layers():
    assert not said(made(), "normalisation layers")
    assert one(made(mode="eval"), "normalisation layers").level == "fine"
    assert "each batch's own statistics" in one(made(mode="batch"), "normalisation layers").text


def test_eigenvectors_that_have_not_converged_are_wrong():
    bad = one(
        made(kind="eigenvector", recipe={"converged": False, "residual": 0.3, "eigenvalue": 2.0}, axes=1),
        "eigenvectors",
    )
    assert bad.level == "wrong"
    assert "(residual 0.3)" in bad.text
    down = one(made(kind="eigenvector", recipe={"converged": True, "eigenvalue": -2.0}, axes=1), "eigenvectors")
    assert "λ = −2" in down.text
    assert down.level == "mind"
    assert not said(made(kind="eigenvector", recipe={"converged": True, "eigenvalue": 2.0}), "eigenvectors")


def test_variance_of_a_trajectory_against_a_random_walk():
    assert not said(made(), "trajectory")
    good = one(made(explained=[0.8, 0.15, 0.01], explained_null=[0.608, 0.152, 0.068]), "trajectory")
    assert good.level == "fine"
    assert (
        "holds 95 % of the variance of the trajectory (80 %, 15 %); a random walk in high dimension would show 76 %"
        in good.text
    )
    chance = one(made(explained=[0.62, 0.16], explained_null=[0.608, 0.152]), "trajectory")
    assert chance.level == "mind"
    assert "such a plane says nothing" in chance.text
    assert "random walk" not in one(made(explained=[0.62, 0.16]), "trajectory").text


def test_sharpness_and_reach_are_in_the_units_of_the_picture():
    surface = made(
        sharpness={"ascent sharpness, ρ = 0.05": 0.1234, "other": {"value": 2.0, "unit": "nats"}},
        rho=0.05,
        method="sam",
        lengths=(10.0, 5.0),
    )
    assert one(surface, "sharpness").text == "At the centre: ascent sharpness, ρ = 0.05 0.123; other 2 nats."
    assert "reaches 10 in weight space" in one(surface, "reach").text
    assert "ρ = 0.05, 0.5 % of that" in one(surface, "reach").text
    assert not said(made(), "sharpness")
    assert not said(made(rho=0.5, method="asam"), "reach")  # its ρ is no length in weight space
    assert not said(made(method="sgd"), "reach")


def test_warnings_kept_with_the_surface_are_told():
    assert one(made(warnings=["filters of zero norm stand still", "filters of zero norm stand still"]), "warning") == (
        Remark("warning", "mind", "Filters of zero norm stand still")
    )
    assert not said(made(), "warning")


# the note as a whole --------------------------------------------------------------------------------------------------


def test_the_gravest_comes_first_and_gives_the_answer():
    remarks = reading(made(banana, top_eigenvalue=50.0, parameters=1000, cosine=0.995))
    levels = [LEVELS.index(r.level) for r in remarks]
    assert levels == sorted(levels, reverse=True)
    assert verdict(remarks) == "wrong"
    assert verdict([]) == "fine"
    assert verdict(reading(made())) == "fine"
    text = to_markdown(remarks)
    assert text.startswith(f"**How to read this.** {ANSWERS['wrong']}\n\n- Wrong: ")
    assert any(r.topic == "angle" and r.level == "wrong" for r in remarks)
    assert "\n- Mind: " in text
    assert text.count("\n- ") == len(remarks)


def test_every_kind_of_surface_can_be_read():
    for axes in (1, 2, 3):
        for surface in (
            made(axes=axes, points=7),
            made(axes=axes, points=2),
            made(axes=axes, points=4, spoil=hole, stderr=math.nan),
        ):
            for metric in surface.metrics:
                assert all(r.text for r in reading(surface, metric))
    nothing = made(lambda x, y: (x + y) * math.nan, error=False)
    assert verdict(reading(nothing)) == "wrong"
    parallel = made(lambda x, y: bowl(x + y), cosine=1.0)
    assert verdict(reading(parallel)) == "wrong"


def test_bad_input():
    with pytest.raises(ValueError, match="`level` must be one of"):
        Remark("x", "bad", "y")
    with pytest.raises(ValueError, match="`metric` must be one of"):
        reading(made(), "accuracy")


# comparison -----------------------------------------------------------------------------------------------------------


def together(**models):
    return {r.topic + " " + r.level: r.text for r in reading_together(models)}


def test_surfaces_of_one_kind_may_be_compared():
    common = {"mode": "eval", "examples": {"train": 512}, "recipe": {"normalise": "filter", "seed": 0}}
    found = together(sgd=made(**common), sam=made(banana, **common))
    assert found == {
        "comparison fine": "As far as is noted, they are of the same examples, loss and mode.",
        "axes fine": "Axes are of one kind, unit and reach.",
    }
    assert reading_together({"sgd": made()}) == []


@pytest.mark.parametrize(
    ("other", "key", "text"),
    [
        ({"mode": "batch"}, "comparison wrong", "treatment of normalisation layers (a: eval, b: batch)"),
        ({"examples": {"train": 64}}, "comparison wrong", "number of examples (a: train 512, b: train 64)"),
        ({"dtype": "float64"}, "comparison mind", "precision"),
        ({"parameters": 20}, "comparison mind", "different numbers of weights (a: 10, b: 20)"),
        ({"radius": 2.0}, "axes mind", "do not reach equally far"),
        ({"points": 5}, "axes fine", "different grids over the same range"),
        ({"recipe": {"seed": 1}}, "axes mind", "different seeds"),
        ({"kind": "eigenvector"}, "axes wrong", "not of one kind (a: random filter norms, random filter norms; b: "),
        ({"unit": "weights"}, "axes wrong", "not of one kind"),
    ],
)
def test_differences_are_told(other, key, text):
    common = {"mode": "eval", "examples": {"train": 512}, "dtype": "float32", "parameters": 10, "recipe": {"seed": 0}}
    found = together(a=made(**common), b=made(**{**common, **other}))
    assert text in found[key]
    assert key not in together(a=made(**common), b=made(**common)) or key == "axes fine"


def test_perturbations_of_different_lengths_are_of_one_kind():
    found = together(
        a=made(kind="perturbation", unit="‖ε‖ = 0.05"),
        b=made(kind="perturbation", unit="‖ε‖ = 0.1"),
    )
    assert "axes wrong" not in found
    assert "axes of its own" in found["axes fine"]


# between models -------------------------------------------------------------------------------------------------------

BARRIER = {
    "B_lin": {"value": 0.74, "stderr": 0.02, "location": 0.62},
    "B_max": {"value": 0.6, "stderr": 0.03, "location": 0.5},
}
CURVE = {
    "max": {"value": 0.5, "stderr": 0.04}, "min": {"value": 0.1, "stderr": 0.01},
    "mean": {"value": 0.4, "stderr": 0.03},
    "integral": {"value": 0.41, "stderr": 0.03}, "argmax": 0.5, "length": 12.0, "straight": 10.0,
}  # fmt: skip


def way(told, low=-0.5, high=1.5, **context):
    where = torch.linspace(low, high, 9, dtype=torch.float64)
    return Surface(
        grid=Grid((where,)), values={"train loss": 0.1 + where**2}, stderr={"train loss": 0 * where + 0.01},
        computed=torch.ones(9, dtype=torch.bool), centre={}, axes=({"name": "from sgd to sam", "unit": "distance"},),
        gram=torch.ones(1, 1, dtype=torch.float64), context={"between": {"train loss": told}, **context},
    )  # fmt: skip


def test_a_barrier_is_told_with_its_error_and_without_words_for_slices_around_a_model():
    remark = one(way(BARRIER), "barrier")
    assert "rises by at most 0.740 ± 0.020 above the straight line between its ends (B_lin, at a = 0.62)" in remark.text
    assert "0.600 ± 0.030 above the higher end (B_max)" in remark.text
    assert remark.text.endswith("not linearly connected.")
    assert not {r.topic for r in reading(way(BARRIER))} & {"centre", "curvature", "reach", "meaning", "curve"}
    low = {**BARRIER, "B_lin": {"value": 0.03, "stderr": 0.02, "location": 0.4}}
    assert one(way(low), "barrier").text.endswith("no barrier beyond the error of the examples.")
    lost = {**BARRIER, "B_lin": {"value": math.nan, "stderr": math.nan, "location": math.nan}}
    assert one(way(lost), "barrier").level == "wrong"


def test_a_curve_is_told_with_its_length():
    remark = one(way(CURVE, 0.0, 1.0), "curve")
    assert "at most 0.500 ± 0.040 (at t = 0.5), and 0.410 ± 0.030 on average by length" in remark.text
    assert "1.2 times as long" in remark.text
    assert not said(way(CURVE, 0.0, 1.0), "barrier")
    assert not said(way(CURVE, 0.0, 1.0), "beyond")
    assert said(way(BARRIER), "beyond")


def test_alignment_says_what_it_won_and_what_was_left():
    assert not said(way(BARRIER), "alignment")
    told = {"distance_before": 20.0, "distance_after": 15.0, "left": []}
    assert "from 20 to 15 (25 %)" in one(way(BARRIER, passage=told), "alignment").text
    left = one(way(BARRIER, passage={**told, "left": ["the residual stream"]}), "alignment")
    assert left.level == "mind"
    assert "Left in place: the residual stream" in left.text


def test_running_statistics_between_models():
    assert not said(way(BARRIER, mode="eval", running_statistics=False), "normalisation layers")
    assert one(way(BARRIER, mode="eval", running_statistics=True), "normalisation layers").level == "mind"
    assert one(way(BARRIER, mode="recalibrate", running_statistics=True), "normalisation layers").level == "fine"
