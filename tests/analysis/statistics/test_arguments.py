"""What is refused before anything is computed, and in which words."""

import numpy as np
import pytest

from analysis.statistics import arguments


@pytest.mark.parametrize("value", [0, 7, np.int64(3)])
def test_whole_numbers_pass(value):
    arguments.whole_number("draws", value, most=10)


@pytest.mark.parametrize("value", [-1, 2.5, True, "7", None, float("nan")])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ValueError, match=r"`draws` must be a whole number of resamples >= 0, got "):
        arguments.whole_number("draws", value, "of resamples")


def test_more_than_fits_is_refused_with_the_limit():
    with pytest.raises(ValueError, match=r"`draws` must be a whole number >= 0 and <= 1,000, got 1001"):
        arguments.whole_number("draws", 1001, most=1000)


@pytest.mark.parametrize("level", [0, 1, 95, float("nan"), "0.9"])
def test_levels_lie_inside_zero_and_one(level):
    with pytest.raises(ValueError, match=r"`level` must lie inside \(0, 1\), for example 0.95, got"):
        arguments.check_resampling(draws=1, level=level)


def test_choices_are_named_with_the_nearest():
    arguments.one_of("interval", "bca", ("bca", "percentile"))
    with pytest.raises(
        ValueError, match=r"`interval` must be one of \('bca', 'percentile'\), got 'BCA'.* Did you mean"
    ):
        arguments.one_of("interval", "BCA", ("bca", "percentile"))
    with pytest.raises(ValueError, match=r"got 3"):
        arguments.one_of("interval", 3, ("bca",))


def test_names_and_pairs_show_how_to_write_them():
    arguments.names("targets", ["a"])
    arguments.pairs("compare", [("a", "b"), ["c", "d"]])
    with pytest.raises(ValueError, match=r"`targets` must be a list of names, such as \['gap'\], got 'gap'"):
        arguments.names("targets", "gap")
    for value in (("a", "b"), "ab", [("a",)], [("a", 1)], 3):
        with pytest.raises(ValueError, match=r"`compare` must be a list of pairs of names"):
            arguments.pairs("compare", value)
