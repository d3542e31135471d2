"""Warnings by kind: against counts by hand, and every text that the measures of this package can give has a kind."""

import re
from pathlib import Path

import pytest

import analysis
from analysis.measures.remarks import KINDS, OTHER, kinds_of, warning_kinds
from analysis.table import Row, to_frame

FEW, OWN = "few examples of a class", "no perturbation of its own"


def test_counts_by_hand():
    rows = [
        Row("a", 1.0, warnings="only 12 examples of a class"),
        Row("a", 2.0, warnings="only 9 examples of a class"),
        Row("a", 2.0, warnings="only 9 examples of a class"),
        Row("b", float("nan"), warnings="only 9 examples of a class; nothing was forgotten"),
        Row("b", float("nan"), warnings="nothing was forgotten; nothing was forgotten"),
        Row("c", 3.0, converged=False),
        Row("c", 3.0, converged=False, warnings="it did not reach a residual of 1 (largest: 2) in 3 products"),
        Row("c", 3.0, warnings="a remark of a measure of one's own"),
        Row("d", 4.0),
        Row("d", 5.0),
    ]  # fmt: skip
    found = warning_kinds(to_frame(rows, run_id="r", step=1, epoch=1)).set_index("kind")
    assert found.loc[FEW].to_dict() == {
        "measures": 2, "values": 4, "missing": 1, "share": 0.4, "example": "only 9 examples of a class",
    }  # fmt: skip
    undefined = found.loc["undefined: nothing to divide by"]
    assert (undefined["measures"], undefined["values"], undefined["missing"]) == (1, 2, 2)
    assert found.loc["did not converge", "values"] == 2
    assert found.loc[OTHER, "example"] == "a remark of a measure of one's own"
    assert found.index[0] == FEW
    assert found["values"].is_monotonic_decreasing


def test_a_table_without_a_warning_has_no_kinds():
    table = to_frame([Row("a", 1.0)], run_id="r", step=1, epoch=1)
    assert warning_kinds(table).empty
    assert list(warning_kinds(table)) == ["kind", "measures", "values", "missing", "share", "example"]


def test_kinds_of_one_row_are_named_once_in_their_order():
    assert kinds_of("") == ()
    assert kinds_of("nothing was forgotten; only 3 examples of a class; only 4 examples of a class") == (
        FEW, "undefined: nothing to divide by",
    )  # fmt: skip
    assert kinds_of("", converged=False) == ("did not converge",)
    assert kinds_of("ValueError: one thing; and another") == ("could not be taken",)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the run has no perturbation of its own", OWN),
        ("the margin is -0.2, not above 0: too many training examples are wrong", "undefined: nothing to divide by"),
        ("no radius raised the loss by 0.1 nats on 4 of 20 batches", "no radius, or not on all batches"),
        ("ValueError: `m` must be at least 1", "could not be taken"),
        ("diverged: the loss is nan", "could not be taken"),
        ("its process died (SIGKILL); the same command tries again. Out of memory? Use fewer jobs.",
         "could not be taken"),
        ("logits are not finite on 3 of 20 examples", "not finite"),
        ("the training loss did not reach 0.01 by this checkpoint", "the level was not reached"),
        ("needs probabilities of classes, which the task with loss 'mse' has not",
         "does not fit the model, the task or the data"),
        ("finite differences, because it has no second derivative", "finite differences"),
        ("2 of 20 test examples are in the training data too", "test examples are in the training data"),
    ],
)  # fmt: skip
def test_texts_have_the_kind_that_a_reader_expects(text, kind):
    assert kind in kinds_of(text)


def test_every_text_that_stands_in_the_code_has_a_kind():
    """Strings behind `warnings=`, `note =`, `why =`, `reason =` in the files that make rows."""
    said = re.compile(r'(?:warnings=|\bnotes? = |\bwhy = |\breason = )f?"([^"]{8,})"')
    folders = [Path(analysis.__file__).parent / name for name in ("measures", "forgetting")]
    texts = {t for folder in folders for f in folder.rglob("*.py") for t in said.findall(f.read_text())}
    assert len(texts) > 15
    whole = [t for t in texts if not t.startswith("{") and "{note}" not in t]  # not made of others
    filled = {t: re.sub(r"\{[^}]*\}", "3", t) for t in whole}
    assert {t for t, text in filled.items() if OTHER in kinds_of(text)} == set()
    assert len({kind for text in filled.values() for kind in kinds_of(text)}) >= len(KINDS) // 3
