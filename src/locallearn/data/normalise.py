"""From raw pixels to float32: y = x * scale + shift, per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from locallearn.data.store import Store

NORMALISATIONS = ("standard", "symmetric")


class Normaliser:
    """uint8 [B, C, H, W] -> float32 (x / 255 - mean) / std. `mean` and `std` are [C], on the scale of 0 to 1."""

    def __init__(self, mean: Tensor, std: Tensor, device: torch.device) -> None:
        self.mean, self.std = mean, std
        self.scale = (1 / (255 * std)).float()[:, None, None].to(device)
        self.shift = (-mean / std).float()[:, None, None].to(device)

    def __call__(self, images: Tensor) -> Tensor:
        # Two roundings, not one fused operation, so that every device gives the same bits.
        return images.float().mul_(self.scale).add_(self.shift)


def moments(store: Store, index: Tensor, at_most: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float64 [C] each on the scale of 0 to 1, of the images at `index` [N].

    The sums are integers, so that the result depends on neither device nor order. With `at_most`, that many images
    spread evenly over `index` stand for all. A constant channel has a deviation of 1.
    """
    if at_most is not None and len(index) > at_most:
        index = index[torch.arange(at_most) * len(index) // at_most]
    channels = store.image[0]
    total, squares = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    for images in store.take(index, 512):
        pixels = images.flatten(2).int()  # [B, C, H * W]
        total += pixels.sum((0, 2), dtype=torch.int64).cpu()
        squares += pixels.square_().sum((0, 2), dtype=torch.int64).cpu()
    count = len(index) * store.image[1] * store.image[2]
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp(min=0).sqrt()
    return mean / 255, torch.where(std > 0, std / 255, 1.0)
