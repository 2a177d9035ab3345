"""Local losses: what a block that is not the last one minimises."""

from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules
from locallearn.objectives.bottleneck import VIB, InformationDropout
from locallearn.objectives.contrastive import SimCLR, SupCon
from locallearn.objectives.cpc import CPC
from locallearn.objectives.cross_entropy import CrossEntropy
from locallearn.objectives.distil import Distil
from locallearn.objectives.hsic import HSIC
from locallearn.objectives.infonce import InfoNCE
from locallearn.objectives.infopro import InfoPro
from locallearn.objectives.masked import Masked
from locallearn.objectives.reconstruction import Inpainting, Reconstruction
from locallearn.objectives.similarity import PredSim, Similarity

__all__ = [
    "CPC",
    "HSIC",
    "VIB",
    "CrossEntropy",
    "Distil",
    "InfoNCE",
    "InfoPro",
    "InformationDropout",
    "Inpainting",
    "LossAndLogits",
    "Masked",
    "Objective",
    "ObjectiveModules",
    "PredSim",
    "Reconstruction",
    "SimCLR",
    "Similarity",
    "SupCon",
]
