"""Additive coupling: a unit whose input can be computed from its output (Dinh et al. 2015, "NICE"; Gomez et al. 2017,
"The Reversible Residual Network"). Used by reversible models and by the auxiliary branch of PGI."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Coupling(nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1), where x1 and x2 are the halves of the channels. [B, C, ...] -> [B, C, ...]

    f, g  any modules [B, C/2, ...] -> [B, C/2, ...]; `inverse` is exact up to rounding in eval mode, and in training
          mode where they do not draw random numbers
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        y1 = x1 + self.f(x2)
        return torch.cat([y1, x2 + self.g(y1)], dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """The input that `forward` maps to y."""
        y1, y2 = y.chunk(2, dim=1)
        x2 = y2 - self.g(y1)
        return torch.cat([y1 - self.f(x2), x2], dim=1)
