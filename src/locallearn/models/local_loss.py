"""The nets of Noekland and Eidnes, 2019, "Training Neural Networks with Local Error Signals"."""

from __future__ import annotations

from math import prod

from torch import nn

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.models.layers import POOL, check_depth, check_dropout, check_image, conv_units, dense_unit

PLANS: dict[int, list[int | str]] = {
    8: [128, 256, POOL, 256, 512, POOL, 512, POOL, 512, POOL],
    11: [128, 128, 128, 256, POOL, 256, 512, POOL, 512, 512, POOL, 512, POOL],
}


def vgg_b(
    image: Size,
    classes: int,
    *,
    depth: int = 8,
    width: int = 1,
    dropout: float = 0.0,
    activation: str = "relu",
) -> BlockModel:
    """vgg8b (7.3 M parameters on MNIST, 8.9 M on CIFAR-10) or vgg11b (11.6 M): convolutions, one hidden layer of 1024,
    a linear head. `width` multiplies the channels (the paper's 2x and 3x). The paper uses dropout 0.1-0.3, and
    leaky_relu for its sim and predsim losses.

    A pool belongs to the unit before it; in the authors' code it stands between two, so a local loss sees the map
    before the pool there and after it here.
    """
    check_depth(depth, list(PLANS), "vgg_b")
    check_image(image, f"vgg{depth}b")
    check_dropout(dropout)
    if width < 1:
        raise UserError(f"width={width} but it multiplies the channels of a vgg{depth}b; choose at least 1")
    plan = [step * width if isinstance(step, int) else step for step in PLANS[depth]]
    units, emits = conv_units(image, plan, act=activation, dropout=dropout)
    units["fc1"] = dense_unit(prod(emits), 1024, act=activation, batch_norm=True, dropout=dropout)
    head = nn.Linear(1024, classes)
    return BlockModel(units.values(), head, image=image, classes=classes, name=f"vgg{depth}b", names=list(units))
