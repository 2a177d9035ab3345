"""RevNet (Gomez et al. 2017): the published reverse pass, which takes the vector-Jacobian products of a unit's F and G
one after the other, written as one function of outputs and their gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from helpers.nets import tiny_batches
from helpers.parity import Parity, apart
from locallearn.models.coupling import Coupling, Reversible
from locallearn.models.revnet import residual


def reverse(f: nn.Module, g: nn.Module, y: list[Tensor], dy: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list]:
    """x, dx and the gradients of F and G from y1 = x1 + F(x2), y2 = x2 + G(y1): algorithm 1 of the paper."""
    z = y[0].detach().requires_grad_()
    g_of_z = g(z)
    x2 = (y[1] - g_of_z).detach().requires_grad_()
    f_of_x2 = f(x2)
    x1 = (z - f_of_x2).detach()
    from_g, *of_g = torch.autograd.grad(g_of_z, [z, *g.parameters()], dy[1])
    dz = dy[0] + from_g
    from_f, *of_f = torch.autograd.grad(f_of_x2, [x2, *f.parameters()], dz)
    return [x1, x2.detach()], [dz, dy[1] + from_f], [*of_f, *of_g]


def test_coupling(parity: Parity) -> None:
    torch.manual_seed(0)
    units = [Coupling(residual(4, 4), residual(4, 4)).double() for _ in range(3)]
    theirs = copy.deepcopy(units)
    x = tiny_batches(1)[0][0].repeat(1, 4, 1, 1).requires_grad_()
    y = Reversible(units)(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    halves, gradients = list(y.detach().chunk(2, dim=1)), list(dy.chunk(2, dim=1))
    for unit, other in zip(reversed(units), reversed(theirs), strict=True):
        halves, gradients, of_parameters = reverse(other.f, other.g, halves, gradients)
        own = [p.grad for p in (*unit.f.parameters(), *unit.g.parameters())]
        parity.equal("RevNet", "gradients of a coupling's weights", apart(own, of_parameters))
    parity.equal("RevNet", "inputs of three couplings, from their output", apart(x, torch.cat(halves, dim=1)))
    parity.equal("RevNet", "gradients of these inputs", apart(x.grad, torch.cat(gradients, dim=1)))
