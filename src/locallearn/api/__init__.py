"""What a script or a notebook imports: train a run and come back to it, or build a learner for a loop of one's own."""

from locallearn.api.learners import build
from locallearn.api.runs import evaluate, load, probe, resume, train
from locallearn.engine import Learner
from locallearn.training.saved import Result

__all__ = ["Learner", "Result", "build", "evaluate", "load", "probe", "resume", "train"]
