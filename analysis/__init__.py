"""Measures over checkpoints, forgetting, statistics, figures and the report."""

from analysis.collect import collect, measure_run
from analysis.correlation import Correlations, correlate
from analysis.example_forgetting import ExampleForgetting, example_forgetting
from analysis.figures import FIGURES
from analysis.information import Information, output_information
from analysis.measures import MEASURES
from analysis.output_bias import output_bias
from analysis.perturbed_forgetting import perturbed_forgetting
from analysis.providers import PROVIDERS, OwnPerturbation
from analysis.report import report
from analysis.results import StudyResults
from analysis.study import Study, StudyConfig, read_study
from analysis.subject import Subject
from analysis.targets import TARGETS, target_rows

__all__ = [
    "FIGURES",
    "MEASURES",
    "PROVIDERS",
    "TARGETS",
    "Correlations",
    "ExampleForgetting",
    "Information",
    "OwnPerturbation",
    "Study",
    "StudyConfig",
    "StudyResults",
    "Subject",
    "collect",
    "correlate",
    "example_forgetting",
    "measure_run",
    "output_bias",
    "output_information",
    "perturbed_forgetting",
    "read_study",
    "report",
    "target_rows",
]
