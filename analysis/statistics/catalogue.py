"""The further tables of `correlate`, in the order of the report; each is a file of its own."""

from analysis.statistics import (
    families,
    granulated,
    information,
    multilevel,
    partial,
    power,
    prediction,
    selection,
    sign_error,
)
from analysis.statistics.statistic import Statistic

FILES = (families, granulated, information, sign_error, partial, multilevel, selection, prediction, power)
STATISTICS: dict[str, Statistic] = {file.STATISTIC.name: file.STATISTIC for file in FILES}
