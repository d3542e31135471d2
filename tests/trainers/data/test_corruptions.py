"""Corruptions: each against its formula."""

import math

import pytest
import torch
from torch.testing import assert_close

from trainers.data.corruptions import CORRUPTIONS, blur, contrast, corrupt, gaussian_noise, shift

F64 = torch.float64


@pytest.fixture(params=[(5, 2, 8, 6), (5, 1, 40)], ids=["images", "signals"])
def x(request, generator):
    return torch.randn(request.param, generator=generator, dtype=F64)


def fresh(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_are_pure_and_repeat(x, kind):
    before = x.clone()
    once = [corrupt(x, kind, s, generator=fresh()) for s in (1, 2, 3)]
    again = [corrupt(x, kind, s, generator=fresh()) for s in (1, 2, 3)]
    assert torch.equal(x, before)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
        assert (a.shape, a.dtype) == (x.shape, x.dtype)
    distances = [float((a - x).norm()) for a in once]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_amounts_grow_towards_severity_three(kind):
    amounts = CORRUPTIONS[kind].amounts
    assert list(amounts) == sorted(amounts, reverse=kind == "contrast")


def test_noise_is_gaussian_of_the_stated_deviation():
    x = torch.zeros(2000, 1, 5, dtype=F64)
    noise = corrupt(x, "noise", 2, generator=fresh(), scale=3.0)
    n, sigma = noise.numel(), 3.0 * CORRUPTIONS["noise"].amounts[1]
    assert abs(float(noise.mean())) < 4 * sigma / math.sqrt(n)
    assert abs(float(noise.var()) / sigma**2 - 1) < 4 * math.sqrt(2 / n)
    assert_close(gaussian_noise(x, 2.0, generator=fresh()), 2 * gaussian_noise(x, 1.0, generator=fresh()))


def test_blur_of_a_point_is_a_gaussian():
    x = torch.zeros(1, 1, 41, dtype=F64)
    x[0, 0, 20] = 1
    sigma = 1 / 16 * 41
    d = torch.arange(41, dtype=F64) - 20
    kernel = torch.exp(-(d**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    # in the middle the border's renormalisation is below 1e-12, the sum over points is the integral up to 1e-20
    assert_close(blur(x, 1 / 16)[0, 0, 15:26], kernel[15:26], rtol=1e-9, atol=0)


def test_blur_of_an_image_is_separable_and_keeps_constants(generator):
    rows, columns = (torch.randn(n, generator=generator, dtype=F64) for n in (8, 6))
    image = torch.outer(rows, columns)[None, None]
    expected = torch.outer(blur(rows[None, None], 0.1)[0, 0], blur(columns[None, None], 0.1)[0, 0])
    assert_close(blur(image, 0.1)[0, 0], expected, rtol=1e-12, atol=1e-14)
    assert_close(blur(torch.full((1, 3, 8, 6), 2.5, dtype=F64), 0.3), torch.full((1, 3, 8, 6), 2.5, dtype=F64))


def test_contrast_keeps_the_mean_and_scales_the_deviation(x):
    lower = contrast(x, 0.3)
    axes = tuple(range(1, x.ndim))
    assert_close(lower.mean(axes), x.mean(axes), rtol=1e-12, atol=1e-14)
    assert_close(lower.std(axes), 0.3 * x.std(axes), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("fraction", "whole", "rest"), [(0.25, 2, 0.0), (1 / 16, 0, 0.5), (3 / 16, 1, 0.5), (1.5, 8, 0)]
)
def test_shift_moves_by_a_part_of_the_side(fraction, whole, rest):
    row = torch.arange(1.0, 9, dtype=F64)
    out = shift(row.expand(400, 1, 8), fraction, generator=fresh(), fill=-7.0)

    def at(step):  # the row moved to the right, written out
        return torch.tensor([row[i - step] if 0 <= i - step < 8 else -7.0 for i in range(8)], dtype=F64)

    right = (1 - rest) * at(whole) + rest * at(whole + 1)
    left = (1 - rest) * at(-whole) + rest * at(-whole - 1)
    is_right = torch.tensor([torch.equal(o[0], right) for o in out])
    is_left = torch.tensor([torch.equal(o[0], left) for o in out])
    assert bool((is_right | is_left).all())
    if fraction < 1:
        assert 160 < int(is_right.sum()) < 240  # binomial(400, 1/2): four deviations are 40


def test_shift_of_images_goes_all_four_ways():
    image = torch.arange(16.0).reshape(1, 4, 4)
    out = shift(image.expand(400, 1, 4, 4), 0.25, generator=fresh(), fill=0.0)
    zero = torch.zeros(4)
    ways = {
        "down": torch.vstack([zero, image[0, :3]]),
        "up": torch.vstack([image[0, 1:], zero]),
        "right": torch.vstack([zero, image[0].T[:3]]).T,
        "left": torch.vstack([image[0].T[1:], zero]).T,
    }
    counts = {name: sum(torch.equal(o[0], w) for o in out) for name, w in ways.items()}
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 65  # binomial(400, 1/4): 100 less four deviations of 8.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "nois"}, r"`kind` 'nois' is not a corruption; there are noise, .* Did you mean 'noise'\?"),
        ({"severity": 0}, "`severity` must be 1, 2 or 3, got 0"),
        ({"scale": 0.0}, "`scale` must be a finite standard deviation > 0, got 0.0"),
        ({"x": torch.zeros(3, 4)}, r"`x` must be floating-point images .* got torch.float32 of shape \(3, 4\)"),
        ({"x": torch.zeros(3, 4, 5, dtype=torch.int64)}, "`x` must be floating-point images .* got torch.int64"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    arguments = {"x": torch.zeros(3, 1, 5), "kind": "noise", "severity": 1} | changes
    with pytest.raises(ValueError, match=message):
        corrupt(**arguments, generator=fresh())
