"""Auxiliary networks: the small classifiers that a local loss reads. They train a block and never ship."""

from locallearn.auxiliary.networks import CNN, MLP, Auxiliary, Linear, MLPSpatialReduction

__all__ = ["CNN", "MLP", "Auxiliary", "Linear", "MLPSpatialReduction"]
