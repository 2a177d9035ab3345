"""From raw pixels to float32: y = x * scale + shift, per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from locallearn.data.store import Store
from locallearn.errors import UserError

NORMALISATIONS = ("standard", "unit", "symmetric", "imagenet")


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of each channel, on the scale of 0 to 1: what a model must be given its images with."""

    mean: list[float]
    std: list[Annotated[float, Gt(0)]]


IMAGENET = Normalisation([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
"""What the published weights of torchvision, and most of timm's, were trained with."""
FIXED = {"unit": (0.0, 1.0), "symmetric": (0.5, 0.5)}
"""Mean and deviation, on the scale of 0 to 1, that put pixels into [0, 1] and [-1, 1]."""


class Normaliser:
    """uint8 [B, C, H, W] -> float32 (x / 255 - mean) / std. `mean` and `std` are [C], on the scale of 0 to 1."""

    def __init__(self, mean: Tensor, std: Tensor, device: torch.device) -> None:
        self.mean, self.std = mean, std
        self.scale = (1 / (255 * std)).float()[:, None, None].to(device)
        self.shift = (-mean / std).float()[:, None, None].to(device)

    @classmethod
    def of(cls, normalisation: Normalisation, device: torch.device) -> Normaliser:
        mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (normalisation.mean, normalisation.std))
        return cls(mean, std, device)

    @classmethod
    def fixed(cls, name: str, channels: int, device: torch.device) -> Normaliser:
        """That of a name in `FIXED`."""
        mean, std = FIXED[name]
        return cls.of(Normalisation([mean] * channels, [std] * channels), device)

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.mean.tolist(), self.std.tolist())

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What a black and a white pixel become, one number per channel each."""
        return tuple((-self.mean / self.std).tolist()), tuple(((1 - self.mean) / self.std).tolist())

    def __call__(self, images: Tensor) -> Tensor:
        # Two roundings, not one fused operation, so that every device gives the same bits.
        return images.float().mul_(self.scale).add_(self.shift)


def moments(store: Store, index: Tensor, at_most: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float64 [C] each on the scale of 0 to 1, of the images at `index` [N].

    The sums are of integers, which float64 holds exactly, so that neither device nor order matters. With `at_most`,
    that many images spread evenly over `index` stand for all. A constant channel has a deviation of 1.
    """
    if at_most is not None and len(index) > at_most:
        index = index[torch.arange(at_most) * len(index) // at_most]
    channels = store.image[0]
    total, squares = torch.zeros(channels).double(), torch.zeros(channels).double()
    for images in store.take(index, 128):
        pixels = images.flatten(2).double()  # [B, C, H * W]; four times as fast as int64
        total += pixels.sum((0, 2)).cpu()
        squares += pixels.square_().sum((0, 2)).cpu()
    count = len(index) * store.image[1] * store.image[2]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean / 255, torch.where(std > 0, std / 255, 1.0)


def normaliser(
    name: str,
    kind: str,
    store: Store,
    index: Tensor,
    device: torch.device,
    of_model: Normalisation | None = None,
    measured: int | None = None,
) -> Normaliser | None:
    """What makes the images of data=`name` inputs, as one of `NORMALISATIONS` says, or as a trained model was given
    its own; None where samples are not images. The training images are at `index` [N] of the store, of which at most
    `measured` are read. Raises UserError for another number of channels."""
    if store.dtype != torch.uint8:
        return None
    channels = store.image[0]
    if of_model is not None:
        if len(of_model.mean) != channels:
            raise UserError(
                f"data={name} has images {list(store.image)}, but the run was trained on images of "
                f"{len(of_model.mean)} channels: choose a set of such images"
            )
        return Normaliser.of(of_model, device)
    if kind == "imagenet":
        if channels != 3:
            raise UserError(f"data.normalise={kind}: must be standard, unit or symmetric for {channels} channels")
        return Normaliser.of(IMAGENET, device)
    if kind in FIXED:
        return Normaliser.fixed(kind, channels, device)
    return Normaliser(*moments(store, index, measured), device)
