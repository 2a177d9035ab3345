"""Auxiliary networks: the small classifiers, projections and decoders that a local loss reads. They train a block and
never ship."""

from locallearn.auxiliary.decoder import Decoder
from locallearn.auxiliary.networks import (
    CNN,
    MLP,
    Auxiliary,
    Linear,
    MeanOverSteps,
    MLPSpatialReduction,
    OneConvTwoFC,
    Projector,
)

__all__ = [
    "CNN",
    "MLP",
    "Auxiliary",
    "Decoder",
    "Linear",
    "MLPSpatialReduction",
    "MeanOverSteps",
    "OneConvTwoFC",
    "Projector",
]
