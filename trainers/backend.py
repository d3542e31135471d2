"""How torch computes: flags for speed and for equal bits, which change the last digits of a result at most."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from landscape.kernels.tf32 import allow_tf32, put_back

MemoryFormat = Literal["contiguous", "channels_last"]
M = TypeVar("M", bound=nn.Module)

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # of cuBLAS, whose products differ from call to call with any other
FIXED = (":4096:8", ":16:8")
COMPILERS = ("g++", "clang++", "cl")
SHAPES = 64  # that a model is compiled for, before torch would run further ones as they are


@dataclass(frozen=True)
class Backend:
    """How torch computes; no part of what a run's id is made of, and noted in its record.

    Attributes:
        deterministic: The same bits each time on the same device: kernels that add in any order are refused or
            replaced by slower ones. A CPU gives the same bits without it.
        tf32: Products of float32 may lose three digits on GPUs with TF32, several times faster; without it they have
            all digits, also in convolutions, where torch itself would lose them. Second derivatives never take it.
        memory_format: Of images and their filters; channels_last suits half precision on a GPU.
        compile: Compile the model for training (`torch.compile`); what is measured is never compiled.

    Raises:
        ValueError: For a memory format that is not known.
    """

    deterministic: bool = False
    tf32: bool = False
    memory_format: MemoryFormat = "contiguous"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.memory_format not in get_args(MemoryFormat):
            raise ValueError(
                f"`memory_format` must be one of {list(get_args(MemoryFormat))}, got {self.memory_format!r}."
            )

    @contextmanager
    def flags(self) -> Iterator[None]:
        """A block in which torch's flags are these; for the whole process, and put back on exit."""
        with ExitStack() as stack:
            for undo in allow_tf32(self.tf32):
                stack.callback(undo)
            if self.deterministic:
                stack.callback(put_back(torch.backends.cudnn, "benchmark"))
                before = (
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                )
                stack.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
                stack.enter_context(_fixed_workspace())
                torch.backends.cudnn.benchmark = False
                torch.use_deterministic_algorithms(True)
            yield

    def laid_out(self, model: M) -> M:
        """The same model, its filters of images in this memory format; changed in place."""
        if self.memory_format == "channels_last":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def compiled(self, model: nn.Module) -> None:
        """Have a model compiled by its first calls in training, where that is asked for; parameters keep their names.

        In evaluation it runs as it is. Each shape of a batch is compiled for itself, so that what a resumed run
        computes does not depend on the shapes that were seen before.

        Args:
            model: Changed in place; copies of it would share what is compiled.

        Raises:
            ValueError: If there is no compiler.
        """
        if not self.compile:
            return
        if not any(shutil.which(tool) for tool in COMPILERS):
            raise ValueError(
                f"`compile` needs a C++ compiler, one of {', '.join(COMPILERS)}: install it, or leave it out."
            )
        plain = model.forward
        options: dict[str, Any] = {"dynamic": False, "recompile_limit": SHAPES}
        fast = torch.compile(plain, **options)  # Module.compile leaves some kinds of modules as they are

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (fast if model.training else plain)(*args, **kwargs)

        model.forward = forward

    def as_dict(self) -> dict[str, Any]:
        """The flags by name, for records."""
        return asdict(self)


USUAL = Backend()


@contextmanager
def _fixed_workspace() -> Iterator[None]:
    """Workspaces of a fixed size for cuBLAS, which reads the environment when it first needs one."""
    before = os.environ.get(WORKSPACE)
    if before in FIXED:
        yield
        return
    os.environ[WORKSPACE] = FIXED[0]
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = before
