"""The auxiliary networks of the field, built from the shape of what they read: maps [C, H, W], vectors [D] or sequences
[T, D].

Five published codes call five different things "the DGL head", so each is specified here to the layer. `mlp`, `mlp_sr`
and `cnn` are those of Belilovsky et al. 2020 ("Decoupled Greedy Learning of CNNs", section 4 and the code of its
auxiliary study); a vector counts as C = D features without a grid, a sequence as the vector that is its mean over T.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import nn

from locallearn.errors import UserError
from locallearn.messages import Unit
from locallearn.models.layers import MeanOverSteps
from locallearn.options import Options

Size = tuple[int, ...]
MAPS = "model=NAME whose blocks emit maps"
SEQUENCES = "model=NAME whose blocks emit sequences"


class Auxiliary(Options, ABC):
    """A recipe for an auxiliary network. Concrete ones are frozen dataclasses of typed options."""

    _group = "auxiliary"

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        """Options that nothing reads for blocks that emit [B, *size]; see `Strategy.unread`."""
        return {}

    @abstractmethod
    def build(self, size: Size, classes: int) -> nn.Module:
        """A module [B, *size] -> [B, classes], with PyTorch's default initialisation from the global generator. A loss
        that needs features instead of logits passes their number as `classes`."""

    def build_below(self, above: Sequence[Unit], size: Size, classes: int) -> nn.Module:
        """As `build`, for a network that depends on the units above the block. Raises UserError for one that it cannot
        use."""
        return self.build(size, classes)

    def build_dense(self, size: Size, classes: int) -> nn.Module:
        """A module that answers at every position: sequences [B, T, D] -> [B, T, classes], maps [B, C, H, W] ->
        [B, classes, H, W]. Raises UserError where there is none."""
        raise UserError(
            f"{type(self).__name__} averages over positions, but the task asks for an answer at each: choose "
            "auxiliary=linear, mlp or transformer"
        )

    def build_boxes(self, image: Size, levels: Sequence[Size], classes: int, every: bool = False) -> nn.Module:
        """A module that answers with boxes, as `tasks.Detection` has them, from maps [B, *levels[0]] or a packed
        pyramid of several `levels` for inputs [B, *image]: from the newest level or from `every` one. Raises UserError
        where there is none."""
        raise UserError(f"{type(self).__name__} finds no boxes, but the task asks for them: choose auxiliary=detect")


@dataclass(frozen=True)
class Linear(Auxiliary):
    """Average-pool, then one linear layer.

    features   pool until at most this many inputs are left, by windows whose height and width double in turn (Nokland &
               Eidnes 2019 use 2048 or 4096). As in their code, half a window of zeros stands before and after a side
               that the window does not divide, so that the last rows may be left out; 0 pools to 2 x 2
    zero_init  start with a zero weight, so that the first gradient into the block is zero (same paper)
    norm       layer norm at each step of a sequence, in front of the mean over it, as in the head of `vit`: a pre-norm
               stream grows with depth. Heads that answer at each step always have it
    """

    features: Annotated[int, Ge(0)] = 0
    zero_init: bool = False
    norm: bool = False

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        unread = {} if any(len(size) > 2 for size in sizes) else {"features": MAPS}
        return unread if any(len(size) == 2 for size in sizes) else {**unread, "norm": SEQUENCES}

    def build(self, size: Size, classes: int) -> nn.Module:
        pool, inputs = _windows(size, self.features) if self.features and len(size) > 2 else pooled(size, (2, 2))
        linear = nn.Linear(inputs, classes)
        if self.zero_init:
            nn.init.zeros_(linear.weight)
        norm = [nn.LayerNorm(size[1])] if self.norm and len(size) == 2 else []
        return nn.Sequential(*norm, *pool, linear)

    def build_dense(self, size: Size, classes: int) -> nn.Module:
        """Layer norm and a linear layer at each step of a sequence; a 1x1 convolution on maps. No pooling."""
        layer = _at_each(size, classes)
        if self.zero_init:
            nn.init.zeros_(layer.weight)
        return nn.Sequential(nn.LayerNorm(size[-1]), layer) if len(size) == 2 else layer


@dataclass(frozen=True)
class MLP(Auxiliary):
    """DGL's MLP-aux: average-pool to ceil(H/4) x ceil(W/4) and on to 2 x 2, then `layers` times [Linear, BN, ReLU],
    then Linear. On maps up to 4 x 4 the second pool enlarges, as in the authors' code: one position becomes four equal
    ones. Vectors are not pooled.

    width       of the hidden layers; 0 means that of their input, 4C for maps
    batch_norm  false leaves the normalisation out, for batches of few samples
    """

    layers: Annotated[int, Ge(0)] = 3
    width: Annotated[int, Ge(0)] = 0
    batch_norm: bool = True

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        return {} if self.layers else {"width": "auxiliary.layers=1 or more"}

    def build(self, size: Size, classes: int) -> nn.Module:
        if len(size) == 3:
            pool, inputs = [*self.reduced(*size), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten()], 4 * size[0]
        else:
            pool, inputs = pooled(size, (2, 2))
        return nn.Sequential(*pool, *self._hidden(inputs, classes))

    def build_dense(self, size: Size, classes: int) -> nn.Module:
        """At each position: on sequences LayerNorm, `layers` times [Linear, GELU], Linear; on maps 1x1 convolutions
        with ReLU. No batch norm, whose statistics would carry later steps into earlier ones."""
        sequence = len(size) == 2
        body: list[nn.Module] = [nn.LayerNorm(size[-1])] if sequence else []
        for _ in range(self.layers):
            width = self.width or size[-1 if sequence else 0]
            body += [_at_each(size, width), nn.GELU() if sequence else nn.ReLU()]
            size = (size[0], width) if sequence else (width, *size[1:])
        return nn.Sequential(*body, _at_each(size, classes))

    def reduced(self, channels: int, height: int, width: int) -> list[nn.Module]:
        """What maps pass before they are pooled to 2 x 2: [B, C, H, W] -> [B, C, ceil(H/4), ceil(W/4)]"""
        return [nn.AdaptiveAvgPool2d((math.ceil(height / 4), math.ceil(width / 4)))]

    def _hidden(self, inputs: int, classes: int) -> Iterator[nn.Module]:
        width = self.width or inputs
        for _ in range(self.layers):
            yield nn.Linear(inputs, width)
            if self.batch_norm:
                yield nn.BatchNorm1d(width)
            yield nn.ReLU()
            inputs = width
        yield nn.Linear(inputs, classes)


@dataclass(frozen=True)
class MLPSpatialReduction(MLP):
    """DGL's MLP-SR-aux: average-pool to ceil(H/4) x ceil(W/4), `convolutions` times [1x1 conv C->C without bias, BN,
    ReLU], then MLP-aux. Vectors have no space to reduce: there it is MLP-aux."""

    convolutions: Annotated[int, Ge(0)] = 3
    build_dense = Auxiliary.build_dense  # it reduces space

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        return super().unread(sizes) if _maps(sizes) else {"convolutions": MAPS, **super().unread(sizes)}

    def reduced(self, channels: int, height: int, width: int) -> list[nn.Module]:
        layers = super().reduced(channels, height, width)
        for _ in range(self.convolutions):
            layers.append(nn.Conv2d(channels, channels, 1, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if self.batch_norm else [nn.ReLU()]
        return layers


@dataclass(frozen=True)
class CNN(Auxiliary):
    """DGL's CNN-aux: `layers` times [3x3 conv C->C without bias, BN, ReLU] at full resolution, average-pool to 2 x 2
    (a map of one position becomes four equal ones), BN over the C channels, Linear. About twice the cost of the layer
    it trains. For vectors the convolutions are linear layers, and so they are for sequences, after the mean over T."""

    layers: Annotated[int, Ge(0)] = 2

    def build(self, size: Size, classes: int) -> nn.Module:
        if len(size) != 3:
            return self._of_vectors(size, classes)
        channels = size[0]
        body: list[nn.Module] = []
        for _ in range(self.layers):
            body += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        pool = nn.AdaptiveAvgPool2d((2, 2)), nn.BatchNorm2d(channels), nn.Flatten()
        return nn.Sequential(*body, *pool, nn.Linear(4 * channels, classes))

    def _of_vectors(self, size: Size, classes: int) -> nn.Module:
        body, features = pooled(size, (2, 2))
        for _ in range(self.layers):
            body += [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
        return nn.Sequential(*body, nn.BatchNorm1d(features), nn.Linear(features, classes))


@dataclass(frozen=True)
class ConvFC(Auxiliary):
    """InfoPro's heads: `convolutions` times [3x3 conv without bias, BN, ReLU], average over space, then `layers` linear
    layers with ReLU between, those below the last one of `width`. The default is the paper's "1c2f"; 0 convolutions and
    1 layer are "0c1f", its greedy baseline.

    The first convolution doubles the channels with stride 2 on maps larger than 8 x 8 and keeps both on smaller ones,
    which on a CIFAR ResNet gives the paper's 16 -> 32, 32 -> 64 and 64 -> 64; the others keep both. Vectors and
    sequences have no convolution.
    """

    convolutions: Annotated[int, Ge(0)] = 1
    layers: Annotated[int, Ge(1)] = 2
    width: Annotated[int, Ge(1)] = 128

    def unread(self, sizes: Sequence[Size]) -> Mapping[str, str]:
        unread = {} if self.layers > 1 else {"width": "auxiliary.layers=2 or more"}
        return unread if _maps(sizes) else {"convolutions": MAPS, **unread}

    def build(self, size: Size, classes: int) -> nn.Module:
        body: list[nn.Module] = []
        for i in range(self.convolutions if len(size) == 3 else 0):
            c, h, w = size
            times = 2 if i == 0 and max(h, w) > 8 else 1
            conv = nn.Conv2d(c, times * c, 3, stride=times, padding=1, bias=False)
            body += [conv, nn.BatchNorm2d(times * c), nn.ReLU()]
            size = (times * c, math.ceil(h / times), math.ceil(w / times))
        pool, inputs = pooled(size, (1, 1))
        body += pool
        for _ in range(self.layers - 1):
            body += [nn.Linear(inputs, self.width), nn.ReLU()]
            inputs = self.width
        return nn.Sequential(*body, nn.Linear(inputs, classes))


@dataclass(frozen=True)
class Projector(Auxiliary):
    """SimCLR's projection head: average over space, Linear, ReLU, Linear, without normalisation.

    width  of the hidden layer; 0 means that of its input, C
    """

    width: Annotated[int, Ge(0)] = 0

    def build(self, size: Size, classes: int) -> nn.Module:
        pool, inputs = pooled(size, (1, 1))
        width = self.width or inputs
        return nn.Sequential(*pool, nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


def pooled(size: Size, grid: tuple[int, int]) -> tuple[list[nn.Module], int]:
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


def _windows(size: Size, features: int) -> tuple[list[nn.Module], int]:
    """See `Linear`: average pooling of maps [C, H, W] or [C, D, H, W] to at most so many features, and how many there
    are then."""
    channels, *sides = size
    windows = [1 for _ in sides]
    grid = sides
    while channels * math.prod(grid) > features and math.prod(grid) > 1:
        windows[grid.index(max(grid))] *= 2
        grid = [math.ceil(side / window) for side, window in zip(sides, windows, strict=True)]
    zeros = [window // 2 if side % window else 0 for side, window in zip(sides, windows, strict=True)]
    pool: list[nn.Module] = []
    if len(sides) == 3:  # no published code has these, so nothing is left out
        pool = [nn.AdaptiveAvgPool3d((grid[0], grid[1], grid[2]))]
    elif max(windows) > 1:
        pool = [nn.AvgPool2d((windows[0], windows[1]), padding=(zeros[0], zeros[1]))]
    return [*pool, nn.Flatten()], channels * math.prod(grid)


def _at_each(size: Size, outputs: int) -> nn.Linear | nn.Conv2d | nn.Conv3d:
    """One layer that mixes the features at every position. Raises UserError for vectors, which have none."""
    if len(size) == 1:
        raise UserError(
            f"a block emits vectors {list(size)}, but the task asks for an answer at every position: cut the model "
            "where it emits sequences or maps, or choose another model"
        )
    if len(size) == 2:
        return nn.Linear(size[1], outputs)
    return (nn.Conv2d if len(size) == 3 else nn.Conv3d)(size[0], outputs, 1)


def _maps(sizes: Sequence[Size]) -> bool:
    """Whether any of them is that of maps."""
    return any(len(size) == 3 for size in sizes)
