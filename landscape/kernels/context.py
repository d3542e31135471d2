"""A block in which models have second derivatives, whatever kernels they would choose themselves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.kernels.attention import attention, supports
from landscape.kernels.tf32 import allow_tf32

# Models find the functions here at each call: torch.nn's own layers, Hugging Face, timm. A TorchFunctionMode would find
# more, but costs a small model half of its forward pass, and is off inside nn.MultiheadAttention, of all places.
_ATTENTION = (F, "scaled_dot_product_attention")
_RECURRENT = [(torch._VF, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
_NORMS = {"layer_norm": 2, "group_norm": 2, "batch_norm": 1, "instance_norm": 1}  # and where their weights stand
_SDP_FLAGS = ("flash", "mem_efficient", "cudnn")

_originals: dict[str, Callable[..., Tensor]] = {}  # torch's normalisations, and what stands for them in a block
_apart: dict[str, Callable[..., Tensor]] = {}
_lock = threading.Lock()
_depth = {True: 0, False: 0}  # open blocks, by their `cudnn`
_undo: dict[bool, list[Callable[[], None]]] = {True: [], False: []}


def math_attention() -> AbstractContextManager[None]:
    """Compute attention by torch's plain kernel, which has every derivative; the caller's choice is back on exit.

    For code that `second_derivatives` does not reach: `torch.func` transforms, forward mode, third derivatives. It
    keeps a dozen n × m matrices a layer.
    """
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def second_derivatives(*, cudnn: bool = False) -> Iterator[None]:
    """Run models, inside a `with` block, so that their gradients can be differentiated again, and exactly enough.

    What is different inside: attention goes through `landscape.kernels.attention`, with the same value but for
    rounding, even where the model asks for a fused kernel; what that does not support (dropout, masks with a gradient,
    `torch.func`, autocast) goes to torch's plain kernel. Normalisations add a bias that comes without a
    weight afterwards. TF32 is off, on which products of float32 would lose three
    digits. Recurrent layers run without cuDNN, whose backward pass has no derivative; convolutions keep it.

    Only the forward pass needs to be inside, unless a model repeats it during the backward pass (checkpointing). Blocks
    may be nested, raise, and be open in several threads: all is as it was when the last one ends. In the meantime the
    settings hold for the whole process, as torch's own do.

    Args:
        cudnn: Leave cuDNN to recurrent layers too; for first derivatives.
    """
    _enter(cudnn)
    try:
        yield
    finally:
        _leave(cudnn)


def _enter(cudnn: bool) -> None:
    with _lock:
        if _depth[True] + _depth[False] == 0:
            _undo[True] = _install()
        if not cudnn and _depth[False] == 0 and torch.backends.cuda.is_built():
            _undo[False] = [_replace(owner, name, _without_cudnn) for owner, name in _RECURRENT]
        _depth[cudnn] += 1


def _leave(cudnn: bool) -> None:
    with _lock:
        _depth[cudnn] -= 1
        if not cudnn and _depth[False] == 0:
            _run(_undo[False])
        if _depth[True] + _depth[False] == 0:
            _run(_undo[True])


def _run(undo: list[Callable[[], None]]) -> None:
    while undo:
        undo.pop()()


def _install() -> list[Callable[[], None]]:
    undo = [_replace(*_ATTENTION, _twice_differentiable), _replace_norms()]
    # calls that hold the function itself end up in the plain kernel
    for name in _SDP_FLAGS:
        switch = getattr(torch.backends.cuda, f"enable_{name}_sdp")
        undo.append(_later(switch, getattr(torch.backends.cuda, f"{name}_sdp_enabled")()))
        switch(False)
    undo.append(_later(torch.backends.cuda.enable_math_sdp, torch.backends.cuda.math_sdp_enabled()))
    torch.backends.cuda.enable_math_sdp(True)
    if torch.backends.cuda.is_built():
        undo += allow_tf32(False)
    return undo


def _later(function: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    return lambda: function(*arguments)


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Put wrap(function) in the place of a module's function; returns what undoes it."""
    own = name in vars(owner)  # torch._VF looks its functions up elsewhere
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    return _later(setattr, owner, name, original) if own else _later(delattr, owner, name)


def _replace_norms() -> Callable[[], None]:
    """As `_replace` for all normalisations at once, with functions that are made once: a block is opened a product."""
    held = vars(torch)
    originals = {name: held[name] for name in _NORMS}
    if originals != _originals:
        _originals.update(originals)
        _apart.update({name: _bias_apart(place)(originals[name]) for name, place in _NORMS.items()})
    held.update(_apart)
    return _later(held.update, originals)


def _twice_differentiable(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        if supports(*args, **kwargs):
            return attention(*args, **kwargs)
        with math_attention():
            return original(*args, **kwargs)

    return scaled_dot_product_attention


def _bias_apart(place: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A normalisation, whose second derivative in torch fails where there is a bias and no weight, with the bias added.

    Args:
        place: Where the weight stands among the arguments; the bias follows.
    """

    def wrap(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def norm(*args: Any, **kwargs: Any) -> Tensor:
            weight, bias = args[place : place + 2] if len(args) > place + 1 else (None, None)
            if bias is None or weight is not None:
                return original(*args, **kwargs)
            channels = bias if place == 2 and not isinstance(args[1], int) else bias.view(-1, *[1] * (args[0].ndim - 2))
            out: Tensor = original(*args[:place], None, None, *args[place + 2 :], **kwargs) + channels
            return out

        return norm

    return wrap


def _without_cudnn(original: Callable[..., Any]) -> Callable[..., Any]:
    def recurrent(*args: Any, **kwargs: Any) -> Any:
        flags: Any = torch.backends.cudnn
        before = flags.enabled
        flags.enabled = False
        try:
            return original(*args, **kwargs)
        finally:
            flags.enabled = before

    return recurrent
