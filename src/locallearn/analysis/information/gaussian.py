"""Information between jointly Gaussian variables, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from locallearn.analysis.information.result import Information, Samples, checked, positive
from locallearn.errors import UserError


def gaussian_channel(weight: Tensor, covariance: Tensor, noise_variance: float) -> float:
    """I(X;T) = 1/2 log2 |I + W C W' / s2| bits, exact for T = W x + N(0, s2 I), W [D, Dx], x ~ N(0, C [Dx, Dx])."""
    variance = positive("noise_variance", noise_variance)
    w, c = weight.detach().double(), covariance.detach().double()
    if w.dim() != 2 or c.shape != (w.shape[1], w.shape[1]):
        raise UserError(f"weight {list(w.shape)} and covariance {list(c.shape)}: must be [D, Dx] and [Dx, Dx]")
    return _channel(w @ c @ w.T, variance)


def gaussian(data: Samples, noise_variance: float | None) -> Information:
    """I(X;T) from the covariances of samples, as if jointly Gaussian; there is no I(T;Y) for labels.

    Without x: of the layer t [N, D] with noise of `noise_variance` on top; exact for a linear layer of a Gaussian
    input, else an upper bound. With x [N, Dx]: of x and t as they were sampled (plus that noise, if given),
    the information of their linear dependence.
    """
    n, warnings = len(data.t), []
    if data.x is None:
        covariance = torch.atleast_2d(torch.cov(data.t.double().T, correction=0))
        bits = _channel(covariance, positive("noise_variance", noise_variance))
    else:
        variance = 0.0 if noise_variance is None else positive("noise_variance", noise_variance)
        bits = _joint(data.x.double(), data.t.double(), variance)
    dimensions = data.t.shape[1] + (0 if data.x is None else data.x.shape[1])
    if n < 10 * dimensions:
        warnings.append(f"{n} samples for covariances of {dimensions} dimensions: too large, by about its own value")
    if math.isinf(bits):
        warnings.append("t is a linear function of x, without noise: I(X;T) is infinite; give noise_variance")
    if data.y is not None:
        warnings.append("the Gaussian closed form has no I(T;Y) for labels; a varying target can be given as x")
    return checked(data, "gaussian", bits, None, warnings, noise_variance=noise_variance)


def _channel(covariance: Tensor, variance: float) -> float:
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0.0)
    return float(torch.log1p(eigenvalues / variance).sum()) / (2 * math.log(2))


def _joint(x: Tensor, t: Tensor, variance: float) -> float:
    """-1/2 sum log2(1 - r^2) over the canonical correlations r of x and t plus noise."""
    n = len(x)

    def basis(samples: Tensor, extra: float) -> Tensor:
        """Samples as uncorrelated variables [N, rank], of unit variance when noise of variance `extra` is added."""
        u, s, _ = torch.linalg.svd(samples - samples.mean(0), full_matrices=False)
        keep = s > s[0] * max(samples.shape) * torch.finfo(s.dtype).eps
        s = s[keep]
        return u[:, keep] * (s / (s.square() + extra * n).sqrt())

    squared = torch.linalg.svdvals(basis(x, 0.0).T @ basis(t, variance)).square()
    if bool((squared > 1 - 1e-12).any()):
        return math.inf
    return float(-torch.log1p(-squared).sum()) / (2 * math.log(2))
