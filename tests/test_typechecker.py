"""The type checker of the tests: nested functions are checked at each definition, and all as jaxtyping does."""

import re
from dataclasses import dataclass

import pytest
import torch
import typechecker
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typechecker import check, thorough

from landscape.spectral.draws import require_vectors


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


def square(x: Float[Tensor, "n n"], *, y: "int | None" = None, scale: float = 1) -> 'Float[Tensor, " n"]':
    return x.diagonal() * scale if y is None else x[:y, 0]


def pairs(a: Float[Tensor, "*k n"], b: Float[Tensor, "*k n"], later: "Later | None" = None) -> list[float]:  # noqa: F821
    return [1.0, "2"][: len(a)]


class Holder:
    def __init__(self, x: Float[Tensor, " n"]):
        self.x = x

    def same(self, other: "Holder") -> Float[Tensor, " n"]:
        return self.x + other.x


EYE, ROW = torch.eye(3), torch.zeros(2, 3)
CALLS = {
    "well": (square, (EYE,), {}),
    "an int for a float": (square, (EYE,), {"scale": 2}),
    "not square": (square, (ROW,), {}),
    "no tensor": (square, (1,), {}),
    "another kind of number": (square, (EYE.long(),), {}),
    "a wrong name's value": (square, (EYE,), {"y": "1"}),
    "a result of another size": (square, (EYE,), {"y": 2}),
    "a result of the size": (square, (EYE,), {"y": 3}),
    "no argument": (square, (), {}),
    "a name that there is not": (square, (EYE,), {"z": 1}),
    "sizes that agree": (pairs, (ROW[:1], ROW[:1]), {}),
    "sizes that differ": (pairs, (ROW[:1], ROW[:1, :2]), {}),
    "numbers of sizes that differ": (pairs, (ROW[0], ROW), {}),
    "what is not there yet": (pairs, (ROW[:1], ROW[:1], "anything"), {}),
    "a method": (Holder.same, (Holder(EYE[0]), Holder(EYE[0])), {}),
    "a method's class": (Holder.same, (Holder(EYE[0]), 1), {}),
    "a method's initialisation": (Holder.__init__, (Holder(EYE[0]), EYE), {}),
}


def answer(decorate, function, arguments, named):
    """What a call gives: its value, or which part was refused."""
    try:
        value = decorate(function, typechecker=check)(*arguments, **named)
    except TypeCheckError as error:
        return re.search(r"checking the (parameters|return value) of \S+?(?=[.:\s]*\n|: )", str(error))[0]
    except TypeError:
        return "called wrongly"
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("case", CALLS)
def test_the_quick_way_takes_and_refuses_what_jaxtyping_does(case):
    quick, own = answer(jaxtyped, *CALLS[case]), answer(thorough, *CALLS[case])
    assert jaxtyped is not thorough
    assert quick == own


@jaxtyped(typechecker=check)
@dataclass(frozen=True)
class Box:
    side: Float[Tensor, " n"]
    other: Float[Tensor, " n"]


def test_classes_of_data_are_checked_when_they_are_made():
    assert Box(EYE[0], EYE[1]).side is not None
    with pytest.raises(TypeCheckError, match=r"checking the parameters of .*Box"):
        Box(EYE[0], ROW[0, :2])
    assert Box.__init__.__code__.co_filename == typechecker.__file__


def test_the_package_goes_the_quick_way_and_is_checked():
    assert require_vectors.__code__.co_filename == typechecker.__file__
    with pytest.raises(TypeCheckError, match=r"checking the parameters of landscape\.spectral\.draws\.require_vectors"):
        require_vectors(torch.eye(2), "two", 1, what="", instead="")
