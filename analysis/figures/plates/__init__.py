"""The figures of the report: what each shows of a study, and a caption that says how its numbers were made."""

from analysis.figures.plates import correlations, forgetting, measuring, surfaces, training
from analysis.figures.plates.plate import NothingToDraw, Plate

__all__ = ["FIGURES", "NothingToDraw", "Plate"]

FIGURES: dict[str, Plate] = {
    **correlations.PLATES,
    **training.PLATES,
    **forgetting.PLATES,
    **measuring.PLATES,
    **surfaces.PLATES,
}
