"""The auxiliary networks of the field, built from the shape of what they read: maps [C, H, W], vectors [D] or sequences
[T, D].

Five published codes call five different things "the DGL head", so each is specified here to the layer. `mlp`, `mlp_sr`
and `cnn` are those of Belilovsky et al. 2020 ("Decoupled Greedy Learning of CNNs", section 4 and its auxiliary study);
a vector counts as C = D features without a grid, a sequence as the vector that is its mean over T.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from locallearn.errors import UserError

Size = tuple[int, ...]
MAPS = "model=NAME whose blocks emit maps"


class Auxiliary(ABC):
    """A recipe for an auxiliary network. Concrete ones are frozen dataclasses of typed options."""

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        """Options that nothing reads for blocks that emit [B, *size]; see `Strategy.unread`."""
        return {}

    @abstractmethod
    def build(self, size: Size, classes: int) -> nn.Module:
        """A module [B, *size] -> [B, classes], with PyTorch's default initialisation from the global generator. A loss
        that needs features instead of logits asks for as many `classes`."""


@dataclass(frozen=True)
class Linear(Auxiliary):
    """Average-pool, then one linear layer.

    features   pool until at most so many inputs are left, halving height and width in turn (Nokland & Eidnes 2019 use
               2048 or 4096); 0 pools to 2 x 2
    zero_init  start with a zero weight, so that the first gradient into the block is zero (same paper)
    """

    features: int = 0
    zero_init: bool = False

    def __post_init__(self) -> None:
        _at_least("features", self.features, 0)

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        return {} if _maps(sizes) else {"features": MAPS}

    def build(self, size: Size, classes: int) -> nn.Module:
        grid = _halved(size, self.features) if self.features else (2, 2)
        pool, inputs = _pooled(size, grid)
        linear = nn.Linear(inputs, classes)
        if self.zero_init:
            nn.init.zeros_(linear.weight)
        return nn.Sequential(*pool, linear)


@dataclass(frozen=True)
class MLP(Auxiliary):
    """DGL's MLP-aux: average-pool to 2 x 2, then `layers` times [Linear, BN, ReLU], then Linear.

    width  of the hidden layers; 0 means that of their input, 4C for maps
    """

    layers: int = 3
    width: int = 0

    def __post_init__(self) -> None:
        _at_least("layers", self.layers, 0)
        _at_least("width", self.width, 0)

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        return {} if self.layers else {"width": "auxiliary.layers=1 or more"}

    def build(self, size: Size, classes: int) -> nn.Module:
        pool, inputs = _pooled(size, (2, 2))
        return nn.Sequential(*pool, *_hidden(inputs, self.width or inputs, self.layers, classes))


@dataclass(frozen=True)
class MLPSpatialReduction(MLP):
    """DGL's MLP-SR-aux: average-pool to ceil(H/4) x ceil(W/4), `convolutions` times [1x1 conv C->C without bias, BN,
    ReLU], then MLP-aux. Vectors have no space to reduce: there it is MLP-aux."""

    convolutions: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("convolutions", self.convolutions, 0)

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        return super().unread(sizes) if _maps(sizes) else {"convolutions": MAPS, **super().unread(sizes)}

    def build(self, size: Size, classes: int) -> nn.Module:
        if len(size) != 3:
            return super().build(size, classes)
        c, h, w = size
        reduce: list[nn.Module] = [nn.AdaptiveAvgPool2d((math.ceil(h / 4), math.ceil(w / 4)))]
        for _ in range(self.convolutions):
            reduce += [nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
        return nn.Sequential(*reduce, *_modules(super().build((c, math.ceil(h / 4), math.ceil(w / 4)), classes)))


@dataclass(frozen=True)
class CNN(Auxiliary):
    """DGL's CNN-aux: `layers` times [3x3 conv C->C without bias, BN, ReLU] at full resolution, average-pool to 2 x 2,
    BN, Linear. About twice the cost of the layer it trains. For vectors the convolutions are linear layers, and so they
    are for sequences, after the mean over T."""

    layers: int = 2

    def __post_init__(self) -> None:
        _at_least("layers", self.layers, 0)

    def build(self, size: Size, classes: int) -> nn.Module:
        body: list[nn.Module] = []
        if len(size) == 2:
            body, size = [MeanOverSteps()], size[1:]
        for _ in range(self.layers):
            if len(size) == 3:
                body += [nn.Conv2d(size[0], size[0], 3, padding=1, bias=False), nn.BatchNorm2d(size[0]), nn.ReLU()]
            else:
                features = math.prod(size)
                body += [nn.Flatten(), nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
        pool, inputs = _pooled(size, (2, 2))
        return nn.Sequential(*body, *pool, nn.BatchNorm1d(inputs), nn.Linear(inputs, classes))


@dataclass(frozen=True)
class OneConvTwoFC(Auxiliary):
    """InfoPro's head "1c2f": 3x3 conv without bias, BN, ReLU, average over space, Linear -> width, ReLU, Linear.

    The convolution doubles the channels with stride 2 on maps larger than 8 x 8 and keeps both on smaller ones, which
    on a CIFAR ResNet gives the paper's 16 -> 32, 32 -> 64 and 64 -> 64. Vectors and sequences have no convolution.
    """

    width: int = 128

    def __post_init__(self) -> None:
        _at_least("width", self.width, 1)

    def build(self, size: Size, classes: int) -> nn.Module:
        convolution: list[nn.Module] = []
        if len(size) == 3:
            c, h, w = size
            times = 2 if max(h, w) > 8 else 1
            convolution = [
                nn.Conv2d(c, times * c, 3, stride=times, padding=1, bias=False),
                nn.BatchNorm2d(times * c),
                nn.ReLU(),
            ]
            size = (times * c, math.ceil(h / times), math.ceil(w / times))
        pool, inputs = _pooled(size, (1, 1))
        fully_connected = nn.Linear(inputs, self.width), nn.ReLU(), nn.Linear(self.width, classes)
        return nn.Sequential(*convolution, *pool, *fully_connected)


@dataclass(frozen=True)
class Projector(Auxiliary):
    """SimCLR's projection head: average over space, Linear, ReLU, Linear, without normalisation.

    width  of the hidden layer; 0 means that of its input, C
    """

    width: int = 0

    def __post_init__(self) -> None:
        _at_least("width", self.width, 0)

    def build(self, size: Size, classes: int) -> nn.Module:
        pool, inputs = _pooled(size, (1, 1))
        width = self.width or inputs
        return nn.Sequential(*pool, nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


class MeanOverSteps(nn.Module):
    """Sequences [B, T, D] -> [B, D]. Flattening them instead would give a head T times as wide."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(dim=1)


