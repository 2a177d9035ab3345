"""What is done to a batch of training images: crop, flip and cutout as tensor arithmetic, and for studies of critical
periods a deficit, a temporary defect of images or labels. Every image has its own draws.

The transforms of torchvision draw one set of parameters for a whole batch, and are called once for each picture (see
`distortion`). The draws of this file are made on the CPU in a fixed layout, so that CPU and GPU see the same images and
no option shifts another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.accelerator import sent
from locallearn.data.distortion import UNDISTORTED, Distortion
from locallearn.data.mixing import UNMIXED, Mixing
from locallearn.seeds import generator

CROP_Y, CROP_X, FLIP, CUT_Y, CUT_X = range(5)
DEFICITS = ("blur", "flip", "permutation", "noise")
BLUR = 4  # as a cataract was imitated: 32x32 pixels seen as 8x8


def draw(seed: int, epoch: int, step: int, images: int, rows: int = 5) -> Tensor:
    """The draws of one training step, int64 [rows, B] on the CPU; each use takes its row modulo what it needs. With
    more rows, the first ones stay the same."""
    return torch.randint(1 << 31, (rows, images), generator=generator(seed, "augment", epoch, step))


@dataclass(frozen=True)
class Augment:
    """What is done to a training image.

    crop    pixels of black border added on each side before a window of the original size is cut out
    flip    half of the images are mirrored left to right
    cutout  side in pixels of a square set to zero after normalisation; its centre is anywhere in the image, so it may
            reach over the border
    distortion  comes before them, and before a deficit: the workers that read files do it
    mixing      comes last
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    distortion: Distortion = UNDISTORTED
    mixing: Mixing = UNMIXED

    def __bool__(self) -> bool:
        """Whether a batch has draws."""
        return bool(self.crop or self.flip or self.cutout)

    def move(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip raw images, uint8 [B, C, H, W] -> [B, C, H, W]."""
        if self.crop:
            offset = draws[CROP_Y : CROP_X + 1] % (2 * self.crop + 1)
            images = windows(F.pad(images, [self.crop] * 4), offset[0], offset[1], images.shape)
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


def windows(canvas: Tensor, top: Tensor, left: Tensor, shape: torch.Size) -> Tensor:
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


@dataclass(frozen=True)
class Deficit:
    """Applied to raw training batches, before augmentation, in the epochs `start` <= epoch < `end`, counted from 0; to
    the last one without an `end`. Validation, test and probes always see the clean set (Achille, Rovere & Soatto 2019).

    kind  blur: averages over 4x4 pixels, scaled up again (bilinear); flip: upside down; permutation: every class bears
          the label of another, always the same one for a seed; noise: uniform bytes instead of the image; or None
    """

    kind: str | None = None
    start: int = 0
    end: int | None = None

    def now(self, epoch: int) -> bool:
        """Whether the batches of this epoch are concerned."""
        return self.kind is not None and self.start <= epoch and (self.end is None or epoch < self.end)

    def apply(
        self, images: Tensor, labels: Tensor, classes: int, seed: int, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """uint8 images [B, C, H, W] and labels [B] of one training step as they are seen under the deficit."""
        if self.kind == "blur":
            return blurred(images), labels
        if self.kind == "flip":
            return images.flip(2), labels
        if self.kind == "permutation":
            others = sent(permutation(classes, seed), labels.device)[labels]
            return images, torch.where(labels < 0, labels, others)  # a sample may have no label
        draws = generator(seed, "deficit", epoch, step)
        noise = torch.randint(256, images.shape, dtype=torch.uint8, generator=draws)  # on the CPU: one noise everywhere
        return sent(noise, images.device), labels


def blurred(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W], averaged down to sides a quarter as long, at least one pixel, and scaled up again."""
    height, width = images.shape[2:]
    coarse = F.interpolate(images.float(), (max(1, height // BLUR), max(1, width // BLUR)), mode="area")
    fine = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return fine.round_().clamp_(0, 255).to(torch.uint8)


def permutation(classes: int, seed: int) -> Tensor:
    """The label that each class bears, int64 [classes]: one random cycle through all classes, so none keeps its own."""
    order = torch.randperm(classes, generator=generator(seed, "deficit", "labels"))
    labels = torch.empty_like(order)
    labels[order] = order.roll(1)
    return labels
