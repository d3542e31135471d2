"""How figures look, and which colour, marker and name belongs to what.

One colour per method in every figure. The colours go back to those of Okabe and Ito (2008, "Color Universal Design"),
the light ones darkened to a contrast of 3:1 with white (WCAG 2, for graphics); the common kinds of colour blindness
tell them apart, and markers differ as well, so that a grey print still reads.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from analysis import labels as own_labels
from analysis import media
from analysis.media import Medium

INK = "#22262b"
MUTED = "#6b7280"
RULE = "#d5d9de"
ALERT = "#b3261e"

METHODS: dict[str, tuple[str, str, str]] = {  # label: shown name, colour, marker; the order is that of every legend
    "sgd": ("SGD", "#4d4d4d", "o"),
    "adamw": ("AdamW", "#808080", "X"),
    "sam": ("SAM", "#0072b2", "s"),
    "asam": ("ASAM", "#2995ff", "D"),
    "gsam": ("GSAM", "#009e73", "^"),
    "obf": ("OBF", "#d55e00", "v"),
    "randsam": ("RandSAM", "#c86fa0", "P"),
    "sam+OBF": ("SAM+OBF", "#8b3fe8", "<"),
    "asam+OBF": ("ASAM+OBF", "#7d5f10", ">"),
    "gsam+OBF": ("GSAM+OBF", "#7a3b00", "p"),
}
SHOWN: dict[str, str] = {  # names of the methods that have no colour of their own
    "usam": "USAM", "nsam": "n-SAM", "msam": "MSAM", "s2sam": "S2-SAM", "looksam": "LookSAM", "sampa": "SAMPa",
    "look_layersam": "Look-LayerSAM", "egsam": "EG-SAM", "ogsam": "OG-SAM", "aosam": "AO-SAM", "esam": "ESAM",
    "lookbehind": "Lookbehind", "sssam": "SS-SAM", "aesam": "AE-SAM", "fsam": "F-SAM", "rsam": "R-SAM",
    "vasso": "VaSSO", "noisesam": "SAM-noise", "deltasam": "δ-SAM", "wsam": "WSAM", "gnp": "GNP", "grst": "G-RST",
    "crsam": "CR-SAM", "tracesam": "Trace-SAM", "detsam": "Det-SAM", "frobsam": "Frob-SAM", "bsam": "bSAM",
    "sam_on": "SAM-ON", "ssam_f": "SSAM-F", "ssam_d": "SSAM-D", "mup2": "muP²", "stablesam": "Stable SAM",
    "functionalsam": "Functional SAM", "sam_step_size": "SAM step size",
}  # fmt: skip
_CYCLE = (("#332288", "h"), ("#8a8a2e", "d"), ("#882255", "*"), ("#2f9485", "H"), ("#6e7fd8", "8"), ("#117733", "p"))

FAMILIES: dict[str, str] = {  # what a measure speaks about, and its colour; again in fixed order
    "sharpness": "#0072b2",
    "forgetting": "#d55e00",
    "complexity": "#a8327d",
    "norm": "#4d4d4d",
    "output bias": "#009e73",
    "baseline": "#000000",
    "other": "#8c9196",
}
FAMILY_MARKERS: dict[str, str] = dict(zip(FAMILIES, "osDv^XP", strict=True))  # so that a grey print tells them apart
_REGISTRY_FAMILIES = {"bias": "output bias", "target": "other", "diagnostic": "other"}

NAMES: dict[str, str] = {  # what figures call rows with terse names; tables keep the names
    "top_eigenvalue": "largest eigenvalue", "bottom_eigenvalue": "smallest eigenvalue",
    "lambda_ratio": "ratio of eigenvalues", "hessian_trace": "Hessian trace",
    "gauss_newton_trace": "Gauss–Newton trace",
    "gauss_newton_eigenvalue": "Gauss–Newton eigenvalue", "m_sharpness": "m-sharpness",
    "m_sharpness_excess": "m-sharpness, excess", "linf_ascent_sharpness": "ascent sharpness (max norm)",
    "adaptive_linf_ascent_sharpness": "adaptive ascent sharpness (max norm)",
    "linf_worst_case_sharpness": "worst-case sharpness (max norm)",
    "adaptive_linf_worst_case_sharpness": "adaptive worst-case sharpness (max norm)",
    "keskar_sharpness": "Keskar's sharpness", "keskar_subspace_sharpness": "Keskar's sharpness (subspace)",
    "fisher_rao_norm": "Fisher–Rao norm", "true_fisher_rao_norm": "Fisher–Rao norm (true Fisher)",
    "vc_count": "VC-dimension count", "params": "number of parameters", "l2": "l2 norm", "l2_dist": "l2 distance",
    "param_norm": "norm of parameters", "fro_over_spec": "Frobenius / spectral norms",
    "fro_dist": "Frobenius distance", "dist_spec_init": "spectral distance from start",
    "log_prod_of_spec": "log Π spectral", "log_prod_of_spec_over_margin": "log Π spectral / margin",
    "log_sum_of_spec": "log Σ spectral", "log_sum_of_spec_over_margin": "log Σ spectral / margin",
    "log_prod_of_fro": "log Π Frobenius", "log_prod_of_fro_over_margin": "log Π Frobenius / margin",
    "log_sum_of_fro": "log Σ Frobenius", "log_sum_of_fro_over_margin": "log Σ Frobenius / margin",
    "log_spec_init_main": "log spectral bound (from start)", "log_spec_orig_main": "log spectral bound (from 0)",
    "path_norm_over_margin": "path norm / margin", "cross_entropy": "cross-entropy (outputs)",
    "output_entropy": "entropy (outputs)",
    "pacbayes_init": "PAC-Bayes (from start)", "pacbayes_orig": "PAC-Bayes (from 0)",
    "pacbayes_flatness": "PAC-Bayes 1/σ", "pacbayes_mag_init": "PAC-Bayes, magnitude (from start)",
    "pacbayes_mag_orig": "PAC-Bayes, magnitude (from 0)", "pacbayes_mag_flatness": "PAC-Bayes 1/σ, magnitude",
    "steps_to_ce_0.1": "steps to loss 0.1", "steps_to_ce_0.01": "steps to loss 0.01",
    "cw": "right → wrong", "wc": "wrong → right", "ww": "wrong → other wrong", "dCE": "loss increase",
    "dloss": "rise of the loss",
    "dH": "ΔH", "eps_norm": "size of perturbation", "eps_rho": "radius of perturbation",
    "b_marg": "output bias (KL)", "b_tv": "output bias (TV)", "b_prior": "output bias (to prior)",
    "b_marg_count": "count bias (KL)", "b_tv_count": "count bias (TV)", "b_prior_count": "count bias (to prior)",
    "train_error": "training error", "train_loss": "training loss", "train_clean_error": "training error, true labels",
    "validation_error": "validation error", "validation_loss": "validation loss", "rho": "radius ρ",
    "lr": "learning rate", "batch_size": "batch size", "steps": "training steps",
    "mean_entropy": "output entropy", "mean_confidence": "confidence",
    "test_error": "test error", "gap_error": "gap in error", "gap_loss": "gap in loss",
    "ood_error_mean": "OOD error, mean", "ood_error": "OOD error", "ood_error_worst": "OOD error, worst",
    "ood_gap": "OOD gap", "ood_loss": "OOD loss", "ood_ece": "OOD ECE", "ood_top5_error": "OOD top-5 error",
    "ood_balanced_error": "OOD balanced error", "test_top5_error": "test top-5 error",
    "test_balanced_error": "test balanced error",
    "ece": "ECE", "ece_adaptive": "ECE, adaptive bins", "train_ece": "training ECE", "validation_ece": "validation ECE",
}  # fmt: skip
_KEPT = ("F_", "KL", "JS", "TV", "dH")  # symbols of the literature, whose underscores are subscripts

EXPOSURES: dict[str, tuple[str, str, str]] = {  # split: shown name, colour, line style
    "exposed": ("in the perturbation batch", "#3b1f6e", "-"),
    "other_train": ("other training examples", "#9678d0", "--"),
    "held_out": ("held-out examples", "#858b94", ":"),
}
PROVIDERS: dict[str, str] = {
    "sam": "SAM",
    "asam": "ASAM",
    "gsam": "GSAM",
    "obf": "OBF",
    "random": "random",
    "zero": "none",
}
RADII: dict[str, str] = {"own": "moved as far as in training", "iso-loss": "moved to equal loss increase"}


def rc(medium: str | Medium = "screen") -> dict[Any, Any]:
    """Matplotlib settings for one medium, to be used as `with matplotlib.rc_context(rc("icml")):`.

    Text stays text in PDF and SVG (font type 42), so that it can be searched and journals accept it.

    Raises:
        ValueError: If `medium` is not known.
    """
    chosen = media.medium(medium)
    size = chosen.size
    return {
        "figure.figsize": (chosen.width, 0.62 * chosen.width),
        "font.family": media.FONTS[chosen.font],
        "font.size": size,
        "mathtext.fontset": "stix" if chosen.font == "serif" else "dejavusans",
        "mathtext.default": "regular",  # τ and its index in the type of the text: one font less to embed
        "axes.titlesize": size,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": size,
        "xtick.labelsize": size - 1,
        "ytick.labelsize": size - 1,
        "legend.fontsize": size - 1,
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "legend.columnspacing": 1.2,
        "legend.handletextpad": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.7,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.axisbelow": True,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.5,
        "lines.markersize": 4.5,
        "errorbar.capsize": 0,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "savefig.bbox": None,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
    }


def method_label(method: Any, ascent: Any = None) -> str:
    """The label of a training method: `sam`, or `sam+OBF` where the ascent objective is OBF's."""
    name = "unknown" if method is None or pd.isna(method) else str(method)
    return f"{name}+OBF" if ascent == "obf" and name != "obf" else name


