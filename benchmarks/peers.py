"""Libraries for curvature behind one interface: ours, a plain double backward, and the peers from PyPI.

Each is used as its documentation shows; what had to be added to make it run is said in `workaround`. Constructing one
does what the library does once for a model and its data, so a timed answer includes it.
"""

import importlib
import importlib.metadata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape
from benchmarks.subjects import Subject
from trainers.randomness import seeded

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
        parts = self._cut(v)
        return lambda: self._product(parts)

    def product(self, v: Tensor) -> Tensor:
        return _flat(self._product(self._cut(v)))

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

    def _cut(self, v: Tensor) -> list[Tensor]:
        return _cut(v, self.parameters)


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
        return [
            Answer(float(value), vector, pairs.products, claim=bool(pairs.converged))
            for value, vector in zip(pairs.values, pairs.vectors.T, strict=True)
        ]

    def trace(self, tol: float, *, seed: int) -> Answer:
        draws = min(1000, self.subject.p - 1)  # below p, so that the exact trace is not an answer
        return _estimated(self.hessian, "auto", tol, seed, draws)


@final
class PyHessian(Library):
    """PyHessian on one batch keeps the graph of the gradient; on several it builds it afresh for each product."""

    name = "PyHessian"
    package = "PyHessian"
    module = "pyhessian"
    workaround = (
        "seeded through torch's global state, which it draws from; `cuda=False`; the warning about the reference cycle "
        "that it leaves in the model is silenced; math kernel for attention; no density (it calls torch.eig, removed)"
    )

    def __init__(self, subject: Subject, *, afresh: bool = False) -> None:
        super().__init__(subject)
        self.model = subject.copied_model()
        self.utils = importlib.import_module("pyhessian.utils")
        made = importlib.import_module("pyhessian").hessian
        self.whole = afresh or len(subject.batches) > 1
        with self.kernels(), _quiet():
            if self.whole:
                self.peer = made(self.model, subject.loss, dataloader=list(subject.batches), cuda=False)
            else:
                self.peer = made(self.model, subject.loss, data=subject.batches[0], cuda=False)

    def stepper(self, v: Tensor) -> Step:
        parts = _cut(v, self.peer.params)
        return lambda: self._product(parts)

    def product(self, v: Tensor) -> Tensor:
        return _flat(self._product(_cut(v, self.peer.params)))

    def top_eigenvalue(self, tol: float, *, seed: int, k: int = 1) -> list[Answer]:
        with seeded(seed), self.kernels(), _quiet():
            values, vectors = self.peer.eigenvalues(tol=tol, top_n=k)
        return [Answer(float(x), _flat(v)) for x, v in zip(values, vectors, strict=True)]

    def trace(self, tol: float, *, seed: int) -> Answer:
        with seeded(seed), self.kernels(), _quiet():
            draws = self.peer.trace(tol=tol)
        return Answer(float(np.mean(draws)), products=len(draws))

    def _product(self, parts: list[Tensor]) -> list[Tensor]:
        with self.kernels(), _quiet():
            if self.whole:
                return list(self.peer.dataloader_hv_product(parts)[1])
            return list(self.utils.hessian_vector_product(self.peer.gradsH, self.peer.params, parts))


