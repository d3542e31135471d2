"""Measures over checkpoints, forgetting, statistics, figures and the report.

Statistics and figures are imported when they are first used: a worker process that only measures needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from analysis.forgetting.examples import ExampleForgetting, example_forgetting
from analysis.forgetting.information import Information, output_information
from analysis.forgetting.output_bias import output_bias
from analysis.forgetting.perturbed import perturbed_forgetting
from analysis.forgetting.providers import PROVIDERS, OwnPerturbation
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from analysis.measures.targets import TARGETS, fit_temperature, overlap, paired_error_difference, target_rows
from analysis.measuring.collect import collect, measure_run

if TYPE_CHECKING:
    from analysis.figures import FIGURES
    from analysis.reporting.pages import report
    from analysis.results import StudyResults
    from analysis.statistics.correlation import Correlations, correlate
    from analysis.study import Study, StudyConfig, read_study

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
    "fit_temperature",
    "measure_run",
    "output_bias",
    "output_information",
    "overlap",
    "paired_error_difference",
    "perturbed_forgetting",
    "read_study",
    "report",
    "target_rows",
]

_LATER = {
    "Correlations": "statistics.correlation",
    "correlate": "statistics.correlation",
    "FIGURES": "figures",
    "report": "reporting.pages",
    "StudyResults": "results",
    "Study": "study",
    "StudyConfig": "study",
    "read_study": "study",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"analysis.{_LATER[name]}"), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