def method_labels(table: pd.DataFrame) -> pd.Series:
    """`method_label` of every row of a table with `hp.method` and, where there is one, `hp.ascent`."""
    if "hp.method" not in table.columns:
        return pd.Series("unknown", index=table.index, dtype=object)
    ascents = table["hp.ascent"] if "hp.ascent" in table.columns else pd.Series(None, index=table.index, dtype=object)
    labels = [method_label(m, a) for m, a in zip(table["hp.method"], ascents, strict=True)]
    return pd.Series(labels, index=table.index, dtype=object)


def ordered(labels: Iterable[str]) -> list[str]:
    """The distinct labels in the order of every legend: the known methods first, then the rest by name."""
    given = set(labels)
    return [m for m in METHODS if m in given] + sorted(given - set(METHODS))


def looks(labels: Iterable[str]) -> Mapping[str, tuple[str, str, str]]:
    """Shown name, colour and marker of each method; those without a fixed colour take one from a cycle, by name.

    What `labelled` has in force comes first. Pass all the methods of a study at once: a label outside `METHODS` has
    the same colour in two figures only if the two were given the same labels.
    """
    names = ordered(labels)
    strangers = [n for n in names if n not in METHODS]
    cycle = {n: (_shown(n), *_CYCLE[i % len(_CYCLE)]) for i, n in enumerate(strangers)}
    given = own_labels.in_force()
    return {n: given.look(n, METHODS.get(n) or cycle[n]) for n in names}


