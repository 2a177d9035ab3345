"""The auxiliary reversible branch of PGI and what joins it to the main one (Wang, Yeh & Liao 2024, "YOLOv9").

Everything here is a map [B, C, H, W]. A vector [B, D] counts as one of a single position, [B, D, 1, 1], and a sequence
[B, T, D] as [B, D, T, 1]; only maps are convolved over space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary.networks import Size
from locallearn.errors import UserError
from locallearn.models.coupling import Coupling

Grid: TypeAlias = tuple[int, int]
HeadOf: TypeAlias = Callable[[Size], nn.Module]
"""From the shape of features to the network that answers what the task asks."""


class Routing(nn.Module):
    """The tap on a block's output (CBLinear): a 1x1 convolution. [B, *size] -> [B, width, H, W]"""

    def __init__(self, size: Size, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(as_map(size)[0], width, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(_maps(h))


class Stem(nn.Module):
    """The image at the first level: strided convolution, BN, ReLU. [B, *image] -> [B, width, about *grid]

    The stride is how much smaller the level is, and no position is skipped, so that even a level of one position (a
    block that emits vectors) sees the whole image. The image is read without a graph: its gradient costs nothing.

    channels_first  see `BlockSpec`
    """

    def __init__(self, image: Size, width: int, grid: Grid, channels_first: bool = False) -> None:
        super().__init__()
        self.channels_first = channels_first
        channels, *sides = as_map(image[::-1] if channels_first else image)
        (s, t) = strides = [max(1, side // cells) for side, cells in zip(sides, grid, strict=True)]
        (k, m) = [max(stride, _kernel(image, (side, side))) for stride, side in zip(strides, sides, strict=True)]
        padding = ((k - s + 1) // 2, (m - t + 1) // 2)
        self.conv = nn.Conv2d(channels, width, (k, m), (s, t), padding, bias=False)
        self.rest = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        image = image.detach()
        x = _maps(image.transpose(1, 2) if self.channels_first else image)
        return self.rest(self.conv(x if x.is_floating_point() else x.to(self.conv.weight.dtype)))


class Level(nn.Module):
    """One level of the branch: fuse (CBFuse), additive couplings, and a classifier that reads them.

    [B, width, any grid] and routing maps of any grid -> [B, width, H, W], with H and W those of `size`
    """

    def __init__(self, size: Size, width: int, couplings: int, head: HeadOf) -> None:
        super().__init__()
        _, *grid = as_map(size)
        self.grid: Grid = (grid[0], grid[1])
        half, kernel = width // 2, _kernel(size, self.grid)
        units = [Coupling(_transform(half, kernel), _transform(half, kernel)) for _ in range(couplings)]
        self.couplings = nn.Sequential(*units)
        self.classifier = head((width, *self.grid))

    def forward(self, a: Tensor, routes: Sequence[Tensor]) -> Tensor:
        fused = sum((_nearest(r, self.grid) for r in routes), _averaged(a, self.grid))
        return self.couplings(fused)


class Branch(nn.Module):
    """The whole branch, for the block that holds it: (image, one routing map per level) -> logits [B, classes] per
    level. Level k joins the maps of the levels j >= k."""

    def __init__(
        self,
        image: Size,
        sizes: Sequence[Size],
        width: int,
        couplings: int,
        head: HeadOf,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        levels = [Level(size, width, couplings, head) for size in sizes]
        self.stem = Stem(image, width, levels[0].grid, channels_first)
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor, routes: Sequence[Tensor]) -> list[Tensor]:
        a = self.stem(image)
        logits = []
        for k, level in enumerate(self.levels):
            assert isinstance(level, Level)
            a = level(a, routes[k:])
            logits.append(level.classifier(a))
        return logits


def as_map(size: Size) -> tuple[int, int, int]:
    """(C, H, W) of a vector [D], a sequence [T, D] or a map [C, H, W]. Raises UserError for anything else."""
    if len(size) == 1:
        return size[0], 1, 1
    if len(size) == 2:
        return size[1], size[0], 1
    if len(size) == 3:
        return size[0], size[1], size[2]
    raise UserError(
        f"the auxiliary branch cannot read {list(size)}: it takes vectors [D], sequences [T, D] and maps [C, H, W]; "
        "choose another strategy or another model"
    )


def _maps(t: Tensor) -> Tensor:
    """[B, D] -> [B, D, 1, 1], [B, T, D] -> [B, D, T, 1], [B, C, H, W] as it is."""
    if t.dim() == 3:
        t = t.transpose(1, 2)
    return t.view(*t.shape, *[1] * (4 - t.dim()))


def _nearest(t: Tensor, grid: Grid) -> Tensor:
    """Routing maps as YOLOv9's CBFuse brings them to the grid: the nearest position, whatever the sizes."""
    return t if t.shape[2:] == grid else F.interpolate(t, grid, mode="nearest")


def _averaged(t: Tensor, grid: Grid) -> Tensor:
    """What comes from the level below, which is as large as the grid or larger: averages over positions."""
    return t if t.shape[2:] == grid else F.adaptive_avg_pool2d(t, grid)


def _kernel(size: Size, grid: Grid) -> int:
    """3 for maps that have neighbours, else 1."""
    return 3 if len(size) == 3 and max(grid) > 1 else 1


def _transform(width: int, kernel: int) -> nn.Sequential:
    """f or g of a coupling: convolution, BN, ReLU, convolution."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, kernel, padding=kernel // 2),
    )
