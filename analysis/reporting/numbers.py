r"""The numbers of a study for the text of a paper: `numbers.tex`, to be read by `\input`."""

import re

import numpy as np

from analysis.candidates import corrected_p, lineup
from analysis.figures.correlations import leading, of_target
from analysis.reporting.latex import escape_latex
from analysis.reporting.tables import methods
from analysis.results import StudyResults
from analysis.statistics.statistic import span
from analysis.style import fixed, measure_name

DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def to_tex(results: StudyResults) -> str:
    r"""A LaTeX command a number, with a comment that says what it is.

    `\lsTauTopEigenvalue` is Kendall's coefficient of the measure with the leading target, `...Interval` its interval,
    `...P` its corrected p-value, and with `Cells` behind `Tau` the same inside cells; `\lsTestErrorSam` is the mean
    error of a method at the configuration that validation data choose, `...Sd` its deviation over seeds. Of two
    measures whose names have the same letters the first has the command.
    """
    target, _ = leading(results)
    found: dict[str, tuple[str, str]] = {}

    def say(name: str, text: str, comment: str) -> None:
        found.setdefault(name, (text, comment))

    say(command("Runs"), str(len(results.runs)), "runs")
    say(command("Finished"), str(int((results.runs["status"] == "finished").sum())), "of them finished")
    say(command("Configurations"), str(results.configurations()["configuration"].nunique()), "configurations")
    say(command("Methods"), str(len(results.methods)), "methods")
    say(command("Target"), measure_name(target), "what the correlations are with")
    for standing in lineup(results, of_target(results.correlations, target)) if target else []:
        row = standing.row
        for kind, value, of in (("Tau", "value", ""), ("TauCells", "stratified", "stratified_")):
            if not np.isfinite(row[value]):
                continue
            name, where = command(kind, row["measure"]), "over all pairs" if not of else "inside cells"
            say(name, fixed(row[value]), f"tau_b of {row['measure']} with {target}, {where}")
            say(f"{name}Interval", span(row[f"{of}low"], row[f"{of}high"]), "its interval")
            say(f"{name}P", corrected_p(row, of), "its corrected p-value")
    score = results.score
    for row in methods(results).data.to_dict("records"):
        for split in ("test", "train"):
            mean, sd = (score.factor * row[f"{score.on(split)}_{part}"] for part in ("mean", "sd"))
            name = command(score.on(split), row["method"])
            say(name, fixed(mean), f"{score.on(split)}{score.unit} of {row['method']}, {row['configuration']}")
            say(f"{name}Sd", fixed(sd), f"its deviation over {row['seeds']} seeds")
    lines = [
        rf"\newcommand{{\{name}}}{{{escape_latex(text)}}}" + f" % {_ascii(comment)}\n"
        for name, (text, comment) in found.items()
    ]
    return "".join(lines)


def command(*parts: str) -> str:
    """The name of a command, of letters alone, as TeX wants it: `lsTauTopEigenvalue`."""
    words = re.findall(r"[A-Za-z]+|\d", " ".join(parts))
    return "ls" + "".join(DIGITS[int(word)] if word.isdigit() else word[:1].upper() + word[1:] for word in words)


def _ascii(text: str) -> str:
    return " ".join(text.encode("ascii", "replace").decode("ascii").split())
