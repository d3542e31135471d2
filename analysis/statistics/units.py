"""Runs sorted into configurations and methods: the units that every statistic is about."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.measures.remarks import NOT_CONVERGED, OTHER, remarks_of
from analysis.statistics.arguments import names, otherwise
from analysis.statistics.resampling import significant
from analysis.table import SEED_COLUMNS, last_step, wide, with_variant

GROUP = ("hp.method", "hp.ascent")
OF_METHOD = (
    *("rho", "rho_schedule", "rho_min", "rho_warmup_epochs", "gate", "gate_options", "perturb_from", "perturb_until"),
    *("m", "sharing", "group_size", "reference_size", "ascent", "obf_classes", "obf_gamma", "obf_link"),
    *("method_options", "base_model_options", "same_rng", "shrink_perturb", "executor"),
)  # settings of a perturbation, or that go with it; all others are hyper-parameters of training, and make a cell
NEEDED = ("run_id", "step", "measure", "options", "split", "value")
ROUNDING = 2.0**-20  # values nearer than this part of their size may differ by the rounding of single precision alone
MAXIMUM_LEVELS = 12  # a hyper-parameter with more is drawn at random, and no axis of a grid


@dataclass(frozen=True)
class Units:
    """Runs and the configurations they belong to.

    Attributes:
        values: One row a run, one column a variant, inf as NaN.
        measure: Name of the measure behind each variant.
        configuration: For each run, the number of its configuration.
        methods: For each configuration, the label of its method group.
        cells: For each configuration, the number of its cell: those of one cell have equal hyper-parameters of training
            and differ in the method and its settings (`OF_METHOD`) alone.
        variants: For each configuration, the number of its variant of a method: the method with its settings. A cell
            has each variant at most once.
        draws_of_data: For each run, the number of the draw of the data (its `hp.data_seed`) that it was trained on.
        hyper: One row a configuration, its `hp.*` columns without the seed; those of the methods are left out.
        draws: For each variant, the examples (or draws) behind a value, the median over runs.
        loose: For each variant with values that did not converge, in which runs; shape (runs,).
        said: For each variant, what rows with a finite value say of it, and in which runs (their places).
    """

    values: pd.DataFrame
    measure: dict[str, str]
    configuration: Int[np.ndarray, " r"]
    methods: list[str]
    cells: Int[np.ndarray, " c"]
    variants: Int[np.ndarray, " c"]
    draws_of_data: Int[np.ndarray, " r"]
    hyper: pd.DataFrame
    draws: dict[str, float]
    loose: dict[str, Bool[np.ndarray, " r"]]
    said: dict[str, dict[str, Int[np.ndarray, " k"]]]

    @cached_property
    def _numbers(self) -> tuple[Float[np.ndarray, "v r"], dict[str, int]]:
        """The values, one row a variant, and the row of each: pandas takes longer to look than we to count."""
        names = {str(name): k for k, name in enumerate(self.values.columns)}
        return np.ascontiguousarray(self.values.to_numpy(dtype=np.float64).T), names

    @cached_property
    def _finite(self) -> dict[str, bytes]:
        """In which runs each variant is finite."""
        values, places = self._numbers
        return {name: row.tobytes() for name, row in zip(places, np.isfinite(values), strict=True)}

    def columns(self, names: Sequence[str], runs: Bool[np.ndarray, " r"]) -> Float[np.ndarray, "v n"]:
        """The values of some variants in some runs, one row a variant."""
        values, places = self._numbers
        chosen = np.array([places[name] for name in names], dtype=np.int64)
        return values[np.ix_(chosen, np.flatnonzero(runs))]

    def average(self, columns: Sequence[str], runs: Bool[np.ndarray, " r"]) -> Float[np.ndarray, "v c"]:
        """Mean of each column over the given runs of each configuration; NaN for a configuration without one.

        Rounded to 12 significant digits: equal error rates must stay equal whatever seeds they came from. Values of a
        row that differ by no more than the rounding of single precision are made equal (`without_rounding`).
        """
        x = self.columns(columns, runs)
        c = len(self.methods)
        belongs = np.zeros((int(runs.sum()), c))
        belongs[np.arange(len(belongs)), self.configuration[runs]] = 1.0
        number = belongs.sum(axis=0)
        mean = significant(x @ (belongs / np.maximum(number, 1)))  # divided first: a sum of huge values overflows
        mean[:, number == 0] = np.nan
        return without_rounding(mean)

    def warnings_in(self, name: str, runs: Bool[np.ndarray, " r"]) -> tuple[float, dict[str, float]]:
        """Which share of a variant's values in some runs carries a warning or did not converge, and of which kinds."""
        total = int(runs.sum())
        kinds: dict[str, Bool[np.ndarray, " r"]] = {}
        for text, places in self.said.get(name, {}).items():
            for kind in (remark if kind == OTHER else kind for kind, remark in remarks_of(text)):
                kinds.setdefault(kind, np.zeros(len(runs), dtype=bool))[places] = True
        if name in self.loose:
            kinds[NOT_CONVERGED] = kinds.get(NOT_CONVERGED, False) | self.loose[name]
        shares = {kind: float((where & runs).sum() / max(total, 1)) for kind, where in kinds.items()}
        shares = {kind: share for kind, share in sorted(shares.items(), key=lambda each: -each[1]) if share}
        anywhere = np.any(list(kinds.values()), axis=0) & runs if kinds else np.zeros(1)
        return float(anywhere.sum() / max(total, 1)), shares

    def blocks(
        self, measures: Sequence[str], targets: Sequence[str]
    ) -> Iterator[tuple[list[str], list[str], Bool[np.ndarray, " r"]]]:
        """Measures and targets by the runs in which they are finite, so that what is alike goes through at once."""

        def by_mask(names: Iterable[str]) -> dict[bytes, list[str]]:
            found: dict[bytes, list[str]] = {}
            for name in names:
                found.setdefault(self._finite[name], []).append(name)
            return found

        for mask_y, ys in by_mask(targets).items():
            for mask_x, xs in by_mask(measures).items():
                yield xs, ys, np.frombuffer(mask_x, dtype=bool) & np.frombuffer(mask_y, dtype=bool)

    def coordinates(self) -> tuple[dict[str, list[str]], list[str]]:
        """The grid: the method, and every hyper-parameter that varies inside a method; a level a configuration.

        What only goes with the method, such as its own options, is part of the method, and sizes that only go with
        the model (`goes_with_model`) of the model. Columns with more than 12 levels are no axis.

        Returns:
            Levels of each axis, named without "hp."; and the columns left out for their many levels.
        """
        found: dict[str, list[str]] = {}
        many: list[str] = []
        if len(set(self.methods)) > 1:
            found["method"] = list(self.methods)
        told = goes_with_model(self.hyper)
        for name in (c for c in self.hyper.columns if c not in told):
            text = self.hyper[name].map(_text)
            if int(text.groupby(np.array(self.methods, dtype=object)).nunique().max()) < 2:
                continue
            if text.nunique() > MAXIMUM_LEVELS:
                many.append(name.removeprefix("hp."))
            else:
                found[name.removeprefix("hp.")] = text.tolist()
        return found, many


