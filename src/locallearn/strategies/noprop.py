"""NoProp: each block takes noise from a label by itself; no gradient and no feature goes from block to block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from annotated_types import Ge, Gt
from torch import Tensor, nn

from locallearn import seeds
from locallearn.contract import Block, BlockSpec, Packet
from locallearn.objectives.base import wide
from locallearn.strategies.denoising import Denoising, draw, mean, normal


class Mix(NamedTuple):
    """z_t = estimate u_t + before z_{t-1} + noise eps: how a block moves a label on."""

    estimate: float
    before: float
    noise: float


@dataclass(frozen=True)
class NoProp(Denoising):
    """NoProp with discrete time, NoProp-DT (Li, Teh & Pascanu 2025, arXiv 2503.24322).

    u is the one-hot label, abar_t = snr / (1 + snr) sin^2(pi t / 2T), and block t of 1..T reads

        z_{t-1} = sqrt(abar_{t-1}) u + sqrt(1 - abar_{t-1}) eps

    and the image, and minimises T/2 eta (SNR_t - SNR_{t-1}) |u_t - u|^2, where u_t is the softmax of its logits and
    SNR = abar / (1 - abar); the last one also the true loss of a linear read-out of z_T, which sends nothing into
    blocks. To answer, z_0 is noise, and block t makes z_t from u_t and z_{t-1} (`mix`). Sends the image up, and nothing
    down.

    eta    weight of the denoising losses
    snr    the largest SNR, that of z_T; the paper's is infinite
    width  of the layers that join image and label
    """

    eta: Annotated[float, Gt(0)] = 0.1
    snr: Annotated[float, Gt(0)] = 100.0
    width: Annotated[int, Ge(1)] = 256
    ships: ClassVar[frozenset[str]] = frozenset({"image", "denoiser", "out"})

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        modules = dict(super().modules(spec))
        if spec.last:
            modules["out"] = out = nn.Linear(spec.classes, spec.classes)
            nn.init.eye_(out.weight)
            nn.init.zeros_(out.bias)
        return modules

    def kept(self, t: int, depth: int) -> float:
        """abar_t: the share of the label in the square of z_t."""
        return self.snr / (1 + self.snr) * math.sin(math.pi * t / (2 * depth)) ** 2

    def weight(self, t: int, depth: int) -> float:
        """Of the loss of block t: T/2 eta (SNR_t - SNR_{t-1})."""
        now, before = (kept / (1 - kept) for kept in (self.kept(t, depth), self.kept(t - 1, depth)))
        return depth / 2 * self.eta * (now - before)

    def mix(self, t: int, depth: int) -> Mix:
        """How block t makes z_t, which has the share abar_t of the label if z_{t-1} has abar_{t-1} and u_t = u."""
        now, before = self.kept(t, depth), self.kept(t - 1, depth)
        alpha = before / now
        fresh = (1 - now) * (1 - alpha) / (1 - before)
        return Mix(
            math.sqrt(now) * (1 - alpha) / (1 - before),
            math.sqrt(alpha) * (1 - now) / (1 - before),
            math.sqrt(fresh),
        )

    def noisy(self, label: Tensor, image: Tensor, kept: float) -> Tensor:
        """A label [B, classes] with fresh noise, of which it keeps the share `kept`."""
        return math.sqrt(kept) * label + math.sqrt(1 - kept) * draw(image, label.shape[1])

    def loss(self, block: Block, image: Tensor, label: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        t, depth = block.spec.index + 1, block.spec.depth
        logits = block.auxiliary["denoiser"](self.read(block, image), self.noisy(label, image, self.kept(t - 1, depth)))
        error = (wide(logits).softmax(1) - label).square().sum(1)
        loss = self.weight(t, depth) * mean(error, y)
        if block.last:
            loss = loss + block.spec.task.loss(block.auxiliary["out"](self.noisy(label, image, self.kept(t, depth))), y)
        return loss, logits

    def denoised(self, block: Block, image: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        spec = block.spec
        h = self.read(block, image)
        logits = block.auxiliary["denoiser"](h, z)
        mix = self.mix(spec.index + 1, spec.depth)
        noise = normal(image, seeds.derive(spec.seed, "noise", spec.index), spec.classes)
        estimate = wide(logits).softmax(1).to(z.dtype)
        return h, image, mix.estimate * estimate + mix.before * z + mix.noise * noise, logits

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        if block.last:
            return block.auxiliary["out"](packet.side[1])
        return packet.side[2] if len(packet.side) > 2 else None
