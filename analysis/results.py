"""One study's results, read from its folder: what the figures, the tables and the report are made from.

    <folder>/study.json
    <folder>/runs/<run_id>/{config.json, status.json, history.parquet}
    <folder>/measures.parquet
    <folder>/statistics/{correlations,comparisons,ceilings}.parquet
    <folder>/statistics.json    how the statistics were made
    <folder>/statistics/{granulated,information,sign_errors,...}.parquet    where they were made
    <folder>/surfaces.json    where surfaces were drawn: their files by method

Every file is written by an earlier command; `StudyResults.load` reads them and says which command to run where one is
missing. A run that is not whole is not an error: it stays in `runs` with a status that says so.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from analysis.score import Score
from analysis.statistics import ceiling, comparison
from analysis.statistics.catalogue import STATISTICS
from analysis.statistics.correlation import defaults
from analysis.statistics.correlation_rows import COLUMNS as CORRELATION_COLUMNS
from analysis.statistics.correlation_rows import UNKNOWN, completed
from analysis.style import EXPOSURES, counted, family, interval, measure_name, method_labels
from analysis.surfaces.files import read_surface
from analysis.table import COLUMNS, SEED_COLUMNS, join_config, last_step, read, with_variant
from landscape.naming import nearest
from landscape.showing import html_table
from landscape.surfaces import Surface
from trainers.files.reading import Shape, read_json, read_table
from trainers.runs.folder import HISTORY as RECORDED
from trainers.runs.folder import Run

if TYPE_CHECKING:
    from analysis.explorer.page import Explorer

HISTORY = ("run_id", *RECORDED)
CORRELATIONS = (*CORRELATION_COLUMNS, "expected_sign")
COMPARISONS = comparison.COLUMNS
CEILINGS = ceiling.COLUMNS
NEEDED = {"correlations": CORRELATIONS, "comparisons": COMPARISONS, "ceilings": CEILINGS}
RUNS = ("run_id", "status", "reason", "seconds", "epochs")
ENTRIES = (
    *("measure", "rows", "family", "higher_means", "sign", "invariant", "cost", "gradients", "seconds", "checkpoints"),
)

# The first of these that was measured is the one the report leads with.
LEADING_TARGETS = ("gap_error", "test_error", "gap_loss", "ood_error_mean")
OVERLAP = (
    " Draws of the data are splits of the same examples and overlap, so intervals over them are too short for new data "
    "(Nadeau and Bengio 2003)."
)
OPTIONAL = ("seconds",)  # columns of the measures table that are kept where there are any
_LATER: dict[str, Mapping[str, Any]] = {  # columns that older statistics may lack, with what stands for "unknown"
    "correlations": {**UNKNOWN, "role": "", "correction": ""},
    "comparisons": {
        "pairs": comparison.POOLED, "draws": 0,
        **dict.fromkeys(("low_draws", "high_draws", "signed", "signed_low", "signed_high"), math.nan),
    },
    "ceilings": {"strongest": "", **dict.fromkeys(("independent", "strongest_value", "strongest_across"), math.nan)},
}  # fmt: skip


class StatisticsShape(Shape):
    """What of the settings of statistics the report tells."""

    draws: int | None = None
    permutations: int | None = None
    level: float = 0.95
    lead: str | None = None


class StudyShape(Shape):
    """What of a study's configuration the report tells."""

    statistics: StatisticsShape | None = None
    weights: str | None = None


class StudyFile(Shape):
    """study.json; what an earlier version did not write may be absent."""

    runs: list[str | dict[str, Any]]
    name: str | None = None
    question: str | None = None
    command: str | None = None
    created: str | None = None
    seconds: float | dict[str, float] | None = None
    environment: dict[str, Any] | None = None
    study: StudyShape | None = None


class SurfacesFile(Shape):
    """surfaces.json."""

    surfaces: dict[str, str]


