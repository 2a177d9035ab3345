"""A vision transformer (Dosovitskiy et al. 2021) that answers from the mean over its patches."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.models.layers import MeanOverSteps, check_image
from locallearn.models.transformer import TransformerBlock, check_heads, initialise_transformer
from locallearn.options import within_ranges


class Patches(nn.Module):
    """Each patch of an image as a vector, plus that of its position, then dropout. [B, C, H, W] -> [B, T, width]"""

    def __init__(self, channels: int, patch: int, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Embedding(positions, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        return self.dropout(h + self.position(torch.arange(h.shape[1], device=h.device)))


@within_ranges("model")
def vit(
    image: Size,
    classes: int,
    *,
    patch: Annotated[int, Ge(1)] = 4,
    layers: Annotated[int, Ge(1)] = 6,
    heads: Annotated[int, Ge(1)] = 4,
    width: Annotated[int, Ge(1)] = 64,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
) -> BlockModel:
    """Square patches of an image with learned positions, `layers` pre-norm blocks without a mask, and a head of layer
    norm, the mean over the patches and a linear layer: [B, C, H, W] -> logits [B, classes].

    The paper answers from a token of its own instead of the mean; here the model's head and local ones read the same.
    Weights are initialised as in `gpt`; the convolution that makes the patches, by PyTorch's default.
    """
    channels, *sides = check_image(image, "vit")
    if any(side % patch for side in sides):
        raise UserError(
            f"model.patch={patch} does not divide the sides of the images, {sides[0]}x{sides[1]}: choose a divisor of "
            "both"
        )
    check_heads(width, heads)
    positions = (sides[0] // patch) * (sides[1] // patch)
    units: dict[str, nn.Module] = {"patch": Patches(channels, patch, positions, width, dropout)}
    units |= {f"block{i + 1}": TransformerBlock(width, heads, dropout, causal=False) for i in range(layers)}
    head = nn.Sequential(nn.LayerNorm(width), MeanOverSteps(), nn.Linear(width, classes))
    model = BlockModel(units, head, image=image, classes=classes, name="vit")
    model.initialise = partial(initialise_transformer, layers=layers)
    model.initialise([model])
    return model
