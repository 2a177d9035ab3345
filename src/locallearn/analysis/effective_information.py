"""Information of activations through the noise that the weights tolerate: I(x; z) of z = f_{w + n}(x), n ~ N(0, S)
(Achille & Soatto, arXiv 1905.12213).

S = beta (N F + beta / lambda^2)^-1 is the covariance of `weight_nats`. To first order z is then normal for each x, with
the covariance J S J^T, J = dz/dw: a mixture of as many normals as there are inputs, whose information is worked out by
draws. The published slides have J F J^T in the place of (J S J^T)^-1, another number where weights are correlated.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from locallearn.analysis.fisher import HELD, NUMBERS, drawn_labels
from locallearn.analysis.quiet import evaluating
from locallearn.analysis.readout import pooled
from locallearn.errors import UserError

RIDGE = 1e-6
"""Added to a covariance, of its mean variance: units that are off have none."""


class WeightNoise(NamedTuple):
    """Normal noise of covariance L (1 + R^T R)^-1 L on weights, L diagonal, R [n, weights].

    deviations  L by parameter, a number or of its shape
    rows        the columns of R that belong to a parameter, [n, numbers]; empty: R is 0
    """

    deviations: Mapping[Tensor, float | Tensor]
    rows: Mapping[Tensor, Tensor]


def tolerated(
    model: nn.Module, inputs: Tensor, deviations: Mapping[Tensor, float], factor: float, random: torch.Generator
) -> WeightNoise:
    """The noise of the parameters in `deviations` (lambda) by the whole of F, from gradients of the log-likelihood of
    inputs [n, ...] with labels that are drawn from the model's logits; what these n do not see has the prior's noise.
    `factor` is N / beta. Raises UserError where the gradients are too many, or the model cannot be vectorised."""
    numbers = len(inputs) * sum(p.numel() for p in deviations)
    if numbers > HELD // 2:  # in float64
        raise UserError(
            f"{len(inputs)} gradients are {numbers:.1e} numbers, and at most {HELD // 2:.1e} are held: take fewer "
            "samples, or the diagonal of the Fisher information"
        )
    labels = drawn_labels(model, inputs, random)
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    state = _double(model)
    some = {names[p]: state[names[p]] for p in deviations}

    def likelihood(some: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional_call(model, state | some, (x[None],)).log_softmax(1).gather(1, y.view(1, 1)).sum()

    size = max(1, NUMBERS // max(1, numbers // len(inputs)))
    parts = []
    with evaluating(model), _vectorised():
        for xs, ys in zip(_wide(inputs).split(size), labels.split(size), strict=True):
            parts.append(vmap(grad(likelihood), in_dims=(None, 0, 0))(some, xs, ys))
    scale = math.sqrt(factor / len(inputs))
    rows = {p: scale * d * torch.cat([part[names[p]] for part in parts]).flatten(1) for p, d in deviations.items()}
    return WeightNoise(deviations, rows)


def tolerated_alone(
    diagonal: Mapping[Tensor, Tensor], deviations: Mapping[Tensor, float], factor: float
) -> WeightNoise:
    """The noise by the diagonal of F alone: as if no two weights did the same."""
    return WeightNoise({p: (d**-2 + factor * diagonal[p].double()) ** -0.5 for p, d in deviations.items()}, {})


def noisy_outputs(net: nn.Module, noise: WeightNoise, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What a net emits for inputs [N, ...] under the noise, to first order: means [N, D] and covariances [N, D, D]; of
    maps the mean over positions. Costs D backward passes of each input, in float64."""
    own = {name: p for name, p in net.named_parameters() if p in noise.deviations}
    state = _double(net)
    some = {name: state[name] for name in own}
    gram: Any = sum(row @ row.T for row in noise.rows.values())
    root = torch.linalg.cholesky(torch.eye(len(gram)).to(gram) + gram) if noise.rows else None

    def emitted(some: dict[str, Tensor], x: Tensor) -> Tensor:
        return pooled(functional_call(net, state | some, (x[None],)))[0]

    means, covariances = [], []
    with evaluating(net), _vectorised():
        width = len(emitted(some, _wide(inputs[0])))
        size = max(1, NUMBERS // max(1, width * sum(p.numel() for p in some.values())))
        for xs in _wide(inputs).split(size):
            means.append(vmap(emitted, in_dims=(None, 0))(some, xs))
            free: Any = 0.0
            known: Any = 0.0
            for name, whole in vmap(jacrev(emitted), in_dims=(None, 0))(some, xs).items():
                j = (noise.deviations[own[name]] * whole).flatten(2)  # [b, D, numbers]
                free = free + j @ j.mT
                known = known + j @ noise.rows[own[name]].T if noise.rows else 0.0
            covariances.append(free if root is None else free - known @ torch.cholesky_solve(known.mT, root))
    covariance = torch.cat(covariances)
    mean_variance = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float64).tiny)
    ridge = RIDGE * mean_variance[:, None, None] * torch.eye(width, dtype=torch.float64, device=covariance.device)
    return torch.cat(means), (covariance + covariance.mT) / 2 + ridge


