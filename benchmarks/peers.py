"""The peers from PyPI behind one interface, each used as its documentation shows.

What had to be added to make one run is said in its `workaround`. Constructing one does what the library does once for
a model and its data, so a timed answer includes it.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from benchmarks.library import Answer, Landscape, Library, Step, cut, flatten
from benchmarks.subjects import Subject
from trainers.randomness import seeded


@final
class PyHessian(Library):
    """PyHessian on one batch keeps the graph of the gradient; on several it builds it afresh for each product."""

    name = "PyHessian"
    package = "PyHessian"
    module = "pyhessian"
    workaround = (
        "seeded through torch's global state, which it draws from; `cuda` as the model is; the warning about the "
        "reference cycle that it leaves in the model is silenced; math kernel for attention; no density (it calls "
        "torch.eig, removed)"
    )

    def __init__(
        self, subject: Subject, *, afresh: bool = False, fixed_tol: float | None = None, iterations: int = 100
    ) -> None:
        super().__init__(subject)
        self.fixed_tol, self.iterations = fixed_tol, iterations
        self.model = subject.copied_model()
        self.utils = importlib.import_module("pyhessian.utils")
        made = importlib.import_module("pyhessian").hessian
        self.whole = afresh or len(subject.batches) > 1
        cuda = next(self.model.parameters()).is_cuda
        with self.kernels(), _quiet():
            if self.whole:
                self.peer = made(self.model, subject.loss, dataloader=list(subject.batches), cuda=cuda)
            else:
                self.peer = made(self.model, subject.loss, data=subject.batches[0], cuda=cuda)

    def stepper(self, v: Tensor) -> Step:
        parts = cut(v, self.peer.params)
        return lambda: self._product(parts)

    def product(self, v: Tensor) -> Tensor:
        return flatten(self._product(cut(v, self.peer.params)))

    def top_eigenvalue(self, tol: float, *, seed: int, k: int = 1) -> list[Answer]:
        with seeded(seed), self.kernels(), _quiet():
            values, vectors = self.peer.eigenvalues(self.iterations, self.fixed_tol or tol, k)
        return [Answer(float(x), flatten(v)) for x, v in zip(values, vectors, strict=True)]

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
        parts = cut(v, self.peer._params)
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


def usable() -> tuple[list[type[Library]], dict[str, str]]:
    """The peers that can be used here, and for each of the others the reason."""
    reasons = {peer.name: peer.missing() for peer in PEERS}
    return [peer for peer in PEERS if not reasons[peer.name]], {k: why for k, why in reasons.items() if why}


def compared(*, variants: bool = False) -> list[type[Library]]:
    """Ours and the peers that can be used here; with variants of one, where it has some."""
    libraries: list[type[Library]] = [Landscape, *usable()[0]]
    return [*libraries, HessianEigenthings30] if variants and HessianEigenthings in libraries else libraries


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        yield
