"""The decoder of the losses that reconstruct the input (InfoPro: Wang et al. 2021, arXiv 2101.10832)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from locallearn.auxiliary.networks import Size


@dataclass(frozen=True)
class Decoder:
    """From a block's output back to the model's input: bilinear upsampling to the input's size (corners on corners, as
    in the authors' code), 3x3 conv -> width, BN, ReLU, 3x3 conv -> C. No sigmoid: what the numbers mean is the loss's
    business.

    Vectors, and maps of a single position, first become `width` maps of a quarter of the input's side through a linear
    layer; a sequence before that `width` features per step, or the layer would have T * D inputs. Where the input is no
    image, one linear layer to its size takes the place of the convolutions.
    """

    width: int = 12

    def build(self, size: Size, image: Size) -> nn.Module:
        """A module [B, *size] -> [B, *image]."""
        start: list[nn.Module] = []
        if len(size) == 2:
            start, size = [nn.Linear(size[1], self.width)], (size[0] * self.width,)
        if len(image) != 3:
            end = nn.Linear(math.prod(size), math.prod(image)), nn.Unflatten(1, image)
            return nn.Sequential(*start, nn.Flatten(), *end)
        channels, height, width = image
        if len(size) != 3 or size[1] * size[2] == 1:
            inputs, size = math.prod(size), (self.width, math.ceil(height / 4), math.ceil(width / 4))
            start += [nn.Flatten(), nn.Linear(inputs, math.prod(size)), nn.Unflatten(1, size)]
        return nn.Sequential(
            *start,
            nn.Upsample((height, width), mode="bilinear", align_corners=True),
            nn.Conv2d(size[0], self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.ReLU(),
            nn.Conv2d(self.width, channels, 3, padding=1),
        )
