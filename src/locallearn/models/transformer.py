"""What transformers are made of: attention, and the pre-norm block around it (Radford et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.errors import UserError

STD = 0.02


class Attention(nn.Module):
    """Self-attention with several heads; if it is causal, each position reads itself and those before it.
    [B, T, D] -> [B, T, D]"""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.inputs = nn.Linear(width, 3 * width, bias=bias)
        self.outputs = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.inputs(x).chunk(3, dim=2))
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=self.causal)  # [B, heads, T, D / heads]
        return self.outputs(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the norms in front (pre-norm). [B, T, D] -> [B, T, D]"""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, bias: bool = True, *, causal: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, dropout, bias, causal)
        self.expand, self.reduce = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.reduce(F.gelu(self.expand(self.norm2(x)))))


def check_heads(width: int, heads: int, group: str = "model") -> None:
    """Raise UserError for a width that the heads cannot share."""
    if width % heads:
        name = "model.width" if group == "model" else "the width of the sequence"
        raise UserError(f"{name}={width} is not divisible by {group}.heads={heads}: choose a multiple")


def initialise_transformer(modules: Iterable[nn.Module], layers: int) -> None:
    """Draw weights as GPT-2 does: N(0, 0.02), those of the two projections back into the stream of each of `layers`
    blocks N(0, 0.02 / sqrt(2 layers)), biases 0. Weights of convolutions stay as PyTorch draws them."""
    for module in modules:
        for name, p in module.named_parameters():
            if p.dim() == 2:
                back = name.endswith(("attention.outputs.weight", "reduce.weight"))
                nn.init.normal_(p, std=STD / math.sqrt(2 * layers) if back else STD)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
