"""Auxiliary networks: the small classifiers, projections and decoders that a local loss reads. They train a block and
never ship."""

from locallearn.auxiliary.decoder import Decoder
from locallearn.auxiliary.detect import Detect
from locallearn.auxiliary.networks import (
    CNN,
    MLP,
    Auxiliary,
    ConvFC,
    Linear,
    MeanOverSteps,
    MLPSpatialReduction,
    Projector,
    pooled,
)
from locallearn.auxiliary.pointwise import PointwiseMLP
from locallearn.auxiliary.transformer import Transformer
from locallearn.auxiliary.units import AugLocal, like

__all__ = [
    "CNN",
    "MLP",
    "AugLocal",
    "Auxiliary",
    "ConvFC",
    "Decoder",
    "Detect",
    "Linear",
    "MLPSpatialReduction",
    "MeanOverSteps",
    "PointwiseMLP",
    "Projector",
    "Transformer",
    "like",
    "pooled",
]
