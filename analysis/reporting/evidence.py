"""Tables of the further statistics: does a correlation come from hyper-parameters, another measure, or few methods?

Each is shown for the leading target and for the measures that lead there; the CSV files hold every row.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.figures.correlations import strongest
from analysis.reporting.table import Table, count, intervals, p_value, remarks
from analysis.results import FURTHER, StudyResults
from analysis.style import fixed

SHOWN = 12  # measures on the page


def granulated(results: StudyResults) -> Table:
    """The granulated coefficient Ψ, with its axes."""
    rows, target = _rows(results, "granulated")
    axes = [a for a in dict.fromkeys(rows["axis"]) if a != "all"]
    every = rows[rows["axis"] == "all"]
    shown = pd.DataFrame(
        {"Measure": every["measure"], "Ψ": every["psi"].map(fixed), "p": every["p"].map(p_value)}
    ).reset_index(drop=True)
    for axis in axes:
        own = rows[rows["axis"] == axis].drop_duplicates("measure").set_index("measure")["psi"]
        shown[axis] = [fixed(own.get(m, np.nan)) for m in shown["Measure"]]
    shown = shown.assign(Remark=_texts(every).tolist())  # rows are counted anew
    note = (
        f"Does a measure order models that differ in one hyper-parameter alone? Mean of τ over such groups for "
        f"`{target}`: along each hyper-parameter, and Ψ, the mean over hyper-parameters (Jiang et al. 2020). A high "
        "τ_b with a Ψ near 0 comes from the hyper-parameters, not from the models. p: permutations."
    )
    return _table(results, "granulated", "Models that differ in one hyper-parameter", note, shown)


def information(results: StudyResults) -> Table:
    """Conditional mutual information K."""
    rows, target = _rows(results, "information")
    shown = pd.DataFrame(
        {
            "Measure": rows["measure"],
            "K": rows["k"].map(fixed),
            "Given": rows["subset"].fillna("").astype(str),
            "Sign of Ψ": rows["sign_of_psi"].map(
                lambda s: "–" if pd.isna(s) else "+" if s > 0 else "−" if s < 0 else "0"
            ),
            "By chance": rows["baseline"].map(fixed),
            "Above chance": rows["excess"].map(fixed),
            "Remark": _texts(rows),
        }
    )
    note = (
        f"K: the information that the order by the measure carries about the order by `{target}`, given up to two "
        "hyper-parameters, for the pair that leaves least; 0 is none, 1 all (Jiang et al. 2020). By chance: the same "
        "with the measure shuffled within the conditions."
    )
    return _table(results, "information", "Information beyond hyper-parameters", note, shown, ("Given",))


def sign_errors(results: StudyResults) -> Table:
    """Robust sign errors over environments."""
    rows, target = _rows(results, "sign_errors")
    rows = rows[(rows["axis"] == "all") & (rows["weighting"] == "equal")]
    shown = pd.DataFrame(
        {
            "Measure": rows["measure"],
            "Mean": rows["mean"].map(fixed),
            "Median": rows["median"].map(fixed),
            "90 %": rows["p90"].map(fixed),
            "Worst": rows["max"].map(fixed),
            "Environments": rows["kept"].map(count),
            "Remark": _texts(rows),
        }
    )
    note = (
        f"How often the measure orders two runs the wrong way round for `{target}`, over environments: pairs of "
        "configurations that differ in one hyper-parameter (Dziugaite et al. 2020). 0.5 is chance; `Worst` is the "
        "robust error. Errors weighted by their certainty, and each hyper-parameter, are in the CSV file."
    )
    return _table(results, "sign_errors", "Sign errors over environments", note, shown)


def partial(results: StudyResults) -> Table:
    """Correlations with one thing held fixed."""
    rows, target = _rows(results, "partial")
    level = results.facts()["level"]
    order = rows["measure"].map({m: i for i, m in enumerate(dict.fromkeys(rows["measure"]))})
    rows = rows.assign(order=order).sort_values("order", kind="stable")
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float))].groupby("measure", sort=False).head(4).head(3 * SHOWN)
    shown = pd.DataFrame(
        {
            "Measure": rows["measure"],
            "Held fixed": rows["control"].astype(str),
            "Partial τ": rows["value"].map(fixed),
            f"{level} interval": intervals(rows),
            "p": rows["p"].map(p_value),
            "n": rows["n_configurations"].map(count),
            "Remark": _texts(rows),
        }
    )
    note = (
        f"Kendall's partial τ with `{target}`, one control held fixed; at most four controls per measure. Intervals "
        "and p from the jackknife. It is not a correlation of residuals: it may differ from 0 even if only the control "
        "links the two."
    )
    return _table(results, "partial", "With one thing held fixed", note, shown, ("Held fixed",))


def multilevel(results: StudyResults) -> Table:
    """Slopes within and between groups."""
    rows, target = _rows(results, "multilevel")
    shown = pd.DataFrame(
        {
            "Measure": rows["measure"],
            "Groups": rows["level"].astype(str) + "s",
            "Pooled": rows["pooled"].map(fixed),
            "Within": [fixed(w) + (" ⇄" if r else "") for w, r in zip(rows["within"], rows["reversal"], strict=True)],
            "± s.e.": rows["se"].map(fixed),
            "Between": rows["between"].map(fixed),
            "Random intercept": rows["random_slope"].map(fixed),
            "p (permuted)": rows["p_permutation"].map(p_value),
            "Clusters": rows["clusters"].map(count),
            "Remark": _texts(rows),
        }
    )
    note = (
        f"Slope of `{target}` on the measure, both in standard deviations, so that the pooled slope is Pearson's r: "
        "within methods (over configurations) and within configurations (over runs). ⇄: pooled and within differ in "
        "sign. p: permutations within the groups, if there are few."
    )
    return _table(results, "multilevel", "Within and between groups", note, shown, ("Groups",))


def selection(results: StudyResults) -> Table:
    """What choosing the best variant is worth on other configurations."""
    rows = results.further.get("selection", pd.DataFrame(columns=["target", "held_out"]))
    target = _target(results)
    rows = rows[(rows["target"] == target) & np.isfinite(rows["held_out"].to_numpy(dtype=float))]
    rows = rows.reindex(rows["held_out"].abs().sort_values(ascending=False, kind="stable").index).head(SHOWN)
    shown = pd.DataFrame(
        {
            "Measure": rows.get("measure", pd.Series(dtype=str)).astype(str),
            "Variants": rows.get("variants", pd.Series(dtype=float)).map(count),
            "Best": rows.get("best", pd.Series(dtype=str)).astype(str),
            "τ_b where chosen": rows.get("naive", pd.Series(dtype=float)).map(fixed),
            "τ_b elsewhere": rows["held_out"].map(fixed),
            "Chosen in": [f"{fixed(100 * s, 0)} %" for s in rows.get("chosen_share", pd.Series(dtype=float))],
            "Remark": _texts(rows),
        }
    )
    note = (
        f"The best of a measure's variants for `{target}`, chosen on one half of the configurations and judged on the "
        "other, over random halves. The drop from the first to the second τ_b is the bias of choosing the best."
    )
    return _table(results, "selection", "Choosing among variants", note, shown, ("Best",))


def prediction(results: StudyResults) -> Table:
    """The target of methods left out."""
    rows = results.further.get("prediction", pd.DataFrame(columns=["target"]))
    rows = rows[rows["target"] == _target(results)]
    level = results.facts()["level"]
    if rows.empty:
        return _table(results, "prediction", "", "", pd.DataFrame())
    shown = pd.DataFrame(
        {
            "From": rows["features"].astype(str),
            "Features": rows["number"].map(count),
            "Model": rows["model"].astype(str),
            "R²": rows["r2"].map(fixed),
            f"{level} interval": intervals(rows),
            "τ within": rows["tau"].map(fixed),
            "Mean error": rows["mae"].map(lambda e: fixed(e, 4)),
            "of the mean": rows["mae_of_mean"].map(lambda e: fixed(e, 4)),
            "Methods": rows["methods"].map(count),
            "Remark": _texts(rows),
        }
    )
    note = (
        f"`{_target(results)}` of each method in turn, predicted by models fitted on the other methods: from measures, "
        "from hyper-parameters alone, and from both. R² is relative to the mean of the training methods and may be far "
        "below 0. Mean error: mean absolute error, beside that of the mean."
    )
    return _table(results, "prediction", "Predicting methods left out", note, shown, ("From", "Model"))


def power(results: StudyResults) -> Table:
    """How many models the claims would need."""
    rows, target = _rows(results, "power")
    shown = pd.DataFrame(
        {
            "Measure": rows["measure"],
            "τ_b": rows["value"].map(fixed),
            "n": rows["n_configurations"].map(count),
            "Smallest shown": rows["smallest_effect"].map(fixed),
            "Power": rows["power"].map(fixed),
            "n needed": rows["required_configurations"].map(count),
            "Design effect": rows["design_effect"].map(fixed),
            "Remark": _texts(rows),
        }
    )
    note = (
        f"For `{target}`: the smallest |τ_b| that this many configurations detect with power 0.8 in a two-sided "
        "test at 0.05; the power at the observed τ_b and the configurations it needs, both as uncertain as that τ_b."
    )
    return _table(results, "power", "How many models a claim needs", note, shown)


EVIDENCE: dict[str, Callable[[StudyResults], Table]] = {
    "granulated": granulated,
    "information": information,
    "sign_errors": sign_errors,
    "partial": partial,
    "multilevel": multilevel,
    "selection": selection,
    "prediction": prediction,
    "power": power,
}


def _target(results: StudyResults) -> str:
    return next((t for t in results.targets if len(strongest(results.correlations, target=t))), "")


def _rows(results: StudyResults, name: str) -> tuple[pd.DataFrame, str]:
    """The rows of the leading target and its leading measures, strongest first; none where there is no such table."""
    target = _target(results)
    chosen = strongest(results.correlations, target=target, top=SHOWN)["measure"].tolist()
    if name not in results.further:
        return pd.DataFrame(columns=list(FURTHER[name])), target
    table = results.further[name]
    rows = table[(table["target"] == target) & table["measure"].isin(chosen)]
    place = rows["measure"].map({m: i for i, m in enumerate(chosen)})
    return rows.iloc[np.argsort(place.to_numpy(), kind="stable")], target


def _texts(rows: pd.DataFrame) -> pd.Series:
    return rows["warnings"].fillna("").astype(str) if "warnings" in rows.columns else pd.Series("", index=rows.index)


def _table(
    results: StudyResults, name: str, title: str, note: str, shown: pd.DataFrame, words: tuple[str, ...] = ()
) -> Table:
    shown, note = remarks(shown, note)
    data = results.further.get(name, pd.DataFrame())
    text = tuple(c for c in ("Measure", *words, "Remark") if c in shown.columns)
    return Table(name, title, note, data, shown, text, "No measure has a value in this table.", optional=True)