def _shown(label: str) -> str:
    name, plus, ascent = label.partition("+")
    return SHOWN.get(name, name) + plus + ascent


@cache
def ink(colour: str) -> str:
    """The colour, darkened as far as small text on white needs (contrast 4.5, WCAG 2 level AA)."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    while _contrast(rgb) < 4.5:
        rgb = 0.97 * rgb
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def _contrast(rgb: np.ndarray) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(1.05 / (linear @ np.array([0.2126, 0.7152, 0.0722]) + 0.05))


@cache
def family(measure: str) -> str:
    """What a measure, or a variant of one, speaks about: a key of `FAMILIES`, as the registry of measures has it."""
    from analysis.measures.registry import family_of, is_baseline  # slow to import, and style is wanted without it

    base = measure.split("[", 1)[0]
    known = "baseline" if is_baseline(base) else family_of(base)
    if known is None:
        return "sharpness" if base.endswith("sharpness") else "forgetting" if base.startswith("F_") else "other"
    found = _REGISTRY_FAMILIES.get(known, known)
    return found if found in FAMILIES else "other"


def measure_name(variant: str) -> str:
    """What figures call a measure or a variant of one: `right → wrong [OBF, iso-loss, m=64, held out]`.

    What `labelled` has in force comes first. A name that is not in `NAMES` loses its underscores, but for symbols such
    as F_mi.
    """
    given = own_labels.in_force().measures
    if variant in given:
        return given[variant]
    base, bracket, options = variant.partition("[")
    gap = base.startswith("M_gap_")
    base = base.removeprefix("M_gap_")
    name = given.get(base) or NAMES.get(base) or (base if base.startswith(_KEPT) else base.replace("_", " "))
    name = f"M-gap of {name}" if gap else name
    if not bracket:
        return name
    parts = [PROVIDERS.get(part, part).replace("_", " ") for part in options.rstrip("]").split(", ")]
    return f"{name} [{', '.join(parts)}]"


def fixed(value: Any, digits: int = 2) -> str:
    """A number for a reader with so many digits after the point; never a negative zero."""
    x = math.nan if value is None or value is pd.NA else float(value)
    if not math.isfinite(x):
        return "–"
    text = f"{x:.{digits}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def interval(value: Any, low: Any, high: Any, digits: int = 2) -> str:
    """`value [low, high]`, or the value alone where there is no interval."""
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        return fixed(value, digits)
    return f"{fixed(value, digits)} [{fixed(low, digits)}, {fixed(high, digits)}]"


def p_value(p: float) -> str:
    """A p-value for a reader: three digits, and no more certainty than that."""
    if p < 0.001:
        return "< 0.001"
    return "1" if p >= 0.9995 else fixed(p, 3)


def count(n: Any) -> str:
    """A whole number for a reader, a dash where it is unknown."""
    return "–" if missing(n) or not math.isfinite(n) else str(int(n))


def counted(n: int, noun: str) -> str:
    """A number with its noun: `1 run`, `96 runs`."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def from_to(counts: pd.Series) -> str:
    """The smallest and the largest of some counts, or the one there is: `3 to 4`, `4`."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))
