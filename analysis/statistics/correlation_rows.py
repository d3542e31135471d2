"""The table of correlations: a row for every measure, target and coefficient."""

import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from analysis.measures.registry import is_baseline
from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.coefficients import FEWEST_UNITS, coefficients
from analysis.statistics.correction import KINDS, Family, Part, families
from analysis.statistics.evidence import Block, Evidence, joined
from analysis.statistics.exchangeability import INSIDE_METHODS, POOLED, STRATIFIED
from analysis.statistics.intervals import PERFECT
from analysis.statistics.resampling import MINIMUM, benjamini_hochberg
from analysis.statistics.strata import Strata
from analysis.statistics.units import Units

BASELINE, CANDIDATE = "baseline", "candidate"
SHORT = "the interval is over configurations and may be too short"
TOO_FEW = {  # what is said of fewer than three of what changes places
    "": ("", *(f"two {what} that differ in both: {SHORT}" for what in ("methods", "cells"))),
    "stratified_": (
        "", *(f"two {what} that differ in both: inside cells {SHORT}" for what in ("variants", "methods")),
    ),
}  # fmt: skip
STILL = "nothing may change places: no p-value"
KINDS_SAID = 2  # kinds of warnings that are named with their shares

COLUMNS = (
    *("measure", "target", "coefficient", "role", "value", "low", "high", "p", "p_adjusted", "p_floor"),
    *("n_configurations", "n_runs", "dropped", "permuted", "within", "within_low", "within_high", "groups", "reversal"),
    *("stratified", "stratified_low", "stratified_high", "stratified_p", "stratified_p_adjusted"),
    *("stratified_p_floor", "stratified_permuted", "stratified_mean", "cells", "cells_dropped", "cell_reversal"),
    *("warned", "warned_as", "warnings", "p_bh", "interval", "correction"),
)

# Columns that some tables lack, and what stands for "unknown" there.
UNKNOWN: dict[str, Any] = {
    **dict.fromkeys(("p_adjusted", "p_floor", "p_bh", "stratified_mean", "warned"), math.nan),
    **{f"stratified{end}": math.nan for end in ("", "_low", "_high", "_p", "_p_adjusted", "_p_floor")},
    **dict.fromkeys(("permuted", "stratified_permuted", "warned_as", "interval"), ""),
    "cells": 0,
    "cells_dropped": 0,
    "cell_reversal": False,
    "expected_sign": 0,
}


def completed(rows: pd.DataFrame) -> pd.DataFrame:
    """A table of correlations with all columns; earlier ones had Holm's correction alone, and no roles."""
    if "p_adjusted" not in rows.columns:
        rows = rows.rename(columns={"p_holm": "p_adjusted"}).assign(correction="holm")
    if "role" not in rows.columns:
        roles = {m: BASELINE if is_baseline(m) else CANDIDATE for m in rows["measure"].unique()}
        rows = rows.assign(role=rows["measure"].map(roles))
    return rows.assign(**{name: value for name, value in UNKNOWN.items() if name not in rows.columns})


