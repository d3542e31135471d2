"""The curvature benchmark at its quick size; what it takes for the truth; the peers' adapters."""

import importlib.metadata
import json

import pytest
import torch

from benchmarks import curvature, peak, peers
from benchmarks.__main__ import main
from benchmarks.library import DoubleBackward, Landscape
from benchmarks.peers import PEERS, Curvlinops, HessianEigenthings, PyHessian
from benchmarks.problems import both_signs, clustered, flat, oracles, small_attention
from benchmarks.subjects import dense_hessian, prescribed, small_tanh_network
from benchmarks.table import markdown

# torch's own, at the first forward-mode product of a process
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

COLUMNS = {"what", "value", "unit", "group"}


def needs(peer):
    """Run a test only where a peer is installed; otherwise say why it is left out."""
    reason = peer.missing()
    return pytest.param(peer, marks=[pytest.mark.peers, pytest.mark.skipif(bool(reason), reason=reason)], id=peer.name)


@pytest.mark.parametrize("make", [flat, both_signs, clustered])
def test_a_prescribed_spectrum_is_the_spectrum(make):
    subject = make()
    found = torch.linalg.eigvalsh(dense_hessian(subject)).flip(0)
    torch.testing.assert_close(found, torch.tensor(subject.truth, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_the_tanh_network_is_the_oracle_whatever_its_batches():
    one, two = small_tanh_network("one"), small_tanh_network("two", (3, 2))
    torch.testing.assert_close(dense_hessian(one), dense_hessian(two), rtol=1e-12, atol=1e-14)
    assert one.truth[0] == pytest.approx(0.7566917132, abs=1e-9)
    assert one.truth[-1] == pytest.approx(-0.8163976735, abs=1e-9)


@pytest.mark.parametrize("library", [DoubleBackward, Landscape, *(needs(p) for p in (PyHessian, Curvlinops))])
def test_products_are_those_of_the_dense_matrix(library):
    for subject in (small_tanh_network("ragged", (3, 2)), prescribed("both signs", [3.0, -2.0, 1.0, 0.5])):
        v = subject.vector()
        torch.testing.assert_close(library(subject).product(v), dense_hessian(subject) @ v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("library", [needs(HessianEigenthings)])
def test_a_peer_that_does_not_weigh_batches_is_seen_to_be_wrong(library):
    given = library(small_tanh_network("ragged", (3, 2)))
    v = given.subject.vector()
    error = torch.linalg.vector_norm(given.product(v) - dense_hessian(given.subject) @ v)
    assert error > 0.01 * torch.linalg.vector_norm(v)


@pytest.mark.parametrize("library", [Landscape, *(needs(p) for p in PEERS)])
def test_a_library_leaves_the_subject_as_it_was(library):
    subject = small_attention()
    before = [p.clone() for p in subject.model.parameters()]
    library(subject).stepper(subject.vector())()
    for p, q in zip(subject.model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=0)
        assert p.grad is None


@pytest.mark.parametrize("group", ["products", "tops", "traces", "growth"])
def test_every_group_runs_at_its_quick_size(group, monkeypatch):
    monkeypatch.setattr(peers, "usable", lambda: ([], {p.name: "left out of this test" for p in PEERS}))
    rows = list(curvature.run(quick=True, groups=[group]))
    missing, made = rows[: len(PEERS)], rows[len(PEERS) :]
    assert [r["note"] for r in missing] == ["left out of this test"] * len(PEERS)
    assert made
    assert all(set(r) >= COLUMNS and r["group"] == group for r in made)
    assert len(markdown(rows).splitlines()) == len(rows) + 2
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("seed", range(3))
def test_our_answers_are_right_where_the_truth_is_known(seed):
    for subject, k in oracles():
        given = Landscape(subject).top_eigenvalue(1e-3, seed=seed, k=k)
        assert [a.value for a in given] == pytest.approx(list(subject.truth[:k]), rel=1e-3)


def test_the_peak_of_a_step_is_what_it_holds_at_once(monkeypatch):
    class Hoarder(DoubleBackward):
        def stepper(self, v):
            return lambda: torch.ones(8 * 2**20).sum() + torch.ones(16 * 2**20).sum()  # 32 MiB, gone, then 64 MiB

    monkeypatch.setitem(peak.MAKERS, "hoarder", Hoarder)
    try:
        found = peak.measure(small_tanh_network("any"), "hoarder")
    except PermissionError as error:
        pytest.skip(f"this system does not let a process reset its own peak: {error}")
    assert found["peak"] == pytest.approx(64, abs=8)


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_process_of_its_own():
    found = peak.measured("vit", "landscape, path afresh", quick=True)
    assert found["peak"] >= 0
    assert abs(found["held"]) < 100  # a tiny model: what is held drowns in pages that come and go


@pytest.mark.parametrize("peer", [needs(p) for p in PEERS])
def test_a_peer_answers(peer):
    subject = small_tanh_network("one batch")
    (top,) = peer(subject).top_eigenvalue(1e-3, seed=0)
    assert top.vector is not None
    assert top.vector.shape == (17,)
    assert abs(top.value) <= 0.8164
    assert peer(subject).trace(0.02, seed=0).products


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert PyHessian.missing() == "PyHessian is not installed"
    assert not Curvlinops.available()
    assert [r["unit"] for r in curvature.missing()] == ["missing, not compared"] * len(PEERS)


def test_the_command_writes_its_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(curvature, "GROUPS", {"growth": lambda _: iter([{"what": "a", "value": 1.0, "unit": "MiB"}])})
    assert main(["curvature:growth", "--quick", "--markdown", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["results"][-1] == {
        "part": "curvature", "what": "a", "value": 1.0, "unit": "MiB", "group": "growth", "limit": None,
    }  # fmt: skip
    assert "| a | 1 MiB |" in capsys.readouterr().out