def units(
    table: pd.DataFrame, *, group: str | Sequence[str] | None = None, seed_column: str | Sequence[str] = SEED_COLUMNS
) -> Units:
    """Sort the runs of a measures table into configurations and methods.

    Args:
        table: The long measures table, joined with `hp.*` columns; each run's last checkpoint is used.
        group: Columns that make a method, their values joined by "+"; None for `hp.method` and `hp.ascent`, whichever
            the table has.
        seed_column: Columns that tell runs of one configuration apart; every other `hp.*` column is part of the
            configuration.

    Returns:
        The runs, in an order that does not depend on the order of the table's rows.

    Raises:
        ValueError: If there are no rows, no `hp.*` columns, a run without any, or no such `group` column; if columns of
            measures are missing, a run has two settings, or two different values go by one name.
    """
    if lacking := [c for c in NEEDED if c not in table.columns]:
        raise ValueError(f"`table` lacks the columns {lacking}: give the table that `landscape measure` wrote.")
    hyper = [c for c in table.columns if c.startswith("hp.")]
    if not hyper or table.empty:
        raise ValueError("`table` must have rows and `hp.*` columns: join the configurations with `join_config`.")
    if bare := sorted(table.loc[table[hyper].isna().all(axis=1), "run_id"].unique()):
        raise ValueError(f"`table` has runs without a configuration, {bare[:5]}: join theirs with `join_config`.")
    _check_once(table, hyper)
    for argument, value in (("group", group), ("seed_column", seed_column)):
        if not isinstance(value, str | None):
            names(argument, value)
    columns = [c for c in GROUP if c in hyper] if group is None else [group] if isinstance(group, str) else list(group)
    for name in columns:
        if name not in hyper:
            raise ValueError(f"`group` names {name!r}, which is no column of the table.{otherwise(name, hyper)}")
    seeds = {c.lower() for c in ([seed_column] if isinstance(seed_column, str) else seed_column)}
    values = wide(table).astype(np.float64)
    runs = table.drop_duplicates("run_id").set_index("run_id").loc[values.index, hyper]
    settings = [c for c in hyper if c.lower() not in seeds]
    configuration = _numbers(runs[settings])
    first = runs.iloc[np.unique(configuration, return_index=True)[1]]
    labels = ["+".join(t for t in map(_text, row) if t) or "all" for row in first[columns].to_numpy()]
    of_variants = [c for c in settings if c in columns or of_method(c)]
    cells, variants = (_numbers(first[some]) for some in ([c for c in settings if c not in of_variants], of_variants))
    data_seed = runs["hp.data_seed"].map(_text) if "hp.data_seed" in runs else pd.Series("", index=runs.index)
    draws = np.unique(data_seed.to_numpy(dtype=str), return_inverse=True)[1]
    named = with_variant(table[["measure", "options", "split"]].drop_duplicates())
    measure = dict(zip(named["variant"], named["measure"], strict=True))
    kept = [c for c in settings if c not in columns]
    told = ["run_id", "step", "measure", "options", "split", "draws", "value", "converged", "warnings"]
    last = with_variant(last_step(table).reindex(columns=told))
    finite = last[np.isfinite(last["value"].to_numpy(dtype=np.float64))]
    loose = finite[finite["converged"].eq(False)].groupby("variant")["run_id"]
    remarks = finite[finite["warnings"].fillna("").ne("")].groupby(["variant", "warnings"])["run_id"]
    said: dict[str, dict[str, Int[np.ndarray, " k"]]] = {}
    for (name, text), ids in remarks:
        said.setdefault(str(name), {})[str(text)] = values.index.get_indexer(ids)
    return Units(
        values.where(np.isfinite(values)),
        measure,
        configuration,
        labels,
        cells,
        variants,
        draws,
        first[kept].reset_index(drop=True),
        {str(k): float(v) for k, v in last.groupby("variant")["draws"].median().items()},
        {str(k): values.index.isin(ids) for k, ids in loose},
        said,
    )


