"""From run folders to a result: groups of runs over seeds, their numbers, and how they are shown. No torch here."""

from locallearn.report.grouped import Group, GroupedRuns, Number, grouped
from locallearn.runs.read import Run, read

__all__ = ["Group", "GroupedRuns", "Number", "Run", "grouped", "read"]
