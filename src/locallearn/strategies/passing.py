"""Rectifiers that let every gradient pass: for rules without the derivative of the activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from locallearn.strategies.twin import twin


class _Passing(torch.autograd.Function):
    """max(x, 0), with the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class PassingReLU(nn.Module):
    """A ReLU that passes gradients as if it were not there."""

    def forward(self, x: Tensor) -> Tensor:
        return _Passing.apply(x)


def passing(layers: nn.Module, last: nn.Module | None = None) -> nn.Module:
    """A twin of a block's units whose rectifiers, or only its `last` one, pass every gradient."""

    def chosen(module: nn.Module) -> bool:
        return type(module) is nn.ReLU and last in (None, module)

    copied = twin(layers, chosen)
    for module in copied.modules():
        for name, child in module._modules.items():
            if child is not None and chosen(child):
                own = PassingReLU()
                vars(own).update({key: value for key, value in vars(child).items() if key.startswith("_forward_")})
                setattr(module, name, own)
    return copied
