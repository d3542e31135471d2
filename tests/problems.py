"""Oracle problems with known answers, in float64; small models of every kind, and their dense matrices."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import EmpiricalRisk

F64 = torch.float64


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module with parameters N(0, 1/4), the same for modules of the same shapes."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=p.dtype) / 2)
    return module


def o1() -> EmpiricalRisk:
    """Softmax regression (convex): 4 examples, W 3 x 2, with one weight exactly zero."""
    model = nn.Linear(2, 3, bias=False, dtype=F64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25], [0.0, 0.75], [-0.5, 0.25]], dtype=F64))
    x = torch.tensor([[1, 0], [0, 1], [1, 1], [-1, 2]], dtype=F64)
    return EmpiricalRisk.from_model(model, F.cross_entropy, (x, torch.tensor([0, 1, 2, 1])))


def o2(sizes: tuple[int, ...] = (5,)) -> EmpiricalRisk:
    """Tanh MLP 2-3-2 with an indefinite Hessian; `sizes` splits its five examples into batches."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(F64)
    values = torch.tensor([0.8 * math.sin(1.7 * (k + 1)) for k in range(17)], dtype=F64)
    with torch.no_grad():
        nn.utils.vector_to_parameters(values, model.parameters())
    x = torch.tensor([math.cos(0.9 * (i + 1)) for i in range(10)], dtype=F64).reshape(5, 2)
    y = torch.tensor([0, 1, 1, 0, 1])
    return EmpiricalRisk.from_model(model, F.cross_entropy, list(zip(x.split(sizes), y.split(sizes), strict=True)))


def o5() -> EmpiricalRisk:
    """L(w + e) = L(w) + g'e + e'He/2 at w = (2, -1); L(w) = 0.7."""
    H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=F64)
    g = torch.tensor([0.4, -0.2], dtype=F64)
    w = torch.tensor([2.0, -1.0], dtype=F64)

    def predict(theta, x):
        e = theta["w"] - w
        return (0.7 + g @ e + e @ H @ e / 2).expand(len(x))

    def loss(out, _):
        return out.mean()

    return EmpiricalRisk(predict, loss, [(torch.zeros(1), torch.zeros(1))], {"w": w.clone()})


# Small models -----------------------------------------------------------------------------------------------------


class ConvNorm(nn.Module):
    """Convolutions and two BatchNorms; smooth, so that finite differences see the same curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.deep = nn.Conv2d(3, 2, 3, bias=False)
        self.last = nn.BatchNorm1d(2, affine=False)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        h = torch.tanh(self.norm(self.conv(x)))
        return self.head(self.last(torch.tanh(self.deep(h)).mean((2, 3))))


class SelfAttention(nn.Module):
    """Torch's fused attention, called directly: two heads, plain, causal, or with a mask."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(3, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        mask = None
        if self.kind == "boolean":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(1)
        elif self.kind == "additive":
            mask = torch.linspace(-1, 1, x.shape[1], dtype=x.dtype, device=x.device).expand(x.shape[1], -1)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.kind == "causal")
        return self.head(h.transpose(1, 2).flatten(2).mean(1))


class Padded(nn.Module):
    """Multi-head attention with a mask of padded places for each example; two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x, padded):
        h, _ = self.attention(x, x, x, key_padding_mask=padded)
        return self.head(h.masked_fill(padded.unsqueeze(-1), 0).sum(1))


class Encoder(nn.Module):
    """Torch's transformer layer, with a fused path of its own in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    """A recurrent network: "lstm", "gru" (two directions, two layers) or "rnn"."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "lstm":
            self.net: nn.Module = nn.LSTM(2, 3, batch_first=True)
        elif kind == "gru":
            self.net = nn.GRU(2, 1, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
        else:
            self.net = nn.RNN(2, 3, batch_first=True)
        self.head = nn.Linear(2 if kind == "gru" else 3, 2)

    def forward(self, x):
        return self.head(self.net(x)[0][:, -1])


class Tied(nn.Module):
    """One matrix used twice, one module never, one bias frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(2, 2)
        self.offset = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) + self.offset


class Language(nn.Module):
    """A causal language model with a head tied to its embedding, called by keyword; returns a dict."""

    def __init__(self, *, hidden: bool = False) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 12)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids, labels=None):
        h = self.embed(input_ids)
        q, k, v = self.mix(self.norm(h)).chunk(3, -1)
        h = h + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        out = {"logits": self.head(h)}
        return {"hidden": h, **out} if self.hidden else out


class Result(NamedTuple):
    logits: Tensor
    extra: str


@dataclass
class Output:
    logits: Tensor
    extra: str


class Returns(nn.Module):
    """A network that wraps its logits: in a tuple with another tensor, a named tuple, a nested dict or a dataclass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, x):
        out = self.net(x)
        if self.kind == "tuple":
            return out, self.net[0](x)
        if self.kind == "dict":
            return {"a": {"logits": out}, "b": [self.net[0](x)]}
        return Result(out, "more") if self.kind == "named" else Output(out, "more")


