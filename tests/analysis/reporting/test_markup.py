"""Names and sentences of users in files that other programs read."""

import pandas as pd
import pytest

from analysis.reporting.markup import code, escape_markdown, marked_markdown, plain_cells


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("top_eigenvalue", "top_eigenvalue"),
        ("F_mi[obf, iso-loss, m=64]", "F_mi[obf, iso-loss, m=64]"),
        ("< 0.001", "< 0.001"),
        ("-0.5", "-0.5"),
        ("_private_", r"\_private\_"),
        ("a|b`c*d", r"a\|b\`c\*d"),
        ("[here](http://x)", r"[here\](http://x)"),
        ("<img src=x>", r"\<img src=x>"),
        ("&lt;", r"\&lt;"),
        ("~~gone~~", r"\~\~gone\~\~"),
        (r"\_", r"\\\_"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("12. item", r"12\. item"),
        ("---", r"\---"),
        ("two\n\n# lines", "two # lines"),
    ],
)
def test_markdown_shows_text_as_it_is(given, wanted):
    assert escape_markdown(given) == wanted


def test_only_names_in_backticks_are_code():
    assert marked_markdown("Of `a_b*` it is *said* <b> by `c`, ` open") == (
        r"Of `a_b*` it is \*said\* \<b> by `c`, \` open"
    )
    assert code("a`b") == "``a`b``"
    assert code("`") == "`` ` ``"


def test_a_spreadsheet_computes_no_cell_and_numbers_stay_numbers():
    given = pd.DataFrame({"=h": ["=1+1", "-0.5", "-x", "@a", "+cmd", "\tx", "fine"], "n": [-1.0] * 7})
    found = plain_cells(given)
    assert list(found.columns) == ["'=h", "n"]
    assert found["'=h"].tolist() == ["'=1+1", "-0.5", "'-x", "'@a", "'+cmd", "'\tx", "fine"]
    assert found["n"].tolist() == [-1.0] * 7
