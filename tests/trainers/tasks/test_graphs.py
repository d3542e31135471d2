"""Graphs: torch_geometric as a peer, dense float64 matrices written by hand, and what is refused."""

import warnings

import graph_data
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from analysis.measures.collect import measure_run
from analysis.measures.plan import plan
from landscape import EmpiricalRisk, Hessian, trace
from landscape.params import flatten, norm
from landscape.perturbation import AscentStep
from landscape.sharpness import ascent_sharpness
from trainers import build_model, fit, load_dataset
from trainers.data.graphs import Graph, as_graph, packed
from trainers.data.sources.networks import contextual_blocks
from trainers.runs.checkpoint import load_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles with torch.jit
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCNConv, global_mean_pool


def last(run):
    return run.checkpoint(max(run.checkpoints()))


def convolutions(model):
    """torch_geometric's layers with the weights of ours."""
    made = []
    for layer in model.layers:
        conv = GCNConv(layer.in_features, layer.out_features).double()
        conv.lin.weight.data, conv.bias.data = layer.weight.data, layer.bias.data
        made.append(conv)
    return made


@pytest.mark.peers
@pytest.mark.parametrize("weighted", [False, True])
def test_convolutions_are_those_of_torch_geometric(weighted):
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(9, (2, 30), generator=g)  # directed, some twice, with a loop
    edges[:, 0] = 4
    weight = torch.rand(30, generator=g) + 0.1 if weighted else None
    x = graph_data.drawn(9).double()
    model = build_model(
        "gcn", shape=(1,), classes=2, generator_seed=0, options={"width": 5, "depth": 3},
        graph=Graph(x.float(), edges, torch.zeros(9), weight),
    ).double()  # fmt: skip
    model.x.copy_(x)
    h = x
    for i, conv in enumerate(convolutions(model)):
        h = conv(h, edges, None if weight is None else weight.double())
        h = torch.relu(h) if i < 2 else h
    assert_close(model(torch.tensor([[3], [0], [3]])), h[[3, 0, 3]], rtol=1e-6, atol=1e-7)  # float32 edge weights


@pytest.mark.peers
def test_padded_graphs_are_those_of_torch_geometric():
    graphs = [Data(**vars(g)) for g in graph_data.rings_and_paths()[:7]]
    graphs[0] = Data(x=graphs[0].x, edge_index=torch.tensor([[0, 1, 2], [1, 1, 3]]), y=graphs[0].y)
    source = packed([Graph(g.x, g.edge_index, g.y) for g in graphs], "here")
    model = build_model("gcn", shape=source.shape, classes=2, generator_seed=0, options={"width": 5}).double()
    batch = Batch.from_data_list(graphs)
    h = batch.x.double()
    for conv in convolutions(model):
        h = torch.relu(conv(h, batch.edge_index))
    assert_close(model(source.inputs.double()), model.head(global_mean_pool(h, batch.batch)))


def test_products_trace_and_sharpness_are_those_of_the_dense_matrix():
    data = load_dataset("karate", validation_size=8)
    model = build_model("gcn", shape=(1,), classes=2, generator_seed=0, options={"width": 3}, graph=data.graph).double()
    risk = EmpiricalRisk.from_model(model, F.cross_entropy, data.train.batches(size=7))
    names = list(risk.theta)
    n = len(data.graph.x)
    links = torch.eye(n, dtype=torch.float64)
    links[data.graph.edges[1], data.graph.edges[0]] = 1
    links = links / (links.sum(1)[:, None] * links.sum(1)).sqrt()

    def loss(vector):
        w1, b1, w2, b2 = (
            part.view_as(risk.theta[name])
            for part, name in zip(vector.split([risk.theta[k].numel() for k in names]), names, strict=True)
        )
        h = torch.relu(links @ data.graph.x.double() @ w1.T + b1)
        logits = links @ h @ w2.T + b2
        return F.cross_entropy(logits[data.train.inputs[:, 0]], data.train.y)

    theta = flatten(risk.theta).requires_grad_()
    dense = torch.autograd.functional.hessian(loss, theta)
    operator = Hessian(risk)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(operator @ v, dense @ v, rtol=1e-5, atol=1e-7)  # the model keeps its edge weights in float32
    found = trace(operator, draws=len(theta), generator=torch.Generator().manual_seed(0))
    assert found.value == pytest.approx(float(dense.trace()), abs=4 * found.stderr + 1e-6)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    rise = loss(theta + 0.1 * gradient / gradient.norm()) - loss(theta)
    assert ascent_sharpness(risk, AscentStep(0.1)).value == pytest.approx(float(rise.detach()), rel=1e-5)
    assert float(norm(risk.gradient())) == pytest.approx(float(gradient.norm()), rel=1e-6)


def test_masks_are_the_splits_and_other_nodes_are_no_examples():
    data = load_dataset("graph_data:masked")
    parts = [split.inputs[:, 0].tolist() for split in (data.train, data.validation, data.test)]
    assert [sorted(part) for part in parts] == [[0, 3, 4], [1], [2]]
    assert data.train.y.tolist() == [int(i == 3) for i in parts[0]]
    assert (data.shape, data.classes, data.described()["graph"]["nodes"]) == ((1,), 2, 6)


