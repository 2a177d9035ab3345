"""Local losses: what a block that is not the last one minimises."""

from locallearn.objectives.base import Objective, ObjectiveModules
from locallearn.objectives.cross_entropy import CrossEntropy
from locallearn.objectives.similarity import PredSim, Similarity

__all__ = ["CrossEntropy", "Objective", "ObjectiveModules", "PredSim", "Similarity"]
