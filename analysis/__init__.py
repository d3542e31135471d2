"""Measures over checkpoints, forgetting, statistics, figures and the report.

Each name is imported when it is first used: the command line shows its help without torch, and a worker process that
only measures needs neither statistics nor figures.
"""

import analysis.path  # noqa: F401 - before anything is imported that might be found in the working folder

# isort: split
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.curves import surface
    from analysis.figures import FIGURES
    from analysis.forgetting.displacements import Displacements
    from analysis.forgetting.ensembles import data_forgetting
    from analysis.forgetting.examples import ExampleForgetting, example_forgetting
    from analysis.forgetting.features import feature_forgetting
    from analysis.forgetting.information import Information, output_information
    from analysis.forgetting.membership import membership_auc, membership_forgetting
    from analysis.forgetting.output_bias import output_bias
    from analysis.forgetting.perturbed import perturbed_forgetting
    from analysis.forgetting.providers import PROVIDERS, OwnPerturbation
    from analysis.forgetting.spurious import SpuriousData, spurious_forgetting
    from analysis.forgetting.tasks import task_forgetting
    from analysis.forgetting.trajectory import forgetting_curve, second_half
    from analysis.labels import Labels
    from analysis.measures.catalogue.targets import (
        TARGETS,
        fit_temperature,
        overlap,
        paired_error_difference,
        target_rows,
    )
    from analysis.measures.collect import collect, measure_run
    from analysis.measures.registry import MEASURES
    from analysis.measures.subject import Subject
    from analysis.progress import shown
    from analysis.reporting.drawing import figure
    from analysis.reporting.pages import report
    from analysis.results import StudyResults
    from analysis.run_outcomes import outcomes
    from analysis.statistics.comparison import paired_difference
    from analysis.statistics.correlation import Correlations, correlate
    from analysis.statistics.granulated import granulated_kendall
    from analysis.statistics.information import conditional_information
    from analysis.statistics.methods import compare_methods
    from analysis.statistics.mixed import random_intercept
    from analysis.statistics.partial import partial_correlation
    from analysis.statistics.power import power, required_models
    from analysis.statistics.prediction import leave_one_group_out
    from analysis.statistics.selection import split_selection
    from analysis.statistics.sign_error import robust_sign_error
    from analysis.statistics.slopes import fixed_effects, simpson
    from analysis.study import Study
    from analysis.studyfile import StudyConfig, read_study

__all__ = [
    "FIGURES",
    "MEASURES",
    "PROVIDERS",
    "TARGETS",
    "Correlations",
    "Displacements",
    "ExampleForgetting",
    "Information",
    "Labels",
    "OwnPerturbation",
    "SpuriousData",
    "Study",
    "StudyConfig",
    "StudyResults",
    "Subject",
    "collect",
    "compare_methods",
    "conditional_information",
    "correlate",
    "data_forgetting",
    "example_forgetting",
    "feature_forgetting",
    "figure",
    "fit_temperature",
    "fixed_effects",
    "forgetting_curve",
    "granulated_kendall",
    "leave_one_group_out",
    "measure_run",
    "membership_auc",
    "membership_forgetting",
    "outcomes",
    "output_bias",
    "output_information",
    "overlap",
    "paired_difference",
    "paired_error_difference",
    "partial_correlation",
    "perturbed_forgetting",
    "power",
    "random_intercept",
    "read_study",
    "report",
    "required_models",
    "robust_sign_error",
    "second_half",
    "shown",
    "simpson",
    "split_selection",
    "spurious_forgetting",
    "surface",
    "target_rows",
    "task_forgetting",
]

_MODULES = {
    "FIGURES": "figures",
    "MEASURES": "measures.registry",
    "PROVIDERS": "forgetting.providers",
    "TARGETS": "measures.catalogue.targets",
    "Correlations": "statistics.correlation",
    "Displacements": "forgetting.displacements",
    "ExampleForgetting": "forgetting.examples",
    "Information": "forgetting.information",
    "Labels": "labels",
    "OwnPerturbation": "forgetting.providers",
    "SpuriousData": "forgetting.spurious",
    "Study": "study",
    "StudyConfig": "studyfile",
    "StudyResults": "results",
    "Subject": "measures.subject",
    "collect": "measures.collect",
    "compare_methods": "statistics.methods",
    "conditional_information": "statistics.information",
    "correlate": "statistics.correlation",
    "data_forgetting": "forgetting.ensembles",
    "example_forgetting": "forgetting.examples",
    "feature_forgetting": "forgetting.features",
    "figure": "reporting.drawing",
    "fit_temperature": "measures.catalogue.targets",
    "fixed_effects": "statistics.slopes",
    "forgetting_curve": "forgetting.trajectory",
    "granulated_kendall": "statistics.granulated",
    "leave_one_group_out": "statistics.prediction",
    "measure_run": "measures.collect",
    "membership_auc": "forgetting.membership",
    "membership_forgetting": "forgetting.membership",
    "outcomes": "run_outcomes",
    "output_bias": "forgetting.output_bias",
    "output_information": "forgetting.information",
    "overlap": "measures.catalogue.targets",
    "paired_difference": "statistics.comparison",
    "paired_error_difference": "measures.catalogue.targets",
    "partial_correlation": "statistics.partial",
    "perturbed_forgetting": "forgetting.perturbed",
    "power": "statistics.power",
    "random_intercept": "statistics.mixed",
    "read_study": "studyfile",
    "report": "reporting.pages",
    "required_models": "statistics.power",
    "robust_sign_error": "statistics.sign_error",
    "second_half": "forgetting.trajectory",
    "shown": "progress",
    "simpson": "statistics.slopes",
    "split_selection": "statistics.selection",
    "spurious_forgetting": "forgetting.spurious",
    "surface": "curves",
    "target_rows": "measures.catalogue.targets",
    "task_forgetting": "forgetting.tasks",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"analysis.{_MODULES[name]}"), name)
    from difflib import get_close_matches  # `landscape.naming` would import torch

    close = get_close_matches(name, __all__, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    raise AttributeError(f"module 'analysis' has no attribute {name!r}.{meant}")


def __dir__() -> list[str]:
    return __all__
