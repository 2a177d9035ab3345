"""The weights as the bottleneck: Gaussian noise on every weight, and a price on what the weights say of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.models.base import BlockModel
from locallearn.models.bottleneck import Bottleneck
from locallearn.prices import Metered

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
START = 0.05
"""The noise at the start, over the root mean square of a layer's weights."""
FASTER = 10.0
"""The logarithm of the noise learns at this many times the rate of the weights."""
SMALL = 1e-8
LOG_ALPHA = (math.log(1e-6), 0.0)


@dataclass(frozen=True)
class NoisyWeights(Bottleneck):
    """Information in the weights (Achille & Soatto 2018, arXiv 1706.01350; Hinton & van Camp 1993): q(w) is normal with
    the weights as means and learned deviations, and the loss, a mean over samples, has the term beta / N KL(q || p), N
    the number of training samples. Each sample has noise of its own on the outputs of a layer (local
    reparameterisation, Kingma et al. 2015). Recorded as block/NN/weight_bits_LAYER. In evaluations the means compute.

    beta    price of a nat of the weights, where the loss is a sum over samples
    prior   initial: N(w0, lambda^2) around the initial weights, which know no data; zero: N(0, lambda^2); log_uniform:
            w = mu e, log e ~ N(-alpha / 2, alpha), alpha at most 1, and KL = -1/2 sum log alpha but for a constant:
            only differences count, and no bound follows
    scale   lambda over the root mean square of the layer's initial weights
    warmup  share of training over which the price rises from zero

    Weights and biases of linear layers and convolutions are noisy (biases are not under log_uniform); those of norms
    are not, and what they know is not counted.
    """

    beta: Annotated[float, Ge(0)] = 1.0
    prior: Literal["initial", "zero", "log_uniform"] = "initial"
    scale: Annotated[float, Gt(0)] = 1.0
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.3

    def applied(self, model: BlockModel) -> BlockModel:
        places = [*zip(model.names, model.units, strict=True), ("head", model.head)]
        found = [(name, path, m) for name, root in places for path, m in root.named_modules() if type(m) in LAYERS]
        if not found:
            raise UserError(f"bottleneck=weights: {model.name} has no linear layer or convolution: choose another")
        per_unit = [name for name, _, _ in found]
        for name, path, layer in found:
            where = name if per_unit.count(name) == 1 else f"{name}_{path.replace('.', '_')}"
            noisy = GaussianWeights(layer, self, where)
            if path:
                root = dict(places)[name]
                setattr(root.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], noisy)
            elif name == "head":
                model.head = noisy
            else:
                model.units[model.names.index(name)] = noisy
        return model


class GaussianWeights(Metered):
    """A linear layer or convolution whose weights are normal around its own.

    samples  of the training set; whoever trains says it
    """

    start: Tensor | None
    start_bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, options: NoisyWeights, name: str) -> None:
        super().__init__()
        self.layer = layer
        self.options = options
        self.name = name
        self.samples: int | None = None
        weight, bias = layer.weight.detach(), layer.bias
        size = float(weight.square().mean().sqrt()) or 1.0
        self.deviation = options.scale * size  # lambda
        centred = options.prior == "initial"
        self.register_buffer("start", weight.clone() if centred else None)
        self.register_buffer("start_bias", bias.detach().clone() if centred and bias is not None else None)
        begin = 2 * math.log(START) if options.prior == "log_uniform" else math.log(START * size)
        self.noise = nn.Parameter(torch.full_like(weight, begin / FASTER))
        plain = bias is None or options.prior == "log_uniform"
        self.bias_noise = None if plain else nn.Parameter(weight.new_full((len(weight),), begin / FASTER))

    def variances(self) -> tuple[Tensor, Tensor | None]:
        """Of the weights and of the bias."""
        if self.options.prior == "log_uniform":
            return self.log_alpha().exp().expm1() * self.layer.weight.square(), None
        bias = None if self.bias_noise is None else (2 * FASTER * self.bias_noise).exp()
        return (2 * FASTER * self.noise).exp(), bias

    def log_alpha(self) -> Tensor:
        return (FASTER * self.noise).clamp(*LOG_ALPHA)

    def nats(self) -> Tensor:
        """KL(q || p) []; under `log_uniform` but for a constant."""
        if self.options.prior == "log_uniform":
            return -0.5 * self.log_alpha().sum()
        weight, bias = self.variances()
        nats = self._divergence(self.layer.weight, weight, self.start)
        return nats if bias is None else nats + self._divergence(self.layer.bias, bias, self.start_bias)  # type: ignore[arg-type]

    def _divergence(self, mean: Tensor, variance: Tensor, start: Tensor | None) -> Tensor:
        away = mean if start is None else mean - start
        ratio = variance / self.deviation**2
        return 0.5 * (away.square() / self.deviation**2 + ratio - 1 - ratio.log()).sum()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if not self.noisy:
            return y
        weight, bias = self.variances()
        variance = self._linear(x.square(), weight, bias)
        y = y + (variance + SMALL).sqrt() * torch.randn_like(y)
        nats = self.nats()
        self.meter(f"weight_bits_{self.name}", nats)
        if not self.training:
            return y
        if self.samples is None:
            raise UserError("bottleneck=weights needs the number of training samples, which only train() knows: use it")
        rate = self.options.beta * self.ramp(self.options.warmup) / self.samples
        return self.charge(y, rate * nats)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer computes, with another weight and bias."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)
