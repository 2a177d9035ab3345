"""GELAN, YOLOv9's aggregation of computational blocks of any kind, and CSPNet, from which it comes, as classifiers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from locallearn.models.base import BlockModel, Size
from locallearn.models.layers import check_image, pooled_head
from locallearn.models.resnet import SMALL
from locallearn.options import OneOf, within_ranges

WIDTHS = (64, 128, 192, 256)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, BN, SiLU. [B, inputs, H, W] -> [B, outputs, H/stride, W/stride]"""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class Residual(nn.Module):
    """x + body(x)"""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class RepConv(nn.Module):
    """A re-parameterised convolution (Ding et al. 2021, "RepVGG", without its identity): SiLU of a 3x3 convolution and
    a 1x1 one, each with BN, added. Both learn; `fused` is the one convolution that they are worth once they do not.
    [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.point = (nn.Sequential(*conv(channels, channels, kernel)[:2]) for kernel in (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.wide(x) + self.point(x))

    @torch.no_grad()
    def fused(self) -> nn.Sequential:
        """A convolution with bias, and SiLU: the same outputs as this module's in eval mode."""
        parts = [fuse_conv_bn_eval(*branch) for branch in (self.wide, self.point)]
        one = copy.deepcopy(parts[0])
        one.weight += F.pad(parts[1].weight, (1, 1, 1, 1))
        one.bias += parts[1].bias
        return nn.Sequential(one, nn.SiLU())


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a trained model for inference, in eval mode, each of its re-parameterised convolutions as one."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, RepConv):
                setattr(parent, name, child.fused().eval())
    return model


class CSP(nn.Module):
    """Cross-stage partial: one half of the channels passes `depth` residual blocks, the other none, and a 1x1
    convolution joins them (Wang et al. 2020, "CSPNet"). With `rep` the first convolution of a residual block is
    re-parameterised: YOLOv9's RepNCSP. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, channels: int, depth: int, *, rep: bool = False) -> None:
        super().__init__()
        half = channels // 2
        blocks = (Residual(RepConv(half) if rep else conv(half, half, 3), conv(half, half, 3)) for _ in range(depth))
        self.deep = nn.Sequential(conv(channels, half), *blocks)
        self.short = conv(channels, half)
        self.join = conv(2 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.deep(x), self.short(x)], dim=1))


BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {  # (channels, depth) -> [B, C, H, W] -> [B, C, H, W]
    "conv": lambda c, depth: nn.Sequential(*(conv(c, c, 3) for _ in range(depth))),
    "res": lambda c, depth: nn.Sequential(*(Residual(conv(c, c, 3), conv(c, c, 3)) for _ in range(depth))),
    "dark": lambda c, depth: nn.Sequential(*(Residual(conv(c, c // 2), conv(c // 2, c, 3)) for _ in range(depth))),
    "csp": lambda c, depth: CSP(c, depth, rep=True),
}


class ELAN(nn.Module):
    """Generalised ELAN: a 1x1 convolution, split in halves; the second half passes `elan_depth` branches one after
    another (computational blocks and a 3x3 convolution each, as wide as the half); both halves and what every branch
    gives are joined by a 1x1 convolution. With blocks csp and two branches it is YOLOv9's RepNCSPELAN4(C, C, C, C / 2).
    [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, channels: int, block: str, elan_depth: int, csp_depth: int) -> None:
        super().__init__()
        half = channels // 2
        self.split = conv(channels, 2 * half)
        self.branches = nn.ModuleList(
            nn.Sequential(BLOCKS[block](half, csp_depth), conv(half, half, 3)) for _ in range(elan_depth)
        )
        self.join = conv((2 + elan_depth) * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, dim=1))
        for branch in self.branches:
            parts.append(branch(parts[-1]))
        return self.join(torch.cat(parts, dim=1))


@within_ranges("model")
def gelan(
    image: Size,
    classes: int,
    *,
    block: Annotated[str, OneOf(BLOCKS)] = "csp",
    elan_depth: Annotated[int, Ge(1)] = 2,
    csp_depth: Annotated[int, Ge(1)] = 1,
    width: Annotated[float, Gt(0)] = 1.0,
) -> BlockModel:
    """The trunk of YOLOv9's GELAN (Wang, Yeh & Liao, 2024), in the widths of gelan-s, with a linear head: four stages
    of one ELAN unit, with strided 3x3 convolutions between. Above 64x64 the stem halves the resolution twice.

    block       the computational block (the paper's table 2): conv, res, dark or csp
    elan_depth  branches of a unit; csp_depth: blocks in a branch (table 3)
    width       multiplies the channels 64-128-192-256

    Blocks csp train with re-parameterised convolutions, as in the authors' code; `fuse` makes one of each for
    inference. Theirs differs in what is around the units: gelan-s has its units in stages two to four only and averages
    before it strides (AConv, ADown); BN has eps 1e-3 and momentum 0.03, here PyTorch's 1e-5 and 0.1.
    """
    return _trunk("gelan", image, classes, width, lambda channels: ELAN(channels, block, elan_depth, csp_depth))


@within_ranges("model")
def cspnet(
    image: Size, classes: int, *, depth: Annotated[int, Ge(1)] = 2, width: Annotated[float, Gt(0)] = 1.0
) -> BlockModel:
    """CSPNet (Wang et al., 2020, "CSPNet: A New Backbone that can Enhance Learning Capability of CNN") on the trunk of
    `gelan`: four stages of one partial unit, in which half of the channels passes `depth` residual blocks.

    width  multiplies the channels 64-128-192-256
    """
    return _trunk("cspnet", image, classes, width, lambda channels: CSP(channels, depth))


def _trunk(name: str, image: Size, classes: int, width: float, unit: Callable[[int], nn.Module]) -> BlockModel:
    """Stem, four stages of one `unit` (channels -> module) with strided convolutions between, and a pooled head."""
    channels, *sides = check_image(image, name)
    widths = [max(8, round(width * w / 8) * 8) for w in WIDTHS]
    large = max(sides) > SMALL
    stem = [conv(channels, widths[0] // 2, 3, 2), conv(widths[0] // 2, widths[0], 3, 2)]
    units: dict[str, nn.Module] = {"stem": nn.Sequential(*stem) if large else conv(channels, widths[0], 3)}
    kind = {"gelan": "elan", "cspnet": "csp"}[name]
    for stage, outputs in enumerate(widths):
        if stage:
            units[f"down{stage + 1}"] = conv(widths[stage - 1], outputs, 3, 2)
        units[f"{kind}{stage + 1}"] = unit(outputs)
    head = pooled_head(widths[-1], classes)
    return BlockModel(units, head, image=image, classes=classes, name=name)
