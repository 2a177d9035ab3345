"""Mutual information of a layer T with the input X and with the label Y, in bits, by every usual estimator.

A deterministic layer on continuous inputs has infinite I(X;T) (Goldfeld et al. 2019): a finite number is always one of
a convention, the noise or the bins that it was made with, which every result carries.
"""

from locallearn.analysis.information.curve import BottleneckPoint, bottleneck_curve
from locallearn.analysis.information.estimate import ESTIMATORS, NEED_X, information
from locallearn.analysis.information.gaussian import gaussian_channel
from locallearn.analysis.information.mine import Mine, mine
from locallearn.analysis.information.pairwise import Distances, bounds, noise_from_distances
from locallearn.analysis.information.result import Information, data_processing

__all__ = [
    "ESTIMATORS",
    "NEED_X",
    "BottleneckPoint",
    "Distances",
    "Information",
    "Mine",
    "bottleneck_curve",
    "bounds",
    "data_processing",
    "gaussian_channel",
    "information",
    "mine",
    "noise_from_distances",
]
