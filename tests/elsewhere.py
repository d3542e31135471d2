"""A device that is not there: tensors that say they lie on it, computed by the CPU.

It shows what needs no GPU to be seen: that no two devices are mixed in one operation, what is read back, and that the
results are those of the CPU.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

AWAY = torch.device("privateuseone", 0)
READS = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default, torch.ops.aten._unique2.default,
}  # fmt: skip
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Away(torch.Tensor):
    """A tensor of the device; `held` is what it holds."""

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, dtype=real.dtype, strides=real.stride(), storage_offset=real.storage_offset(), device=AWAY
        )

    def __init__(self, real):
        self.held = real

    def untyped_storage(self):
        return self.held.untyped_storage()

    def __repr__(self):
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {}, Counter())


class Elsewhere(TorchDispatchMode):
    """Counts what leaves the device: `number`, or what depends on one; `tensor`, a copy to the CPU."""

    def __init__(self):
        super().__init__()
        self.read = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {}, self.read)


def _call(function, args, kwargs, read):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    away = [t for t in tensors if isinstance(t, Away)]
    here = [t for t in tensors if not isinstance(t, Away) and t.ndim]
    if away and here and function not in COPIES:
        raise RuntimeError(
            f"{function} mixes devices: {[tuple(t.shape) for t in away]}, {[tuple(t.shape) for t in here]}"
        )
    asked = kwargs.get("device")
    goes = bool(away) if asked is None else torch.device(asked).type != "cpu"
    if function is torch.ops.aten.copy_.default:
        goes = isinstance(args[0], Away)
    if away and function in READS:
        read["number"] += 1
    if away and not goes:
        read["tensor"] += 1
    plain = {**kwargs, "device": "cpu"} if asked is not None else kwargs
    real = tree_map(lambda t: t.held if isinstance(t, Away) else t, (args, plain))
    out = function(*real[0], **real[1])
    if not goes:
        return out
    out = tree_map(lambda t: Away(t) if isinstance(t, torch.Tensor) and not isinstance(t, Away) else t, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if away else out


@cache
def _register():
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("elsewhere")  # torch has no public way to make up a device


@contextmanager
def elsewhere():
    """A block in which the device is there; gives the mode that counts."""
    _register()
    with Elsewhere() as mode:
        yield mode


def _problem(device):
    """A small classifier in float64, on ragged batches."""
    from landscape import EmpiricalRisk

    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=p.dtype))
    x, y = torch.randn(12, 6, generator=source).double(), torch.randint(0, 3, (12,), generator=source)
    x, y = x.to(device), y.to(device)
    return EmpiricalRisk.from_model(model.to(device), nn.functional.cross_entropy, [(x[:8], y[:8]), (x[8:], y[8:])])


def _numbers(risk):
    """What is compared, by name, as functions without arguments that give tensors, numbers or parameters."""
    import landscape as ls

    def source():
        return torch.Generator().manual_seed(1)

    def product(kind, path):
        return lambda: kind(risk, path=path) @ v

    p = sum(t.numel() for t in risk.theta.values())
    v = torch.randn(p, 2, generator=source(), dtype=torch.float64).to(risk.device)
    kinds = (ls.Hessian, ls.GaussNewton, ls.Fisher, ls.EmpiricalFisher)
    H = ls.Hessian(risk)
    return {
        "value": risk.value, "gradient": risk.gradient, "outputs": risk.outputs,
        **{f"{kind.__name__} {path}": product(kind, path) for kind in kinds for path in ("kept", "afresh")},
        "loss": lambda: ls.evaluate(risk).loss,
        "trace": lambda: ls.trace(H, draws=6, generator=source()).value,
        "eigenvalue": lambda: ls.top_eigenpairs(H, generator=source()).values,
        "density": lambda: ls.spectral_density(H, generator=source()).nodes,
    }  # fmt: skip


def main():
    """Compare all numbers; the last line says how many."""
    _register()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    expected = {name: number() for name, number in _numbers(_problem("cpu")).items()}
    plain = partial(tree_map, lambda t: t.detach().held if isinstance(t, Away) else t)
    with elsewhere() as mode:
        found = {}
        for name, number in _numbers(_problem(AWAY)).items():
            mode.read.clear()
            found[name] = number()
            sys.stdout.write(f"{name} {dict(mode.read)}\n")
    for name, value in expected.items():
        assert_close(plain(found[name]), plain(value), rtol=1e-10, atol=1e-12, msg=name)
    sys.stdout.write(f"{len(expected)} compared\n")


if __name__ == "__main__":
    main()