def _hidden(inputs: int, width: int, layers: int, classes: int) -> Iterator[nn.Module]:
    for _ in range(layers):
        yield from (nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU())
        inputs = width
    yield nn.Linear(inputs, classes)


def _pooled(size: Size, grid: tuple[int, int]) -> tuple[list[nn.Module], int]:
    """Average pooling to a grid (never enlarging; over all steps of a sequence; maps of three dimensions to as many
    cells in depth as in height) and flattening; and how many features that leaves."""
    if len(size) == 2:
        return [MeanOverSteps()], size[1]
    if len(size) == 4:
        cells = min(grid[0], size[1]), min(grid[0], size[2]), min(grid[1], size[3])
        return [nn.AdaptiveAvgPool3d(cells), nn.Flatten()], size[0] * math.prod(cells)
    if len(size) != 3:
        return [nn.Flatten()], math.prod(size)
    h, w = min(grid[0], size[1]), min(grid[1], size[2])
    return [nn.AdaptiveAvgPool2d((h, w)), nn.Flatten()], size[0] * h * w


def _halved(size: Size, features: int) -> tuple[int, int]:
    """The grid that is left when height and width are halved in turn until C * H * W <= features."""
    if len(size) != 3:
        return 1, 1
    c, h, w = size
    while c * h * w > features and h * w > 1:
        h, w = (math.ceil(h / 2), w) if h >= w else (h, math.ceil(w / 2))
    return h, w


def _maps(sizes: Sequence[Size]) -> bool:
    """Whether any of them is that of maps."""
    return any(len(size) == 3 for size in sizes)


def _modules(sequence: nn.Module) -> list[nn.Module]:
    return list(sequence.children())


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"auxiliary.{name}={value}: must be at least {least}")