def test_a_generated_graph_has_the_links_that_its_model_says():
    graph = contextual_blocks(600, 3, 8, degree=12, within=0.75, signal=3.0, seed=1)
    sources, ends = graph.edges
    same = (graph.y[sources] == graph.y[ends]).double()
    assert graph.edges.shape[1] / 600 == pytest.approx(12, abs=4 * (2 * 12 / 600) ** 0.5)
    assert float(same.mean()) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 * 2 / len(same)) ** 0.5)
    assert {tuple(e) for e in graph.edges.T.tolist()} == {tuple(e) for e in graph.edges.flip(0).T.tolist()}
    assert not bool((sources == ends).any())
    with pytest.raises(ValueError, match=r"`degree` 400 and `within` 1.0 give probabilities 2.01"):
        contextual_blocks(600, 3, degree=400, within=1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(
        {"task": "nodes", "dataset": "csbm", "model": "gcn", "method": "sam", "lr": 0.5, "epochs": 30,
         "batch_size": 600, "label_noise": 0.2, "model_options": {"width": 16}},
        out=tmp_path_factory.mktemp("nodes"),
    )  # fmt: skip


def test_nodes_go_the_whole_way(trained):
    assert trained.history()["test_error"].iloc[-1] < 0.5  # chance is 0.75
    model, _ = load_checkpoint(last(trained))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}, "the graph is no weight"
    chosen = plan({"hessian_trace": {}, "perturbed_forgetting": {"batches": 2}, "path_norm": {}})
    rows = measure_run(trained.folder, chosen)
    assert rows.query("measure == 'hessian_trace'")["value"].notna().all()
    forgetting = rows[rows["measure"].str.startswith("F_mi")]
    assert set(forgetting["split"]) >= {"exposed", "other_train", "held_out"}
    assert forgetting["value"].notna().any()
    assert rows.query("measure == 'path_norm'")["warnings"].str.contains("the path norm needs").all()


def test_graphs_are_examples_too(tmp_path):
    run = fit(
        {"dataset": "graph_data:rings_and_paths", "model": "gcn", "method": "sam", "validation_size": 10, "epochs": 1},
        out=tmp_path, trust=True,
    )  # fmt: skip
    assert load_checkpoint(last(run), trust=True)[0](torch.zeros(2, 9, 11)).shape == (2, 2)
    data = load_dataset("graph_data:rings_and_paths", validation_size=10)
    assert (len(data.train), data.shape, data.classes) == (38, (9, 11), 2)


def test_a_model_of_ones_own_is_given_the_graph(tmp_path):
    run = fit(
        {"task": "nodes", "dataset": "graph_data:masked", "model": "graph_data:own_model", "epochs": 1},
        out=tmp_path, trust=True,
    )  # fmt: skip
    model, _ = load_checkpoint(last(run), trust=True)
    assert_close(model.x, graph_data.masked().x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"dataset": "graph_data:lost_edge"},
            r"`edge_index`: 1 edges name nodes that are not there, such as edge 1, \[6, 0\], where nodes go",
        ),
        ({"dataset": "graph_data:no_edges"}, r"`edge_index` has no edge: without one take a model that needs no graph"),
        ({"dataset": "graph_data:gaps"}, r"`x` must be finite .* some are NaN"),
        ({"dataset": "graph_data:numbers"}, r"`y` must be a label, a whole number from 0, for each of 6 nodes"),
        ({"dataset": "graph_data:overlapping"}, r"`masks` overlap, such as at node 0: each node goes in one part"),
        ({"dataset": "graph_data:empty_mask"}, r"`masks`: that of 'test' is empty: leave it out"),
        ({"dataset": "graph_data:seeded"}, r"returns graphs, which are split here, .* let it take no `seed`"),
        ({"dataset": "digits"}, r"`dataset` 'digits' has none: take karate, csbm or a function"),
        ({"dataset": "karate", "model": "mlp"}, r"`model` 'mlp' takes no nodes of a graph.*: take gcn, or a model"),
        ({"dataset": "karate", "task": "classification"}, r"the examples are nodes of a graph: take `task` 'nodes'"),
        ({"dataset": "digits", "task": "classification"}, r"`model` 'gcn' takes nodes of a graph, or graphs, and an"),
    ],
)
def test_what_is_no_graph_is_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit({"task": "nodes", "model": "gcn", "validation_size": 1, "epochs": 1, **given}, out=tmp_path, trust=True)


def test_masks_of_several_splits_are_refused():
    graph = Data(**vars(graph_data.masked()))
    assert as_graph(graph, "here").masks["train"].tolist() == [True, False, False, True, True, False]
    graph.train_mask = graph.train_mask[:, None].expand(-1, 3)
    with pytest.raises(
        ValueError, match=r"got 'train' with torch.bool of shape \(6, 3\): of several splits choose one"
    ):
        as_graph(graph, "here")
