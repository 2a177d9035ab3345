"""YOLOv9's GELAN unit, routing and fusion, written as the authors' modules compute them, with the weights of ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.parity import Parity, apart
from locallearn.auxiliary import Linear
from locallearn.auxiliary.branch import Level, Routing
from locallearn.models.gelan import CSP, ELAN, RepConv, fuse


def scattered(module: nn.Module) -> nn.Module:
    """In float64, every norm with a scale, a shift and statistics of its own."""
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.weight, m.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (m.bias, m.running_mean):
                nn.init.normal_(tensor)
    return module.double().eval()


def convolved(part: nn.Sequential, x: Tensor, silu: bool = True) -> Tensor:
    """Conv of the authors: convolution, BN (here with its running statistics), SiLU unless it is switched off."""
    conv, norm = part[0], part[1]
    x = F.conv2d(x, conv.weight, padding=conv.weight.shape[2] // 2)
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    x = x * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None] + shift[:, None, None]
    return x * x.sigmoid() if silu else x


def rep_conv(m: RepConv, x: Tensor) -> Tensor:
    x = convolved(m.wide, x, silu=False) + convolved(m.point, x, silu=False)
    return x * x.sigmoid()


def rep_csp(m: CSP, x: Tensor) -> Tensor:
    """RepNCSP: a 1x1 convolution and bottlenecks (RepConv, 3x3 convolution, shortcut) beside a 1x1 one, then joined."""
    deep = convolved(m.deep[0], x)
    for bottleneck in m.deep[1:]:
        first, second = bottleneck.body
        deep = deep + convolved(second, rep_conv(first, deep))
    return convolved(m.join, torch.cat([deep, convolved(m.short, x)], 1))


def elan(m: ELAN, x: Tensor) -> Tensor:
    """RepNCSPELAN4: both halves of a 1x1 convolution, then twice a RepNCSP and a 3x3 convolution of what came last."""
    y = list(convolved(m.split, x).chunk(2, 1))
    for block, conv in m.branches:
        y.append(convolved(conv, rep_csp(block, y[-1])))
    return convolved(m.join, torch.cat(y, 1))


@pytest.mark.parametrize("csp_depth", [1, 3])
def test_gelan_unit(csp_depth: int, parity: Parity) -> None:
    unit = scattered(ELAN(16, "csp", 2, csp_depth))
    x = torch.randn(3, 16, 6, 6, dtype=torch.float64)
    parity.equal("YOLOv9", "RepNCSPELAN4 with RepConv", apart(unit(x), elan(unit, x)))
    parity.equal("YOLOv9", "the same, re-parameterised for inference", apart(fuse(unit)(x), elan(unit, x)))


def test_parameters_of_a_gelan_unit(parity: Parity) -> None:
    """RepNCSPELAN4(512, 512, 512, 256, 1): convolutions without bias, two numbers of BN for each output."""

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    bottleneck = conv(128, 128, 3) + conv(128, 128, 1) + conv(128, 128, 3)
    csp = 2 * conv(256, 128, 1) + bottleneck + conv(256, 256, 1)
    theirs = conv(512, 512, 1) + 2 * (csp + conv(256, 256, 3)) + conv(1024, 512, 1)
    assert round(theirs / 1e6, 2) == 2.86
    ours = sum(p.numel() for p in ELAN(512, "csp", 2, 1).parameters())
    parity.equal("YOLOv9", "parameters of a unit of 512 channels", abs(ours - theirs))


def test_routing_is_cblinear_of_one_chunk(parity: Parity) -> None:
    routing = Routing((5, 4, 4), 6).double()
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    theirs = torch.einsum("oc,bchw->bohw", routing.conv.weight[:, :, 0, 0], x) + routing.conv.bias[:, None, None]
    parity.equal("YOLOv9", "CBLinear of one chunk", apart(routing(x), theirs))


@pytest.mark.parametrize("side", [3, 4, 5, 8])
def test_fusion_takes_the_nearest_position(side: int, parity: Parity) -> None:
    """CBFuse: position i of n reads position floor(i * m / n) of a map of side m, for multiples and for others."""
    level = Level((4, 8, 8), 4, 1, lambda size: Linear().build(size, 3)).double()
    level.couplings = nn.Sequential()
    a, route = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 4, side, side, dtype=torch.float64)
    at = torch.arange(8) * side // 8
    parity.equal("YOLOv9", "CBFuse, sides 3 to 8", apart(level(a, [route]), a + route[:, :, at][:, :, :, at]))
