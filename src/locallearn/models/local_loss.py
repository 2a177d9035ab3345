"""The nets of Noekland and Eidnes, 2019, "Training Neural Networks with Local Error Signals"."""

from __future__ import annotations

from math import prod
from typing import Annotated

from annotated_types import Ge, Interval
from torch import nn

from locallearn.models import layers
from locallearn.models.base import BlockModel, Size
from locallearn.options import OneOf, within_ranges

PLANS: dict[int, list[int | str]] = {
    8: [128, 256, layers.POOL, 256, 512, layers.POOL, 512, layers.POOL, 512, layers.POOL],
    11: [128, 128, 128, 256, layers.POOL, 256, 512, layers.POOL, 512, 512, layers.POOL, 512, layers.POOL],
}


@within_ranges("model")
def vgg_b(
    image: Size,
    classes: int,
    *,
    depth: Annotated[int, OneOf(PLANS)] = 8,
    width: Annotated[int, Ge(1)] = 1,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    activation: Annotated[str, OneOf(layers.ACTIVATIONS)] = "relu",
    zero_head: bool = False,
) -> BlockModel:
    """vgg8b (7.3 M parameters on MNIST, 8.9 M on CIFAR-10) or vgg11b (11.6 M): convolutions, one hidden layer of 1024,
    a linear head. `width` multiplies the channels (the paper's 2x and 3x). The paper uses dropout 0.1-0.3, and
    leaky_relu for its sim and predsim losses; with local losses the head's weight starts at zero there (`zero_head`).

    In the authors' code a local loss reads what an activation emits, and dropout and pool come on the way to the next
    layer: so they are the first thing in the next unit here (in the head, after the last one). Their convolutions also
    have biases, which the batch norm behind them undoes: 2,176 parameters more for vgg8b.
    """
    channels, *sides = layers.check_image(image, f"vgg{depth}b")
    units: dict[str, nn.Module] = {}
    between: list[nn.Module] = []  # the last convolution and what comes next
    for step in PLANS[depth]:
        if isinstance(step, int):
            outputs = step * width
            units[f"conv{len(units) + 1}"] = nn.Sequential(*between, *layers.conv_bn(channels, outputs, act=activation))
            between, channels = [nn.Dropout2d(dropout)] if dropout else [], outputs
        else:
            pool, sides = layers.max_pool(sides)
            between += pool
    hidden = layers.dense_unit(channels * prod(sides), 1024, act=activation, batch_norm=True)
    units["fc1"] = nn.Sequential(*between, *hidden)
    head = layers.linear_head(1024, classes, dropout, zero_head)
    return BlockModel(units, head, image=image, classes=classes, name=f"vgg{depth}b")
