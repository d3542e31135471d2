"""README's picture and what it says of it, from a finished default study: `python -m studies.frontpage FOLDER`.

The few rows that both need are kept in `docs/digits/`, so that a test can draw the picture and write the sentences
again.
"""

import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from analysis.candidates import lineup, noisy_labels
from analysis.figures.correlations import leading, of_target
from analysis.figures.plates.correlations import forest_page
from analysis.reporting.drawing import DPI
from analysis.results import StudyResults
from analysis.style import fixed, interval, rc

ROOT = Path(__file__).parents[1]
KEPT, PICTURE = ROOT / "docs" / "digits", ROOT / "docs" / "forest.png"
TABLES = ("correlations", "comparisons", "ceilings", "partial")
FORGETTING, SHARPNESS = "F_mi[obf, iso-loss, m=64, other_train]", "top_eigenvalue"
TRAINING, VALIDATION = "train_error", "validation_error[validation]"
TARGET = "test_error"

Tables = dict[str, pd.DataFrame]


def kept(results: StudyResults) -> Tables:
    """Of the leading target: the rows of the report's first figure, the study's comparisons, ceilings, F_mi given."""
    target, _ = leading(results)
    shown = [s.row for s in lineup(results, of_target(results.correlations, target)) if s.stands_for]
    given = results.further["partial"]
    frames = {
        "correlations": pd.DataFrame(shown), "comparisons": results.comparisons, "ceilings": results.ceilings,
        "partial": given[given["measure"] == FORGETTING],
    }  # fmt: skip
    return {name: frame[frame["target"] == target].reset_index(drop=True) for name, frame in frames.items()}


def read() -> Tables:
    """The tables that are kept."""
    return {name: pd.read_csv(KEPT / f"{name}.csv") for name in TABLES}


def picture(tables: Tables) -> bytes:
    """The forest plot as PNG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(rc("screen")):
        figure = forest_page(tables["correlations"], tables["ceilings"], TARGET, noisy=True)
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def sentences(tables: Tables) -> str:
    """What README says of the picture.

    Raises:
        ValueError: If the tables do not support a word of it.
    """
    rows = tables["correlations"].set_index("measure")
    for claim, holds in _claims(tables):
        if not holds:
            raise ValueError(f"README says that {claim}, which the default study does not show: write it anew.")

    def tau(name: str, of: str = "") -> str:
        row = rows.loc[name]
        return interval(row[of or "value"], row[f"{of}_low".lstrip("_")], row[f"{of}_high".lstrip("_")])

    both = {name: [fixed(rows.loc[name, c]) for c in ("value", "stratified")] for name in (TRAINING, VALIDATION)}
    chance = fixed(rows.loc[SHARPNESS, "stratified_p_adjusted"])
    return (
        "In this study F_mi, the information about its inputs that the OBF perturbation takes out of a model's "
        f"outputs, ranks the models by test error, with τ_b = {tau(FORGETTING)} over all pairs and "
        f"{tau(FORGETTING, 'stratified')} with learning rate and batch size held fixed. Training error on the noisy "
        f"labels does about as well ({both[TRAINING][0]} and {both[TRAINING][1]}), and so does validation error "
        f"({both[VALIDATION][0]} and {both[VALIDATION][1]}): neither is shown to differ from F_mi, and beside both "
        f"nothing is shown to be left for it. The largest Hessian eigenvalue seems to say nothing over all pairs "
        f"({tau(SHARPNESS)}), and ranks these models well once learning rate and batch size are held fixed "
        f"({tau(SHARPNESS, 'stratified')}), though among as many measures as were tried that may be chance (corrected "
        f"p = {chance}). This is one data set and one architecture, and F_mi was a candidate because it had "
        "stood out on noisy digits before. Take it as an example of what the tool reports, not as a law."
    )


def _claims(tables: Tables) -> list[tuple[str, bool]]:
    rows = tables["correlations"].set_index("measure")
    pairs = tables["comparisons"].set_index(["forgetting", "sharpness", "pairs"])
    controls = tables["partial"]["control"].str.split(" + ", regex=False)
    both = tables["partial"][[{TRAINING, VALIDATION} <= set(given) and "lr" not in given for given in controls]]

    def clear(name: str, of: str = "") -> bool:
        low, high = (float(rows.loc[name, f"{of}_{end}".lstrip("_")]) for end in ("low", "high"))
        return low > 0 or high < 0

    def apart(other: str) -> bool:
        ends = [pairs.loc[(FORGETTING, other, kind), ["low_draws", "high_draws"]] for kind in ("pooled", "stratified")]
        return any(low > 0 or high < 0 for low, high in ends)

    return [
        ("F_mi orders the models", clear(FORGETTING) and clear(FORGETTING, "stratified")),
        ("it is not shown to differ from training error", not apart(TRAINING)),
        ("it is not shown to differ from validation error", not apart(VALIDATION)),
        ("beside both nothing is shown to be left for it", bool(((both["low"] < 0) & (both["high"] > 0)).all())),
        ("the baselines were held fixed together", len(both) == 1),
        ("the largest eigenvalue seems to say nothing over all pairs", not clear(SHARPNESS)),
        ("it orders the models inside cells", clear(SHARPNESS, "stratified")),
        ("that is not shown for other methods", not clear(SHARPNESS, "variants")),
        ("the target is the test error", bool(np.all(rows["target"] == TARGET))),
    ]


def main() -> int:
    """Keep the tables and the picture, and print the sentences."""
    results = StudyResults.load(Path(sys.argv[1]))
    assert noisy_labels(results)
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, frame in kept(results).items():
        frame.to_csv(KEPT / f"{name}.csv", index=False)
    PICTURE.write_bytes(picture(read()))
    print(sentences(read()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
