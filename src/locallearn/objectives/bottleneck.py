"""Information bottlenecks on the way to the auxiliary classifier: a noisy code, and noisy features.

The noise is that of the loss alone: the block above reads h as it is, and so does the model that ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, wide
from locallearn.prices import Metered
from locallearn.task import CLASSIFICATION, MIXED, MULTILABEL, REGRESSION

ONE_ANSWER = frozenset({CLASSIFICATION, MIXED, MULTILABEL, REGRESSION})


@dataclass(frozen=True)
class VIB(Objective):
    """Deep variational information bottleneck (Alemi et al. 2017, arXiv 1612.00410).

    L = cross_entropy(W z, y) + beta * mean over the batch of KL(N(mu, sigma^2) || N(0, 1)) in nats,
    z = mu + sigma * noise. mu and log sigma^2 are the auxiliary network's output for h (with `auxiliary=linear` one
    linear layer on the pooled h). Prediction reads mu; so does the loss in eval mode. Recorded: block/NN/bits,
    the KL of a sample, an upper bound of what the code says of the input.

    beta      price of a nat of the code
    features  of the code
    """

    beta: Annotated[float, Ge(0)] = 1e-3
    features: Annotated[int, Ge(1)] = 256
    tasks: ClassVar[frozenset[str] | None] = ONE_ANSWER
    needs: ClassVar[str] = "has one code for each sample"

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        encoder = auxiliary.build_below(spec.above, spec.emits, 2 * self.features)
        return {"classifier": GaussianCode(encoder, nn.Linear(self.features, spec.classes))}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        logits, nats = modules["classifier"](h)
        return spec.task.loss(logits, packet.y) + self.beta * nats, logits

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return modules["classifier"](h)[0]


class GaussianCode(Metered):
    """h [B, ...] -> logits [B, classes] of a code with Gaussian noise, and the code's mean KL [] to N(0, 1) in nats."""

    def __init__(self, encoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = classifier

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = wide(self.encoder(h)).chunk(2, dim=1)  # [B, features] each
        nats = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()
        self.meter("bits", nats)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.classifier(code), nats


@dataclass(frozen=True)
class InformationDropout(Objective):
    """Information dropout (Achille & Soatto 2018, arXiv 1611.01353), for activations of ReLU and the log-uniform prior.

    L = cross_entropy(a(z), y) - beta * mean(log(alpha / alpha_max)), z = h * exp(alpha * noise),
    alpha = alpha_max * sigmoid(1x1 conv of h) (a linear layer for vectors and sequences). The KL is a mean over the
    batch and over the numbers of h, where the paper sums over the latter: so one beta means the same for every block,
    and theirs is this one over the count. Prediction reads z = h; so does the loss in eval mode. Recorded:
    block/NN/bits_relative, the sum of log2(alpha_max / alpha) over the numbers of a sample: bits above the noisiest
    state, for the log-uniform prior has no zero.

    beta       price of quiet activations
    alpha_max  largest standard deviation of the noise's logarithm
    """

    beta: Annotated[float, Ge(0)] = 0.1
    alpha_max: Annotated[float, Ge(0)] = 0.7
    tasks: ClassVar[frozenset[str] | None] = ONE_ANSWER
    needs: ClassVar[str] = "gives one answer for each sample"

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        classifier = auxiliary.build_below(spec.above, spec.emits, spec.classes)
        size = spec.emits
        conv = {3: nn.Conv2d, 4: nn.Conv3d}.get(len(size))
        layer = conv(size[0], size[0], 1) if conv else nn.Linear(size[-1], size[-1])
        return {"classifier": classifier, "noise": LogNormalNoise(layer, self.alpha_max)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        z, nats = modules["noise"](h)
        logits = modules["classifier"](z)
        return spec.task.loss(logits, packet.y) + self.beta * nats, logits

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return modules["classifier"](h)


class LogNormalNoise(Metered):
    """h [B, ...] -> h times log-normal noise of strength alpha(h), and mean(-log(alpha / alpha_max)) []."""

    def __init__(self, layer: nn.Module, alpha_max: float) -> None:
        super().__init__()
        self.layer = layer
        self.alpha_max = alpha_max

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        x = wide(self.layer(h))
        nats = -F.logsigmoid(x).mean()
        self.meter("bits_relative", nats * x[0].numel())
        if self.training:
            h = h * (self.alpha_max * x.sigmoid() * torch.randn_like(x)).exp()
        return h, nats
