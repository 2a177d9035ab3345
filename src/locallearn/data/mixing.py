"""Images of a batch that are mixed with each other, and their labels with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from locallearn import seeds


@dataclass(frozen=True)
class Mixing:
    """Torchvision's mixup and cutmix: each image with the one before it in the shuffled batch, in one share for the
    whole batch, drawn from Beta(alpha, alpha); a pure function of (seed, epoch, step).

    mixup   alpha of blended images (Zhang et al. 2018, arXiv 1710.09412), 0 for none
    cutmix  alpha of images with a window from the other (Yun et al. 2019, arXiv 1905.04899), 0 for none. Of both, every
            batch has one, with equal chances
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(
        self, images: Tensor, labels: Tensor, classes: int, seed: int, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Normalised images [B, C, H, W] and labels [B] of one training step -> [B, C, H, W] and [B, classes]."""
        kinds = _kinds(self, classes)
        if not kinds:
            return images, labels
        with seeds.stream(seed, "mixing", epoch, step):
            return kinds[int(torch.randint(len(kinds), ()))](images, labels)


UNMIXED = Mixing()


@lru_cache
def _kinds(mixing: Mixing, classes: int) -> list[Any]:
    if mixing == UNMIXED:
        return []
    from torchvision.transforms import v2

    alphas = ((v2.MixUp, mixing.mixup), (v2.CutMix, mixing.cutmix))
    return [kind(alpha=alpha, num_classes=classes) for kind, alpha in alphas if alpha]
