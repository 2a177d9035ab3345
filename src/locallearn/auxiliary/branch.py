"""The auxiliary reversible branch of PGI and what joins it to the main one (Wang, Yeh & Liao 2024, "YOLOv9").

Everything here is a map [B, C, H, W]. A vector [B, D] counts as one of a single position, [B, D, 1, 1], and a sequence
[B, T, D] as [B, D, T, 1]; only maps are convolved over space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary.networks import Size
from locallearn.errors import UserError
from locallearn.models.coupling import Coupling
from locallearn.models.gelan import BLOCKS as BLOCKS  # for strategies
from locallearn.models.gelan import ELAN as ELAN
from locallearn.models.gelan import conv
from locallearn.models.pyramid import Pyramid

Grid: TypeAlias = tuple[int, int]
HeadOf: TypeAlias = Callable[[Size], nn.Module]
"""From the shape of features to the network that answers what the task asks."""
HeadOfAll: TypeAlias = Callable[[Sequence[Size]], nn.Module]
"""From the shapes of several levels to one network that answers from all of them, packed."""
HeadsOf: TypeAlias = Callable[[Sequence[Size]], Sequence[nn.Module]]
"""From the shapes of several levels to the networks that answer: one for each, or one for all."""


class Routing(nn.Module):
    """The tap on a block's output (CBLinear): a 1x1 convolution. [B, *size] -> [B, width, H, W]. Of a pyramid that
    is `packed` of several sizes the newest map is tapped."""

    def __init__(self, size: Size, width: int, packed: Sequence[Size] = ()) -> None:
        super().__init__()
        self.given = Pyramid((*packed[:-1], size))
        self.conv = nn.Conv2d(as_map(size)[0], width, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(_maps(self.given.unpack(h)[-1]))


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
    """One level of the branch: fuse (CBFuse), additive couplings, and a classifier that reads them, if it has a head.

    [B, width, any grid] and routing maps of any grid -> [B, width, H, W], with H and W those of `size`
    """

    def __init__(self, size: Size, width: int, couplings: int, head: HeadOf | None) -> None:
        super().__init__()
        _, *grid = as_map(size)
        self.grid: Grid = (grid[0], grid[1])
        half, kernel = width // 2, _kernel(size, self.grid)
        units = [Coupling(_transform(half, kernel), _transform(half, kernel)) for _ in range(couplings)]
        self.couplings = nn.Sequential(*units)
        self.classifier = head((width, *self.grid)) if head else None

    def forward(self, a: Tensor, routes: Sequence[Tensor]) -> Tensor:
        fused = sum((_nearest(r, self.grid) for r in routes), _averaged(a, self.grid))
        return self.couplings(fused)


class Branch(nn.Module):
    """A whole branch, for the block that holds it: (image, one routing map per level) -> what the task asks, from each
    level, or where boxes are asked for once, from all of them.

    levels  the size of each level's maps
    heads   one per level, or one that reads them packed
    """

    def __init__(self, levels: Sequence[Size], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.given = Pyramid(tuple(levels))
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Tensor, routes: Sequence[Tensor]) -> list[Tensor]:
        maps = self.maps(image, routes)
        if len(self.heads) < len(maps):
            return [self.heads[0](self.given.pack(maps))]
        return [head(m) for head, m in zip(self.heads, maps, strict=True)]

    def maps(self, image: Tensor, routes: Sequence[Tensor]) -> list[Tensor]:
        """What the heads read: the routing maps themselves."""
        return [*routes]


class CouplingBranch(nn.Module):
    """The branch of additive couplings. Level k joins the maps of the levels j >= k. Each level has its classifier,
    unless `whole` makes one head for all, from their sizes."""

    def __init__(
        self,
        image: Size,
        sizes: Sequence[Size],
        width: int,
        couplings: int,
        head: HeadOf,
        channels_first: bool = False,
        whole: HeadOfAll | None = None,
    ) -> None:
        super().__init__()
        levels = [Level(size, width, couplings, None if whole else head) for size in sizes]
        self.stem = Stem(image, width, levels[0].grid, channels_first)
        self.levels = nn.ModuleList(levels)
        self.given = Pyramid(tuple((width, *level.grid) for level in levels))
        self.whole = whole(self.given.levels) if whole else None

    def forward(self, image: Tensor, routes: Sequence[Tensor]) -> list[Tensor]:
        a = self.stem(image)
        maps, answers = [], []
        for k, level in enumerate(self.levels):
            assert isinstance(level, Level)
            a = level(a, routes[k:])
            maps.append(a)
            if level.classifier is not None:
                answers.append(level.classifier(a))
        return answers if self.whole is None else [self.whole(self.given.pack(maps))]


class ElanBranch(Branch):
    """The second backbone of yolov9-c: from the image, a stem of strided convolutions, and for each level a strided
    convolution, the sum of it and of what is routed there (CBFuse, nearest), and an ELAN unit as in the trunk. A
    routing map of level j holds a chunk for each level up to j, as wide as that level (CBLinear).

    Raises UserError for levels that do not halve their sides, from a first one at a stride of 4, 8, ... pixels.
    """

    def __init__(self, image: Size, sizes: Sequence[Size], unit: Callable[[int], nn.Module], heads: HeadsOf) -> None:
        strides = [image[1] // size[1] if len(size) == 3 and len(image) == 3 else 0 for size in sizes]
        first = strides[0]
        if first < 4 or first & (first - 1) or strides != [first << k for k in range(len(sizes))]:
            raise UserError(
                f"strategy.branch=elan needs taps at strides such as 8, 16, 32, and these blocks end at {strides} (0: "
                "no map): with model=detector choose blocks=[4,6,8], or strategy.branch=coupling"
            )
        super().__init__(sizes, heads(sizes))
        widths = [size[0] for size in sizes]
        before = max(8, widths[0] // 2)
        stem = [conv(image[0] if k == 0 else before, before, 3, 2) for k in range(first.bit_length() - 2)]
        self.stem = nn.Sequential(*stem, unit(before))
        self.downs = nn.ModuleList(conv(a, b, 3, 2) for a, b in pairwise([before, *widths]))
        self.units = nn.ModuleList(map(unit, widths))
        self.widths = widths

    def maps(self, image: Tensor, routes: Sequence[Tensor]) -> list[Tensor]:
        a = self.stem(image.detach())
        chunks = [r.split(self.widths[: j + 1], dim=1) for j, r in enumerate(routes)]
        maps = []
        for k, (down, unit) in enumerate(zip(self.downs, self.units, strict=True)):
            a = down(a)
            grid = (a.shape[2], a.shape[3])
            a = unit(sum((_nearest(own[k], grid) for own in chunks[k:]), a))
            maps.append(a)
        return maps


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
