"""The decoder of the losses that reconstruct the input (InfoPro: Wang et al. 2021, arXiv 2101.10832)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from locallearn.auxiliary.networks import Size


@dataclass(frozen=True)
class Decoder:
    """From a block's output back to the model's input: bilinear upsampling to the input's size (corners on corners, as
    in the authors' code), 3x3 conv -> width, BN, ReLU, 3x3 conv -> C. No sigmoid: what the numbers mean is the loss's
    business.

    Vectors, and maps of a single position, first become `width` maps of a quarter of the input's side through a linear
    layer; a sequence before that `width` features per step, or the layer would have T * D inputs. Where the input is no
    image, one linear layer to its size takes the place of the convolutions.

    width     of its maps
    quarters  four decoders, each of a quarter of maps of at least 2 x 2 positions, to that quarter of the image (PFF of
              Su et al. 2024, arXiv 2407.05638)
    """

    width: int = 12
    quarters: bool = False

    def build(self, size: Size, image: Size) -> nn.Module:
        """A module [B, *size] -> [B, *image]."""
        if self.quarters and len(size) == 3 == len(image) and min(*size[1:], *image[1:]) > 1:
            return Quarters(Decoder(self.width), size, image)
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


class Quarters(nn.Module):
    """Four decoders, one for each quarter of a map [B, C, H, W] and of the image; the lower and the right ones have the
    odd row and column."""

    def __init__(self, decoder: Decoder, size: Size, image: Size) -> None:
        super().__init__()
        self.height, self.width = size[1] // 2, size[2] // 2
        parts = [
            [(c, h // 2 if top else h - h // 2, w // 2 if left else w - w // 2) for c, h, w in (size, image)]
            for top in (True, False)
            for left in (True, False)
        ]
        self.decoders = nn.ModuleList(decoder.build(read, emitted) for read, emitted in parts)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, *image]"""
        rows = h[:, :, : self.height], h[:, :, self.height :]
        parts = [part for row in rows for part in (row[..., : self.width], row[..., self.width :])]
        decoded = [decoder(part) for decoder, part in zip(self.decoders, parts, strict=True)]
        return torch.cat([torch.cat(decoded[:2], dim=3), torch.cat(decoded[2:], dim=3)], dim=2)
