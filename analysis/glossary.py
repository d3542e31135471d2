"""The words of reports and figures: what terms mean, and what measures are called. `docs/glossary.md` is `page()`."""

from analysis.measures.registry import MEASURES
from analysis.style import NAMES, measure_name

TERMS: dict[str, str] = {  # as it stands in a text: what it means, in a sentence or two
    "τ_b": (
        "Kendall's rank correlation, corrected for ties: the share of pairs of models that measure and target put"
        " in the same order, less the share in opposite orders."
    ),
    "Ψ": (
        "Granulated rank correlation (Jiang et al. 2020): the mean of τ over groups of models that differ in one "
        "hyper-parameter alone; near 0 the measure says no more than the hyper-parameters."
    ),
    "K": (
        "Conditional information (Jiang et al. 2020), from 0 to 1: what the order by the measure tells of the "
        "order by the target once up to two hyper-parameters are known; the least over all such sets."
    ),
    "noise ceiling": (
        "How well the target can be ranked at all: the correlation of the target with itself over other seeds. No"
        " measure can be expected above it."
    ),
    "cell": (
        "Models with equal hyper-parameters of training (learning rate, batch size, ...), which differ in the "
        "method and its settings alone."
    ),
    "stratified": ("Over pairs of models of one cell: with the hyper-parameters of training held fixed."),
    "baseline": ("What is known without any measure: training loss, validation error, hyper-parameters."),
    "OBF": (
        "Output bias forgetting (Vani et al. 2024): a perturbation of the weights that makes the model forget "
        "output biases, and the training method that uses it in the place of SAM's."
    ),
    "output bias": "How far the outputs of a classifier, averaged over examples, lean towards some classes.",
    "perturbed forgetting": ("What a model gets wrong after its weights were perturbed and had right before."),
    "exposed": (
        "Examples that the perturbation was computed on; the others are other training examples and held-out ones."
    ),
    "own radius": ("The perturbation moves the weights as far as the model's own method moved them in training."),
    "iso-loss": (
        "The perturbation moves the weights until the loss on its batch has risen by a set amount, the same for "
        "all models, so that they are compared at equal harm."
    ),
    "m": ("The number of examples that one perturbation is computed on."),
    "M-gap": ("A measure of forgetting on exposed examples, less the same on held-out ones."),
}
SYMBOLS: dict[str, str] = {  # of measures that the literature writes with one
    "top_eigenvalue": "λ₁", "bottom_eigenvalue": "λₚ", "hessian_trace": "tr H", "gauss_newton_trace": "tr G",
    "gradient_norm": "‖g‖", "parameter_norm": "‖θ‖", "rho": "ρ", "lr": "η", "F_mi": "I(X;Ŷ)", "F_cmi": "I(X;Ŷ|Y)",
    "ascent_sharpness": "L(θ + δ) − L(θ)", "distance_from_init": "‖θ − θ₀‖",
}  # fmt: skip


def page() -> str:
    """The glossary as Markdown."""
    terms = "\n".join(f"| {term} | {meaning} |".replace("Ŷ|Y", r"Ŷ\|Y") for term, meaning in TERMS.items())
    rows = sorted({row for entry in MEASURES.values() for row in entry.rows} | set(NAMES), key=str.lower)
    names = "\n".join(
        f"| {measure_name(row)} | {SYMBOLS.get(row, '')} | `{row}` |".replace("Ŷ|Y", r"Ŷ\|Y") for row in rows
    )
    return (
        "# Words\n\nWhat reports, figures and tables say, and what they mean. A term that a report uses is explained "
        "at its end too.\n\n"
        f"| term | meaning |\n|---|---|\n{terms}\n\n"
        "## Names of measures and targets\n\nFigures, sentences and tables use the name; beside it in tables stands "
        "the id, which is what files and the option `--measures` hold. Variants have their options in brackets behind "
        "it, such as `F_mi[obf, iso-loss, m=64, held_out]`.\n\n"
        f"| name | symbol | id |\n|---|---|---|\n{names}\n"
    )
