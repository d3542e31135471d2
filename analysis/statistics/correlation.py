"""Every measure against every target: tau_b, Spearman, Pearson, with intervals, p-values and what to beware of.

The unit is the configuration, averaged over its seeds. For each measure and target the average is over the runs in
which both are finite; a configuration without such a run is left out and counted, never filled in.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.measures.catalogue.targets import TARGETS, of_scores
from analysis.measures.registry import entry_of, is_candidate
from analysis.statistics import ceiling, comparison
from analysis.statistics.arguments import MOST, check_resampling, names, one_of, pairs, whole_number
from analysis.statistics.baselines import baselines
from analysis.statistics.catalogue import STATISTICS
from analysis.statistics.correlation_rows import COLUMNS, correlation_rows
from analysis.statistics.evidence import Evidence, Settings
from analysis.statistics.families import check_representatives
from analysis.statistics.intervals import INTERVALS
from analysis.statistics.orders import usual_permutations
from analysis.statistics.resampling import MINIMUM, NO_CLAIM
from analysis.statistics.sign_error import ORIENTATIONS
from analysis.statistics.strata import CELL_MINIMUM, Strata
from analysis.statistics.units import Units, units, variants
from analysis.table import SEED_COLUMNS

__all__ = ["COLUMNS", "Correlations", "Units", "correlate", "units"]

CORRECTIONS = ("max-T", "holm")
SIZES = ("hp.model", "hp.model_options")  # what decides the shape of a model
NO_CELL = f"no {CELL_MINIMUM} configurations have equal hyper-parameters of training: nothing is stratified"
MOST_SAID = 3  # remarks on a target that are repeated


@dataclass(frozen=True)
class Correlations:
    """What the statistics say, as tables.

    Attributes:
        table: One row a (measure, target, coefficient): `value` with its interval `low`, `high`; permutation `p`,
            `p_adjusted`, corrected for the number of candidates of the target (`correction`), and `p_bh`
            (Benjamini-Hochberg, over all candidates and targets of the coefficient) for screening; `p_floor`, the
            smallest p that the permutations could give; `role`, "candidate" or "baseline" (what any measure is judged
            against: always there, and not corrected for); `n_configurations`, `n_runs`, `dropped` (configurations
            without a run in which both are finite); `permuted`, what changes places: configurations "freely" or, where
            both differ by method, "inside methods" (the interval then leaves out methods), or, where both differ by
            cell of equal hyper-parameters of training, "complete cells" (it leaves out cells and methods); `within`,
            the mean over methods of the coefficient inside each, with its interval; `groups`, the methods in that mean;
            `reversal`, True where pooled and within have opposite signs. For tau_b `stratified`, over pairs inside
            cells alone, with its interval, `stratified_p`, `stratified_p_adjusted`, `stratified_p_floor`, and
            `stratified_mean`, the mean over cells; `stratified_permuted`, "inside cells" or, where variants of methods
            are alike in all cells in both, "complete variants", or, where methods with several settings in a cell are,
            "complete methods"; `cells`, `cells_dropped` (fewer than 3 configurations); `cell_reversal`, True where
            holding the hyper-parameters fixed turns the sign or changes tau_b by more than twice the error of the
            change. `warned`, the share of the values that carry a warning, and `warned_as`, its kinds; `interval`, its
            kind; `warnings`.
        comparisons: One row a (forgetting, sharpness, target, pairs): `difference` of |tau_b| with its intervals over
            configurations (`low`, `high`) and over configurations and draws of the data (`low_draws`, `high_draws`),
            over all pairs ("pooled") and over those inside cells ("stratified").
        ceilings: One row a (target, coefficient): what noise over seeds lets a measure of other runs reach.
        warnings: What holds for the whole analysis.
        further: The tables of `STATISTICS` that were asked for, by name; each is an attribute too, empty where it was
            not.
        permutations: How many were drawn for each p-value, where not all orders were visited.
    """

    table: pd.DataFrame
    comparisons: pd.DataFrame
    ceilings: pd.DataFrame
    warnings: list[str]
    further: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    permutations: int = 0

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name not in STATISTICS:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return self.further.get(name, pd.DataFrame())


def correlate(
    table: pd.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    compare: Sequence[tuple[str, str]] = (),
    group: str | Sequence[str] | None = None,
    seed_column: str | Sequence[str] = SEED_COLUMNS,
    draws: int = 2000,
    permutations: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    interval: str = "stabilised",
    tables: Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    representatives: Mapping[str, str] | None = None,
    oriented: str = "pooled",
    correction: str = "max-T",
) -> Correlations:
    """Correlate measures with generalisation, configuration by configuration.

    Intervals are over configurations (for `within`, over those inside each method): by default the delete-one jackknife
    on Fisher's z scale, which covers where percentiles of a bootstrap do not; stratified ones are percentiles of a
    bootstrap inside cells, which covers better there (docs/statistics.md). p-values permute the target over
    configurations, or enumerate all orders where there are no more than `permutations`. Where both the measure and the
    target differ by method, or by cell of equal hyper-parameters (intraclass correlations above 0.1), configurations
    are not exchangeable: they are permuted inside methods, or cells and variants of methods change places as they are,
    and intervals are over these. Stratified coefficients are permuted inside cells or, where variants or methods are
    alike in all cells in both, by these. Resamples depend on `seed` and the number of configurations alone, so all
    measures on the same configurations see the same ones, and adding a measure changes no other row, but for the
    corrections. Signs are as measured: nothing is flipped.

    Args:
        table: The long measures table joined with `hp.*` columns; each run's last checkpoint is used.
        targets: Variants to be explained, or measures for all their variants; None for all in `TARGETS`, and the same
            of the scores of tasks of one's own.
        measures: Variants or measures that may explain; None for all that are candidates by the registry
            (`analysis.measures.registry.is_candidate`: no baseline, no target, nothing set beforehand), but the targets
            and `exclude`. Baselines have rows whatever is asked for.
        exclude: Further variants or measures left out when `measures` is None.
        compare: Pairs of variants (forgetting, sharpness) whose |tau_b| are compared on each target; a known measure
            that the table lacks is a row that says so.
        group: Columns that make a method; None for `hp.method` and `hp.ascent`, whichever the table has.
        seed_column: Columns that tell runs of one configuration apart.
        draws: Bootstrap resamples; 0 for no intervals of any kind.
        permutations: Random permutations; 0 for no p-values, None for 100,000 with up to 100 configurations and 10,000
            with more.
        level: Coverage of the intervals, inside (0, 1).
        seed: Fixes all randomness.
        interval: "stabilised", "bca" or "percentile"; the last two resample configurations `draws` times. With "bca"
            the interval of `within` is a percentile interval.
        tables: Which further tables to make, of `STATISTICS`; None for all, () for none.
        controls: Variants, measures or hyper-parameters (without "hp.") held fixed in `partial`, several of them
            jointly where joined by " + "; None for the baselines and the hyper-parameters of training, each and
            jointly, and for a measure of forgetting the rise of the loss under the same perturbation.
        representatives: For families of measures the one that stands for each; None for the usual ones.
        oriented: Which sign of a measure is right in `sign_errors`: its "pooled" one, or the "expected" one.
        correction: Of p-values for the number of measures: "max-T" (step-down, by the same permutations) or "holm".

    Returns:
        The tables. Below 5 configurations a row has its value and a warning, and no interval or p-value.

    Raises:
        ValueError: If the table lacks columns, or contradicts itself; if it has no measure or no target; if a name is
            unknown, or compared with itself or with a target; if a number is out of range.

    Source:
        Unit, comparison and flags are our definition; within against pooled: Simpson (1951), JRSS B 13(2).
    """
    check_resampling(draws=draws, level=level)
    whole_number("seed", seed)
    if permutations is not None:
        whole_number("permutations", permutations, "(0 for no p-values)", most=MOST)
    one_of("interval", interval, INTERVALS)
    one_of("oriented", oriented, ORIENTATIONS)
    one_of("correction", correction, CORRECTIONS)
    given = {"targets": targets, "measures": measures, "exclude": exclude, "tables": tables, "controls": controls}
    for argument, value in given.items():
        if value is not None:
            names(argument, value)
    for name in tables or ():
        one_of("tables", name, STATISTICS)
    pairs("compare", compare)
    representatives = check_representatives("representatives", representatives or {})
    data = units(table, group=group, seed_column=seed_column)
    permutations = usual_permutations(len(data.methods)) if permutations is None else permutations
    known = list(data.values.columns)
    wanted = of_scores(TARGETS, known) if targets is None else targets
    chosen_targets = variants("targets", wanted, data, strict=targets is not None)
    if not chosen_targets:
        raise ValueError(f"`table` has none of the targets {list(wanted)}: name some of {known[:20]} in `targets`.")
    judges = baselines(data, chosen_targets)
    if measures is None:
        for name in exclude:
            if entry_of(name.partition("[")[0]) is None:
                variants("exclude", [name], data, strict=True)
        left_out = {*chosen_targets, *variants("exclude", of_scores((*TARGETS, *exclude), known), data, strict=False)}
        chosen = [v for v in known if is_candidate(v) and v not in left_out]
    else:
        chosen = variants("measures", measures, data, strict=True)
    if set(chosen) == set(chosen_targets) and len(set(chosen)) == 1:
        raise ValueError(f"`measures` names {chosen[0]!r}, which is the only target: name another, or other `targets`.")
    if not chosen:
        raise ValueError(f"`table` has no measure besides the targets {chosen_targets}: name some in `measures`.")
    settings = Settings(draws, permutations, level, seed, interval, representatives, oriented, correction=correction)
    evidence = Evidence(data, chosen, chosen_targets, settings, controls=controls, baselines=judges)
    correlations, strongest = correlation_rows(evidence)
    evidence = replace(evidence, correlations=correlations, strongest=strongest)
    return Correlations(
        evidence.correlations,
        comparison.table(evidence, comparison.named(compare, data, chosen_targets)),
        ceiling.table(evidence),
        _overall(data, chosen_targets),
        {name: s.made(evidence) for name, s in STATISTICS.items() if tables is None or name in tables},
        permutations,
    )


def defaults() -> dict[str, Any]:
    """The settings of `correlate` that it takes where it is told nothing, as a JSON file holds them."""
    given = {p.name: p.default for p in inspect.signature(correlate).parameters.values() if p.default is not p.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _overall(data: Units, targets: list[str]) -> list[str]:
    """What a reader of all tables must know."""
    found = []
    n, runs = len(data.methods), len(data.configuration)
    if n < MINIMUM:
        found.append(f"{n} configurations: {NO_CLAIM}")
    if runs == n and n > 1:
        found.append("every configuration has one run: no noise ceiling, and differences include the noise of the seed")
    shaping = [c for c in data.hyper.columns if c in SIZES]
    shapes = len(data.hyper[shaping].astype(str).drop_duplicates()) if shaping else 1
    if shapes > 1:
        found.append(f"models of {shapes} shapes are mixed: norms and sharpness may tell the shape alone; see `within`")
    if len(set(data.methods)) == 1:
        found.append("one method: within it and pooled are the same")
    if not Strata.of(data.cells).groups and n >= MINIMUM:
        found.append(NO_CELL)
    for name in targets:
        for text, places in list(data.said.get(name, {}).items())[:MOST_SAID]:
            found.append(f"{name}: {text} ({len(places)} of {runs} runs)")
    lost = int(data.values[targets].isna().all(axis=1).sum())
    if lost:
        found.append(f"{lost} of {runs} runs have no finite target (diverged, or not measured) and are left out")
    return found