@final
class Curvlinops(Library):
    """Forward-over-reverse products afresh; eigenvalues by SciPy's ARPACK, as its documentation shows."""

    name = "curvlinops + eigsh"
    package = "curvlinops-for-pytorch"
    module = "curvlinops"
    workaround = (
        "`check_deterministic=False`, which saves it three gradients and two products; eigsh with which='LA' and a "
        "seeded start; math kernel for attention"
    )

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.curvlinops = importlib.import_module("curvlinops")
        model = subject.copied_model()
        self.peer = self.curvlinops.HessianLinearOperator(
            model, subject.loss, list(model.parameters()), list(subject.batches), check_deterministic=False
        )

    def stepper(self, v: Tensor) -> Step:
        parts = _cut(v, self.peer._params)
        return lambda: self._product(parts)

    def product(self, v: Tensor) -> Tensor:
        with self.kernels():
            product: Tensor = self.peer @ v
        return product

    def top_eigenvalue(self, tol: float, *, seed: int, k: int = 1) -> list[Answer]:
        linalg = importlib.import_module("scipy.sparse.linalg")
        operator, count = self.peer.to_scipy(), 0

        def counted(v: Any) -> Any:
            nonlocal count
            count += 1
            return operator @ v

        wrapped = linalg.LinearOperator(operator.shape, matvec=counted, dtype=operator.dtype)
        start = np.random.default_rng(seed).standard_normal(self.subject.p)
        with self.kernels():
            values, vectors = linalg.eigsh(wrapped, k=k, which="LA", tol=tol, v0=start)
        columns = torch.from_numpy(np.ascontiguousarray(vectors.T)).to(self.subject.dtype)
        answers = [Answer(float(x), v, count, claim=True) for x, v in zip(values, columns, strict=True)]
        return sorted(answers, key=lambda a: -a.value)

    def trace(self, tol: float, *, seed: int) -> Answer:  # noqa: ARG002  (it takes a number of products instead)
        products = min(99, (self.subject.p - 1) // 3 * 3)  # it wants a multiple of 3 below p
        with seeded(seed), self.kernels():
            return Answer(float(self.curvlinops.hutchpp_trace(self.peer, products)), products=products)

    def _product(self, parts: list[Tensor]) -> list[Tensor]:
        with self.kernels():
            return list(self.peer @ parts)


class HessianEigenthings(Library):
    """Double backward afresh; Lanczos with a fixed number of steps, by default twice the eigenvalues wanted."""

    name = "hessian-eigenthings"
    package = "hessian-eigenthings"
    module = "hessian_eigenthings"
    workaround = "which='LA'; math kernel for attention"
    steps: ClassVar[int | None] = None

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.things = importlib.import_module("hessian_eigenthings")
        loss = self.things.supervised_loss(subject.loss)
        self.peer = self.things.HessianOperator(subject.copied_model(), list(subject.batches), loss)

    def stepper(self, v: Tensor) -> Step:
        return lambda: self.product(v)

    def product(self, v: Tensor) -> Tensor:
        with self.kernels():
            product: Tensor = self.peer.matvec(v)
        return product

    def top_eigenvalue(self, tol: float, *, seed: int, k: int = 1) -> list[Answer]:
        steps = None if self.steps is None else min(self.steps, self.subject.p)
        with self.kernels():
            found = self.things.lanczos(self.peer, k=k, max_iter=steps, which="LA", tol=tol, seed=seed)
        rows = zip(found.eigenvalues, found.eigenvectors, found.converged, strict=True)
        return [Answer(float(x), v, found.iterations, claim=bool(c)) for x, v, c in rows]

    def trace(self, tol: float, *, seed: int) -> Answer:  # noqa: ARG002  (it takes a number of products instead)
        products = 99
        with self.kernels():
            found = self.things.trace(self.peer, num_matvecs=products, seed=seed)
        return Answer(found.estimate, products=products, stderr=found.stderr)


@final
class HessianEigenthings30(HessianEigenthings):
    """The same with 30 Lanczos steps."""

    name = "hessian-eigenthings, 30 steps"
    workaround = "which='LA', max_iter=30; math kernel for attention"
    steps = 30


PEERS: tuple[type[Library], ...] = (PyHessian, Curvlinops, HessianEigenthings)


def hutchinson(subject: Subject, tol: float, *, seed: int) -> Answer:
    """The trace by our own Hutchinson estimator, to a relative standard error."""
    return _estimated(landscape.Hessian(subject.risk()), "hutchinson", tol, seed, 20_000)


def usable() -> tuple[list[type[Library]], dict[str, str]]:
    """The peers that can be used here, and for each of the others the reason."""
    reasons = {peer.name: peer.missing() for peer in PEERS}
    return [peer for peer in PEERS if not reasons[peer.name]], {k: why for k, why in reasons.items() if why}


def _estimated(hessian: Any, method: str, tol: float, seed: int, draws: int) -> Answer:
    generator = Generator().manual_seed(seed)
    found = landscape.trace(hessian, method=method, tol=tol, draws=draws, generator=generator)  # type: ignore[arg-type]
    return Answer(found.value, products=found.products, stderr=found.stderr, claim=found.converged)


def _cut(v: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = v.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in parts])


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        yield
