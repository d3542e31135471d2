"""What arguments must be, said in words: a model, a loss, a risk, an operator, a perturbation, a point, a generator."""

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from landscape.params import Params, real_parts

RISK = "landscape.EmpiricalRisk.from_model(model, loss, data)"


def _named(thing: Any) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, bool | int | float | str | None):
        return repr(thing)
    name = type(thing).__name__
    return f"a {type(thing).__module__.partition('.')[0]} Generator" if name == "Generator" else name


def require_model(model: Any, loss: Any) -> None:
    """Check that a model and a loss are what they are called.

    Raises:
        ValueError: If they are swapped, or one is a class, or of another kind.
    """
    if not isinstance(model, nn.Module):
        swapped = isinstance(loss, nn.Module) and callable(model)
        way = "model and loss are swapped" if swapped else "give a torch.nn.Module, such as an instance of your class"
        if not isinstance(model, type) and callable(model) and not swapped:
            way += "; for a function of (theta, inputs) use EmpiricalRisk itself"
        raise ValueError(f"`model` must be a torch.nn.Module, got {_named(model)}: {way}.")
    require_loss(loss)


def require_loss(loss: Any) -> None:
    """Check that a loss can be called.

    Raises:
        ValueError: If it is a class of losses, or no function.
    """
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise ValueError(
            f"`loss` must be a function of (outputs, targets), got {_named(loss)}: call it, {loss.__name__}()."
        )
    if not callable(loss):
        raise ValueError(
            f"`loss` must be a function of (outputs, targets), such as torch.nn.functional.cross_entropy, got "
            f"{_named(loss)}."
        )


def require_risk(risk: Any, argument: str = "risk") -> None:
    """Check that it is a risk.

    Raises:
        ValueError: If it is something else, such as a model.
    """
    if not (hasattr(risk, "batches") and hasattr(risk, "value_and_gradient")):
        raise ValueError(f"`{argument}` must be a landscape.EmpiricalRisk, got {_named(risk)}: make one by {RISK}.")


def require_operator(A: Any) -> None:
    """Check that it is a square operator.

    Raises:
        ValueError: If it is something else, such as a risk, or not square.
    """
    shape = getattr(A, "shape", None)
    if shape is None or not hasattr(type(A), "__matmul__") or isinstance(A, type):
        way = "use landscape.Hessian(risk)" if hasattr(A, "value_and_gradient") else "such as landscape.Hessian(risk)"
        raise ValueError(f"`A` must be a symmetric operator or a square tensor, got {_named(A)}: {way}.")
    if not isinstance(getattr(A, "dtype", None), torch.dtype):
        raise ValueError(f"`A` must have a torch dtype, got {_named(A)}: use torch.from_numpy for arrays.")
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"`A` must be square, of shape (p, p), got {tuple(shape)}.")


def require_perturbation(perturbation: Any) -> None:
    """Check that it maps weights and a direction to a displacement.

    Raises:
        ValueError: If it is something else, such as a radius.
    """
    if callable(perturbation) and not isinstance(perturbation, type | nn.Module):
        return
    number = isinstance(perturbation, int | float)
    way = f"a radius makes landscape.AscentStep({perturbation!r})" if number else "such as landscape.AscentStep(0.05)"
    raise ValueError(f"`perturbation` must map (theta, gradient) to a displacement, got {_named(perturbation)}: {way}.")


def require_generator(generator: Any, kind: type = torch.Generator) -> None:
    """Check that it is a generator of torch, or of numpy where that is the `kind`.

    Raises:
        ValueError: If it is something else, such as a seed.
    """
    if not isinstance(generator, kind):
        seed = abs(int(generator)) if isinstance(generator, Integral) and not isinstance(generator, bool) else 0
        name, way = "numpy.random.Generator", f"numpy.random.default_rng({seed})"
        if kind is torch.Generator:
            name, way = "torch.Generator", f"torch.Generator().manual_seed({seed})"
        raise ValueError(f"`generator` must be a {name}, got {_named(generator)}: use {way}.")


def require_whole(number: Any, argument: str) -> None:
    """Check that a number is whole.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise ValueError(f"`{argument}` must be a whole number, got {number!r}.")


def require_number(number: Any, argument: str) -> None:
    """Check that it is a number.

    Raises:
        ValueError: If it is text or something else.
    """
    if isinstance(number, bool | str) or not isinstance(number, Real | Tensor):
        raise ValueError(f"`{argument}` must be a number, got {number!r}.")


WHOLE = ("m", "k", "draws", "runs", "steps", "block", "basis", "restarts", "dimension", "max_products", "micro_batch")
NUMBERS = ("rho", "eps", "tol", "atol", "shift", "z", "drop", "start")


def check_arguments(**given: Any) -> None:
    """Check the arguments of a function by what their names mean; None stands for a default.

    Raises:
        ValueError: If one is of another kind than its name says.
    """
    kinds: dict[str, Callable[[Any], None]] = {
        "risk": require_risk,
        "A": require_operator,
        "perturbation": require_perturbation,
        "generator": require_generator,
    }
    for name, value in given.items():
        if name in kinds and (value is not None or name in ("risk", "A", "perturbation")):
            kinds[name](value)
        elif name in WHOLE and value is not None:
            require_whole(value, name)
        elif name in NUMBERS and value is not None:
            require_number(value, name)


def as_point(theta: Any, like: Params, known: Iterable[str] | None = None) -> Params:
    """A point at which a risk is asked for: tensors by name, of the shapes of the risk's own; complex ones as real.

    Args:
        theta: The point.
        like: The risk's own point.
        known: Names that θ may have besides: the model's other parameters; None means any.

    Raises:
        ValueError: If it is no dict of tensors, lacks a parameter, has one too many, or one of another shape.
    """
    if not isinstance(theta, Mapping):
        way = "use landscape.unflatten(vector, risk.theta)" if isinstance(theta, Tensor) else "as of risk.theta"
        raise ValueError(f"`theta` must be a dict from names to tensors, got {_named(theta)}: {way}.")
    if theta.keys() != like.keys():
        missing = [name for name in like if name not in theta]
        if missing:
            raise ValueError(f"`theta` lacks the parameters {missing}; it needs {list(like)}.")
        allowed = None if known is None else set(known)
        strange = [] if allowed is None else [name for name in theta if name not in like and name not in allowed]
        if strange:
            raise ValueError(
                f"`theta` has {strange}, which are no parameters of this model: from a state dict, take "
                "{name: state[name] for name in risk.names}."
            )
    for name, own in like.items():
        t = theta[name]
        if not isinstance(t, Tensor):
            raise ValueError(f"`theta` has {name!r} of type {_named(t)}: give tensors.")
        if t.shape != own.shape:
            if t.is_complex() and torch.view_as_real(t.detach()).shape == own.shape:
                return as_point(real_parts(theta), like, known)
            raise ValueError(f"`theta` has {name!r} of shape {tuple(t.shape)}; the risk's has {tuple(own.shape)}.")
    return dict(theta) if not isinstance(theta, dict) else theta
