"""Matrix-based Renyi entropy: information from the eigenvalues of kernel matrices, without a density.

Sanchez Giraldo, Rao and Principe 2015; Yu et al. 2020 for the layers of networks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from locallearn.analysis.information.pairwise import distances
from locallearn.analysis.information.result import Information, Samples, checked, positive
from locallearn.errors import UserError

ALPHA = 1.01
LIMIT = 5000
"""Samples: matrices of 200 MB each, and eigenvalues in tens of seconds on two cores."""


def renyi(data: Samples, noise_variance: float | None) -> Information:
    """I(A;B) = S(A) + S(B) - S(A o B), with S = 1/(1-a) log2 sum lambda^a over the eigenvalues of the kernel matrix
    with trace 1, o the product of elements, a = 1.01.

    Without x every sample is an input of its own, and I(X;T) = S(T). The kernel of labels is 1 within a class, else 0;
    that of t is Gaussian, of width (median distance) N^(-1/(4+D)) after Silverman's rule, or of `noise_variance`, the
    width squared; that of x always by the rule. N^2 memory and N^3 time, up to 5000 samples.
    """
    n = len(data.t)
    if n > LIMIT:
        raise UserError(f"renyi with {n} samples needs {n}x{n} matrices and their eigenvalues; give at most {LIMIT}")
    variance = None if noise_variance is None else positive("noise_variance", noise_variance)
    kernel, variance = _kernel(data.t, variance)
    of_t = _entropy(kernel)
    if data.x is None:
        of_x = of_t
    else:
        inputs, _ = _kernel(data.x, None)
        of_x = max(0.0, of_t + _entropy(inputs) - _entropy(kernel * inputs * n))
    of_y = None
    if data.y is not None:
        # kernel o labels is one block for each class: the eigenvalues of all blocks
        members = [torch.nonzero(data.y == c).flatten() for c in range(len(data.counts))]
        blocks = [kernel[rows][:, rows] for rows in members]
        of_labels = _renyi(data.counts.double() / n)
        of_y = max(0.0, of_t + of_labels - _renyi(torch.cat([torch.linalg.eigvalsh(b) for b in blocks])))
    return checked(data, "renyi", of_x, of_y, noise_variance=variance)


def _kernel(t: Tensor, variance: float | None) -> tuple[Tensor, float]:
    """exp(-|t_i - t_j|^2 / (2 variance)) / N [N, N], and the variance by Silverman's rule if none is given."""
    squared = distances(t)
    if variance is None:
        off = squared[~torch.eye(len(t), dtype=torch.bool, device=t.device)]
        spread = float(off.median()) or float(off.mean())
        variance = spread * len(t) ** (-2 / (4 + t.shape[1])) or 1.0
    return squared.div_(-2 * variance).exp_().div_(len(t)), variance


def _entropy(matrix: Tensor) -> float:
    return _renyi(torch.linalg.eigvalsh(matrix))


def _renyi(eigenvalues: Tensor) -> float:
    return max(0.0, math.log2(float(eigenvalues.clamp(min=0.0).pow(ALPHA).sum())) / (1 - ALPHA))