def _check_once(table: pd.DataFrame, hyper: list[str]) -> None:
    """Refuse a run with two settings of one hyper-parameter, or with two values of one variant."""
    each = table[["run_id", *hyper]].drop_duplicates()
    if (twice := each["run_id"].duplicated()).any():
        run = each.loc[twice, "run_id"].iloc[0]
        said = each[each["run_id"] == run]
        name = next(c for c in hyper if said[c].nunique(dropna=False) > 1)
        raise ValueError(f"`table` gives the run {run!r} several settings {said[name].tolist()} of {name!r}: keep one.")
    last = with_variant(last_step(table)[list(NEEDED)].drop_duplicates())
    again = last.duplicated(["run_id", "variant"], keep=False)
    if again.any():
        rows = last[again]
        rows = rows[(rows["run_id"] == rows["run_id"].iloc[0]) & (rows["variant"] == rows["variant"].iloc[0])]
        raise ValueError(
            f"`table` has {len(rows)} different rows of {rows['variant'].iloc[0]!r} for the run "
            f"{rows['run_id'].iloc[0]!r}, with the options {rows['options'].tolist()} and values "
            f"{rows['value'].tolist()}: keep one of them."
        )


def _numbers(rows: pd.DataFrame) -> Int[np.ndarray, " c"]:
    """The number of each row, equal ones alike."""
    text = [json.dumps([_text(v) for v in row]) for row in rows.to_numpy()]
    return np.unique(np.array(text), return_inverse=True)[1]


