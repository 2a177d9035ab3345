"""A noise variance for each layer, from the distances between its own activations."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from locallearn.analysis.information.pairwise import distances
from locallearn.analysis.information.result import Array, positive, samples

SHARE, DIVISOR = 0.9, 1000.0
SAMPLES = 1000
"""Evenly spaced among those given: half a million pairs, whose 90th percentile is stable to about a percent."""


class Distances(NamedTuple):
    """The distribution of the squared distances between activations, as a histogram: counts [64], edges [65]."""

    noise_variance: float
    percentile: float
    counts: Tensor
    edges: Tensor


def noise_from_distances(t: Array) -> Distances:
    """The 90th percentile of the squared distances between activations t [N, D...], divided by 1000.

    Squared, as in the code of Saxe et al., so that a layer that is scaled keeps its information. Where more than nine
    in ten pairs are equal, the largest distance stands in; a constant layer gets variance 1 (it carries nothing).
    """
    data = samples(t).t
    few = data[torch.linspace(0, len(data) - 1, min(SAMPLES, len(data)), device=data.device).round().long()]
    upper = torch.triu_indices(len(few), len(few), 1, device=data.device)
    found = distances(few)[upper[0], upper[1]]
    largest = float(found.max())
    percentile = float(found.kthvalue(max(1, round(SHARE * len(found)))).values) or largest
    edges = torch.linspace(0.0, largest or 1.0, 65, dtype=torch.float64)
    counts = torch.histc(found.cpu(), 64, 0.0, largest or 1.0)
    return Distances(percentile / DIVISOR if percentile else 1.0, percentile, counts.long(), edges)


def with_noise(t: Tensor, variance: float | None) -> Tensor:
    """t [N, D] plus Gaussian noise, the same for the same shape; t itself without a variance. Raises UserError."""
    if variance is None:
        return t
    deviation = math.sqrt(positive("noise_variance", variance))
    drawn = torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return t + deviation * drawn.to(t.device)
