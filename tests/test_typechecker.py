"""The type checker of the tests: nested functions are checked each time they are defined, by their own annotations."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typechecker import check


def defined(kind, size="n"):
    """A nested function, defined anew."""

    @jaxtyped(typechecker=check)
    def inner(x: Float[Tensor, f"{size}"], y: kind) -> Float[Tensor, f"{size}"]:
        return x if y else x[1:]

    return inner


def test_nested_functions_are_checked_each_time_they_are_defined():
    x = torch.zeros(3)
    for _ in range(3):
        inner = defined(int)
        assert inner(x, 1) is x
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            inner(x, "1")
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            inner(x.long(), 1)
        with pytest.raises(TypeCheckError, match="checking the return value"):
            inner(x, 0)


def test_functions_of_one_name_have_their_own_annotations():
    x = torch.zeros(3)
    assert defined(str)(x, "1") is x
    assert defined(int, "3")(x, 1) is x
    for function in (defined(str), defined(int, "2")):
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            function(x, 1)
