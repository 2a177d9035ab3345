"""How much of the input a representation still holds: what a decoder that was trained on it can put back."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from locallearn.errors import UserError
from locallearn.seeds import generator, stream

BATCH = 32
WIDTH = 16
RATES = {True: 1e-2, False: 1e-3}
"""Adam's, for the decoder of maps and for that of vectors."""
PENALTIES = 10.0 ** torch.arange(-8, 3, dtype=torch.float64)
"""Penalties that `ridge` tries, in units of the mean eigenvalue of the features' Gram matrix."""


class Kept(NamedTuple):
    """How well held-out inputs [N, *image] were put back.

    mse                 mean squared error over samples and numbers
    explained_variance  1 - mse / variance of the inputs about their mean (scikit-learn's `r2_score` with
                        `variance_weighted`): 1 is perfect, 0 is what the mean alone gives
    psnr                10 log10(peak^2 / mse) in dB, or None if it is infinite
    """

    mse: float
    explained_variance: float
    psnr: float | None


def kept(decoded: Tensor, truth: Tensor, peak: float = 1.0) -> Kept:
    """Compare decoded [N, ...] with true inputs [N, ...] of range `peak`; of constant ones nothing is explained."""
    truth, decoded = truth.double(), decoded.double()
    mse = float((decoded - truth).square().mean())
    variance = float((truth - truth.mean(0)).square().mean())
    psnr = 10 * math.log10(peak**2 / mse) if mse > 0 else None
    return Kept(mse, 1 - mse / variance if variance > 0 else 0.0, psnr)


