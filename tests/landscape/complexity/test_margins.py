import numpy as np
import pytest
import torch

from landscape.complexity import low_margin, margins

VALUES = [3, -1, 2, 0.5, 4, 1, 2.5, -0.2, 1.5, 0.8, 5, 0.1, 2.2, 1.1, 0.9, 3.3, 0.7, 1.8, 2.8, 0.3]


def test_the_kth_smallest_and_not_an_interpolated_percentile():
    assert low_margin(torch.tensor(VALUES, dtype=torch.float64)) == -0.2
    assert np.percentile(VALUES, 10) == pytest.approx(0.07)


@pytest.mark.parametrize(("m", "k"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (30, 3), (1023, 102)])
def test_which_one_it_is(m, k):
    values = torch.randperm(m, generator=torch.Generator().manual_seed(m)).double()
    assert low_margin(values) == k - 1
    assert low_margin(values, share=1.0) == m - 1


def test_margins_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [0.0, 0.0, -1.0]])
    found = margins(logits, torch.tensor([1, 2, 0]))
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), rtol=0, atol=0)


def test_margins_do_not_see_a_shift_of_all_logits_and_scale_with_them(generator):
    logits, labels = torch.randn(30, 4, generator=generator).double(), torch.arange(30) % 4
    shift = torch.randn(30, 1, generator=generator).double()
    torch.testing.assert_close(margins(logits + shift, labels), margins(logits, labels), rtol=0, atol=1e-12)
    torch.testing.assert_close(margins(3 * logits, labels), 3 * margins(logits, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: margins(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)), r"c >= 2 classes .* got \(3, 1\)"),
        (lambda: low_margin(torch.zeros(0)), "`values` must hold at least one margin"),
        (lambda: low_margin(torch.zeros(3), share=0.0), r"`share` must be in \(0, 1\], such as 0.1, got 0.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