def token_loss(out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Mean over the tokens that count."""
    return F.cross_entropy(out["logits"].flatten(0, 1), batch["labels"].flatten())


def counted_tokens(_: Any, batch: dict[str, Tensor]) -> float:
    return float((batch["labels"] != -100).sum())


# Cases and their dense matrices -------------------------------------------------------------------------------------


@dataclass
class Case:
    """A model, a loss and batches, from which come a risk and, independently of it, the dense matrices."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    batches: Sequence[Any]
    mode: str = "eval"
    weight: Callable[[Any, Any], float] | None = None
    logits: Callable[[Any], Tensor] = lambda out: out  # the output that the loss uses
    valid: Callable[[Any], Tensor] = lambda y: (y["labels"] if isinstance(y, dict) else y) != -100  # which count
    form: Callable[[Tensor], Any] = lambda logits: logits  # logits in the form that the loss reads

    def risk(self, **options: Any) -> EmpiricalRisk:
        options = {"mode": self.mode, "weight": self.weight, **options}
        return EmpiricalRisk.from_model(self.model, self.loss, list(self.batches), **options)

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        return [(b, b) if isinstance(b, dict) else b for b in self.batches]

    def shares(self) -> list[float]:
        weights = [_count(x) if self.weight is None else self.weight(x, y) for x, y in self.pairs]
        return [w / sum(weights) for w in weights]


class BatchStatistics(nn.Module):
    """Normalisation by the batch's own mean and biased variance, written out."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x):
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = x.mean(dims, keepdim=True)
        out = (x - mean) / ((x - mean) ** 2).mean(dims, keepdim=True).add(self.eps).sqrt()
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


def _count(x: Any) -> int:
    while not isinstance(x, Tensor):
        x = next(iter(x.values())) if isinstance(x, dict) else x[0]
    return len(x)


def _reference(case: Case) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the model as its mode says, without anything of the package, and its trainable parameters."""
    model = copy.deepcopy(case.model).eval()
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if case.mode == "batch":
        for name, norm in norms:
            model.set_submodule(name, BatchStatistics(norm))
    elif case.mode == "recalibrate":
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name, _ in norms}
        probe = copy.deepcopy(case.model).eval()
        for name, _ in norms:
            norm = probe.get_submodule(name).train()

            def note(_: Any, args: tuple[Tensor], name: str = name) -> None:
                dims = [0, *range(2, args[0].ndim)]
                seen[name].append((args[0].mean(dims), args[0].var(dims)))

            norm.register_forward_pre_hook(note)
        with torch.no_grad():
            for x, _ in case.pairs:
                probe(x)
        sizes = [_count(x) for x, _ in case.pairs]
        for name, norm in norms:
            for buffer, index in ((norm.running_mean, 0), (norm.running_var, 1)):
                buffer.copy_(sum(k * s[index] for k, s in zip(sizes, seen[name], strict=True)) / sum(sizes))
    theta = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return model, theta


def _call(model: nn.Module, theta: dict[str, Tensor], x: Any) -> Any:
    if isinstance(x, dict):
        return functional_call(model, theta, (), x)
    return functional_call(model, theta, x if isinstance(x, tuple) else (x,))


