"""A temporary defect of the training batches: what the eye of the net cannot see for a while (critical periods)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.seeds import generator

DEFICITS = ("blur", "flip", "permutation", "noise")
BLUR = 4  # as a cataract was imitated: 32x32 pixels seen as 8x8


@dataclass(frozen=True)
class Deficit:
    """Applied to raw training batches, before augmentation, in the epochs `start` <= epoch < `end`, counted from 0; to
    the last one without an `end`. Validation, test and probes always see the clean set (Achille, Rovere & Soatto 2019).

    kind  blur: averages over 4x4 pixels, scaled up again (bilinear); flip: upside down; permutation: every class bears
          the label of another, always the same one for a seed; noise: bytes drawn uniformly instead of the image; or
          None
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
            return images, permutation(classes, seed).to(labels.device)[labels]
        draws = generator(seed, "deficit", epoch, step)
        noise = torch.randint(256, images.shape, dtype=torch.uint8, generator=draws)  # on the CPU: one noise everywhere
        return noise.to(images.device), labels


def blurred(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W], each side a quarter as long for a moment, at least one pixel."""
    height, width = images.shape[2:]
    coarse = F.interpolate(images.float(), (max(1, height // BLUR), max(1, width // BLUR)), mode="area")
    fine = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return fine.round_().clamp_(0, 255).to(torch.uint8)


def permutation(classes: int, seed: int) -> Tensor:
    """The label that each class bears, int64 [classes]: one random cycle through all classes, so none keeps its own."""
    order = torch.randperm(classes, generator=generator(seed, "deficit", "labels"))
    found = torch.empty_like(order)
    found[order] = order.roll(1)
    return found
