"""From run folders to a result: groups of runs over seeds, their numbers, and how they are shown. No torch here."""

from locallearn.report.study import Group, Number, Study, study
from locallearn.runs.read import Run, read

__all__ = ["Group", "Number", "Run", "Study", "read", "study"]