def _cut(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = vector.split([t.numel() for t in like.values()])
    return {name: part.view(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)}


def _examples(batch: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    def one(tree: Any, i: int) -> Any:
        if isinstance(tree, dict):
            return {key: one(value, i) for key, value in tree.items()}
        return tuple(one(part, i) for part in tree) if isinstance(tree, tuple) else tree[i : i + 1]

    return [(one(batch[0], i), one(batch[1], i)) for i in range(_count(batch[0]))]


def dense_matrix(case: Case, kind: str) -> Tensor:
    """A curvature matrix from its definition, by torch.func and loops over examples and classes.

    Args:
        case: The model, loss and data.
        kind: "Hessian", "GaussNewton", "Fisher" (categorical) or "EmpiricalFisher".
    """
    model, theta = _reference(case)
    start = torch.cat([t.flatten() for t in theta.values()])
    # torch 2.13's vmap has no rule for recurrent layers, and a wrong one for LayerNorm's second derivative
    loops = any(isinstance(m, nn.RNNBase | nn.LayerNorm) for m in model.modules())

    def jacobian(f: Callable[[Tensor], Tensor], at: Tensor = start) -> Tensor:
        value = torch.autograd.functional.jacobian(f, at) if loops else jacrev(f)(at)
        return value.detach().reshape(-1, len(at))

    def second(f: Callable[[Tensor], Tensor], at: Tensor = start) -> Tensor:
        return torch.autograd.functional.hessian(f, at) if loops else jacrev(jacrev(f))(at).detach()

    def outputs(vector: Tensor, x: Any) -> Tensor:
        return case.logits(_call(model, _cut(vector, theta), x))

    def risk(vector: Tensor) -> Tensor:
        losses = [case.loss(_call(model, _cut(vector, theta), x), y) for x, y in case.pairs]
        return sum(w * value for w, value in zip(case.shares(), losses, strict=True))

    total = torch.zeros(len(start), len(start), dtype=start.dtype)
    with sdpa_kernel(SDPBackend.MATH):
        if kind == "Hessian":
            return second(risk)
        if kind == "EmpiricalFisher":
            examples = [pair for batch in case.pairs for pair in _examples(batch)]
            for x, y in examples:
                g = jacobian(lambda v, x=x, y=y: case.loss(_call(model, _cut(v, theta), x), y).reshape(1))
                total += g.T @ g / len(examples)
            return total
        for share, (x, y) in zip(case.shares(), case.pairs, strict=True):
            out = outputs(start, x).detach()
            if kind == "GaussNewton":
                J = jacobian(lambda v, x=x: outputs(v, x).flatten())
                A = second(lambda z, y=y, out=out: case.loss(case.form(z.view(out.shape)), y), out.flatten())
                total += share * J.T @ A @ J
            else:
                classes = out.shape[-1]
                G = jacobian(lambda v, x=x: outputs(v, x).log_softmax(-1).flatten())
                counts = case.valid(y).flatten()
                weights = out.softmax(-1).flatten() * counts.repeat_interleave(classes)
                total += share * (G.T * weights) @ G / counts.sum()
    return total


def _filled(model: nn.Module, source: torch.Generator) -> nn.Module:
    """In float64, with every parameter drawn, and running statistics that are neither 0 nor 1."""
    model = model.to(F64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=F64) * 0.7)
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.uniform_(-0.5, 0.5, generator=source)
                norm.running_var.uniform_(0.5, 2, generator=source)
    return model


def _data(shape: tuple[int, ...], classes: int, source: torch.Generator, sizes: Sequence[int] = (3, 2)) -> list[Any]:
    x = torch.randn((sum(sizes), *shape), generator=source, dtype=F64)
    y = torch.randint(0, classes, (sum(sizes),), generator=source)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


class Logits(NamedTuple):
    logits: Tensor


def language(model: nn.Module, batches: list[Any], loss: Any, weight: Any, **options: Any) -> Case:
    """A language model whose output has logits, by key or by attribute."""
    form = (lambda logits: {"logits": logits}) if isinstance(model, Language) else Logits
    return Case(model, loss, batches, weight=weight, logits=lambda out: out["logits"], form=form, **options)


def _returning(model: Returns, batches: list[Any]) -> Case:
    read: dict[str, Any] = {"tuple": lambda out: out[0], "dict": lambda out: out["a"]["logits"]}
    forms: dict[str, Any] = {"tuple": lambda z: (z, None), "dict": lambda z: {"a": {"logits": z}}}
    logits = read.get(model.kind, lambda out: out.logits)
    form = forms.get(model.kind, Logits)
    return Case(model, lambda out, y: F.cross_entropy(logits(out), y), batches, logits=logits, form=form)


def case(name: str) -> Case:
    """One of `CASES`, the same at every call; batches are ragged."""
    g = torch.Generator().manual_seed(5)
    kind, _, variant = name.partition(":")
    if kind == "conv":
        return Case(_filled(ConvNorm(), g), F.cross_entropy, _data((2, 4, 4), 3, g, (4, 3)), mode=variant)
    if kind == "sdpa":
        return Case(_filled(SelfAttention(variant), g), F.cross_entropy, _data((4, 3), 3, g))
    if kind == "padded":
        batches = _data((4, 4), 3, g)
        hidden = torch.arange(4) >= torch.tensor([[4], [2], [3]])
        return Case(_filled(Padded(), g), F.cross_entropy, [((x, hidden[: len(x)]), y) for x, y in batches])
    if kind == "encoder":
        return Case(_filled(Encoder(), g), F.cross_entropy, _data((3, 4), 2, g))
    if kind == "recurrent":
        return Case(_filled(Recurrent(variant), g), F.cross_entropy, _data((3, 2), 2, g))
    if kind == "tied":
        return Case(_filled(Tied(), g), F.cross_entropy, _data((3,), 3, g, (4, 1)))
    if kind == "language":
        words = [torch.randint(0, 5, shape, generator=g) for shape in ((3, 4), (2, 3))]
        labels = [torch.randint(0, 5, w.shape, generator=g) for w in words]
        labels[0][:2, 2:] = -100
        batches = [{"input_ids": w, "labels": y} for w, y in zip(words, labels, strict=True)]
        return language(_filled(Language(hidden=variant == "hidden"), g), batches, token_loss, counted_tokens)
    if kind == "returns":
        return _returning(_filled(Returns(variant), g), _data((3,), 2, g))
    raise KeyError(name)


CASES = [
    *[f"conv:{mode}" for mode in ("eval", "batch", "recalibrate")],
    *[f"sdpa:{kind}" for kind in ("plain", "causal", "boolean", "additive")],
    "padded",
    "encoder",
    *[f"recurrent:{kind}" for kind in ("lstm", "gru", "rnn")],
    "tied",
    "language",
    "language:hidden",
    *[f"returns:{kind}" for kind in ("tuple", "named", "dict", "data")],
]


def small(
    model: nn.Module,
    shape: tuple[int, ...] = (6, 3),
    classes: int = 2,
    sizes: Sequence[int] = (6,),
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    dtype: torch.dtype = F64,
    **options: Any,
) -> EmpiricalRisk:
    """The risk of any model with drawn weights on drawn data."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    x = torch.randn(shape, generator=g, dtype=F64).to(dtype)
    y = torch.randint(0, classes, (shape[0],), generator=g)
    batches = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    return EmpiricalRisk.from_model(model.to(dtype), loss, batches, **options)


def cosines(p: int, k: int | None = None) -> Tensor:
    """v_i = cos(i), or k different columns of that kind."""
    i = torch.arange(p, dtype=F64)
    return torch.cos(i) if k is None else torch.stack([torch.cos((j + 1) * i) for j in range(k)], 1)


def hugging_face(model: nn.Module) -> Case:
    """A causal language model on padded dict batches, under its usual loss: the mean over the tokens to predict."""
    g = torch.Generator().manual_seed(9)
    batches = []
    for n, length in ((3, 5), (2, 4)):
        words = torch.randint(0, 7, (n, length), generator=g)
        mask = torch.ones_like(words)
        mask[0, length - 2 :] = 0
        batches.append({"input_ids": words, "attention_mask": mask, "labels": words.masked_fill(mask == 0, -100)})

    def loss(out: Any, batch: Any) -> Tensor:
        return F.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    def valid(batch: Any) -> Tensor:
        return F.pad(batch["labels"][:, 1:] != -100, (0, 1))

    return language(_filled(model, g), batches, loss, lambda _, batch: float(valid(batch).sum()), valid=valid)


def vision_transformer(model: nn.Module) -> Case:
    g = torch.Generator().manual_seed(9)
    return Case(_filled(model, g), F.cross_entropy, _data((1, 4, 4), 3, g))


@contextmanager
def without_torchvisions_kernels() -> Iterator[None]:
    """Import what imports torchvision, even where torchvision's build has no kernels for this torch."""
    register = torch.library.register_fake

    def patched(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda f: f
        return register(op, *args, **kwargs)

    torch.library.register_fake = patched
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.library.register_fake = register
