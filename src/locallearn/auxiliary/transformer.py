"""A head for sequences that is built as a transformer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import nn

from locallearn.auxiliary.networks import Auxiliary, MeanOverSteps, Size
from locallearn.errors import UserError
from locallearn.models.transformer import TransformerBlock, check_heads, initialise_transformer


@dataclass(frozen=True)
class Transformer(Auxiliary):
    """`layers` pre-norm blocks as in `model=gpt`, then layer norm and a linear layer: at each step of a sequence, where
    every step reads those before it; where one answer is asked for, every step reads all, and the mean is taken.

    heads  of the attention; they divide the width of the sequence
    """

    layers: Annotated[int, Ge(1)] = 1
    heads: Annotated[int, Ge(1)] = 4

    def build(self, size: Size, classes: int) -> nn.Module:
        return self._built(size, classes, causal=False)

    def build_dense(self, size: Size, classes: int) -> nn.Module:
        return self._built(size, classes, causal=True)

    def _built(self, size: Size, classes: int, causal: bool) -> nn.Module:
        if len(size) != 2:
            raise UserError(
                f"auxiliary=transformer reads sequences, but a block emits {list(size)}: choose model=gpt, vit or rnn, "
                "or another auxiliary network, such as linear or mlp"
            )
        width = size[1]
        check_heads(width, self.heads, "auxiliary")
        body: list[nn.Module] = [TransformerBlock(width, self.heads, causal=causal) for _ in range(self.layers)]
        pool = [] if causal else [MeanOverSteps()]
        net = nn.Sequential(*body, nn.LayerNorm(width), *pool, nn.Linear(width, classes))
        initialise_transformer([net], self.layers)
        return net
