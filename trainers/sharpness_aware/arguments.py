"""What cannot work is refused when an optimizer is made or first used, with the way out."""

import inspect
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def check_model(model: Any) -> None:
    """Raise a ValueError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"`model` must be the torch.nn.Module itself, got {_what(model)}: a step must know the model's buffers and "
            f"layers too. To train some of its parameters, or in groups, pass `base=torch.optim.SGD(groups, lr=...)`."
        )


def check_trainable(model: nn.Module) -> None:
    """Raise a ValueError if the model has nothing to train."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("`model` has no parameter that requires a gradient: there is nothing to train.")


def check_base(base: Any) -> None:
    """Raise a ValueError unless `base` is an optimizer that can take the gradient of a step and update once."""
    kind = base.__name__ if isinstance(base, type) else type(base).__name__
    if not isinstance(base, Optimizer):
        raise ValueError(
            f"`base` must be the name of an optimizer or a torch optimizer that has been made, got {_what(base)}: pass "
            f"`base=torch.optim.SGD(model.parameters(), lr=...)`, or `base='sgd', lr=...`."
        )
    if hasattr(base, "parts"):
        raise ValueError("`base` is a sharpness-aware optimizer already: pass it the optimizer that it is made around.")
    closure = inspect.signature(type(base).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"`base` {kind} evaluates the loss itself, several times a step, and so cannot be given the gradient of a "
            f"perturbed one: take a base that steps once with `.grad`, such as torch.optim.SGD or AdamW."
        )
    if isinstance(base, torch.optim.SparseAdam):
        raise ValueError(
            "`base` SparseAdam takes sparse gradients alone, and a perturbation needs dense ones: use Adam, and layers "
            "with `sparse=False`."
        )


_SEVERAL = ("betas", "window", "sizes")  # arguments that hold several numbers


def check_given_base(base: Optimizer, given: Mapping[str, Any]) -> None:
    """Raise a ValueError for settings, other than the defaults, that contradict the base optimizer that was passed."""
    for name, value in given.items():
        held = [group.get(name) for group in base.param_groups]
        if not any(_same(value, one) for one in held):
            raise ValueError(
                f"`{name}` {value!r} was given together with a `base` that has been made, {type(base).__name__} with "
                f"{name} {held[0]!r}: set it there, or pass a name as `base`."
            )


def check_numbers(**values: Any) -> None:
    """Raise a ValueError for what is no number; None passes."""
    for name, value in values.items():
        for one in value if name in _SEVERAL and isinstance(value, tuple | list) else (value,):
            if one is None or (isinstance(one, Tensor) and one.numel() == 1):
                continue
            if isinstance(one, bool) or not isinstance(one, Real):
                hint = ": leave out the quotes" if isinstance(one, str) else ""
                raise ValueError(f"`{name}` must be a number, got {one!r} ({type(one).__name__}){hint}.")


def check_known(**values: Any) -> None:
    """Raise a ValueError for NaN."""
    for name, value in values.items():
        if isinstance(value, Real) and math.isnan(value):
            raise ValueError(f"`{name}` must be a number, got {value!r}.")


def check_counts(**values: Any) -> None:
    """Raise a ValueError for what is no whole number, or is negative where it counts; None passes."""
    check_numbers(**values)
    for name, value in values.items():
        for one in value if name in _SEVERAL and isinstance(value, tuple | list) else (value,):
            if one is not None and (not math.isfinite(one) or int(one) != one or (one < 0 and name != "window")):
                raise ValueError(f"`{name}` must be a whole number >= 0, got {one!r}.")


def check_flags(**values: Any) -> None:
    """Raise a ValueError for what is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool) and value not in (0, 1):
            raise ValueError(f"`{name}` must be True or False, got {value!r}.")


def closures_from(given: Any, name: str) -> list[Any]:
    """One closure or several as a list.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(given, Tensor):
        raise ValueError(
            f"`{name}` is a tensor, such as a loss that has been computed; the loss is needed at more than one point: "
            f"pass a function that clears the gradients, computes the loss, runs backward and returns it."
        )
    if callable(given):
        return [given]
    try:
        closures = list(given)
    except TypeError:
        closures = [None]
    if isinstance(given, str | Mapping) or not all(callable(c) for c in closures):
        wrong = next((c for c in closures if not callable(c)), given)
        raise ValueError(
            f"`{name}` must be a function without arguments, or a list of them, one for each chunk, got "
            f"{_what(given if wrong is None else wrong)}."
        )
    return closures


def counts_from(sizes: Any, chunks: int) -> list[Any]:
    """The sizes of chunks as a list; equal ones where there are none.

    Raises:
        ValueError: For what is no list of positive numbers.
    """
    if sizes is None:
        return [1] * chunks
    if isinstance(sizes, Tensor) and sizes.ndim:
        sizes = sizes.tolist()
    if isinstance(sizes, str | Mapping) or not hasattr(sizes, "__iter__"):
        raise ValueError(f"`sizes` must be a list, one number for each chunk, got {_what(sizes)}.")
    counts = list(sizes)
    check_numbers(sizes=counts)
    if any(c is None or not (0 < c < math.inf) for c in counts):
        raise ValueError(f"`sizes` must be positive, got {counts}.")
    return counts


def loss_from(value: Any) -> Tensor:
    """What a closure returned, as a number on its device.

    Raises:
        ValueError: If it is no loss.
    """
    if not isinstance(value, Tensor) and getattr(value, "ndim", None) == 0:  # of numpy
        value = value.item()
    if isinstance(value, float):
        return torch.tensor(value)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        what = (
            f"a tensor of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else _what(value)
        )
        raise ValueError(
            f"a closure must return its loss, one real number (end it with `return loss`, the mean over the batch), "
            f"and it returned {what}."
        )
    return value.detach().reshape(())


def one_number(loss: Any) -> Tensor:
    """A loss with its graph as a tensor without dimensions.

    Raises:
        ValueError: If it is not one number.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else _what(loss)
    raise ValueError(
        f"`loss` must return one number, such as the mean over the batch (`reduction='mean'`), got {what}."
    )


def check_dense(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise a ValueError for sparse gradients."""
    for name, p in parameters.items():
        if p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"the gradient of {name!r} is sparse ({p.grad.layout}), and perturbations and norms need dense ones: "
                f"make the layer with `sparse=False`."
            )


def _what(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Sequence) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b) or (isinstance(a, Sequence) and tuple(a) == tuple(b))
    except (TypeError, ValueError, RuntimeError):
        return False
