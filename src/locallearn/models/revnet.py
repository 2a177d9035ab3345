"""Reversible residual nets: what a block must remember for its backward pass does not grow with its depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.models.base import BlockModel, Size
from locallearn.models.coupling import Coupling, Reversible
from locallearn.models.layers import check_image, check_stages, conv_bn, initialise_residual, pooled_head
from locallearn.models.resnet import conv3x3


class RevNet(BlockModel):
    """A model some of whose units are couplings: those that follow each other in a block run as one `Reversible`."""

    def block(self, units: range) -> nn.Module:
        joined: list[nn.Module] = []
        for unit in (self.units[i] for i in units):
            if not isinstance(unit, Coupling):
                joined.append(unit)
            elif joined and isinstance(joined[-1], Reversible):
                joined[-1].units.append(unit)
            else:
                joined.append(Reversible([unit]))
        return nn.Sequential(*joined)

    def reversible(self, units: range) -> bool:
        return any(isinstance(self.units[i], Coupling) for i in units)


class Downsample(nn.Module):
    """A coupling that halves the side and widens, so it cannot be inverted: y1 = s(x1) + f(x2), y2 = s(x2) + g(y1) with
    s a 2x2 average and zeros for the new channels. [B, inputs, H, W] -> [B, outputs, H/2, W/2]"""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.new = (outputs - inputs) // 2  # of one half
        self.f, self.g = residual(inputs // 2, outputs // 2, stride=2), residual(outputs // 2, outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        y1 = self.shortcut(x1) + self.f(x2)
        return torch.cat([y1, self.shortcut(x2) + self.g(y1)], dim=1)

    def shortcut(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


def residual(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """conv(relu BN conv(relu BN(x)))"""
    first = [nn.BatchNorm2d(inputs), nn.ReLU(), conv3x3(inputs, outputs, stride)]
    return nn.Sequential(*first, nn.BatchNorm2d(outputs), nn.ReLU(), conv3x3(outputs, outputs))


def revnet(image: Size, classes: int, *, depth: int = 38) -> BlockModel:
    """The CIFAR RevNets of Gomez, Ren, Urtasun & Grosse, 2017: 12n+2 layers in three stages of n units, widths
    32-64-112 (depth 38: 0.46 M parameters) or 32-64-128 (the deeper ones; 110: 1.73 M).

    The first unit of the second and third stage is not reversible. The closing BN-ReLU is part of the head.
    """
    check_stages(depth, 12, "RevNet", "38, 110, 14, 26 or 50")
    name = f"revnet{depth}"
    channels, *_ = check_image(image, name)
    widths = (32, 64, 112 if depth <= 38 else 128)
    units: dict[str, nn.Module] = {"stem": nn.Sequential(*conv_bn(channels, 32))}
    for stage, width in enumerate(widths):
        for i in range(depth // 12):
            if stage and i == 0:
                unit: nn.Module = Downsample(widths[stage - 1], width)
            else:
                unit = Coupling(residual(width // 2, width // 2), residual(width // 2, width // 2))
            units[f"stage{stage + 1}.{i}"] = unit
    head = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(), *pooled_head(widths[-1], classes))
    model = RevNet(units, head, image=image, classes=classes, name=name)
    model.initialise = initialise_residual
    model.initialise([model])
    return model
