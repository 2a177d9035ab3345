"""A transformer for sequences of tokens (Radford et al. 2019, as nanoGPT builds it)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.options import within_ranges
from locallearn.task import POSITION

STD = 0.02


class Embedding(nn.Module):
    """The vector of each token and that of its position, summed, then dropout. int64 [B, T] -> [B, T, width]"""

    def __init__(self, vocabulary: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.dropout(self.token(tokens) + self.position(places))


class Attention(nn.Module):
    """Causal self-attention with several heads. [B, T, D] -> [B, T, D]"""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inputs = nn.Linear(width, 3 * width, bias=bias)
        self.outputs = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.inputs(x).chunk(3, dim=2))
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)  # [B, heads, T, D / heads]
        return self.outputs(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the norms in front (pre-norm). [B, T, D] -> [B, T, D]"""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, dropout, bias)
        self.expand, self.reduce = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.reduce(F.gelu(self.expand(self.norm2(x)))))


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
) -> BlockModel:
    """Token and position embedding, `layers` pre-norm blocks, and a head of layer norm and a linear layer to the
    vocabulary: tokens int64 [B, T] -> logits [B, T, vocabulary], each from its own token and those before it.

    Weights start from N(0, 0.02), those of the two projections back into the stream of each block from
    N(0, 0.02 / sqrt(2 layers)), biases at 0. Shorter sequences than T are allowed.
    """
    if vocabulary is None or len(image) != 1:
        raise UserError("gpt reads tokens, and the data have none; use data=shakespeare or data=text, or another model")
    if width % heads:
        raise UserError(f"model.width={width} is not divisible by model.heads={heads}: choose a multiple")
    units: dict[str, nn.Module] = {"embed": Embedding(vocabulary, image[0], width, dropout)}
    units |= {f"block{i + 1}": TransformerBlock(width, heads, dropout, bias) for i in range(layers)}
    head = nn.Sequential(nn.LayerNorm(width, bias=bias), nn.Linear(width, classes, bias=False))
    model = BlockModel(units, head, image=image, classes=classes, name="gpt")
    model.vocabulary, model.form = vocabulary, POSITION
    model.begin = partial(begin_transformer, layers=layers)
    model.begin([model])
    return model


def begin_transformer(modules: Iterable[nn.Module], layers: int) -> None:
    """Draw weights as GPT-2's begin; see `gpt`."""
    for module in modules:
        for name, p in module.named_parameters():
            if p.dim() > 1:
                back = name.endswith(("attention.outputs.weight", "reduce.weight"))
                nn.init.normal_(p, std=STD / math.sqrt(2 * layers) if back else STD)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