class MapDecoder(nn.Module):
    """From maps to an image: a 1x1 convolution gives each position the patch that it stands for, a 3x3 convolution of
    these and of their ReLU smooths the seams, and the middle is cut out. No normalisation, no sigmoid.
    [B, C, h, w] -> [B, *image]"""

    def __init__(self, channels: int, sides: tuple[int, int], image: tuple[int, ...], width: int = WIDTH) -> None:
        super().__init__()
        self.sides = image[1:]
        patch = max(math.ceil(whole / side) for whole, side in zip(self.sides, sides, strict=True))
        self.patches = nn.Sequential(nn.Conv2d(channels, width * patch**2, 1), nn.PixelShuffle(patch))
        self.join = nn.Conv2d(2 * width, image[0], 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        out = self.patches(h)  # [B, width, h * patch, w * patch]
        for dim, side in enumerate(self.sides, 2):
            out = out.narrow(dim, (out.shape[dim] - side) // 2, side)
        return self.join(torch.cat([out, out.relu()], 1))


def decoder(size: tuple[int, ...], image: tuple[int, ...], hidden: int = 256) -> nn.Module:
    """A small decoder [B, *size] -> [B, *image]: convolutions for maps of images, else one hidden layer."""
    if len(size) == 3 and len(image) == 3 and size[1] * size[2] > 1:
        return MapDecoder(size[0], (size[1], size[2]), image)
    first, last = nn.Linear(math.prod(size), hidden), nn.Linear(hidden, math.prod(image))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last, nn.Unflatten(1, image))


def standardised(h: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 with mean 0 and variance 1 over the samples (and positions) of `h`, by channel of maps [N, C, H,
    W] or [N, C, D, H, W] and by number of everything else. What varies by less than 1e-5 of its mean counts as
    constant: that is rounding, not information.

    `others` are clamped to the range of `h`. A unit that is all but dead in `h` has a tiny variance there; one ordinary
    activation elsewhere would lie thousands of deviations from its mean, where a decoder that was fitted to `h` knows
    nothing and would be wrong without bound.
    """
    dims = (0, *range(2, h.dim())) if h.dim() > 3 else (0,)
    variance, mean = torch.var_mean(h.double(), dims, correction=0, keepdim=True)
    std = variance.sqrt()
    scale = torch.where(std > 1e-5 * mean.abs(), 1 / std, 0.0)
    least, most = h.amin(dims, keepdim=True), h.amax(dims, keepdim=True)
    return ((h - mean) * scale).float(), ((others.clamp(least, most) - mean) * scale).float()


def reconstruct(h: Tensor, inputs: Tensor, held_out: Tensor, *, steps: int = 300, seed: int = 0) -> Tensor:
    """Train a small decoder to put inputs [N, *image] back from their features h [N, ...], and decode held-out features
    [M, ...]. Returns [M, *image] in float32.

    Adam (rate 1e-2 for maps, 1e-3 for vectors, falling to 0 as a cosine) on the mean squared error, `steps` batches of
    32, features standardised. The output is added to an image that is learned too, from the mean input on. Initial
    weights and batches depend on `seed` alone.
    """
    _check(h, inputs)
    h, held_out = standardised(h.detach(), held_out.detach())
    mean, scale = inputs.float().mean(0), inputs.float().std().clamp(min=1e-12)
    target = inputs.float() / scale
    with stream(seed, "decoder"), torch.enable_grad():
        model = decoder(tuple(h.shape[1:]), tuple(inputs.shape[1:])).to(h.device)
        base, rate = nn.Parameter(mean / scale), RATES[isinstance(model, MapDecoder)]
        optimizer = torch.optim.Adam([*model.parameters(), base], lr=rate)
        draws = generator(seed, "decoder", "batches")
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            chosen = torch.randint(len(h), (BATCH,), generator=draws).to(h.device)
            optimizer.zero_grad()
            (model(h[chosen]) + base - target[chosen]).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        return (torch.cat([model(part) for part in held_out.split(256)]) + base) * scale


def ridge(h: Tensor, inputs: Tensor, held_out: Tensor, penalty: float | None = None) -> tuple[Tensor, float]:
    """Ridge regression with intercept, in closed form, from features h [N, ...] to inputs [N, *image]. Returns what it
    predicts for held-out features [M, ...], [M, *image] in float64, and the penalty.

    In the dual form, so that N decides the cost (N^2 * features + N^3) and not the number of features. Without a
    penalty, the one with the least generalised cross-validation error (Golub, Heath & Wahba 1979) is taken. Sums are in
    float64: in float32 rounding passes for small eigenvalues, and far too little penalty is chosen.
    """
    _check(h, inputs)
    mean_x, n = inputs.double().mean(0, keepdim=True), len(h)
    products = torch.zeros(n + len(held_out), n, dtype=torch.float64, device=h.device)  # of centred features
    for part in torch.cat([h, held_out]).flatten(1).split(2048, 1):  # no float64 copy of all features is held
        centred = part.double() - part[:n].double().mean(0)
        products += centred @ centred[:n].T
    values, vectors = torch.linalg.eigh(products[:n])
    values = values.clamp(min=0)
    target = vectors.T @ (inputs.double() - mean_x).flatten(1)  # [N, numbers], in the basis of the eigenvectors
    if penalty is None:
        penalty = _penalty(values, target.square().sum(1))
    weights = vectors @ (target / (values + penalty)[:, None])
    decoded = products[n:] @ weights
    return decoded.unflatten(1, tuple(inputs.shape[1:])) + mean_x, penalty


def _penalty(values: Tensor, energy: Tensor) -> float:
    """The penalty with the least generalised cross-validation error, for eigenvalues [N] of the Gram matrix and the
    squared length [N] of the targets along each eigenvector."""
    unit = float(values.mean())
    if unit == 0:
        return 1.0  # constant features: any penalty gives the mean
    errors = []
    for candidate in PENALTIES.to(values.device) * unit:
        left = candidate / (values + candidate)  # share of the targets that stays, by eigenvector
        freedom = left.sum() - 1  # the intercept has taken one
        errors.append((energy * left.square()).sum() / freedom.square())
    return float(PENALTIES[int(torch.stack(errors).argmin())]) * unit


def _check(h: Tensor, inputs: Tensor) -> None:
    if len(h) != len(inputs) or len(h) < 2:
        raise UserError(f"{len(h)} features for {len(inputs)} inputs; give one for each of at least 2 inputs")
    if not bool(torch.isfinite(h).all()):
        raise UserError("the features hold NaN or infinite numbers, from which nothing can be reconstructed")
