"""Bottlenecks on the main path: noise behind units of a model, and a price on what passes it, under any strategy that
passes a block once back (`Strategy.priced`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from annotated_types import Ge, Gt, Interval, MinLen
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.options import Options
from locallearn.prices import Metered

Beta: TypeAlias = Annotated[float, Ge(0)]
LOG_VARIANCE = (-12.0, 4.0)
LEAST = 1e-3
"""Added to the strength of log-normal noise."""
SMALLEST = 1e-4
"""Of h, where its logarithm is taken."""


@dataclass(frozen=True)
class Bottleneck(Options):
    """None: the model as it is. Others derive from it and change the model in `applied`."""

    _group: ClassVar[str] = "bottleneck"

    def applied(self, model: BlockModel) -> BlockModel:
        """The same model, with its bottlenecks. Raises UserError where they do not fit it."""
        return model


NONE = Bottleneck()


@dataclass(frozen=True)
class NoiseBehind(Bottleneck, ABC):
    """A unit becomes the unit and noise behind it, whose information in nats costs `beta` each: the loss has the term
    beta * KL^power, KL a sum over the numbers of a sample and a mean over the batch. Recorded as block/NN/bits, behind
    several units as bits_NAME. In evaluations there is no noise; the modules that make it ship with the model.

    after   units by name or number; None: the last one
    beta    price of a nat, one for all places or one for each
    warmup  share of training over which it rises linearly from zero
    power   2 also reaches the sloping part of the curve where labels are a function of the input (Kolchinsky, Tracey &
            Van Kuyk 2019, arXiv 1808.07593), which 1 does not
    """

    after: Annotated[list[str | int], MinLen(1)] | None = None
    beta: Beta | list[Beta] = 1e-3
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    power: Literal[1, 2] = 1

    def applied(self, model: BlockModel) -> BlockModel:
        places = self.places(model.names)
        betas = self.beta if isinstance(self.beta, list) else [self.beta] * len(places)
        if len(betas) != len(places):
            raise UserError(f"bottleneck.beta={betas}: give one number, or one for each of {len(places)} units")
        shapes: list[Size] = [model.image, *model.shapes()]
        for i, beta in zip(places, betas, strict=True):
            noise = self.noise(model, shapes[i], shapes[i + 1], model.names[i])
            noise.price(beta, self.warmup, self.power, "" if len(places) == 1 else f"_{model.names[i]}")
            model.units[i] = Noisy(model.units[i], noise)
        return model

    def places(self, names: Sequence[str]) -> list[int]:
        """Numbers of units, ascending. Raises UserError for one that the model does not have."""
        numbered: dict[str | int, int] = {name: i for i, name in enumerate(names)}
        numbered |= {i: i for i in range(len(names))}
        wanted = [len(names) - 1] if self.after is None else self.after
        for place in wanted:
            if place not in numbered:
                raise UserError(f"bottleneck.after={place}: must be of the model's units, {', '.join(names)}")
        if len(found := {numbered[place] for place in wanted}) < len(wanted):
            raise UserError(f"bottleneck.after={wanted} names a unit twice: name each once")
        return sorted(found)

    @abstractmethod
    def noise(self, model: BlockModel, reads: Size, emits: Size, name: str) -> NoiseModule:
        """What stands behind a unit that reads [B, *reads] and emits [B, *emits]."""


@dataclass(frozen=True)
class GaussianBottleneck(NoiseBehind):
    """Deep variational information bottleneck (Alemi et al. 2017, arXiv 1612.00410) on the main path.

    z = mu + sigma * noise with (mu, rho) a linear layer or 1x1 convolution of the unit's output, sigma =
    softplus(rho - 5); KL(N(mu, sigma^2) || N(0, 1)), an upper bound of I(z; x). In evaluations z = mu.
    """

    def noise(self, model: BlockModel, reads: Size, emits: Size, name: str) -> NoiseModule:
        return GaussianNoise(channelwise(emits, 2))


@dataclass(frozen=True)
class LogNormalBottleneck(NoiseBehind):
    """Information dropout (Achille & Soatto 2018, arXiv 1611.01353) on the main path: z = h exp(alpha * noise).

    alpha = 0.001 + alpha_max sigmoid(a(what the unit reads)), a a linear layer, or a 3x3 convolution of what has been
    pooled to the size of h (the paper: with the unit's own kernel and stride). A dead number of h has no noise and
    costs nothing. In evaluations z = h, which is not the mean of z, h exp(alpha^2 / 2).

    prior      log_uniform, for rectifiers: KL = -log(alpha / (alpha_max + 0.001)), above the noisiest state, which is
               recorded as bits_relative; log_normal, for softplus: KL(N(log h, alpha^2) || N(m, s^2)) with learned m, s
    alpha_max  largest strength but for 0.001
    """

    prior: Literal["log_uniform", "log_normal"] = "log_uniform"
    alpha_max: Annotated[float, Gt(0)] = 0.7

    def noise(self, model: BlockModel, reads: Size, emits: Size, name: str) -> NoiseModule:
        if model.vocabulary is not None and reads == tuple(model.image):
            raise UserError(
                f"bottleneck.after={name} reads token numbers, from which no noise level can be computed: choose a "
                "unit further up"
            )
        return LogNormal(strength(reads, emits), self.alpha_max, self.prior)


class NoiseModule(Metered):
    """Noise behind a unit: `forward` gets what the unit reads and emits. A probe reads its `map`, nats [B, ...]."""

    map: Tensor | None = None

    def price(self, beta: float, warmup: float, power: int, suffix: str) -> None:
        """Say what a nat costs, and what its reading is called."""
        self.beta, self.warmup, self.power, self.suffix = beta, warmup, power, suffix

    def paid(self, z: Tensor, nats: Tensor, name: str = "bits") -> Tensor:
        """z [B, ...], for which the loss pays by the nats [B, ...] of its numbers."""
        total = nats.flatten(1).sum(1).mean()
        self.meter(name + self.suffix, total)
        if self.observed:
            self.map = nats.detach()
        if not self.training:
            return z
        return self.charge(z, self.beta * self.ramp(self.warmup) * total**self.power)

    def forget(self) -> None:
        super().forget()
        self.map = None


class Noisy(nn.Module):
    """A unit with noise behind it."""

    def __init__(self, unit: nn.Module, noise: NoiseModule) -> None:
        super().__init__()
        self.unit = unit
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(x, self.unit(x))


class GaussianNoise(NoiseModule):
    """z = mu + sigma * noise of h; `layer` makes twice as many channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        mean, rho = wide(self.layer(h)).chunk(2, dim=h.dim() - 1 if h.dim() < 4 else 1)
        if not self.noisy:
            return mean.to(h.dtype)
        log_variance = (2 * F.softplus(rho - 5).log()).clamp(*LOG_VARIANCE)
        nats = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.paid(z.to(h.dtype), nats)


class LogNormal(NoiseModule):
    """z = h exp(alpha * noise); `layer` makes of what the unit reads a number for each of h."""

    def __init__(self, layer: nn.Module, alpha_max: float, prior: str) -> None:
        super().__init__()
        self.layer = layer
        self.alpha_max = alpha_max
        self.prior = prior
        if prior == "log_normal":
            self.mean, self.log_deviation = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if not self.noisy:
            return h
        alpha = LEAST + self.alpha_max * wide(self.layer(x)).sigmoid()
        alive = h.detach() != 0
        z = h * (alpha * torch.randn_like(alpha)).exp().to(h.dtype)
        if self.prior == "log_uniform":
            return self.paid(z, -(alpha / (self.alpha_max + LEAST)).log() * alive, "bits_relative")
        ratio = alpha.log() - self.log_deviation
        away = (wide(h).clamp(min=SMALLEST).log() - self.mean) / self.log_deviation.exp()
        return self.paid(z, 0.5 * (away.square() + (2 * ratio).exp() - 2 * ratio - 1) * alive)


def channelwise(emits: Size, factor: int) -> nn.Module:
    """A linear layer over the features of [B, *emits], at each position alike, to `factor` times as many."""
    conv = {3: nn.Conv2d, 4: nn.Conv3d}.get(len(emits))
    return conv(emits[0], factor * emits[0], 1) if conv else nn.Linear(emits[-1], factor * emits[-1])


def strength(reads: Size, emits: Size) -> nn.Module:
    """From [B, *reads] a number for each of [B, *emits]."""
    if len(emits) == len(reads) == 3:
        return nn.Sequential(nn.AdaptiveAvgPool2d(emits[1:]), nn.Conv2d(reads[0], emits[0], 3, padding=1))
    if len(emits) == 1:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(reads), emits[0]))
    if len(emits) == len(reads) == 2 and emits[0] == reads[0]:
        return nn.Linear(reads[-1], emits[-1])
    raise UserError(
        f"bottleneck=information_dropout stands behind units of images, sequences or vectors, not behind one that "
        f"makes {list(emits)} of {list(reads)}: choose others with bottleneck.after"
    )


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
