"""The head of MAN++, which has the depth of DGL's and the same width on every map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import nn

from locallearn.auxiliary.networks import MLP, Auxiliary, Size
from locallearn.errors import UserError


@dataclass(frozen=True)
class PointwiseMLP(Auxiliary):
    """MAN++'s head for cross-entropy (Su et al. 2025, arXiv 2507.16279, and its code): average-pool maps to 8 x 8,
    three times [1x1 conv to `width` without bias, BN, ReLU], average over space, three times [Linear to 4 `width`, BN,
    ReLU], Linear. Smaller maps are enlarged to 8 x 8, as in the authors' code. Vectors and sequences have no space.

    width  of the convolutions; the hidden layers have four times as many
    """

    width: Annotated[int, Ge(1)] = 128

    def build(self, size: Size, classes: int) -> nn.Module:
        if len(size) != 3:
            raise UserError(
                f"auxiliary=pointwise_mlp convolves maps [C, H, W], but here it would read {list(size)}: choose a "
                "convolutional model, a cut with maps on both sides, or another auxiliary network, such as mlp"
            )
        channels = size[0]
        body: list[nn.Module] = [nn.AdaptiveAvgPool2d((8, 8))]
        for _ in range(3):
            body += [nn.Conv2d(channels, self.width, 1, bias=False), nn.BatchNorm2d(self.width), nn.ReLU()]
            channels = self.width
        mlp = MLP(layers=3, width=4 * channels)
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), mlp.build((channels,), classes))
