"""How much two variables depend on each other, by the Hilbert-Schmidt independence criterion with Gaussian kernels
(Gretton et al. 2005), normalised (Fukumizu et al. 2007).

    nHSIC(a, b) = tr(R_a R_b),  R = Kc (Kc + eps B I)^-1,  Kc = H K H,  K_ij = exp(-|x_i - x_j|^2 / (2 s^2 D))

for B samples of D numbers, H = I - 1/B. It lies between 0 and B - 1, does not need labels to be classes, and has a
gradient everywhere. With a small s all samples are unlike each other, and the value is near B - 1 for any variables:
compare it with that of shuffled labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-5


def gaussian_kernel(x: Tensor, scales: Sequence[float]) -> Tensor:
    """K [B, B] of samples x [B, D...]; of several scales s, the sum of their kernels."""
    x = x.flatten(1)
    norms = x.square().sum(1)
    squared = (norms[:, None] + norms - 2 * x @ x.T).clamp(min=0)
    return sum(((-squared / (2 * s * s * x.shape[1])).exp() for s in scales), torch.zeros_like(squared))


def centred(kernel: Tensor, known: Tensor | None = None) -> Tensor:
    """H K H of a kernel [B, B]; with `known`, bool [B], over these samples alone: the rows of the others are 0."""
    if known is None:
        return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    weights = known.to(kernel.dtype)
    centring = torch.diag(weights) - torch.outer(weights, weights) / weights.sum().clamp(min=1)
    return centring @ kernel @ centring


def normalised(kernel: Tensor, known: Tensor | None = None, epsilon: float = EPSILON) -> Tensor:
    """R [B, B] of a kernel [B, B]; see `centred`."""
    kernel = centred(kernel, known)
    samples = torch.full_like(kernel[0], len(kernel)) if known is None else known.sum().clamp(min=1).expand(len(kernel))
    solved, _ = torch.linalg.solve_ex(kernel + torch.diag(epsilon * samples.to(kernel.dtype)), kernel)
    return solved


def hsic(a: Tensor, b: Tensor) -> Tensor:
    """tr(K_a H K_b H) / B^2 [] of two kernels [B, B]: of linear ones |covariance|^2."""
    return (centred(a) * centred(b)).sum() / len(a) ** 2
