"""Data in every form that a loader gives: each is the same risk, cut anywhere, or refused in words."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from problems import F64, drawn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from landscape import AscentStep, EmpiricalRisk, Hessian, ascent_sharpness, flatten, scan
from landscape.surfaces import Axes, Grid, random_axes

N = 6
SOURCE = torch.Generator().manual_seed(0)
A, B = (torch.randn(N, d, generator=SOURCE, dtype=F64) for d in (3, 2))
Y = torch.tensor([0, 1, 1, 0, 1, 0])
IMAGES = [torch.randn(3, 5 + i, 6 - i % 2, generator=SOURCE, dtype=F64) for i in range(N)]
SERIES = [torch.randn(k, 3, generator=SOURCE, dtype=F64) for k in (4, 2, 5, 1, 3, 3)]

Two = namedtuple("Two", ["a", "b"])
Three = namedtuple("Three", ["a", "b", "y"])


@dataclass
class Record:
    a: Tensor
    b: Tensor
    y: Tensor | None = None


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 3, 2, dtype=F64))
        drawn(self)

    def of(self, a, b):
        return torch.einsum("kij,ni,nj->nk", self.weight, a, b)


class ByPlace(Bilinear):
    def forward(self, a, b):
        return self.of(a, b)


class OneOptional(Bilinear):
    def forward(self, a, b=None):
        return self.of(a, b)


class ByKey(Bilinear):
    def forward(self, batch):
        return self.of(batch["a"], batch["b"])


class ByAttribute(Bilinear):
    def forward(self, batch):
        return self.of(batch.a, batch.b)


class OneList(Bilinear):
    def forward(self, parts):
        return self.of(*parts)


def of_key(out, batch):
    return cross_entropy(out, batch["y"])


def of_attribute(out, batch):
    return cross_entropy(out, batch.y)


def items(make, *, pairs=True):
    return [(make(i), Y[i]) if pairs else make(i) for i in range(N)]


FORMS = {
    "pair": (ByPlace, cross_entropy, ((A, B), Y)),
    "list of pairs": (ByPlace, cross_entropy, [((A[:4], B[:4]), Y[:4]), ((A[4:], B[4:]), Y[4:])]),
    "loader": (ByPlace, cross_entropy, DataLoader(items(lambda i: (A[i], B[i])), 4)),
    "loader, two inputs and two examples": (OneOptional, cross_entropy, DataLoader(items(lambda i: (A[i], B[i])), 2)),
    "dict": (ByPlace, cross_entropy, ({"a": A, "b": B}, Y)),
    "dict as one argument": (ByKey, cross_entropy, [({"a": A, "b": B}, Y)]),
    "dict with its labels": (
        ByKey,
        of_key,
        DataLoader(items(lambda i: {"a": A[i], "b": B[i], "y": Y[i]}, pairs=False), 4),
    ),
    "other mapping": (ByPlace, cross_entropy, [(UserDict(a=A, b=B), Y)]),
    "other mapping, loaded": (ByPlace, cross_entropy, DataLoader(items(lambda i: UserDict(a=A[i], b=B[i])), 5)),
    "named tuple": (ByPlace, cross_entropy, [(Two(A, B), Y)]),
    "named tuple as one argument": (ByAttribute, cross_entropy, DataLoader(items(lambda i: Two(A[i], B[i])), 4)),
    "record": (ByAttribute, of_attribute, [Record(A[:4], B[:4], Y[:4]), Record(A[4:], B[4:], Y[4:])]),
    "record in a pair": (ByAttribute, cross_entropy, [(Record(A, B), Y)]),
    "list as one argument": (OneList, cross_entropy, [([A, B], Y)]),
    "nested targets": (ByKey, lambda o, t: cross_entropy(o, t["k"][0]), [({"a": A, "b": B}, {"k": (Y,)})]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_risk(form):
    model, loss, data = FORMS[form]
    want = cross_entropy(model().of(A, B), Y).item()
    risk = EmpiricalRisk.from_model(model(), loss, data)
    assert risk.n == N
    assert risk.value() == pytest.approx(want, rel=1e-13)
    assert risk.in_parts(1).value() == pytest.approx(want, rel=1e-13)
    assert sum(c.n * c.value() for c in risk.chunks(4)) / N == pytest.approx(want, rel=1e-13)
    first = EmpiricalRisk.from_model(ByPlace(), cross_entropy, [((A, B), Y)])
    assert_close(Hessian(risk, micro_batch=2).dense(), Hessian(first).dense(), rtol=1e-10, atol=1e-12)
    ours, theirs = (ascent_sharpness(r, AscentStep(0.1), m=2).value for r in (risk, first))
    assert ours == pytest.approx(theirs, rel=1e-10)


class Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 2, 3, padding=1, dtype=F64)
        drawn(self)

    def forward(self, images, targets=None):
        return torch.stack([torch.tanh(self.c(i[None])).mean((0, 2, 3)) for i in images])


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.g, self.o = nn.GRU(3, 4, batch_first=True, dtype=F64), nn.Linear(4, 2, dtype=F64)
        drawn(self)

    def forward(self, x):
        return self.o(self.g(x)[1][0])


class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 2, dtype=F64)
        drawn(self)

    def forward(self, x):
        return torch.stack([self.l(t).tanh().mean(0) for t in (x.unbind() if isinstance(x, Tensor) else x)])


class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(128, 2, dtype=F64)
        drawn(self)

    def forward(self, texts):
        return torch.stack([self.e(torch.tensor([ord(c) for c in t])).mean(0) for t in texts])


def of_records(out, targets):
    return cross_entropy(out, torch.stack([t["labels"][0] for t in targets]))


TEXTS = ["ab", "c", "def", "g", "hi", "jkl"]
BOXES = [{"boxes": torch.rand(1 + i, 4), "labels": Y[i : i + 1]} for i in range(N)]
EXAMPLES = {
    "images": (Pool, cross_entropy, [(IMAGES, Y)]),
    "as many images as channels": (Pool, cross_entropy, [(IMAGES[:3], Y[:3]), (IMAGES[3:], Y[3:])]),
    "images with boxes": (Pool, of_records, [(IMAGES, BOXES)]),
    "images with boxes, two a batch": (
        Pool,
        of_records,
        DataLoader(list(zip(IMAGES, BOXES, strict=True)), 2, collate_fn=lambda b: tuple(zip(*b, strict=True))),
    ),
    "packed": (Last, cross_entropy, [(pack_sequence(SERIES, enforce_sorted=False), Y)]),
    "series": (Means, cross_entropy, [(SERIES, Y)]),
    "nested": (Means, cross_entropy, [(torch.nested.nested_tensor(SERIES, layout=torch.jagged), Y)]),
    "texts": (Letters, cross_entropy, [(TEXTS, Y)]),
}


@pytest.mark.parametrize("form", EXAMPLES)
def test_an_example_is_an_item_of_a_list(form):
    make, loss, data = EXAMPLES[form]
    model = make()
    risk = EmpiricalRisk.from_model(model, loss, data)
    assert risk.n == N
    inputs = {"Pool": IMAGES, "Last": SERIES, "Means": SERIES, "Letters": TEXTS}[make.__name__]
    one = [model([x]) if make is not Last else model(x[None]) for x in inputs]
    want = sum(cross_entropy(o, y[None]) for o, y in zip(one, Y, strict=True)).item() / N
    assert risk.value() == pytest.approx(want, rel=1e-12)
    assert risk.in_parts(1).value() == pytest.approx(want, rel=1e-12)
    swapped = sum(c.n * c.value() for c in risk.chunks(4, generator=torch.Generator().manual_seed(0))) / N
    assert swapped == pytest.approx(want, rel=1e-12)
    whole, cut = Hessian(risk), Hessian(risk, micro_batch=1)
    v = torch.randn(whole.shape[0], generator=torch.Generator().manual_seed(2), dtype=F64)
    assert_close(whole @ v, cut @ v, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_inputs():
    class Mixed(Means):
        def forward(self, x):
            return torch.sparse.mm(x, self.l.weight.T)

    x = A.relu()
    want = EmpiricalRisk.from_model(Mixed(), cross_entropy, (x, Y))
    for sparse in (x.to_sparse(), x.to_sparse_csr()):
        risk = EmpiricalRisk.from_model(Mixed(), cross_entropy, (sparse, Y))
        assert_close(Hessian(risk).dense(), Hessian(want).dense(), rtol=1e-10, atol=1e-12)
        assert risk.in_parts(2).value() == pytest.approx(want.value(), rel=1e-13)


class Graphs:
    """Graphs in one batch, as libraries make them."""

    def __init__(self, x, ends, y, counted=True):
        self.x, self.ends, self.y = x, ends, y
        if counted:
            self.num_graphs = len(ends)

    def to(self, device):
        return self


class OfGraphs(Means):
    def forward(self, graphs):
        graphs.x = self.l(graphs.x)  # a batch is handed over as a copy
        return torch.stack([part.tanh().mean(0) for part in graphs.x.tensor_split(graphs.ends[:-1])])


def test_graphs_count_and_are_never_cut():
    first, second = Graphs(A, [2, 6], Y[:2]), Graphs(A + 1, [1, 3, 6], Y[:3])
    model = OfGraphs()
    each = [cross_entropy(model(Graphs(g.x, g.ends, g.y)), g.y).item() for g in (first, second)]
    want = (2 * each[0] + 3 * each[1]) / 5
    for data in ([first, second], [(first, first.y), (second, second.y)]):
        loss = of_attribute if data[0] is first else cross_entropy
        risk = EmpiricalRisk.from_model(model, loss, data)
        assert risk.value() == pytest.approx(want, rel=1e-12)
        assert torch.equal(first.x, A)
        Hessian(risk)
        with pytest.raises(ValueError, match="type Graphs, which cannot be cut into examples"):
            risk.in_parts(1)
    bare = [Graphs(A, [2, 6], Y[:2], counted=False), Graphs(A + 1, [1, 3, 6], Y[:3], counted=False)]
    with pytest.raises(ValueError, match="do not tell how many examples they have: give `weight`"):
        EmpiricalRisk.from_model(model, of_attribute, bare)
    named = EmpiricalRisk.from_model(model, of_attribute, bare, weight=lambda g, _: len(g.ends))
    assert named.value() == pytest.approx(want, rel=1e-12)


def test_targets_tell_the_number_of_examples_where_another_tensor_comes_first():
    class Masked(Means):
        def forward(self, mask, x):
            return self.l(x @ mask)

    mask = torch.eye(3, dtype=F64)
    risk = EmpiricalRisk.from_model(Masked(), cross_entropy, [((mask, A), Y)])
    assert risk.n == N
    assert risk.in_parts(2).value() == pytest.approx(risk.value(), rel=1e-13)


def test_single_examples_without_an_axis_for_them_count_one_each():
    line = nn.Linear(3, 2, dtype=F64)
    risk = EmpiricalRisk.from_model(line, cross_entropy, [(A[i], Y[i]) for i in range(N)])
    whole = EmpiricalRisk.from_model(line, cross_entropy, (A, Y))
    assert risk.n == N
    assert_close(flatten(risk.gradient()), flatten(whole.gradient()), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[A, B, Y]], r"a list of 3: several inputs make a tuple, \(\(a, b\), targets\): say which is what by"),
        (DataLoader(TensorDataset(A, B, Y), 4), "a list of 3: several inputs"),
        ([Three(A, B, Y)], "a Three of 3"),
        (TensorDataset(A, Y), r"the data set TensorDataset, whose items are single examples: use DataLoader"),
        ((A.numpy(), Y.numpy()), "NumPy array of shape .6, 3.: use torch.from_numpy"),
        ([({"a": A.numpy()}, Y)], "use torch.from_numpy"),
        (np.ones((2, 2)), "got ndarray: use torch.from_numpy"),
        ("data.pt", "got str .files are read by the caller"),
        ([], "`data` has no batch"),
    ],
)
def test_other_forms_are_refused_with_the_way_out(data, message):
    with pytest.raises(ValueError, match=message):
        EmpiricalRisk.from_model(ByPlace(), cross_entropy, data)


def test_a_dict_with_names_that_the_model_does_not_take_is_refused():
    risk = EmpiricalRisk.from_model(ByPlace(), of_key, [{"a": A, "b": B, "y": Y}])
    with pytest.raises(ValueError, match=r"a dict batch with \['y'\], which the model's forward does not take"):
        risk.value()


def test_models_that_return_their_own_loss_can_be_scanned():
    class Own(Bilinear):
        def forward(self, a, b, labels=None):
            out = self.of(a, b)
            return {"loss": cross_entropy(out, labels), "logits": out}

    data = [{"a": A[:4], "b": B[:4], "labels": Y[:4]}, {"a": A[4:], "b": B[4:], "labels": Y[4:]}]
    risk = EmpiricalRisk.from_model(Own(), lambda out, _: out["loss"], data)
    axes = Axes(risk.theta, random_axes(risk.theta, torch.Generator().manual_seed(0), count=1))
    value, stderr = scan(risk, axes, Grid.around(0.1, 3, axes=1)).centre["loss"]
    assert value == pytest.approx(cross_entropy(Own().of(A, B), Y).item(), rel=1e-12)
    assert stderr != stderr  # no mean of losses of single examples that could be told
