"""DiffusionBlocks: each block denoises a label at noise levels of its own; together they are a diffusion model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn import seeds
from locallearn.contract import Block, BlockSpec, Packet
from locallearn.objectives.base import wide
from locallearn.strategies.denoising import Denoising, draw, mean, normal

LOG = NormalDist(-1.2, 1.2)
"""Of ln sigma while training: that of EDM (Karras et al. 2022, arXiv 2206.00364), as are the numbers below."""
LEAST, MOST = math.log(0.002), math.log(80.0)
"""ln sigma at the end and at the beginning of an answer."""
DATA = 0.5
"""The standard deviation that a label is taken to have."""


@dataclass(frozen=True)
class DiffusionBlocks(Denoising):
    """DiffusionBlocks for classification (Shing, Koyama & Akiba 2025, arXiv 2506.14202).

    u is the one-hot label, z = u + sigma eps, and sigma is drawn from the block's own range: the ranges split the
    probability of ln sigma ~ N(-1.2, 1.2^2) within 0.002..80 into equal parts, block 0 having the highest. With EDM's
    preconditioning, sd = 0.5, a block answers

        logits = out(c_skip z + c_out d(c_in z, c_noise, image)),    loss = w(sigma) CE(logits, y)

    (`Scales`), w over its mean in the range. To answer, z is noise of sigma = 80, and each block goes down its range by
    Euler steps towards softmax(logits); the last one answers at sigma = 0.002. All blocks learn in every step. Sends
    the image up, and nothing down.

    steps    Euler steps of a block, equal in ln sigma
    overlap  by which share of its width in ln sigma a range is wider at both ends while training
    width    of the layers that join image and label
    """

    steps: Annotated[int, Ge(1)] = 1
    overlap: Annotated[float, Ge(0)] = 0.05
    width: Annotated[int, Ge(1)] = 256
    given: ClassVar[int] = 1
    ships: ClassVar[frozenset[str]] = frozenset({"image", "denoiser", "out"})

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        out = nn.Linear(spec.classes, spec.classes)
        nn.init.eye_(out.weight)
        nn.init.zeros_(out.bias)
        return {**super().modules(spec), "out": out}

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        return {"overlap": "blocks=2 or more"} if len(specs) == 1 else {}

    def widened(self, k: int, depth: int) -> tuple[float, float]:
        """The lowest and the highest ln sigma that block k learns from."""
        low, high = border(k + 1, depth), border(k, depth)
        more = self.overlap * (high - low)
        return max(LEAST, low - more), min(MOST, high + more)

    def loss(self, block: Block, image: Tensor, label: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.widened(block.spec.index, block.spec.depth)
        *eps, level = draw(image, label.shape[1] + 1).split([label.shape[1], 1], 1)
        share = torch.special.ndtr(level.double())  # uniform
        chance = LOG.cdf(low) + share * (LOG.cdf(high) - LOG.cdf(low))
        sigma = (LOG.mean + LOG.stdev * torch.special.ndtri(chance)).clamp(low, high).exp().to(label.dtype)
        logits = self.logits(block, self.read(block, image), label + sigma * eps[0], sigma)
        losses = F.cross_entropy(wide(logits), y.clamp(min=0), reduction="none")
        return mean(weight(sigma[:, 0]) / mean_weight(low, high) * losses, y), logits

    def logits(self, block: Block, h: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """The logits [B, classes] for features h [B, *emits] and labels z [B, classes] with noise sigma [B or 1, 1]."""
        scale = Scales(sigma)
        noise = scale.noise.expand(len(z), 1)
        made = block.auxiliary["denoiser"](h, torch.cat([scale.inner * z, noise], 1))
        return block.auxiliary["out"](scale.skip * z + scale.outer * made)

    def look(self, packet: Packet, spec: BlockSpec) -> Packet:
        start = normal(packet.h, seeds.derive(spec.seed, "noise"), spec.classes)
        return packet.at(packet.h, packet.h, math.sqrt(1 + math.exp(2 * MOST)) * start)

    def denoised(self, block: Block, image: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        k, depth = block.spec.index, block.spec.depth
        high, low = border(k, depth), border(k + 1, depth)
        levels = [math.exp(high + (low - high) * i / self.steps) for i in range(self.steps + 1)]
        h = self.read(block, image)
        for now, then in pairwise(levels):
            logits = self.logits(block, h, z, z.new_full((1, 1), now))
            clean = wide(logits).softmax(1).to(z.dtype)
            z = z + (then - now) * (z - clean) / now
        if block.last:
            logits = self.logits(block, h, z, z.new_full((1, 1), levels[-1]))
        return h, image, z, logits

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        return packet.side[2] if len(packet.side) > 2 else None


class Scales:
    """EDM's preconditioning for sigma [B, 1]: of what the net reads and answers, and of the noisy label beside it."""

    def __init__(self, sigma: Tensor) -> None:
        total = sigma.square() + DATA**2
        self.skip = DATA**2 / total
        self.outer = sigma * DATA / total.sqrt()
        self.inner = 1 / total.sqrt()
        self.noise = sigma.log() / 4


def weight(sigma: Tensor) -> Tensor:
    """EDM's w = (sigma^2 + sd^2) / (sigma sd)^2, which is 1 / c_out^2."""
    return sigma**-2 + DATA**-2


def mean_weight(low: float, high: float) -> float:
    """The mean of w where ln sigma is of `LOG` between two numbers."""
    moved = NormalDist(LOG.mean - 2 * LOG.variance, LOG.stdev)
    share = (moved.cdf(high) - moved.cdf(low)) / (LOG.cdf(high) - LOG.cdf(low))
    return math.exp(2 * LOG.variance - 2 * LOG.mean) * share + DATA**-2


def border(i: int, depth: int) -> float:
    """ln sigma between blocks i - 1 and i: `MOST` below block 0, `LEAST` above the last one."""
    if i in (0, depth):
        return LEAST if i else MOST
    return LOG.inv_cdf(LOG.cdf(MOST) + i / depth * (LOG.cdf(LEAST) - LOG.cdf(MOST)))
