"""The help of the program: fast, complete, in words; and completion by the shell."""

import re
import subprocess
import sys

import pytest
import tyro
from commands import command as run

from analysis.cli.commands import COMMANDS
from analysis.cli.completion import script
from analysis.cli.help import FIRST, of_command
from analysis.cli.reading import usage


def options_of(name):
    """As help has them: of each option its name and, for a switch that is on, its opposite."""
    return {part for o in usage(COMMANDS[name].place).options if not o.positional for part in o.name.split(" / ")}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_read_from_the_source_are_those_of_the_parser(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        tyro.cli(COMMANDS[name].function(), args=["--help"])
    lines = [line.strip(" │") for line in capsys.readouterr().out.splitlines()]
    told = dict(
        re.match(r"((?:--[a-z][a-z0-9-]*(?:, )?)+)(.*)", line).groups() for line in lines if re.match("--[a-z]", line)
    )
    switches = {part for text in told for part in text.split(", ") if "," in text and part.startswith("--no-")}
    every = {part for text in told for part in text.split(", ")}
    assert every - switches <= options_of(name) <= every
    for option in usage(COMMANDS[name].place).options:
        choices = re.match(r" \{([^}]+)\}", told.get(option.name, ""))
        if choices and not re.search("[A-Z]", option.takes):
            assert set(choices[1].split(",")) - {"None"} == set(option.takes.removesuffix(" ...").split("|"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_groups_that_fit_80_columns_with_what_matters_first_and_examples_last(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command, shown = COMMANDS[name], of_command(name)
    assert max(map(len, shown.split("\nexamples:")[0].splitlines())) <= 80
    assert len(command.first) <= 10
    top = re.search(rf"^{FIRST}:\n((?:  .*\n)+)", shown, re.MULTILINE)
    named = re.findall(r"^  --([a-z0-9-]+)", top[1] if top else "", re.MULTILINE)
    assert tuple(named) == command.first
    assert set(re.findall(r"^  (--[a-z0-9-]+)", shown, re.MULTILINE)) >= {
        o for o in options_of(name) if "--no-" not in o
    }
    assert shown.split("examples:\n")[1].splitlines() == [f"  {line}" for line in command.examples]
    assert not re.search(r"\b(Optional|Literal|Sequence|str|int|NoneType)\b|tuple\[|dict\[", shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_options_that_exist(name):
    for line in COMMANDS[name].examples:
        words = line.split("#")[0].replace('"', " ").split()
        assert words[0] in ("landscape", "eval")
        assert name in words
        assert {w for w in words if w.startswith("--")} <= {o for other in COMMANDS for o in options_of(other)}


def test_the_settings_of_a_run_are_in_the_sections_of_its_configuration():
    shown = of_command("train")
    headings = re.findall(r"^([a-z][^:\n]*):$", shown, re.MULTILINE)
    assert headings[:3] == [FIRST, "data", "augmentation"]
    assert {"average of weights", "stopping", "where to compute", "how torch computes"} < set(headings)
    assert re.search(r"^method:\n(?:  .*\n)*  --rho-schedule constant\|lr", shown, re.MULTILINE)


def test_help_of_every_command_is_quick_and_loads_no_library():
    code = """
import sys, time
from analysis.cli import main
for name in sys.argv[1:]:
    begun = time.process_time()
    try:
        main([name, "--help"])
    except SystemExit:
        pass
    print("SPENT", name, time.process_time() - begun)
print("LOADED", [m for m in ("torch", "numpy", "pandas", "tyro", "pydantic", "rich") if m in sys.modules])
print("ALL", time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
    spent = [float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("SPENT")]
    assert len(spent) == len(COMMANDS)
    assert max(spent) < 0.4  # and an interpreter takes 0.05


def test_help_wins_over_whatever_else_is_given(capsys):
    assert run("train", "--epochs", "x", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: landscape train [OPTIONS]\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["landscape", "su"], ["surface"]),
        (["landscape", "train", "--label-"], ["--label-noise", "--label-smoothing"]),
        (["landscape", "train", "--precision", "bf"], ["bfloat16"]),
        (["landscape", "list", "me"], ["methods", "measures"]),
        (["landscape", "study", "mine"], []),
    ],
    ids=" ".join,
)
def test_bash_completes_commands_options_and_choices(words, offered):
    given = " ".join(words)
    ask = f'COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _landscape; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{script()}\n{ask}"], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(offered)
    assert done.stderr == ""
