"""What is done to a training picture with torchvision's transforms: a window of any size, a policy of many small
changes, colours, blur.

These transforms draw one set of parameters a call, so they are called once for each picture. The draws of a picture
follow from (seed, epoch, place in the set) alone, each option from a stream of its own: worker processes that read
files, another batch size or a resumed run change nothing, and no option shifts another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from locallearn import seeds

if TYPE_CHECKING:
    from PIL.Image import Image

POLICIES = ("rand", "trivial")
_Picture = TypeVar("_Picture", Tensor, "Image")


@dataclass(frozen=True)
class Distortion:
    """How training pictures are distorted.
    resized_crop  least share of the area of a random window that is scaled to the size of the image, with sides from
                  3:4 to 4:3; 0 for none. ImageNet is trained on with 0.08
    policy        rand: RandAugment (Cubuk et al. 2019, arXiv 1909.13719), two changes of strength 9. trivial:
                  TrivialAugment (Muller & Hutter 2021, arXiv 2103.10158), one change of any strength. Or None
    jitter        strength of the colour distortion of SimCLR (Chen et al. 2020, arXiv 2002.05709), 1 as there: 4 of 5
                  images have brightness, contrast and saturation changed by up to 80 % and the hue by up to a fifth of
                  the circle, and 1 of 5 becomes grey
    blur          share of the images that are blurred as in SimCLR (0.5 there): by a Gaussian of 0.1 to 2 pixels
    """

    resized_crop: float = 0.0
    policy: str | None = None
    jitter: float = 0.0
    blur: float = 0.0

    def at(self, seed: int, epoch: int) -> Distorter | None:
        """What distorts the pictures of one epoch; None where nothing is done."""
        return Distorter(self, seed, epoch) if self != UNDISTORTED else None


UNDISTORTED = Distortion()


class Distorter(NamedTuple):
    """Distorts the pictures of one epoch. Leaves PyTorch's global generators as they were."""

    distortion: Distortion
    seed: int
    epoch: int

    def __call__(self, picture: Tensor, place: int) -> Tensor:
        """The picture uint8 [C, H, W] at this place of its set -> [C, H, W]."""
        return self.paint(self.cut(picture, picture.shape[1:], place), place)

    def cut(self, picture: _Picture, size: tuple[int, ...], place: int) -> _Picture:
        """The window of a picture, scaled to `size` = (H, W)."""
        return self._drawn("window", _window(size, self.distortion.resized_crop), picture, place)

    def paint(self, image: Tensor, place: int) -> Tensor:
        """All that leaves the size as it is."""
        for name, transform in _paints(self.distortion):
            image = self._drawn(name, transform, image, place)
        return image

    def _drawn(self, name: str, transform: Callable[[Any], Any], picture: _Picture, place: int) -> _Picture:
        with seeds.stream(self.seed, "distortion", name, self.epoch, place):
            return transform(picture)


@lru_cache
def _window(size: tuple[int, ...], least: float) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    return v2.RandomResizedCrop(size, scale=(least, 1.0), antialias=True) if least else lambda picture: picture


@lru_cache
def _paints(distortion: Distortion) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    from torchvision.transforms import v2

    paints: list[tuple[str, Callable[[Tensor], Tensor]]] = []
    if distortion.policy:
        paints.append(("policy", v2.RandAugment() if distortion.policy == "rand" else v2.TrivialAugmentWide()))
    if s := distortion.jitter:
        colours = v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
        paints.append(("jitter", v2.Compose([v2.RandomApply([colours], p=0.8), v2.RandomGrayscale(p=0.2)])))
    if distortion.blur:
        paints.append(("blur", v2.RandomApply([_blurred], p=distortion.blur)))
    return paints


def _blurred(image: Tensor) -> Tensor:
    """Rows, then columns: what `v2.GaussianBlur` does in one go for twelve times the time at 224 pixels. The kernel is
    a tenth of the side."""
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = float(torch.empty(1).uniform_(0.1, 2.0))
    across, down = (side // 20 * 2 + 1 if side >= 20 else 3 for side in image.shape[:0:-1])
    smooth = gaussian_blur(gaussian_blur(image.float(), [across, 1], [sigma]), [1, down], [sigma])
    return smooth.round_().to(torch.uint8)