class Effective(NamedTuple):
    """Information of a mixture's component and its value, in bits; at most log2 of the number of components.

    bits           by draws
    lower, upper   bounds on it from pairwise distances, Bhattacharyya and Kullback-Leibler (Kolchinsky & Tracey 2017)
    """

    bits: float
    lower: float
    upper: float


def mixture_information(means: Tensor, covariances: Tensor, random: torch.Generator, draws: int = 32) -> Effective:
    """I(x; z) where x is one of N inputs, all equally likely, and z given x is normal with means [N, D] and covariances
    [N, D, D]: the mean of ln p(z | x_i) - ln (1 / N) sum_j p(z | x_j) over `draws` of each, by a CPU generator."""
    count, width = means.shape
    root = torch.linalg.cholesky(covariances)
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    noise = torch.randn(count, width, draws, generator=random, dtype=torch.float64).to(means.device)
    z = (means[:, :, None] + root @ noise).movedim(1, 2).reshape(-1, width)
    inverse = torch.cholesky_inverse(root)
    spread = covariances.flatten(1) @ inverse.flatten(1).T  # trace of S_j^-1 S_i: [i, j]
    drawn, kl, near = [], [], []
    for j in range(count):
        away = means - means[j]
        between = torch.linalg.cholesky((covariances + covariances[j]) / 2)
        whole = 2 * between.diagonal(dim1=1, dim2=2).log().sum(1)
        near.append(_length(between, away[:, :, None])[:, 0] / 8 + (whole - (log_det + log_det[j]) / 2) / 2)
        kl.append((spread[:, j] + _length(root[j], away.T) - width + log_det[j] - log_det) / 2)
        drawn.append(-(_length(root[j], (z - means[j]).T) + log_det[j]) / 2)
    log_p = torch.stack(drawn, 1)  # [N draws, N], but for a constant
    own = log_p.gather(1, torch.arange(count, device=z.device).repeat_interleave(draws)[:, None])[:, 0]

    def bits(log_ratios: Tensor) -> float:
        return -float((log_ratios.logsumexp(1) - math.log(count)).mean()) / math.log(2)

    return Effective(bits(log_p - own[:, None]), bits(-torch.stack(near, 1)), bits(-torch.stack(kl, 1)))


def _length(root: Tensor, vectors: Tensor) -> Tensor:
    """v^T (R R^T)^-1 v of the columns of vectors [..., D, M]: [..., M]."""
    return torch.linalg.solve_triangular(root, vectors, upper=False).square().sum(-2)


def _double(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers by name, numbers in float64."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: _wide(t.detach()) for name, t in tensors.items()}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@contextmanager
def _vectorised() -> Iterator[None]:
    """Turn the error of a module that `vmap` cannot take into a sentence."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the effective information needs a model that torch.vmap can take ({reason}): choose another model"
        ) from error
