"""Crop, flip and cutout of a batch as tensor arithmetic; every image has its own draws.

The transforms of torchvision draw one set of parameters for a whole batch, which is why they are not used here. The
draws are made on the CPU in a fixed layout, so that CPU and GPU see the same images and no option shifts another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.seeds import generator

CROP_Y, CROP_X, FLIP, CUT_Y, CUT_X = range(5)


def draw(seed: int, epoch: int, step: int, images: int) -> Tensor:
    """The draws of one training step, int64 [5, B] on the CPU; each use takes its row modulo what it needs."""
    return torch.randint(1 << 31, (5, images), generator=generator(seed, "augment", epoch, step))


@dataclass(frozen=True)
class Augment:
    """What is done to a training image.

    crop    pixels of black border added on each side before a window of the original size is cut out
    flip    half of the images are mirrored left to right
    cutout  side in pixels of a square set to zero after normalisation; its centre is anywhere in the image, so it may
            reach over the border
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __bool__(self) -> bool:
        return bool(self.crop or self.flip or self.cutout)

    def move(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip raw images, uint8 [B, C, H, W] -> [B, C, H, W]."""
        if self.crop:
            offset = draws[[CROP_Y, CROP_X]] % (2 * self.crop + 1)
            images = _windows(F.pad(images, [self.crop] * 4), offset[0], offset[1], images.shape)
        if self.flip:
            images = _choose(draws[FLIP] % 2 == 1, images.flip(3), images)
        return images

    def cut(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Zero a square of normalised images [B, C, H, W], in place."""
        if self.cutout:
            rows = self._band(draws[CUT_Y], inputs.shape[2])[:, None, :, None]
            columns = self._band(draws[CUT_X], inputs.shape[3])[:, None, None, :]
            inputs.masked_fill_(rows & columns, 0.0)
        return inputs

    def _band(self, draws: Tensor, length: int) -> Tensor:
        """Which of `length` pixels lie in the square: bool [B, length]."""
        first = (draws % length - self.cutout // 2)[:, None]
        pixel = torch.arange(length, device=draws.device)
        return (pixel >= first) & (pixel < first + self.cutout)


def _windows(canvas: Tensor, top: Tensor, left: Tensor, shape: torch.Size) -> Tensor:
    """Cut a window at (top [B], left [B]) out of each image of canvas [B, C, H + 2p, W + 2p] -> `shape` [B, C, H, W].

    The windows are copied row by row from every possible start in memory (`unfold` is a view of them all): half the
    time of an advanced index over the windows.
    """
    images, channels, height, width = shape
    at = torch.arange(max(shape), device=canvas.device)
    row = (at[:images] * canvas.stride(0) + top * canvas.stride(2) + left)[:, None, None]
    row = row + (at[:channels] * canvas.stride(1))[:, None] + at[:height] * canvas.stride(2)  # [B, C, H]
    return canvas.view(-1).unfold(0, width, 1).index_select(0, row.view(-1)).view(shape)


def _choose(first: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`torch.where(first, a, b)` by image, for bytes: `where` takes five times as long on a CPU. `a` is overwritten."""
    mask = (first * 255).to(torch.uint8)[:, None, None, None]
    return a.bitwise_xor_(b).bitwise_and_(mask).bitwise_xor_(b)