@dataclass(frozen=True, repr=False)
class StudyResults:
    """Everything one study produced, as tables.

    Attributes:
        folder: The study's folder.
        study: The resolved study: name, command, created, seconds, environment, ...
        runs: One row a run: run_id, status ("missing" where there is no folder), reason, seconds, epochs, and `hp.*`.
        history: One row an epoch of a run, the columns of `HISTORY`, and `hp.*`.
        measures: The long table of `analysis.table`, with `hp.*`; also `seconds` where it was recorded.
        correlations: One row a (measure, target, coefficient), the columns of `CORRELATIONS`.
        comparisons: One row a (forgetting, sharpness, target, pairs), the columns of `COMPARISONS`.
        ceilings: One row a (target, coefficient), the columns of `CEILINGS`.
        further: Further tables of statistics by name, of `STATISTICS`; those that were not made are not in it.
        surfaces: Loss surfaces by method, where the study asked for them.
        statistics: The settings that the statistics were made with, where they are known.

    Raises:
        ValueError: If a table lacks a column, naming the table and the columns.
    """

    folder: Path
    study: dict[str, Any]
    runs: pd.DataFrame
    history: pd.DataFrame
    measures: pd.DataFrame
    correlations: pd.DataFrame
    comparisons: pd.DataFrame
    ceilings: pd.DataFrame
    further: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    surfaces: Mapping[str, Surface] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = {"runs": RUNS, "history": HISTORY, "measures": tuple(COLUMNS), **NEEDED}
        if unknown := [name for name in self.further if name not in STATISTICS]:
            raise ValueError(
                f"`further` holds {unknown}, which are no tables of statistics; known: {list(STATISTICS)}."
            )
        tables = {name: getattr(self, name) for name in needed} | dict(self.further)
        for name, table in tables.items():
            columns = needed.get(name) or STATISTICS[name].needed
            missing = [c for c in columns if c not in table.columns]
            if missing:
                raise ValueError(f"`{name}` lacks the columns {missing}; it needs {list(columns)}.")

    def __repr__(self) -> str:
        runs = counted(len(self.runs), "run")
        finished = int((self.runs["status"] == "finished").sum())
        configurations = counted(self.configurations()["configuration"].nunique(), "configuration")
        measures = counted(self.correlations["measure"].nunique(), "measure")
        targets = counted(len(self.targets), "target")
        name = self.study.get("name") or self.folder.name
        return (
            f"<StudyResults {name!r}: {runs} ({finished} finished) of {configurations}, {measures}, {targets}; "
            f"folder {str(self.folder)!r}>"
        )

    def _repr_html_(self) -> str:
        """What the study is, and its strongest correlations with the first target, for a notebook."""
        said = f"<p>{escape(repr(self))}</p>"
        if not (self.targets and len(self.correlations)):
            return said
        target = self.targets[0]
        from analysis.figures.correlations import strongest  # figures are slow to import

        found = strongest(self.correlations, target=target, top=5)
        rows = [
            (f"{measure_name(m)} ({m})", interval(value, low, high))
            for m, value, low, high in found[["measure", "value", "low", "high"]].itertuples(index=False)
        ]
        return said + html_table(
            rows, head=("measure", "Kendall's τ"), caption=f"strongest with {measure_name(target)}"
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a study's folder.

        Args:
            folder: The folder that `landscape study` wrote.

        Raises:
            FileNotFoundError: If a file of the study is missing, with the command that makes it.
            ValueError: If a file cannot be read as what it should be, naming the file.
        """
        folder = Path(folder)
        study = read_json(
            folder / "study.json", StudyFile, hint=f"make a study with `landscape study FILE --out {folder}`"
        )
        configs, runs, histories = _runs(folder / "runs", study, f"train with `landscape study FILE --out {folder}`")
        measures = read(folder / "measures.parquet")
        again = f"make it with `landscape correlate {folder}`"
        statistics = {
            name: read_table(
                folder / "statistics" / f"{name}.parquet",
                [c for c in columns if c not in _LATER[name]],
                hint=again,
            )
            for name, columns in NEEDED.items()
        }
        statistics = {name: _with_later_columns(name, rows) for name, rows in statistics.items()}
        further = {
            name: statistic.completed(read_table(path, statistic.needed, hint=again))
            for name, statistic in STATISTICS.items()
            if (path := folder / "statistics" / f"{name}.parquet").exists()
        }
        # A run that left measures but whose folder is gone is still named.
        ghosts = sorted(set(measures["run_id"]) - set(runs["run_id"]))
        if ghosts:
            runs = pd.concat([runs, pd.DataFrame([_run_row(g, "missing", "no run folder") for g in ghosts])])
        return cls(
            folder=folder,
            study=study,
            runs=_with_config(runs.reset_index(drop=True), configs),
            history=_with_config(histories, configs),
            measures=_with_config(measures[[*COLUMNS, *(c for c in OPTIONAL if c in measures.columns)]], configs),
            **statistics,
            further=further,
            surfaces=_surfaces(folder),
            statistics=read_json(told, StatisticsShape, hint=again)
            if (told := folder / "statistics.json").exists()
            else {},
        )

    def explore(self, *others: "StudyResults") -> "Explorer":
        """The explorer: a page to choose axes and runs on, shown where it stands last in a notebook's cell.

        Args:
            *others: Studies to see side by side with this one.

        Returns:
            The page; `.save(path)` writes it to a file that needs no other.

        Raises:
            ValueError: If a study has no measured run, or is given twice.
        """
        from analysis.explorer.page import explorer  # which needs this module

        return explorer([self, *others])

    @cached_property
    def methods(self) -> list[str]:
        """The labels of all methods in the study, in no particular order."""
        return sorted(set(method_labels(self.runs)))

    @cached_property
    def targets(self) -> list[str]:
        """The targets that something was correlated with, the leading one first: the study's choice, or the gap."""
        given = list(dict.fromkeys(self.correlations["target"].astype(str)))
        lead = str(self._own_statistics().get("lead") or "")
        known: tuple[str, ...] = LEADING_TARGETS
        if not set(known[:2]) & set(given):  # a task of one's own leads with the gap of its first score
            known = (*(t for t in given if t.startswith("gap_") and t not in known), *known)
        order = [t for t in dict.fromkeys((lead, *known)) if t in given]
        return order + [t for t in given if t not in order]

    @cached_property
    def configuration_columns(self) -> list[str]:
        """The columns that tell configurations apart: `hp.method`, and those in which runs of one method differ.

        The seeds are not among them, nor what a method brings with it, such as its own options.
        """
        columns = [c for c in self.runs.columns if c.startswith("hp.") and c not in (*SEED_COLUMNS, "hp.method")]
        within = [self.runs[c].map(str).groupby(method_labels(self.runs)).nunique().max() for c in columns]
        varied = [c for c, n in zip(columns, within, strict=True) if n > 1]
        return (["hp.method"] if len(self.methods) > 1 else []) + varied

    @property
    def draws_of_data(self) -> int:
        """How many draws of the data the finished runs were trained on: each another split of the same examples."""
        if "hp.data_seed" not in self.runs.columns:
            return 1
        return max(1, int(self.runs.loc[self.runs["status"] == "finished", "hp.data_seed"].nunique()))

    def configurations(self) -> pd.DataFrame:
        """One row a run: run_id, status, method, and configuration: shared by runs that differ in their seeds."""
        return self._configurations.copy(deep=False)

    @cached_property
    def _configurations(self) -> pd.DataFrame:
        columns = [c for c in self.runs.columns if c.startswith("hp.") and c not in SEED_COLUMNS]
        keys = self.runs[columns].map(str).agg("|".join, axis=1) if columns else self.runs["run_id"]
        return pd.DataFrame(
            {
                "run_id": self.runs["run_id"],
                "configuration": pd.factorize(keys)[0],
                "method": method_labels(self.runs),
                "status": self.runs["status"],
            }
        )

    def final(self) -> pd.DataFrame:
        """The last row of history of every finished run, with `configuration` and `method`."""
        return self._final.copy(deep=False)

    @cached_property
    def _final(self) -> pd.DataFrame:
        finished = self.configurations().query("status == 'finished'")
        rows = self.history.merge(finished, on="run_id", how="inner")
        return rows[rows["epoch"] == rows.groupby("run_id")["epoch"].transform("max")].reset_index(drop=True)

    @property
    def score(self) -> Score:
        """What the study's runs are compared by: the error, or the leading score of another task."""
        return Score.of_history(self.history.columns)

    def best_configurations(self, *by: str) -> tuple[pd.DataFrame, str]:
        """For each method the configuration with the lowest mean final validation error over its finished seeds.

        The leading score of another task has the place of the error. The test set never chooses. Without a validation
        set nothing is chosen.

        Args:
            *by: Further columns; one configuration is then chosen for each method and each value of these.

        Returns:
            The rows of `final` of the chosen runs, and the rule, in words.
        """
        final, column, words = self.final(), self.score.on("validation"), self.score.words
        keys = ["method", *by]
        if final.empty or not np.isfinite(final[column].to_numpy(dtype=float)).any():
            return final, f"all finished configurations of the method (there is no validation {words} to choose one by)"
        mean = final.groupby([*keys, "configuration"], dropna=False)[column].mean().dropna().reset_index()
        best = mean.sort_values([column, "configuration"]).drop_duplicates(keys)
        chosen = final[final["configuration"].isin(set(best["configuration"]))]
        return chosen, f"the configuration with the lowest mean validation {words} at the end"

    def forgetting(self) -> pd.DataFrame:
        """The rows of perturbed forgetting of all finished runs, with columns provider, radius, m and method."""
        return self._forgetting.copy(deep=False)

    @cached_property
    def _forgetting(self) -> pd.DataFrame:
        rows = self.measures[self.measures["split"].isin(list(EXPOSURES))]
        options = {text: json.loads(text) for text in rows["options"].unique()}
        columns = {k: rows["options"].map(lambda t, k=k: options[t].get(k)) for k in ("provider", "radius", "m")}
        rows = rows.assign(**columns).dropna(subset=["provider", "radius"])
        return rows.merge(self.configurations().query("status == 'finished'"), on="run_id", how="inner")

    def points(self, measure: str, target: str) -> pd.DataFrame:
        """One row a configuration: mean and standard deviation over its seeds of two variants, at the last checkpoint.

        Returns:
            Columns configuration, method, x, x_sd, y, y_sd, seeds; configurations where either is not finite are left
            out. The standard deviation leaves out what a draw of the data adds to all configurations alike, and is NaN
            for a single seed.

        Raises:
            ValueError: If the table has no such variant, with the nearest name.
        """
        rows = self._last
        known = list(rows["variant"].unique())
        for argument, name in (("measure", measure), ("target", target)):
            if name not in known:
                few = [v for v in known if v.partition("[")[0] == name]
                meant = f" It has {few[:5]}: name one of them." if few else nearest(name, known)
                raise ValueError(f"`{argument}` names {name!r}, which is not in the table.{meant}")
        rows = rows[rows["variant"].isin([measure, target])]
        value = rows.pivot_table(index="run_id", columns="variant", values="value", aggfunc="first")
        value = value.reindex(columns=[measure, target]).set_axis(["x", "y"], axis=1)
        value = value.loc[np.isfinite(value.to_numpy(dtype=float)).all(axis=1)]
        joined = value.reset_index().merge(self.configurations(), on="run_id", how="inner")
        groups = joined.groupby(["configuration", "method"])
        points: pd.DataFrame = groups.agg(x=("x", "mean"), y=("y", "mean"), seeds=("x", "size")).reset_index()
        left = joined[["configuration"]].join(self._without_draws(joined))
        for name in ("x", "y"):
            squares = (left[name] ** 2).groupby(left["configuration"]).sum().reindex(points["configuration"])
            points[f"{name}_sd"] = np.sqrt(squares.to_numpy() / np.maximum(points["seeds"].to_numpy() - 1, 1))
        points.loc[points["seeds"] < 2, ["x_sd", "y_sd"]] = np.nan
        return points[["configuration", "method", "x", "x_sd", "y", "y_sd", "seeds"]]

    @cached_property
    def _last(self) -> pd.DataFrame:
        """The values of each run's last checkpoint, by variant."""
        rows = with_variant(last_step(self.measures[[*COLUMNS]]))
        return rows[["run_id", "variant", "value"]]

    def _without_draws(self, joined: pd.DataFrame) -> pd.DataFrame:
        """How far the x and y of runs are from their configuration's mean, and from that of their draw of the data."""
        values = joined[["x", "y"]]
        left: pd.DataFrame = values - values.groupby(joined["configuration"]).transform("mean")
        if "hp.data_seed" not in self.runs or self.runs["hp.data_seed"].nunique() < 2:
            return left
        draw = joined["run_id"].map(self.runs.set_index("run_id")["hp.data_seed"].map(str))
        return left - left.groupby(draw).transform("mean")

    def entries(self) -> pd.DataFrame:
        """One row an entry of the registry that left rows in the measures table: what it is and what it costs.

        Returns:
            Columns measure (the entry), rows (names of its rows, comma-separated), family (as in `style.FAMILIES`),
            higher_means, sign, invariant, cost (in words), gradients (expected, a checkpoint), seconds (mean over
            checkpoints; NaN where the table has none), checkpoints.
        """
        from analysis.measures.registry import MEASURES, entry_of  # slow to import

        rows = self.measures
        keys = {name: entry_of(name) for name in rows["measure"].unique()}
        taken = rows.assign(entry=rows["measure"].map(keys)).dropna(subset="entry")
        if "seconds" not in taken.columns:
            taken = taken.assign(seconds=np.nan)
        found = []
        for key, own in taken.groupby("entry"):
            entry = MEASURES[str(key)]
            present = set(own["measure"])
            checkpoints = own.drop_duplicates(["run_id", "step"])
            found.append({
                "measure": key, "rows": ", ".join(r for r in entry.rows if r in present),
                "family": family(entry.rows[0]), "higher_means": entry.higher_means, "sign": entry.sign,
                "invariant": entry.invariant, "cost": entry.cost, "gradients": entry.gradients,
                "seconds": float(pd.to_numeric(checkpoints["seconds"]).mean()), "checkpoints": len(checkpoints),
            })  # fmt: skip
        return pd.DataFrame(found, columns=list(ENTRIES))

    def _own_statistics(self) -> dict[str, Any]:
        """The settings of statistics that the study itself asks for."""
        return dict((self.study.get("study") or {}).get("statistics") or {})

    def other_statistics(self) -> str:
        """In which settings the statistics were made otherwise than the study asks; empty where in none."""
        own = {**defaults(), **self._own_statistics()}
        own["compare"] = self.statistics.get("compare")  # of the study's pairs those that were measured
        usual = self.statistics.get("usual") or ()  # left to a rule, by the study too unless it says a number
        told = {
            key: value
            for key, value in self.statistics.items()
            if key != "usual" and own.get(key) != (None if key in usual else value)
        }
        return ", ".join(f"{key} {value}" for key, value in told.items())

    def other_weights(self) -> str:
        """Which weights were measured; empty where all are those of last checkpoints."""
        options = [json.loads(text) for text in self.measures["options"].unique()]
        averages = sorted({o["weights"] for o in options if o.get("weights")})
        said = [f"the average of weights ({kind})" for kind in averages]
        if (self.study.get("study") or {}).get("weights") == "best":
            said.append("those with the best validation error, by which they were chosen")
        return ", ".join(said)

    def facts(self) -> dict[str, str]:
        """How the statistics were made, in words for captions.

        `level`, `intervals` (of correlations), `resampled` (of paired differences), `permutations`, `overlap` (of draws
        of the data; a sentence, empty where there is one draw), `nats`. Numbers are
        those that `statistics.json` records. Older folders lack that file: their numbers are left out of the words, but
        for the level, which is then the study's, or 95 %.
        """
        settings = dict(self.statistics)
        draws, permutations = settings.get("draws"), settings.get("permutations")
        options = [json.loads(text) for text in self.measures["options"].unique()]
        rises = sorted({o["iso_loss"] for o in options if o.get("iso_loss") is not None})
        level = f"{100 * float(settings.get('level') or self._own_statistics().get('level') or 0.95):g} %"
        times = f" ({draws} times)" if draws else ""
        kinds = set(self.correlations["interval"]) if "interval" in self.correlations.columns else set()
        resampled = f"{level} intervals resample configurations{times}, all seeds of one together"
        jackknife = f"{level} intervals leave out one configuration at a time, all its seeds (jackknife, Fisher's z)"
        return {
            "level": level,
            "intervals": jackknife if "stabilised" in kinds else resampled,
            "resampled": resampled,
            "permutations": f"{permutations:,} permutations" if permutations else "permutations",
            "overlap": OVERLAP if self.draws_of_data > 1 else "",
            "nats": " or ".join(f"{r:g} nats" for r in rises) or "the same amount",
        }


def _with_later_columns(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """A table of statistics with all columns."""
    if name == "correlations":
        if not {"p_adjusted", "p_holm"} & set(rows.columns):
            raise ValueError("the table of correlations lacks the columns ['p_adjusted'].")
        return completed(rows)
    return rows.assign(**{c: unknown for c, unknown in _LATER[name].items() if c not in rows.columns})


def _runs(folder: Path, study: dict[str, Any], hint: str) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Configurations, one row a run, and all histories; a run that is not whole says so in its row."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: {hint}.")
    promised = [r["run_id"] if isinstance(r, dict) else r for r in study.get("runs") or []]
    present = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    configs: dict[str, Any] = {}
    rows, histories = [], []
    for name in dict.fromkeys([*map(str, promised), *present]):
        run = Run(folder / name)
        if not (run.folder / "config.json").exists():
            rows.append(_run_row(name, "missing", "no config.json" if run.folder.is_dir() else "no run folder"))
            continue
        configs[name], status = run.settings(), run.status()
        row = _run_row(name, status["status"], status["reason"], status["seconds"])
        if (run.folder / "history.parquet").exists():
            try:
                history = run.history()
            except ValueError as error:  # one damaged run is a marked row, the others go on
                row |= {"status": "failed", "reason": str(error)}
            else:
                histories.append(history.assign(run_id=name))
                row["epochs"] = int(history["epoch"].max()) if len(history) else 0
        rows.append(row)
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame(columns=["run_id"], dtype=object)
    extra = [c for c in history.columns if c not in HISTORY and not c.startswith("hp.")]
    return configs, pd.DataFrame(rows, columns=list(RUNS)), history.reindex(columns=[*HISTORY, *extra])


def _run_row(run: str, status: str, reason: str, seconds: float = math.nan) -> dict[str, Any]:
    return {"run_id": run, "status": status, "reason": reason, "seconds": float(seconds), "epochs": 0}


def _with_config(table: pd.DataFrame, configs: dict[str, Any]) -> pd.DataFrame:
    if not configs:
        return table
    return join_config(table.assign(run_id=table["run_id"].astype("str")), configs)


def _surfaces(folder: Path) -> dict[str, Surface]:
    """The surfaces that the study kept, by method; a file that is gone is left out."""
    index = folder / "surfaces.json"
    if not index.exists():
        return {}
    files = {name: folder / place for name, place in read_json(index, SurfacesFile)["surfaces"].items()}
    return {name: read_surface(file)[0] for name, file in files.items() if file.exists()}
