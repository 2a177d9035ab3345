"""VGG with batch normalisation, one unit per convolution and one linear layer as head."""

from __future__ import annotations

from typing import Annotated

from locallearn.models.base import BlockModel, Size
from locallearn.models.layers import POOL, check_image, conv_units, pooled_head
from locallearn.options import OneOf, within_ranges

PLANS: dict[int, list[int | str]] = {
    4: [64, POOL, 128, 128, POOL, 256],  # of DGL's learning curves (Belilovsky et al., 2020)
    11: [64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL],
    13: [64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL],
    16: [64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL],
    19: [64, 64, POOL, 128, 128, POOL, *[256] * 4, POOL, *[512] * 4, POOL, *[512] * 4, POOL],
}


@within_ranges("model")
def vgg(image: Size, classes: int, *, depth: Annotated[int, OneOf(PLANS)] = 16) -> BlockModel:
    """VGG (Simonyan and Zisserman, 2015) as it is used on CIFAR: BN, no hidden linear layers, PyTorch's initialisation.

    4, 8, 10, 13 or 16 units for depth 4, 11, 13, 16 or 19. Small images stop pooling at 1x1, large ones end in an
    average over positions, so that any size works.
    """
    check_image(image, f"vgg{depth}")
    units, emits = conv_units(image, PLANS[depth])
    head = pooled_head(emits[0], classes)
    return BlockModel(units, head, image=image, classes=classes, name=f"vgg{depth}")
