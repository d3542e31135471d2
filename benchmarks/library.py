"""What a library for curvature is asked, and the two that are always there: ours, and a plain double backward."""

import importlib
import importlib.metadata
import typing
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape
from benchmarks.subjects import Subject

Step = Callable[[], object]


@dataclass(frozen=True)
class Answer:
    """A number that a library returned.

    Attributes:
        value: The number.
        vector: The unit eigenvector that came with an eigenvalue.
        products: Products with the Hessian, where the library tells.
        stderr: Standard error of an estimate, where the library tells.
        claim: Whether the library says that it converged; None where it says nothing.
    """

    value: float
    vector: Tensor | None = None
    products: int | None = None
    stderr: float | None = None
    claim: bool | None = None


class Library(ABC):
    """One library, made for a subject.

    Attributes:
        name: As the table calls it.
        package: Its name on PyPI; "" for what needs none.
        module: Its name in Python.
        workaround: What was added to make it run.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""
    module: ClassVar[str] = ""
    workaround: ClassVar[str] = ""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be used here; "" if it can."""
        if not cls.package:
            return ""
        try:
            importlib.metadata.version(cls.package)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(cls.module)
        except importlib.metadata.PackageNotFoundError:
            return f"{cls.package} is not installed"
        except ImportError as error:
            return f"{cls.package} does not import: {error}"
        return ""

    @classmethod
    def available(cls) -> bool:
        """Whether it can be used here."""
        return not cls.missing()

    @classmethod
    def version(cls) -> str:
        """Its release."""
        return importlib.metadata.version(cls.package) if cls.package else ""

    @abstractmethod
    def stepper(self, v: Tensor) -> Step:
        """A function that multiplies v once, in the library's own format of vectors."""

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """H v as a flat vector."""

    @abstractmethod
    def top_eigenvalue(self, tol: float, *, seed: int, k: int = 1) -> list[Answer]:
        """The k largest eigenvalues, to a tolerance in the library's own sense."""

    @abstractmethod
    def trace(self, tol: float, *, seed: int) -> Answer:
        """The trace, to a tolerance in the library's own sense, or with its default number of products."""

    def kernels(self) -> AbstractContextManager[None]:
        """Attention kernels with second derivatives, for models that need them: no peer chooses them itself."""
        return sdpa_kernel(SDPBackend.MATH) if self.subject.attention else nullcontext()


class DoubleBackward(Library):
    """Two nested backward passes, batch by batch, afresh for each product: the yardstick, in a dozen lines of torch."""

    name = "double backward afresh"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.model = subject.copied_model()
        self.parameters = list(self.model.parameters())

    def stepper(self, v: Tensor) -> Step:
        parts = cut(v, self.parameters)
        return lambda: self._product(parts)

    def product(self, v: Tensor) -> Tensor:
        return flatten(self._product(cut(v, self.parameters)))

    def gradient(self) -> list[Tensor]:
        """The gradient, which products are measured in units of."""
        return self._sum(lambda loss: torch.autograd.grad(loss, self.parameters))

    def top_eigenvalue(self, tol: float, *, seed: int, k: int = 1) -> list[Answer]:
        raise NotImplementedError("it is a product alone.")

    def trace(self, tol: float, *, seed: int) -> Answer:
        raise NotImplementedError("it is a product alone.")

    def _product(self, parts: list[Tensor]) -> list[Tensor]:
        def of(loss: Tensor) -> tuple[Tensor, ...]:
            grads = torch.autograd.grad(loss, self.parameters, create_graph=True)
            return torch.autograd.grad(grads, self.parameters, parts)

        return self._sum(of)

    def _sum(self, of: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.parameters]
        with self.kernels():
            for x, y in self.subject.batches:
                part = of(self.subject.loss(self.model(x), y))
                torch._foreach_add_(total, part, alpha=len(x) / self.subject.n)
        return total


class Landscape(Library):
    """This toolkit, with the path that it chooses, or one that is named."""

    name = "landscape"

    def __init__(self, subject: Subject, *, path: str = "auto") -> None:
        super().__init__(subject)
        self.hessian = landscape.Hessian(subject.risk(), path=path)  # type: ignore[arg-type]

    def stepper(self, v: Tensor) -> Step:
        return lambda: self.hessian @ v

    def product(self, v: Tensor) -> Tensor:
        return self.hessian @ v

    def top_eigenvalue(self, tol: float, *, seed: int, k: int = 1) -> list[Answer]:
        generator = Generator().manual_seed(seed)
        with warnings.catch_warnings():  # the claim says the same
            warnings.filterwarnings("ignore", message="top_eigenpairs did not reach", category=RuntimeWarning)
            pairs = landscape.top_eigenpairs(self.hessian, k, tol=tol, generator=generator)
        assert pairs.vectors is not None
        return [
            Answer(float(value), vector, pairs.products, claim=bool(pairs.converged))
            for value, vector in zip(pairs.values, pairs.vectors.T, strict=True)
        ]

    def trace(self, tol: float, *, seed: int) -> Answer:
        p = self.subject.p
        draws = 1000 if p <= 64 else min(1000, p - 1)  # the exact trace is no answer but where the default gives it
        return _estimated(self.hessian, "auto", tol, seed, draws)


def paths() -> list[str]:
    """The product paths that `landscape.Hessian` can be told to take."""
    return [p for p in typing.get_args(typing.get_type_hints(landscape.Hessian.__init__)["path"]) if p != "auto"]


def hutchinson(subject: Subject, tol: float, *, seed: int) -> Answer:
    """The trace by our own Hutchinson estimator, to a relative standard error."""
    return _estimated(landscape.Hessian(subject.risk()), "hutchinson", tol, seed, 20_000)


def claims(answers: Sequence[Answer]) -> str:
    """In how many of its answers a library says that it converged."""
    told = [a.claim for a in answers if a.claim is not None]
    return f"{sum(told)} of {len(told)} converged" if told else "none"


def _estimated(hessian: Any, method: str, tol: float, seed: int, draws: int) -> Answer:
    generator = Generator().manual_seed(seed)
    found = landscape.trace(hessian, method=method, tol=tol, draws=draws, generator=generator)  # type: ignore[arg-type]
    return Answer(found.value, products=found.products, stderr=found.stderr, claim=found.converged)


def cut(v: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector as a list of tensors shaped like the parameters."""
    parts = v.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """A list of tensors as one flat vector."""
    return torch.cat([t.detach().reshape(-1) for t in parts])
