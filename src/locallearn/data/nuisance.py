"""Something on every image that has nothing to do with its label, and whose value is kept: how much of it a layer still
tells can then be asked (Achille & Soatto 2018, arXiv 1706.01350)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.data.augment import windows
from locallearn.data.dataset import Data, Split
from locallearn.data.store import CHECKED, Memory, Store
from locallearn.errors import UserError

VALUES = {"occlusion": 16, "clutter": 16, "rotation": 8, "translation": 25}
"""How many values each has, all equally likely: 4, 4, 3 and 4.64 bits."""
NUISANCES = tuple(VALUES)
SIDE = 28
"""Of the images to which the sizes in pixels below belong; other images have them in proportion."""
SQUARE, CROP, STEP = 10, 8, 2
CROPS = 8


def disturbed(images: Tensor, kind: str, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W] under a nuisance, and its value for each of them, int64 [N].

    occlusion    a black square, of side 10 in an image of side 28, at one of 4 x 4 places
    clutter      a canvas twice as high and wide, with the image anywhere on it, the value in which sixteenth, and under
                 it 8 squares of side 8, cut out of other images
    rotation     by a multiple of 45 degrees
    translation  by one of 5 x 5 shifts, 2 pixels apart; what comes in is black
    """
    n = torch.randint(VALUES[kind], (len(images),), generator=draws)
    starts = range(0, len(images), CHECKED)
    parts = [_KINDS[kind](images[i : i + CHECKED], n[i : i + CHECKED], images, draws) for i in starts]
    return torch.cat(parts), n


def with_nuisance(name: str, images: Store, kind: str, draws: torch.Generator) -> Memory:
    """The images of a set, disturbed, and `nuisance` with them. Raises UserError for other samples."""
    if not isinstance(images, Memory) or images.dtype != torch.uint8 or len(images.image) != 3:
        reason = "has no pixels" if images.dtype != torch.uint8 else "is read from files in each epoch"
        raise UserError(f"data.nuisance={kind} is put on images in memory, but data={name} {reason}: leave it out")
    samples, n = disturbed(images.samples.cpu(), kind, draws)
    return Memory(samples, nuisance=n)


def asked_for_nuisance(data: Data) -> Data:
    """The same set with the value of the nuisance as the label of each sample. Raises UserError where it has none."""

    def asked(split: Split) -> Split:
        values = getattr(split.store, "nuisance", None)
        if values is None:
            raise UserError(f"data={data.name} has no known nuisance: choose data.nuisance={' or '.join(NUISANCES)}")
        return replace(split, labels=values[split.index].to(split.labels.device))

    other = copy.copy(data)
    other.train, other.validation, other.test = map(asked, (data.train, data.validation, data.test))
    return other


def _scaled(pixels: int, images: Tensor) -> int:
    return max(1, round(pixels * min(images.shape[2:]) / SIDE))


def _occluded(images: Tensor, n: Tensor, others: Tensor, draws: torch.Generator) -> Tensor:
    side = _scaled(SQUARE, images)

    def band(place: Tensor, length: int) -> Tensor:
        first = (place * (length - side) / 3).round()[:, None]
        pixel = torch.arange(length)
        return (pixel >= first) & (pixel < first + side)

    rows, columns = band(n // 4, images.shape[2]), band(n % 4, images.shape[3])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _translated(images: Tensor, n: Tensor, others: Tensor, draws: torch.Generator) -> Tensor:
    step = _scaled(STEP, images)
    return windows(F.pad(images, [2 * step] * 4), (n // 5) * step, (n % 5) * step, images.shape)


def _rotated(images: Tensor, n: Tensor, others: Tensor, draws: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    angle = n * (math.pi / 4)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(n))
    turn = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)


def _cluttered(images: Tensor, n: Tensor, others: Tensor, draws: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    side, at = _scaled(CROP, images), torch.arange(count)

    def below(limit: int | Tensor) -> Tensor:
        return (torch.rand(count, generator=draws) * limit).long()

    def paint(patches: Tensor, top: Tensor, left: Tensor) -> None:
        rows, columns = (torch.arange(length) for length in patches.shape[2:])
        where = at[:, None, None], slice(None), (top[:, None] + rows)[:, :, None], (left[:, None] + columns)[:, None]
        canvas[where] = torch.maximum(canvas[where], patches.movedim(1, 3))

    canvas = torch.zeros(count, channels, 2 * height, 2 * width, dtype=torch.uint8)
    for _ in range(CROPS):
        source = others[below(len(others))]
        size = torch.Size([count, channels, side, side])
        crops = windows(source, below(height - side + 1), below(width - side + 1), size)
        paint(crops, below(2 * height - side + 1), below(2 * width - side + 1))
    corner = []
    for place, length in ((n // 4, height), (n % 4, width)):  # a quarter of the length + 1 places of the corner
        first, end = (length + 1) * place // 4, (length + 1) * (place + 1) // 4
        corner.append(first + below(end - first))
    paint(images, *corner)
    return canvas


_KINDS: dict[str, Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]] = {
    "occlusion": _occluded, "clutter": _cluttered, "rotation": _rotated, "translation": _translated
}  # fmt: skip
