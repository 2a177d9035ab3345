"""A transformer for sequences of tokens (Radford et al. 2019, as nanoGPT builds it)."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.models.transformer import TransformerBlock, check_heads, initialise_transformer
from locallearn.options import within_ranges
from locallearn.task import POSITION


class Embedding(nn.Module):
    """The vector of each token and that of its position, summed, then dropout. int64 [B, T] -> [B, T, width]"""

    def __init__(self, vocabulary: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.dropout(self.token(tokens) + self.position(places))


@within_ranges("model")
def gpt(
    image: Size,
    classes: int,
    vocabulary: int | None = None,
    *,
    layers: Annotated[int, Ge(1)] = 4,
    heads: Annotated[int, Ge(1)] = 4,
    width: Annotated[int, Ge(1)] = 128,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    bias: bool = True,
    tie: bool = False,
) -> BlockModel:
    """Token and position embedding, `layers` pre-norm blocks, and a head of layer norm and a linear layer to the
    vocabulary: tokens int64 [B, T] -> logits [B, T, vocabulary], each from its own token and those before it.

    Weights start from N(0, 0.02), those of the two projections back into the stream of each block from
    N(0, 0.02 / sqrt(2 layers)), biases at 0. Shorter sequences than T are allowed.

    tie  the head answers by the token embedding, as in GPT-2 and nanoGPT: one weight at both ends, so `blocks=1`
    """
    if vocabulary is None or len(image) != 1:
        raise UserError("gpt reads tokens, but the data have none; use data=shakespeare or data=text, or another model")
    check_heads(width, heads)
    embed = Embedding(vocabulary, image[0], width, dropout)
    units: dict[str, nn.Module] = {"embed": embed}
    units |= {f"block{i + 1}": TransformerBlock(width, heads, dropout, bias) for i in range(layers)}
    head = nn.Sequential(nn.LayerNorm(width, bias=bias), nn.Linear(width, classes, bias=False))
    if tie:
        head[1].weight = embed.token.weight
    model = BlockModel(units, head, image=image, classes=classes, name="gpt")
    model.vocabulary, model.form = vocabulary, POSITION
    model.initialise = partial(initialise_transformer, layers=layers)
    model.initialise([model])
    return model
