"""What each page says: the question, the rule that decides it, fixed before the study was run, and the numbers."""

from studies.pages import (
    efficiency,
    fashion_mnist,
    graphs,
    label_noise,
    language,
    late_phase,
    obf,
    perturbation_batch,
    predictors,
    spurious,
    tabular,
    transfer,
)
from studies.pages.page import Answer, Page

__all__ = ["PAGES", "Answer", "Page"]

PAGES: dict[str, Page] = {
    module.PAGE.name: module.PAGE
    for module in (
        obf,
        late_phase,
        efficiency,
        spurious,
        label_noise,
        perturbation_batch,
        predictors,
        fashion_mnist,
        transfer,
        graphs,
        tabular,
        language,
    )
}
