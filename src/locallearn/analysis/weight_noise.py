"""Information in the weights, measured by how much Gaussian noise on them the loss tolerates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from locallearn.analysis.quiet import evaluating
from locallearn.errors import UserError

Loss: TypeAlias = Callable[[Mapping[str, Tensor]], float]
"""The loss of a model with these tensors in place of its own parameters of the same names."""

START = 0.1
STEP = 4.0
RANGE = (1e-6, 1e3)
"""The noise that is tried, over the root mean square of the weights: first, by which factor up or down, and limits."""
PRECISION = 0.01
"""Of the logarithm of the noise that is found."""
LARGE = 1e6
"""Limit of the rise of the loss over the tolerance, either way."""


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 512) -> Loss:
    """The mean cross-entropy in nats of a model [B, ...] -> logits [B, classes], in eval mode, on inputs [N, ...] and
    labels [N] (those below 0 are left out), as a function of the weights. The model's own are never touched.

    batch  samples at a time; N for a model that reads all inputs at once (a graph)
    """
    known = int((labels >= 0).sum())
    if not known:
        raise UserError("information in the weights needs labelled samples, but no label is 0 or above; give some")

    @torch.no_grad()
    def loss(weights: Mapping[str, Tensor]) -> float:
        total = 0.0
        with evaluating(model):
            for x, y in zip(inputs.split(batch), labels.split(batch), strict=True):
                logits = functional_call(model, dict(weights), (x,))
                total += float(F.cross_entropy(logits[y >= 0].double(), y[y >= 0], reduction="sum"))
        return total / known

    return loss


def tolerated_noise(loss: Loss, weights: Mapping[str, Tensor], tolerance: float, seed: int, draws: int = 4) -> float:
    """The standard deviation sigma of independent Gaussian noise on these weights that raises the expected loss by
    `tolerance`: E loss(w + sigma n) = loss(w) + tolerance with n ~ N(0, I).

    The expectation is over `draws` pairs n, -n: they are the same for every sigma, and as a pair they cancel the slope
    of the loss. For a quadratic loss with Hessian H the result tends to sqrt(2 tolerance / tr H) with many draws.
    0 if the least noise tried (1e-6 of the root mean square of the weights) is too much, inf if the most (1000 times)
    is tolerated: the loss of a layer followed by normalisation may be bounded.

    Costs 2 x draws evaluations of the loss for each of about ten sigmas. `weights` are not changed.
    """
    from scipy.optimize import brentq

    if tolerance <= 0 or draws < 1:
        raise UserError(f"tolerance={tolerance}, draws={draws}: choose a tolerance above 0 and at least 1 draw")
    count = sum(w.numel() for w in weights.values())
    scale = math.sqrt(sum(float(w.double().square().sum()) for w in weights.values()) / max(1, count)) or 1.0
    before = loss(weights)

    @cache  # the search begins at two that are known
    def excess(log_sigma: float) -> float:
        """The logarithm of the rise of the loss over the tolerance: nearly linear, as the rise is nearly quadratic."""
        total = 0.0
        for draw in range(draws):
            random = torch.Generator().manual_seed(seed + draw)
            noise = {n: torch.randn(w.shape, generator=random).to(w) * math.exp(log_sigma) for n, w in weights.items()}
            total += sum(loss({n: w + sign * noise[n] for n, w in weights.items()}) for sign in (1, -1))
        ratio = (total / (2 * draws) - before) / tolerance
        return math.log(min(max(ratio, 1 / LARGE), LARGE)) if math.isfinite(ratio) else math.log(LARGE)

    low, high = (math.log(scale * limit) for limit in RANGE)
    here = math.log(scale * START)
    value = excess(here)
    direction = math.log(STEP) * (-1 if value > 0 else 1)
    while low <= (there := here + direction) <= high:
        next_value = excess(there)
        if (next_value > 0) != (value > 0):
            return math.exp(brentq(excess, here, there, xtol=PRECISION))
        here, value = there, next_value
    return 0.0 if value > 0 else math.inf


def gaussian_information(weights: Mapping[str, Tensor], sigma: float, prior_variance: float | None = None) -> float:
    """Information in bits that weights w (k numbers) hold if noise sigma on them is tolerated: KL(q || p) between
    q = N(w, sigma^2 I) and the prior p = N(0, v I), which bounds I(w; D) from above when averaged over data sets D
    (Achille and Soatto 2018, arXiv 1706.01350; Achille, Paolini and Soatto 2019, arXiv 1905.12213):

        KL = 1/2 [ |w|^2 / v + k sigma^2 / v - k + k ln(v / sigma^2) ] / ln 2

    Without `prior_variance` v is the one that makes it smallest, v = |w|^2 / k + sigma^2, where it is
    k/2 log2(1 + |w|^2 / (k sigma^2)): the capacity of k Gaussian channels. Weights and noise that grow together then
    hold the same information. 0 if any noise is tolerated (sigma inf), inf if none is.
    """
    k = sum(w.numel() for w in weights.values())
    size = sum(float(w.double().square().sum()) for w in weights.values())
    if math.isinf(sigma) and prior_variance is None:
        return 0.0
    if not sigma:
        return math.inf
    variance = sigma**2
    v = size / k + variance if prior_variance is None else prior_variance
    nats = (size / v + k * variance / v - k + k * math.log(v / variance)) / 2
    return nats / math.log(2)
