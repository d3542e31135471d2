"""How torch computes: flags for a run that are put back, recorded, and no part of what a run is."""

import os
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from analysis.cli.options import Place
from trainers import fit, load_checkpoint
from trainers.backend import WORKSPACE, Backend

TINY = {
    "epochs": 2, "train_size": 40, "validation_size": 0, "test_size": 20, "batch_size": 16, "method": "sam",
    "model_options": {"width": 4, "depth": 1},
}  # fmt: skip
CONVOLUTIONAL = {**TINY, "epochs": 1, "model": "resnet20", "model_options": {"width": 2}}


def flags():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, *deterministic, os.environ.get(WORKSPACE)


@pytest.fixture(params=["torch's own", "a user's own"])
def before(request):
    first = flags()
    if request.param == "a user's own":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    yield flags()
    torch.use_deterministic_algorithms(first[3], warn_only=first[4])
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = first[2], first[0]


@pytest.mark.parametrize("tf32", [False, True])
def test_flags_hold_inside_a_block_and_are_put_back(tf32, before):
    with ExitStack() as stack:
        stack.enter_context(Backend(tf32=tf32, deterministic=True).flags())
        assert flags() == (tf32, tf32, False, True, False, ":4096:8")
    assert flags() == before
    with Backend(tf32=tf32).flags():
        assert flags() == (tf32, tf32, *before[2:])
    assert flags() == before


def test_a_workspace_that_is_fixed_already_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with Backend(deterministic=True).flags():
        assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with Backend(deterministic=True).flags():
        assert os.environ[WORKSPACE] == ":4096:8"
    assert os.environ[WORKSPACE] == ":0:0"


def test_what_is_not_known_or_not_used_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"`memory_format` must be one of .*'channels_last'.*, got 'nhwc'"):
        Backend(memory_format="nhwc")
    with pytest.raises(ValueError, match="`--compile` is for training, and this command does not train: leave it out"):
        Place(backend=Backend(compile=True)).runtime(trains=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"`compile` needs a C\+\+ compiler, one of g\+\+, clang\+\+, cl: install it"):
        Backend(compile=True).compiled(nn.Linear(2, 2))


def weights(run):
    return dict(load_checkpoint(run.checkpoint(max(run.checkpoints())))[0].named_parameters())


def test_filters_of_images_last_in_memory_train_the_same_run(tmp_path):
    plain = fit(CONVOLUTIONAL, out=tmp_path / "plain")
    strided: list[bool] = []

    class Watched(Backend):
        def laid_out(self, model):
            strided.append(super().laid_out(model).stem[0].weight.is_contiguous(memory_format=torch.channels_last))
            return model

    other = fit(CONVOLUTIONAL, out=tmp_path / "last", backend=Watched(memory_format="channels_last"))
    assert strided == [True]
    assert other.run_id == plain.run_id
    expected = weights(plain)
    for name, found in weights(other).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4)


def test_a_compiled_run_is_the_same_run_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    compiled = []
    real = torch.compile

    def compile_(function, **options):
        assert options["dynamic"] is False

        def noted(graph, inputs):
            compiled.append(next(len(t) for t in inputs if t.ndim == 4))
            return graph.forward

        return real(function, backend=noted, **options)

    monkeypatch.setattr(torch, "compile", compile_)
    plain = fit(TINY, out=tmp_path / "plain")
    how = {"out": tmp_path / "compiled", "backend": Backend(compile=True)}
    stopped = fit(TINY, stop=lambda _: True, **how)
    assert compiled == [16, 8]  # a shape each, in training alone
    assert stopped.status()["status"] == "interrupted"
    whole = fit(TINY, **how)
    assert (whole.run_id, whole.status()["status"]) == (plain.run_id, "finished")
    expected = weights(plain)
    for name, found in weights(whole).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-7)


def test_a_run_says_with_what_it_was_computed_and_measured(tmp_path):
    fit(TINY, out=tmp_path, stop=lambda _: True)
    run = fit(TINY, out=tmp_path, backend=Backend(deterministic=True))
    first, second = run.status()["machines"]
    assert (first["device"], first["torch"], first["deterministic"]) == ("cpu", torch.__version__, False)
    assert second == {**first, "deterministic": True}
    steps = run.checkpoints()
    found = [load_checkpoint(steps[step])[1]["machine"] for step in (min(steps), max(steps))]
    assert found == [first, second]
    again = fit(TINY, out=tmp_path)
    assert again.status()["machines"] == [first, second]
