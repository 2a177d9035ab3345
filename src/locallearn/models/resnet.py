"""Residual nets: one unit for the stem and one per residual block. Shortcuts never cross a unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.models.base import BlockModel, Size
from locallearn.models.layers import check_image, check_stages, conv_bn, initialise_residual, pooled_head
from locallearn.options import OneOf, within_ranges

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
SMALL = 64
"""Images up to this side keep their resolution in the stem."""


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Pad(nn.Module):
    """Shortcut A of He et al., 2016: every second position, and zeros for the new channels. No parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]  # [B, C, H/stride, W/stride]
        return F.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut B: a 1x1 convolution with BN."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


Shortcut: TypeAlias = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """relu(BN-conv-relu-BN-conv(x) + shortcut(x)), He et al., 2016. [B, inputs, H, W] -> [B, outputs, H/s, W/s]"""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else shortcut(inputs, outputs, stride)
        self.new_shortcut = shortcut

    def resized(self, inputs: int, stride: int) -> BasicBlock:
        """Another block of as many outputs."""
        return BasicBlock(inputs, self.conv2.out_channels, stride, self.new_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class PreactBlock(nn.Module):
    """conv(relu BN conv(a)) + shortcut with a = relu(BN(x)); x itself is the shortcut where the shape stays, else a 1x1
    convolution of a. He et al., 2016, "Identity Mappings in Deep Residual Networks"."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def resized(self, inputs: int, stride: int) -> PreactBlock:
        """Another block of as many outputs."""
        return PreactBlock(inputs, self.conv2.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return h + (x if self.shortcut is None else self.shortcut(a))


@within_ranges("model")
def resnet(image: Size, classes: int, *, depth: Annotated[int, OneOf(STAGES)] = 18) -> BlockModel:
    """ResNet-18 or -34 with 1x1 shortcuts. Up to 64x64 the stem is one 3x3 convolution (11.17 M parameters for
    CIFAR-10), above it ImageNet's 7x7 of stride 2 and max-pool."""
    channels, *sides = check_image(image, f"resnet{depth}")
    stem = nn.Sequential(*conv_bn(channels, 64)) if max(sides) <= SMALL else _large_stem(channels)
    block = lambda inputs, outputs, stride: BasicBlock(inputs, outputs, stride, projection)  # noqa: E731
    return _build(f"resnet{depth}", image, classes, stem, STAGES[depth], 64, block)


@within_ranges("model")
def preact_resnet(image: Size, classes: int, *, depth: Annotated[int, OneOf(STAGES)] = 18) -> BlockModel:
    """Pre-activation ResNet-18 or -34; the last BN-ReLU, which closes the trunk, is part of the head."""
    channels, *sides = check_image(image, f"preact_resnet{depth}")
    stem = conv3x3(channels, 64) if max(sides) <= SMALL else _large_stem(channels)
    closing = (nn.BatchNorm2d(512), nn.ReLU())
    return _build(f"preact_resnet{depth}", image, classes, stem, STAGES[depth], 64, PreactBlock, closing)


@within_ranges("model")
def cifar_resnet(image: Size, classes: int, *, depth: int = 20, shortcut: Literal["A", "B"] = "A") -> BlockModel:
    """The CIFAR nets of He et al., 2016: 6n+2 layers, widths 16-32-64 (depth 20: 0.27 M parameters, 110: 1.73 M).

    `shortcut` A pads new channels with zeros, as the paper does on CIFAR; B is a 1x1 convolution with BN.
    """
    check_stages(depth, 6, "CIFAR ResNet", "20, 32, 44, 56 or 110")
    shortcuts: dict[str, Shortcut] = {"A": Pad, "B": projection}
    channels, *_ = check_image(image, f"resnet{depth}")
    block = lambda inputs, outputs, stride: BasicBlock(inputs, outputs, stride, shortcuts[shortcut])  # noqa: E731
    stem = nn.Sequential(*conv_bn(channels, 16))
    return _build(f"resnet{depth}", image, classes, stem, 3 * (depth // 6,), 16, block)


def _large_stem(channels: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(channels, 64, kernel=7, stride=2), nn.MaxPool2d(3, 2, padding=1))  # [B, 64, H/4, W/4]


def _build(
    name: str, image: Size, classes: int, stem: nn.Module, stages: Sequence[int], width: int, block: Shortcut,
    closing: Sequence[nn.Module] = (),
) -> BlockModel:  # fmt: skip
    """Stem, stages and a pooled head, with He's initialisation of every convolution; the width doubles and the side
    halves from the second stage on."""
    units: dict[str, nn.Module] = {"stem": stem}
    inputs = width
    for stage, count in enumerate(stages):
        for i in range(count):
            outputs, stride = width * 2**stage, 2 if stage and i == 0 else 1
            units[f"layer{stage + 1}.{i}"] = block(inputs, outputs, stride)
            inputs = outputs
    head = nn.Sequential(*closing, *pooled_head(inputs, classes))
    model = BlockModel(units, head, image=image, classes=classes, name=name)
    model.initialise = initialise_residual
    model.initialise([model])
    return model
