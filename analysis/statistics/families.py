"""Families of measures: how many variants were tried, one named beforehand, and the best of them, corrected.

Sixty variants of sharpness have a better best one than three of forgetting, whatever they measure. So beside the
strongest of a family stand how many were tried, one that was named without looking at the target, and a p-value that
knows of the choice.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.measures.registry import entry_of
from analysis.statistics.evidence import Evidence, Rows, joined
from analysis.statistics.statistic import Cell, Statistic, chance, number, whole, words
from analysis.style import FAMILIES, family, interval
from landscape.naming import nearest

# The usual measure of each family, named before any target was seen; the first that was taken stands for it.
REPRESENTATIVES: Mapping[str, Sequence[str]] = {
    "sharpness": ("top_eigenvalue", "m_sharpness", "ascent_sharpness", "hessian_trace"),
    "forgetting": (
        "F_mi[obf, iso-loss, m=64, other_train]", "F_mi[obf, iso-loss, m=64, held_out]", "F_mi", "KL",
        "forgetting_events",
    ),
    "complexity": ("pacbayes_mag_init", "path_norm", "inverse_margin", "l2"),
    "norm": ("distance_from_init", "gradient_norm"),
    "output bias": ("b_marg", "b_tv"),
    "baseline": ("train_error", "train_loss", "validation_error"),
}  # fmt: skip
KEYS = ("value", "low", "high", "stratified", "stratified_low", "stratified_high", "p")


def representative(name: str, variants: Sequence[str], chosen: Mapping[str, str]) -> tuple[str, str]:
    """The variant that stands for a family, chosen by name alone, and a remark where it is not what was asked for.

    Args:
        name: Of the family.
        variants: Those of its measures that were taken, in the order of the table.
        chosen: What a study names for its families, a variant or a measure; where it names none, `REPRESENTATIVES`.
    """
    asked = chosen.get(name)
    for wanted in (asked,) if asked else REPRESENTATIVES.get(name, ()):
        if meant := [v for v in variants if v == wanted] or [v for v in variants if v.partition("[")[0] == wanted]:
            remark = f"{wanted} has {len(meant)} variants, its first stands for it" if len(meant) > 1 else ""
            return meant[0], remark
    return "", f"the representative {asked} was not measured" if asked else "no representative: name one in the study"


def check_representatives(argument: str, chosen: Mapping[str, str]) -> Mapping[str, str]:
    """The measures that are named for families, where each is one of its family.

    Raises:
        ValueError: Naming what is no family, no measure, or a measure of another family.
    """
    for kind, variant in chosen.items():
        if kind not in FAMILIES:
            raise ValueError(f"`{argument}` names {kind!r}, which is no family of measures.{nearest(kind, FAMILIES)}")
        if not isinstance(variant, str):
            raise ValueError(f"`{argument}` must name a measure for {kind}, got {variant!r}.")
        name = variant.partition("[")[0]
        if entry_of(name) is not None and (own := family(variant)) != kind:
            raise ValueError(
                f"`{argument}` names {variant!r} for {kind}, but it is of the family {own}: name a measure of {kind}."
            )
    return chosen


def table(evidence: Evidence) -> Rows:
    """Each family on each target: its representative and its strongest, over all pairs and inside cells."""
    every = evidence.correlations[evidence.correlations["coefficient"] == "kendall"]
    rows: Rows = []
    for target, here in every.groupby("target", sort=False):
        here = here.set_index("measure")
        taken = set(here.index[here["n_configurations"] > 0])
        best = evidence.strongest[evidence.strongest["target"] == target].set_index("family")
        for kind in FAMILIES:
            variants = [m for m in here.index if family(m) == kind]
            finite = [m for m in variants if m in taken]  # not what the task has not
            if not finite and kind not in evidence.settings.representatives:
                continue
            shown, remark = representative(kind, finite or variants, evidence.settings.representatives)
            *of_shown, p = [here.at[shown, key] if shown else math.nan for key in KEYS]
            pooled, stratified = (
                (name, here.at[name, column] if name else math.nan, best.at[kind, f"best_of_k_p{end}"])
                for column, end in (("value", ""), ("stratified", "_stratified"))
                for name in [best.at[kind, f"strongest{end}"]]
            )
            said = str(here.loc[shown, "warnings"]) if shown else ""
            rows.append((kind, target, len(variants), shown, *of_shown, *pooled, p, *stratified, joined(remark, said)))
    return rows


def _shown(rows: pd.DataFrame, _: Sequence[str]) -> pd.DataFrame:
    return rows


STATISTIC = Statistic(
    name="families",
    columns=(
        "family target variants representative value low high stratified stratified_low stratified_high strongest "
        "strongest_value best_of_k_p p_of_representative strongest_stratified strongest_stratified_value "
        "best_of_k_p_stratified warnings"
    ),
    table=table,
    title="Families of measures",
    note=(
        "For `{target}`: how many variants of a family were tried; the τ_b of the one that was named for it "
        "beforehand, over all models and inside cells of equal hyper-parameters; and the strongest of all, with the "
        "p-value of the best of so many."
    ),
    shown={
        "Family": words("family"),
        "Variants": whole("variants"),
        "Representative": words("representative"),
        "τ_b [{level}]": Cell(("value", "low", "high"), interval),
        "Inside cells": Cell(("stratified", "stratified_low", "stratified_high"), interval),
        "Strongest": words("strongest"),
        "Its τ_b": number("strongest_value"),
        "p, best of all": chance("best_of_k_p"),
        "Strongest inside": words("strongest_stratified"),
        "Its τ_b inside": number("strongest_stratified_value"),
        "p, best of all inside": chance("best_of_k_p_stratified"),
    },
    words=("Family", "Representative", "Strongest", "Strongest inside"),
    chosen=_shown,
)
