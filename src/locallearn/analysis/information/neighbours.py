"""Information from distances to nearest neighbours: Kraskov et al. 2004, estimator 1; Ross 2014 for labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from locallearn.analysis.information.pairwise import with_noise
from locallearn.analysis.information.result import Information, Samples, checked

NEIGHBOURS = 3
BLOCK = 512


def ksg(data: Samples, noise_variance: float | None) -> Information:
    """I(X;T) and I(T;Y) by the 3 nearest neighbours in the maximum norm.

    With `noise_variance`, Gaussian noise of this variance is added to t first (from a generator of its own): without
    any, I(X;T) of a deterministic layer is infinite and the estimate only grows with N. Takes N^2 (D + Dx) operations.
    Biased downward where the information is large against log2 N.
    """
    noisy = with_noise(data.t.double(), noise_variance)
    n = len(noisy)
    of_x, warnings = None, []
    if data.x is not None:
        of_x = _continuous(noisy, data.x.double())
        if noise_variance is None:
            warnings.append("I(X;T) of a deterministic layer is infinite: this grows with N; give noise_variance")
    of_y = None if data.y is None else _labels(noisy, data.y, data.counts)
    twice = n - len(noisy.unique(dim=0))
    if twice:
        warnings.append(
            f"{twice} of {n} samples repeat another's activations: estimates from nearest neighbours are wrong there; "
            "give noise_variance, or bin"
        )
    return checked(data, "ksg", of_x, of_y, warnings, noise_variance=noise_variance)


def _continuous(t: Tensor, x: Tensor) -> float:
    """psi(k) + psi(N) - <psi(n_x + 1) + psi(n_t + 1)>, where n counts what is nearer than the k-th joint neighbour."""
    n, k = len(t), min(NEIGHBOURS, len(t) - 1)
    total = 0.0
    for rows in torch.arange(n, device=t.device).split(BLOCK):
        of_t, of_x = _distances(t, rows), _distances(x, rows)
        radius = torch.maximum(of_t, of_x).kthvalue(k, dim=1, keepdim=True).values
        total += sum(float(torch.digamma((d < radius).sum(1).double() + 1).sum()) for d in (of_t, of_x))
    return max(0.0, (_digamma(k) + _digamma(n) - total / n) / math.log(2))


def _labels(t: Tensor, y: Tensor, sizes: Tensor) -> float:
    """psi(N) + <psi(k_y)> - <psi(N_y)> - <psi(m)>, where m counts, over all samples, what is no farther than the k-th
    neighbour of the same class. A class of one sample is left out."""
    keep = (sizes > 1)[y]
    t, y = t[keep], y[keep]
    n = len(t)
    if not n:
        return 0.0
    total = 0.0
    k = (sizes - 1).clamp(max=NEIGHBOURS)[y]
    for rows in torch.arange(n, device=t.device).split(BLOCK):
        apart = _distances(t, rows)
        same = apart.masked_fill(y[rows][:, None] != y[None], math.inf)
        nearest = same.topk(min(NEIGHBOURS, n), dim=1, largest=False).values
        radius = nearest.gather(1, k[rows][:, None] - 1)
        total += float(torch.digamma((apart <= radius).sum(1).double()).sum())  # the k-th itself is within
    classes = torch.digamma(sizes[y].double()).mean() - torch.digamma(k.double()).mean()
    return max(0.0, (_digamma(n) - float(classes) - total / n) / math.log(2))


def _distances(t: Tensor, rows: Tensor) -> Tensor:
    """Largest difference of any coordinate [len(rows), N], infinite from a sample to itself."""
    return torch.cdist(t[rows], t, p=math.inf).scatter_(1, rows[:, None], math.inf)


def _digamma(n: int) -> float:
    return float(torch.digamma(torch.tensor(float(n), dtype=torch.float64)))