def without_rounding(x: Float[np.ndarray, "v c"]) -> Float[np.ndarray, "v c"]:
    """Values of each row that differ by less than 2^-20 of their size made equal, to the smallest of them.

    Networks compute in single precision, with 24 bits, of which a sum over weights or examples loses some. A measure
    that is constant, or constant inside a method, by construction (the length of a perturbation of given radius) is
    otherwise ordered by rounding alone. Groups of equal values begin at their smallest and are no wider than that, so
    that a dense row does not run together. Whole numbers are exact and stay.
    """
    order = np.argsort(x, axis=1)
    sorted_x = np.take_along_axis(x, order, axis=1)  # NaN last
    with np.errstate(invalid="ignore", over="ignore"):  # what overflows is no rounding
        step = np.diff(sorted_x, axis=1)
        near = (
            (step > 0)
            & (step <= ROUNDING * np.abs(sorted_x[:, 1:]))
            & (np.isfinite(x) & (x != np.round(x))).any(axis=1, keepdims=True)
        )
    out = x.copy()
    for row in np.flatnonzero(near.any(axis=1)):
        values, start = sorted_x[row], sorted_x[row, 0]
        for k, value in enumerate(values):
            if not value - start <= ROUNDING * abs(start):
                start = value
            out[row, order[row, k]] = start
    return out


def of_method(column: str) -> bool:
    """Whether a column, such as hp.rho or hp.gate_options.k, is a setting of the method."""
    return column.removeprefix("hp.").partition(".")[0] in (*OF_METHOD, "method")


def goes_with_model(settings: pd.DataFrame) -> list[str]:
    """The columns of a model's sizes, where each model has one choice of them: then the model says it all."""
    if "hp.model" not in settings.columns:
        return []
    model = settings["hp.model"].map(_text)
    found = [c for c in settings.columns if c.partition(".")[2].partition(".")[0] == "model_options"]
    return [c for c in found if settings[c].map(_text).groupby(model).nunique().max() < 2]


def _text(value: object) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) else str(value)


def variants(argument: str, names: Sequence[str], data: Units, *, strict: bool) -> list[str]:
    """The variants meant by names of variants or measures, in order, each once.

    A name that is both stands for the variant alone if `strict`, as a caller's choice, else for all of the measure.
    """
    known = list(data.values.columns)
    found: dict[str, None] = {}
    for name in names:
        exact = name in known and (strict or data.measure[name] != name)
        meant = [name] if exact else [v for v in known if data.measure[v] == name]
        if strict and not meant:
            choices = [*known, *data.measure.values()]
            raise ValueError(f"`{argument}` names {name!r}, which is not in the table.{otherwise(name, choices)}")
        found.update(dict.fromkeys(meant))
    return list(found)


def single(argument: str, name: str, data: Units) -> str:
    """The one variant meant by a name.

    Raises:
        ValueError: If the name is unknown or stands for several.
    """
    meant = variants(argument, [name], data, strict=True)
    if len(meant) > 1:
        raise ValueError(f"`{argument}` names {name!r}, which stands for {meant}: name one of them.")
    return meant[0]
