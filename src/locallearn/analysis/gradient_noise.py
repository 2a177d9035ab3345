"""How much of a layer's gradient is the same for every minibatch, and how much is noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from locallearn.errors import UserError

Layer = TypeVar("Layer", bound=Hashable)
WINDOW = 5
"""Looks in the running median of `transition`."""


@dataclass(frozen=True)
class Noise:
    """Of one layer over minibatches, all its parameters as one vector g.

    mean  || mean of g over the minibatches ||_2
    std   || standard deviation of g over the minibatches, weight by weight ||_2 (with 1/n, as `numpy.std`)
    """

    mean: float
    std: float
    batches: int

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio, mean / std. Gradients that are nothing but noise have about 1 / sqrt(batches - 1)."""
        return self.mean / self.std if self.std else math.inf if self.mean else math.nan


class Moments:
    """Mean and variance of a list of tensors over minibatches, one minibatch at a time (Welford 1962): holds two copies
    of the tensors, however many minibatches there are. Half precision is taken as float32."""

    def __init__(self) -> None:
        self.count = 0
        self.means: list[Tensor] = []
        self.squares: list[Tensor] = []  # sums of squared deviations

    def add(self, tensors: Sequence[Tensor]) -> None:
        """One more minibatch: the same tensors in the same order."""
        wide = [t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
        if not self.count:
            self.means, self.squares = [torch.zeros_like(t) for t in wide], [torch.zeros_like(t) for t in wide]
        self.count += 1
        for value, mean, square in zip(wide, self.means, self.squares, strict=True):
            before = value - mean
            mean.add_(before, alpha=1 / self.count)
            square.addcmul_(before, value - mean)

    def read(self) -> Noise:
        """Raises UserError for fewer than two minibatches."""
        if self.count < 2:
            raise UserError(f"a standard deviation needs at least 2 minibatches, but there is {self.count}; give more")
        squares = sum(float(square.double().sum()) for square in self.squares)
        return Noise(norm(self.means), math.sqrt(squares / self.count), self.count)


def gradient_noise(minibatches: Iterable[Mapping[Layer, Sequence[Tensor]]]) -> dict[Layer, Noise]:
    """Mean, standard deviation and signal-to-noise ratio of the gradient of each layer over minibatches, from any loop:

        gradient_noise({name: [p.grad for p in layer.parameters()]} for ...)

    `minibatches` gives for each minibatch the gradients of every layer; a generator may reuse its tensors.

    Shwartz-Ziv and Tishby 2017, arXiv 1703.00810 and Saxe et al. 2018 (On the information bottleneck theory of deep
    learning) take the minibatches of one epoch, between which the weights move: what moves counts as noise there. With
    fixed weights it does not. Raises UserError for fewer than two minibatches.
    """
    by_layer: dict[Layer, Moments] = {}
    for gradients in minibatches:
        for layer, tensors in gradients.items():
            by_layer.setdefault(layer, Moments()).add(tensors)
    return {layer: moments.read() for layer, moments in by_layer.items()}


def transition(epochs: Sequence[int], snr: Sequence[float]) -> int | None:
    """The epoch from which the signal-to-noise ratio stays below 1 to the end: drift becomes diffusion. None if it does
    not end below 1; the first epoch if it never was above.

    Of a running median over five looks (fewer at both ends): one or two outlying looks neither make nor hide it.
    """
    since = None
    for epoch, value in zip(reversed(epochs), reversed(running_median(snr)), strict=True):
        if not value < 1:
            break
        since = epoch
    return since


def running_median(values: Sequence[float]) -> list[float]:
    """The median of each value and of its two neighbours on either side, as far as there are any."""
    half = WINDOW // 2
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of tensors as one vector, summed in double precision."""
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))
