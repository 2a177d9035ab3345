"""Plain nets, without shortcuts: mlp, lenet, basic_cnn, allcnn, plainnet."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated

from annotated_types import Ge, Gt, Interval, MinLen
from torch import nn

from locallearn.models import layers
from locallearn.models.base import BlockModel, Size
from locallearn.options import OneOf, within_ranges


@within_ranges("model")
def mlp(
    image: Size,
    classes: int,
    *,
    width: Annotated[int, Ge(1)] | Annotated[list[Annotated[int, Ge(1)]], MinLen(1)] = 1024,
    depth: Annotated[int, Ge(1)] = 3,
    batch_norm: bool = True,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    activation: Annotated[str, OneOf(layers.ACTIVATIONS)] = "relu",
    zero_head: bool = False,
    bias: bool = True,
    init: Annotated[str, OneOf(tuple(layers.INITS))] | None = None,
) -> BlockModel:
    """`depth` hidden layers linear-BN-activation-dropout for inputs of any shape, and a linear head. A list of widths,
    one per hidden layer, says the depth as well.

    The default is the mlp of Noekland and Eidnes, 2019, "Training Neural Networks with Local Error Signals". As there,
    a local loss reads a layer before its dropout, which therefore is the first thing in the next unit or in the head;
    and with local losses the head's weight starts at zero there (`zero_head`). Many papers on target propagation and
    its kin leave out every bias (`bias=false`), or initialise the weights in a way of their own (`init`). With
    activation=identity, bias=false and batch_norm=false it is a product of matrices, whose way of learning is known
    (`analysis.deep_linear`).
    """
    widths = [width] * depth if isinstance(width, int) else width
    sizes = [prod(image), *widths]
    units = {
        f"fc{i + 1}": layers.dense_unit(
            n, m, act=activation, batch_norm=batch_norm, dropout=dropout if i else 0.0, bias=bias
        )
        for i, (n, m) in enumerate(pairwise(sizes))
    }
    head = layers.linear_head(widths[-1], classes, dropout, zero_head, bias)
    model = BlockModel(units, head, image=image, classes=classes, name="mlp")
    return begun(model, init, zero_head)


def begun(model: BlockModel, init: str | None, zero_head: bool = False) -> BlockModel:
    """The model with its weights drawn as `init` says, but for a head that starts at zero; None leaves all as it is."""
    if init is not None:
        model.initialise = layers.initialise_as(init)
        model.initialise([*model.units, *([] if zero_head else [model.head])])
    return model


@within_ranges("model")
def lenet(
    image: Size,
    classes: int,
    *,
    activation: Annotated[str, OneOf(layers.ACTIVATIONS)] = "relu",
    init: Annotated[str, OneOf(tuple(layers.INITS))] | None = None,
) -> BlockModel:
    """LeNet-5 (LeCun et al., 1998) as it is used today: max-pooling, ReLU, a linear head. 61,706 parameters on MNIST.

    The first convolution pads by 2 below 32x32, so that 28x28 and 32x32 both arrive at 16 maps of 5x5. The hidden
    layers are initialised as in He et al., 2015, but with tanh by PyTorch's default; `init` overrides both.
    """
    channels, height, width = layers.check_image(image, "lenet", smallest=12)
    padding = 0 if min(height, width) >= 32 else 2
    sides = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width)]
    units = {
        "conv1": _lenet_conv(channels, 6, padding, activation),  # [B, 6, 14, 14]
        "conv2": _lenet_conv(6, 16, 0, activation),  # [B, 16, 5, 5]
        "fc1": layers.dense_unit(16 * prod(sides), 120, act=activation),
        "fc2": layers.dense_unit(120, 84, act=activation),
    }
    if activation != "tanh":
        layers.initialise_rectified(units.values())
    head = nn.Linear(84, classes)
    model = BlockModel(units, head, image=image, classes=classes, name="lenet")
    model.initialise = layers.initialise_rectified if activation != "tanh" else None
    return begun(model, init)


def _lenet_conv(inputs: int, outputs: int, padding: int, act: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5, padding=padding), layers.activation(act), nn.MaxPool2d(2))


@within_ranges("model")
def basic_cnn(
    image: Size, classes: int, *, width: Annotated[int, Ge(1)] = 128, hidden: Annotated[int, Ge(0)] = 256
) -> BlockModel:
    """Three times (5x5 convolution, BN, ReLU, 2x2 max-pool), one hidden layer, a linear head.

    The net on which Belilovsky et al., 2020, compare DNI and DGL, in the form of its replication by AlonNT
    (github.com/AlonNT/Thesis): the original pools by 3 and has no hidden layer. `hidden=0` leaves that out.
    """
    layers.check_image(image, "basic_cnn")
    units, emits = layers.conv_units(image, [width, layers.POOL] * 3, kernel=5)
    if hidden:
        units["fc1"] = layers.dense_unit(prod(emits), hidden)
    head = layers.flat_head(hidden or prod(emits), classes)
    return BlockModel(units, head, image=image, classes=classes, name="basic_cnn")


@within_ranges("model")
def allcnn(
    image: Size,
    classes: int,
    *,
    input_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
    width: Annotated[float, Gt(0)] = 1.0,
    batch_norm: bool = False,
) -> BlockModel:
    """All-CNN-C (Springenberg et al., 2015, "Striving for Simplicity"): strided convolutions instead of pools.

    1.37 M parameters; `width` times as many channels everywhere, and `batch_norm` behind every convolution of a unit
    (Achille, Rovere & Soatto, 2019, have both). The head is the 1x1 convolution to the classes, rectified, and the
    average over positions. Its biases start at one: a class whose scores are all below the rectifier gets no gradient,
    and from zero Adam takes every class there in its first steps, for good. The hidden layers are initialised as in He
    et al., 2015.
    """
    channels, *sides = layers.check_image(image, "allcnn", smallest=3)
    last = 0 if min(sides) >= 9 else 1  # the paper's unpadded 3x3 needs a map of 3x3; pad below that
    wide = [(192, 3, 1, 1), (192, 3, 1, 1), (192, 3, 2, 1), (192, 3, 1, last), (192, 1, 1, 0)]
    units: dict[str, nn.Module] = {}
    for outputs, kernel, stride, padding in [(96, 3, 1, 1), (96, 3, 1, 1), (96, 3, 2, 1), *wide]:
        outputs = max(1, round(width * outputs))
        before = [] if units else [nn.Dropout(input_dropout)]
        norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
        behind = [nn.Dropout(dropout)] if stride == 2 else []
        conv = nn.Conv2d(channels, outputs, kernel, stride, padding, bias=not batch_norm)
        units[f"conv{len(units) + 1}"] = nn.Sequential(*before, conv, *norm, nn.ReLU(), *behind)
        channels = outputs
    layers.initialise_rectified(units.values())
    scores = nn.Conv2d(channels, classes, 1)
    nn.init.ones_(scores.bias)  # type: ignore[arg-type]
    head = nn.Sequential(scores, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = BlockModel(units, head, image=image, classes=classes, name="allcnn")
    model.initialise = layers.initialise_rectified
    return model


def plainnet(image: Size, classes: int, *, depth: int = 20) -> BlockModel:
    """The plain nets to which He et al., 2016, compare the CIFAR ResNets: the same 6n+2 layers and parameters (depth
    20: 0.27 M), widths 16-32-64, without the shortcuts. One unit per convolution, conv-BN-ReLU."""
    layers.check_stages(depth, 6, "plain net", "20, 32, 44, 56 or 110")
    channels, *_ = layers.check_image(image, "plainnet")
    widths = [16, *(w for w in (16, 32, 64) for _ in range(depth // 3))]
    units: dict[str, nn.Module] = {}
    for before, width in pairwise((channels, *widths)):
        stride = 2 if units and width > before else 1
        units[f"conv{len(units) + 1}"] = unit = nn.Sequential(*layers.conv_bn(before, width, stride=stride))
        layers.initialise_residual([unit])
    model = BlockModel(units, layers.pooled_head(64, classes), image=image, classes=classes, name=f"plain{depth}")
    model.initialise = layers.initialise_residual
    return model
