"""Additive coupling: a unit whose input can be computed from its output (Dinh et al. 2015, "NICE"; Gomez et al. 2017,
"The Reversible Residual Network"). Used by reversible models and by the auxiliary branch of PGI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from locallearn.analysis.quiet import Rerun
from locallearn.uncompiled import called


class Coupling(nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1), where x1 and x2 are the halves of the channels. [B, C, ...] -> [B, C, ...]

    f, g  any modules [B, C/2, ...] -> [B, C/2, ...]; `inverse` is exact up to rounding in eval mode, and in training
          mode where they do not draw random numbers
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = _wide(x).chunk(2, dim=1)
        y1 = x1 + self.f(x2)
        return torch.cat([y1, x2 + self.g(y1)], dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """The input that `forward` maps to y."""
        y1, y2 = y.chunk(2, dim=1)
        x2 = y2 - self.g(y1)
        return torch.cat([y1 - self.f(x2), x2], dim=1)

    def pull_back(self, y: Tensor, grad: Tensor, grads: dict[nn.Parameter, Tensor]) -> tuple[Tensor, Tensor]:
        """From the output and its gradient: the input and its gradient; those of the parameters are added to `grads`.
        One evaluation of f and g serves the inverse and the gradients; only one of their graphs is alive at a time."""
        (y1, y2), (grad1, grad2) = y.chunk(2, dim=1), grad.chunk(2, dim=1)
        g, through_g = _vjp(self.g, y1, grad2, grads)
        grad1 = grad1 + through_g
        x2 = y2 - g
        f, through_f = _vjp(self.f, x2, grad1, grads)
        return torch.cat([y1 - f, x2], dim=1), torch.cat([grad1, grad2 + through_f], dim=1)


class Reversible(nn.Module):
    """A run of couplings that keeps its last output and nothing else for the backward pass (Gomez et al. 2017).

    The backward pass computes each unit's input from its output and differentiates that unit alone: memory does not
    grow with the number of units, at the price of one more evaluation. The units are shared, not copied; values and
    gradients are those of the units one after another, up to rounding. Buffers move in the forward pass only.
    The units must not draw random numbers. It supports neither second derivatives nor forward mode.
    """

    reversible = True

    def __init__(self, units: Iterable[Coupling]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Where the output `y` is known, nothing is computed before the backward pass, which works out the input with
        the weights of that moment and, where `x` is a leaf, writes it there for a caller who does not know it."""
        if not torch.is_grad_enabled():
            return _through(self.units, x) if y is None else y
        parameters = (p for p in self.units.parameters() if p.requires_grad)
        return called(_Reverse.apply, x, y, self.units, *parameters)  # which calls autograd: it cannot be traced


class _Reverse(torch.autograd.Function):
    """The parameters are inputs, so that their gradients take the ordinary way; saving them lets autograd notice a
    parameter that was changed before the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, known: Tensor | None, units: nn.ModuleList, *parameters: nn.Parameter) -> Tensor:
        ctx.rerun = Rerun(units)  # with the buffers that this forward finds
        ctx.unknown = x.detach() if known is not None and x.is_leaf else None
        y = _through(units, x) if known is None else known.view_as(known)
        ctx.save_for_backward(y, *parameters)
        ctx.units, ctx.parameters = units, parameters
        ctx.dtype, ctx.device = x.dtype, x.device.type
        ctx.autocast = torch.is_autocast_enabled(ctx.device), torch.get_autocast_dtype(ctx.device)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y = ctx.saved_tensors[0]
        enabled, dtype = ctx.autocast
        grads: dict[nn.Parameter, Tensor] = {}
        with torch.autocast(ctx.device, dtype, enabled), ctx.rerun:
            for unit in reversed(ctx.units):
                y, grad = unit.pull_back(y, grad, grads)
        if ctx.unknown is not None:
            ctx.unknown.copy_(y)
        return grad.to(ctx.dtype) if ctx.needs_input_grad[0] else None, None, None, *map(grads.get, ctx.parameters)


def _through(units: nn.ModuleList, x: Tensor) -> Tensor:
    for unit in units:
        x = unit(x)
    return x


def _wide(x: Tensor) -> Tensor:
    """At least float32: under autocast the inverse would not bring back what a sum in bfloat16 rounds away."""
    return x if x.dtype.itemsize >= 4 else x.float()


def _vjp(module: nn.Module, x: Tensor, grad: Tensor, grads: dict[nn.Parameter, Tensor]) -> tuple[Tensor, Tensor]:
    """The module's value at x, and `grad` pulled back to x; pulled back to the parameters it is added to `grads`."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        out = module(x)
    through, *own = torch.autograd.grad(out, [x, *parameters], grad.to(out.dtype), allow_unused=True)
    for p, g in zip(parameters, own, strict=True):
        if g is not None:
            grads[p] = grads[p] + g if p in grads else g
    return out.detach(), torch.zeros_like(x) if through is None else through