def correlation_rows(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows, baselines after the measures, and the strongest of each family.

    What is finite in the same runs goes through in one block.
    """
    data, settings = evidence.data, evidence.settings
    measures = list(dict.fromkeys([*evidence.measures, *evidence.baselines]))
    by_target = families(evidence, measures)
    frames = []
    for block in evidence.blocks(measures):
        numbers = coefficients(
            block.x,
            block.y,
            by_target[block.targets[0]].methods[block.used],
            data.cells[block.used],
            Strata.of(data.cells[block.used], data.variants[block.used]),
            settings,
        )
        for j, target in enumerate(block.targets):
            moved, inside = (numbers[name][:, :, j].astype(int) for name in ("moved", "stratified_moved"))
            part = Part(block, j, moved, inside[0])
            by_target[target].parts.append(part)
        frames.append(_frame(data, block, numbers))
    whole = pd.concat(frames, ignore_index=True)
    tested = [_p_values(t, by_target[t], evidence) for t in evidence.targets]
    whole = whole.merge(pd.concat([p for p, _ in tested]), how="left")
    whole = whole[whole["measure"] != whole["target"]]
    places = {"measure": measures, "target": evidence.targets, "coefficient": list(COEFFICIENTS)}
    for name, order in places.items():
        whole[f"at_{name}"] = whole[name].map({v: k for k, v in enumerate(order)})
    whole = whole.sort_values(["at_target", "at_coefficient", "at_measure"], ignore_index=True)
    baseline = whole["measure"].isin(list(evidence.baselines))
    whole["role"] = np.where(baseline, BASELINE, CANDIDATE)
    tests = whole["p"].where(~baseline)
    whole["p_bh"] = tests.groupby(whole["coefficient"], sort=False).transform(
        lambda p: benjamini_hochberg(p.to_numpy())
    )
    whole["interval"], whole["correction"] = settings.interval, settings.correction
    clear = np.minimum(whole["value"].abs(), whole["within"].abs()) > 1e-12  # rounding alone is no sign
    whole["reversal"] = clear & (whole["value"] * whole["within"] < 0)
    for of, names in (("", POOLED), ("stratified_", STRATIFIED)):
        done = whole[f"{of}p"].notna() | whole[f"{of}low"].notna()
        whole[f"{of}permuted"] = np.where(done, np.array(names)[whole[f"{of}moved"].astype(int)], "")
    if settings.permutations:
        still = _said(whole, "", "value", "n_configurations"), _said(whole, "stratified_", "stratified", "in_cells")
        said = zip(whole["warnings"], *still, strict=True)
        whole["warnings"] = [joined(text, STILL * a, f"{STILL} inside cells" * b) for text, a, b in said]
    counts = ["groups", "cells", "cells_dropped"]
    whole[counts] = whole[counts].astype(int)
    whole["cell_reversal"] = whole["cell_reversal"] > 0
    return whole[list(COLUMNS)], pd.concat([best for _, best in tested], ignore_index=True)


def _said(rows: pd.DataFrame, of: str, value: str, n: str) -> list[bool]:
    """Which rows have a coefficient of enough configurations, and no p-value."""
    return (rows[value].notna() & rows[f"{of}p"].isna() & (rows[n] >= MINIMUM)).tolist()


def _frame(data: Units, block: Block, numbers: dict[str, np.ndarray]) -> pd.DataFrame:
    """The rows of a block, without p-values."""
    index = pd.MultiIndex.from_product(
        [COEFFICIENTS, block.measures, block.targets], names=["coefficient", "measure", "target"]
    )
    frame = pd.DataFrame({name: values.ravel() for name, values in numbers.items()}, index=index)
    frame["n_configurations"], frame["n_runs"] = block.n, int(block.runs.sum())
    frame["dropped"] = len(block.used) - block.n
    warned = [data.warnings_in(name, block.runs) for name in block.measures]
    each = np.tile(np.repeat(np.arange(len(block.measures)), len(block.targets)), len(COEFFICIENTS))
    frame["warned"] = np.array([share for share, _ in warned])[each]
    frame["warned_as"] = np.array([_in_words(kinds) for _, kinds in warned], dtype=object)[each]
    loose = [_loose(data, name, block.runs) for name in block.measures]
    remarks = [joined(*block.remarks(i, j), loose[i]) for i, j in np.ndindex(block.shape)] * len(COEFFICIENTS)
    sizes = np.unique(np.array(data.methods)[block.used], return_counts=True)[1]
    alone = f"{(sizes == 1).sum()} of {block.n} configurations are alone in their method: never permuted"
    still = (frame["moved"] == POOLED.index(INSIDE_METHODS)) & bool((sizes == 1).any())
    perfect = (frame["value"].abs() > 1 - 1e-12) & np.isfinite(frame["low"])
    columns = [still, perfect, *(_few(frame, of) for of in ("", "stratified_"))]
    said = zip(remarks, *(column.tolist() for column in columns), strict=True)
    frame["warnings"] = [joined(r, alone * s, PERFECT * p, few, inside) for r, s, p, few, inside in said]
    frame["in_cells"] = Strata.of(data.cells[block.used]).n
    return frame.reset_index()


def _few(frame: pd.DataFrame, of: str) -> pd.Series:
    """What is said where what changes places is too few for an interval over it."""
    few = (frame[f"{of}moved"] > 0) & (frame[f"{of}units"] < FEWEST_UNITS) & np.isfinite(frame[f"{of}low"])
    names = np.array(TOO_FEW[of])[frame[f"{of}moved"].astype(int)]
    return pd.Series(np.where(few, names, ""), index=frame.index)


def _p_values(target: str, family: Family, evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame]:
    """p-values of a target's rows, with what they belong to, and the best of its families."""
    pooled, stratified, best = family.p_values(evidence.settings)
    frames = [
        pd.DataFrame({"measure": family.measures, "target": target, "coefficient": name, **columns})
        for name, columns in pooled.items()
    ]
    of_cells = pd.DataFrame({f"stratified_{name}": values for name, values in stratified.items()})
    frames[0] = pd.concat([frames[0], of_cells], axis=1)
    return pd.concat(frames, ignore_index=True), pd.DataFrame({"target": target, "family": KINDS, **best})


def _in_words(kinds: dict[str, float]) -> str:
    """Kinds of warnings with their shares, the most frequent first."""
    said = [f"{kind} ({100 * share:.0f} %)" for kind, share in list(kinds.items())[:KINDS_SAID]]
    more = len(kinds) - KINDS_SAID
    return "; ".join([*said, *([f"{more} more"] if more > 0 else [])])


def _loose(data: Units, name: str, runs: Bool[np.ndarray, " r"]) -> str:
    """How many of a measure's values did not converge; the iteration was cut short, whatever the correlation says."""
    count = int((data.loose[name] & runs).sum()) if name in data.loose else 0
    return f"{count} of {int(runs.sum())} values did not converge" if count else ""
