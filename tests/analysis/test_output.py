"""What commands print: whole names at 80 columns, and a plain line an entry where it is piped."""

import re

import pytest
from commands import command as run

from analysis.cli import output
from analysis.cli.listing import KINDS, entries

LONG = "perturbed_forgetting[sam, own, m=32, exposed, at an equal rise of the loss] *"


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(output, "out", output.Output(width=80, force_terminal=True, color_system=None, _environ={}))


def test_a_table_that_fits_is_one_line_a_row(terminal, capsys):
    output.show_table(("measure", "value"), [("trace[m=[1, 2]]", 1.5), ("b", 22)], right=["value"])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "measure          value", "trace[m=[1, 2]]    1.5", "b                   22",
    ]  # fmt: skip


def test_a_name_that_leaves_too_little_room_stands_above_its_row(terminal, capsys):
    rows = [(LONG, "−0.81", "[−0.97, −0.28]", "not shown to differ from the other one"), ("b", "0.9", "[–, –]", "ok")]
    output.show_table(
        ("measure", "tau_b", "interval", "verdict"),
        rows,
        right=["tau_b", "interval"],
        fold=["verdict"],
        title="With [x]",
    )
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines == [
        "With [x]",
        "measure",
        "  tau_b        interval  verdict",
        LONG,
        "  −0.81  [−0.97, −0.28]  not shown to differ from the other one",
        "b",
        "    0.9          [–, –]  ok",
    ]


def test_long_text_is_folded_beside_numbers_that_are_whole(terminal, capsys):
    output.show_table(("n", "value", "note"), [(LONG, "0.123456", "word " * 40)], fold=["note"])
    _, _, name, first, second, *_ = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert name == LONG
    assert re.fullmatch(r"  0\.123456  (word ?)+", first)
    assert re.fullmatch(r" {12}(word ?)+", second)


def test_prose_is_filled_for_a_terminal_only(terminal, capsys, monkeypatch):
    text = "word " * 40
    output.say(text)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    monkeypatch.setattr(output, "out", output.Output(width=80, force_terminal=False))
    output.say(text)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("what", KINDS)
def test_list_is_one_plain_line_an_entry_where_it_is_piped(what, capsys):
    columns, rows = entries(what)
    assert rows
    assert run("list", what) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [row[0] for row in rows]
    assert {len(line) for line in lines} == {len(columns)}


@pytest.mark.parametrize("what", KINDS)
def test_list_breaks_no_name_on_a_terminal(what, terminal, capsys):
    assert run("list", what) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    for name, *_ in entries(what)[1]:
        assert any(line == name or line.startswith(f"{name} ") for line in lines), name
