"""References to user functions, near names, and seeded blocks."""

import pytest
import torch

from landscape.naming import nearest
from trainers.randomness import derive, seeded, stream
from trainers.reference import is_reference, load_reference

MODULE = """
class Holder:
    @staticmethod
    def inside():
        return 2

def build():
    return 1

constant = 3
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    package = tmp_path / "reference_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(MODULE)
    (package / "broken.py").write_text("import module_that_is_missing\n")
    (package / "failing.py").write_text("raise RuntimeError('my own error')\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(("name", "expected"), [("a:b", True), ("a.b:c", True), ("digits", False), ("", False)])
def test_colon_makes_a_reference(name, expected):
    assert is_reference(name) is expected


def test_functions_and_dotted_attributes_are_found(modules):
    assert load_reference("reference_package.mine:build")() == 1
    assert load_reference("reference_package.mine:Holder.inside")() == 2


@pytest.mark.parametrize("text", ["digits", "package.module:", ":f", "a b:c", "a:b:c", "a..b:c", "../x:f"])
def test_wrong_form_is_refused(text):
    with pytest.raises(ValueError, match=r"must have the form `package.module:function`, got '"):
        load_reference(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_package.mine:build", "no module 'no_such_package'; install it, or put its folder on PYTHONPATH"),
        ("reference_package.nowhere:build", "there is no module 'reference_package.nowhere'"),
        ("reference_package.mine:biuld", r"has no attribute 'biuld'\. Did you mean 'build'\?"),
        ("reference_package.mine:Holder.insid", r"has no attribute 'insid'\. Did you mean 'inside'\?"),
        ("reference_package.mine:constant", "is of type int, which cannot be called; name a function"),
    ],
)
def test_what_is_missing_is_named(modules, text, message):
    with pytest.raises(ValueError, match=message):
        load_reference(text)


def test_errors_of_the_module_itself_are_passed_on(modules):
    with pytest.raises(ModuleNotFoundError, match="module_that_is_missing"):
        load_reference("reference_package.broken:f")
    with pytest.raises(RuntimeError, match="my own error"):
        load_reference("reference_package.failing:f")


def test_without_trust_nothing_is_imported(modules):
    with pytest.raises(PermissionError, match=r"'reference_package.failing:f' was not imported.*--trust"):
        load_reference("reference_package.failing:f", trust=False)
    with pytest.raises(PermissionError, match=r"'cifar01:data' was not imported.*--trust`\. Did you mean 'cifar10'\?"):
        load_reference("cifar01:data", trust=False)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sma", " Did you mean 'sam'?"),
        ("SAM-ON", " Did you mean 'sam_on'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest_name(name, hint):
    assert nearest(name, ["sam", "sam_on", "adamw"]) == hint
    assert nearest(name, []) == ""


def test_seeded_blocks_repeat_nest_and_leave_no_trace():
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(4)
        with seeded(4):
            inner = torch.rand(4)
        rest = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3):
        assert torch.equal(torch.rand(4), first)
        assert torch.equal(torch.rand(4), rest)
    with pytest.raises(RuntimeError, match="negative"), seeded(4):
        torch.rand(-1)
    with seeded(4):
        assert torch.equal(torch.rand(4), inner)
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.rand(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, expected)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None])
def test_wrong_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer in \[0, 2\^63\)"), seeded(seed):
        pass
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        derive(seed, "split")


def test_streams_differ_by_seed_and_purpose():
    draws = {(s, p): float(torch.rand((), generator=stream(s, p))) for s in (0, 1) for p in ("split", "patch")}
    assert len(set(draws.values())) == 4
    # SHA-256 of "0:split" begins 8191489326876928 (sha256sum): were this to move, old runs could not be repeated
    assert derive(0, "split") == 0x8191489326876928 // 2
