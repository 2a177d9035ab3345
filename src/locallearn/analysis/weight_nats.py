"""Information in the weights by the curvature of the loss: nats of the best Gaussian around them.

Near a minimum w the sum of the losses of N samples rises by N/2 v^T F v, F the Fisher information of a sample. The
prior is N(0, lambda^2), with a lambda for each layer; a nat of the weights costs beta nats of the loss. The best
Gaussian around w has the covariance beta (N F + beta / lambda^2)^-1; with s_j the eigenvalues of
(N / beta) lambda F lambda

    kl     KL = |w|^2 / (2 lambda^2) + 1/2 sum_j [ln(1 + s_j) - s_j / (1 + s_j)]
    cost   KL + the rise of the loss over beta = |w|^2 / (2 lambda^2) + 1/2 sum_j ln(1 + s_j)
    slide  the same with 2 s_j, as slides of Achille & Soatto have it: at most 0.347 nats a direction above the cost

(Achille & Soatto 2018, arXiv 1706.01350; Achille et al. 2019, arXiv 1905.12213, whose Taylor term lacks the half.)
Where the loss is flat nothing is paid for curvature; elsewhere the more the larger lambda is, without limit.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMS = ("kl", "cost", "slide")


def curvature_nats(strengths: Tensor, form: str = "kl") -> float:
    """The sum over directions, of their s_j of any shape: eigenvalues, or the diagonal of the matrix for a Gaussian
    whose weights are independent (of cost and slide an upper bound of what the eigenvalues give, by Hadamard)."""
    s = strengths.double()
    if form == "kl":
        return 0.5 * float((s.log1p() - s / (1 + s)).sum())
    return 0.5 * float((s if form == "cost" else 2 * s).log1p().sum())


def spectrum(gram: Tensor) -> Tensor:
    """The eigenvalues of a matrix G^T G, all but zeros, from G G^T [N, N]: [N]; negative ones, of rounding, are 0."""
    return torch.linalg.eigvalsh(gram.double()).clamp(min=0)


def place_nats(weight: Tensor, deviation: float) -> float:
    """|w|^2 / (2 lambda^2)."""
    return 0.5 * float((weight.detach().double() / deviation).square().sum())
