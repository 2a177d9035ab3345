"""What one minibatch does: blocks with their optimizers, and the stage that drives a strategy over them."""

from locallearn.engine.assemble import assemble
from locallearn.engine.block import TrainedBlock
from locallearn.engine.learner import Learner
from locallearn.engine.optim import SGD, Adam, AdamW, NAdamW, Optim
from locallearn.engine.setup import Place, Setup
from locallearn.engine.stage import Stage

__all__ = ["SGD", "Adam", "AdamW", "Learner", "NAdamW", "Optim", "Place", "Setup", "Stage", "TrainedBlock", "assemble"]
