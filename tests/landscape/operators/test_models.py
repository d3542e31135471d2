"""Every operator, on every path, equals the dense matrix of its definition, for every kind of model."""

from functools import cache

import pytest
from problems import (
    CASES,
    case,
    cosines,
    dense_matrix,
    hugging_face,
    vision_transformer,
    without_torchvisions_kernels,
)
from torch.testing import assert_close

from landscape import EmpiricalFisher, EmpiricalRisk, Fisher, GaussNewton, Hessian

KINDS = ["Hessian", "GaussNewton", "Fisher", "EmpiricalFisher"]
# torch's own forward mode still compiles a rule by torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # sums of a few hundred float64 terms of size 1
OPERATORS = {"Hessian": Hessian, "GaussNewton": GaussNewton, "Fisher": Fisher, "EmpiricalFisher": EmpiricalFisher}


@cache
def expected(name, kind):
    return dense_matrix(case(name), kind)


def operator(name, kind, **options):
    if kind == "Fisher":
        options["likelihood"] = "categorical"
    return OPERATORS[kind](case(name).risk(), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_dense_matrix(name, kind):
    if name == "conv:batch" and kind == "EmpiricalFisher":
        with pytest.raises(ValueError, match=r"`risk` has mode='batch', .* use mode='eval' or 'recalibrate'"):
            operator(name, kind)
        return
    A, M = operator(name, kind), expected(name, kind)
    assert (A.path, A.note) == ("kept", "")
    V = cosines(len(M), 2)  # no entry is zero, so every column of the matrix takes part
    assert_close(A @ V, M @ V, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tied", "returns:tuple", "recurrent:rnn"])
def test_dense_matrices(name, kind):
    assert_close(operator(name, kind).dense(), expected(name, kind), **EXACT)


@pytest.mark.parametrize("path", ["afresh", "forward", "difference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["conv:eval", "conv:recalibrate", "sdpa:causal", "recurrent:lstm", "tied", "language"])
def test_other_paths(name, kind, path):
    if (kind, path) == ("EmpiricalFisher", "difference"):
        pytest.skip("no such path")
    if path == "forward" and name == "language" and kind != "Hessian":
        if kind != "EmpiricalFisher":  # that goes by its rows
            with pytest.raises(ValueError, match=r"'forward' needs a model whose output is one tensor, got dict"):
                operator(name, kind, path=path) @ cosines(88)
        return
    A, M = operator(name, kind, path=path), expected(name, kind)
    assert A.path == path
    V = cosines(len(M), 2)
    # a central difference with h = 6e-6 max(1, ‖θ‖): h² of a third derivative, and rounding / h
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if path == "difference" else EXACT
    assert_close(A @ V, M @ V, **tolerance)


@pytest.mark.parametrize("kind", ["Hessian", "GaussNewton", "Fisher"])
@pytest.mark.parametrize("path", ["afresh", "forward", "difference"])
def test_other_paths_through_batch_statistics(kind, path):
    A, M = operator("conv:batch", kind, path=path), expected("conv:batch", kind)
    v = cosines(len(M))
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if path == "difference" else EXACT
    assert_close(A @ v, M @ v, **tolerance)


@pytest.mark.parametrize("name", ["conv:eval", "conv:batch", "conv:recalibrate"])
def test_batchnorm_modes_are_three_different_risks(name):
    others = [n for n in ("conv:eval", "conv:batch", "conv:recalibrate") if n != name]
    for other in others:
        assert (expected(name, "Hessian") - expected(other, "Hessian")).abs().max() > 0.1


@pytest.mark.parametrize("name", ["recurrent:lstm", "recurrent:gru", "encoder"])
def test_dropout_inside_layers_is_off(name):
    """Their dropout is an argument of the kernel, or a module of its own; at p = 0 the matrix is the same."""
    quiet = case(name)
    for m in quiet.model.modules():
        if hasattr(m, "dropout") and isinstance(m.dropout, float):
            m.dropout = 0.0
        if hasattr(m, "p"):
            m.p = 0.0
    v = cosines(operator(name, "Hessian").shape[0])
    assert_close(operator(name, "Hessian") @ v, Hessian(quiet.risk()) @ v, **EXACT)


def test_the_language_models_matrices_do_not_depend_on_the_batches():
    """With `weight`, one batch and two are one risk: here the second batch is cut into single examples."""
    whole = case("language")
    pieces = case("language")
    second = pieces.batches[1]
    pieces.batches = [pieces.batches[0], *({k: t[i : i + 1] for k, t in second.items()} for i in range(2))]
    for kind in KINDS:
        options = {"likelihood": "categorical"} if kind == "Fisher" else {}
        A, B = (OPERATORS[kind](c.risk(), **options) for c in (whole, pieces))
        assert_close(A @ cosines(88), B @ cosines(88), **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_language_model(gpt2, kind):
    """Dict batches with padding; the loss shifts, and averages over tokens."""
    options = {"likelihood": "categorical"} if kind == "Fisher" else {}
    A = OPERATORS[kind](gpt2.risk(), **options)
    v = cosines(A.shape[0], 2)
    assert_close(A @ v, dense_matrix(gpt2, kind) @ v, **EXACT)
    assert gpt2.model.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_hugging_face_loss_of_its_own(gpt2):
    """The model's own loss has a Hessian, computed by it in float32; the other matrices need the logits."""
    own = EmpiricalRisk.from_model(gpt2.model, lambda out, _: out.loss, gpt2.batches, weight=gpt2.weight)
    v = cosines(sum(t.numel() for t in own.theta.values()))
    assert_close(Hessian(own) @ v, Hessian(gpt2.risk()) @ v, rtol=1e-4, atol=1e-5)
    for kind in ("GaussNewton", "Fisher"):
        with pytest.raises(ValueError, match="`loss` uses no output of the model but a loss that the model has"):
            OPERATORS[kind](own, **({"likelihood": "categorical"} if kind == "Fisher" else {})) @ v


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_timm_vision_transformer(kind):
    with without_torchvisions_kernels():
        timm = pytest.importorskip(
            "timm.models.vision_transformer", reason="the extra [vision] is not installed", exc_type=ImportError
        )
        shape = {"img_size": 4, "patch_size": 2, "in_chans": 1, "num_classes": 3}
        model = timm.VisionTransformer(**shape, embed_dim=4, depth=1, num_heads=2, mlp_ratio=1)
    c = vision_transformer(model)
    A = OPERATORS[kind](c.risk())
    v = cosines(A.shape[0], 2)
    assert_close(A @ v, dense_matrix(c, kind) @ v, **EXACT)


@pytest.fixture(scope="module")
def gpt2():
    with without_torchvisions_kernels():
        library = pytest.importorskip("transformers", reason="the extra [text] is not installed")
        sizes = {"vocab_size": 7, "n_positions": 6, "n_embd": 4, "n_layer": 1, "n_head": 2}
        model = library.GPT2LMHeadModel(library.GPT2Config(**sizes, use_cache=False, bos_token_id=0, eos_token_id=0))
    return hugging_face(model)
