"""The few layers from which the zoo is built. Nothing works in place: a unit may begin with any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from locallearn.errors import UserError
from locallearn.models.base import Size

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "hard_tanh": nn.Hardtanh,
    "identity": nn.Identity,
}
POOL = "P"
INITS: dict[str, Callable[[Tensor], Any]] = {
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
    "he": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "fan_out": lambda weight: nn.init.normal_(weight, std=weight.shape[0] ** -0.5),
}
"""How papers initialise the weights of linear layers and convolutions; biases start at zero."""


class MeanOverSteps(nn.Module):
    """Sequences [B, T, D] -> [B, D]. Flattening them instead would give a head T times as wide."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(dim=1)


def activation(name: str) -> nn.Module:
    return ACTIVATIONS[name]()


def check_image(image: Size, name: str, smallest: int = 1) -> Size:
    """`image` as (C, H, W), or the one sentence that says why `name` cannot read it."""
    if len(image) != 3:
        other = "rnn or mlp" if len(image) == 2 else "mlp"
        raise UserError(
            f"{name} reads images (channels, height, width), but the data has shape {list(image)}; use {other}"
        )
    channels, height, width = image
    if min(height, width) < smallest:
        raise UserError(
            f"{name} needs images of at least {smallest}x{smallest}, but these are {height}x{width}; "
            "choose larger images, or mlp, basic_cnn or vgg11, which take any size"
        )
    return channels, height, width


def check_stages(depth: int, per_stage: int, name: str, choices: str) -> None:
    """Refuse a depth other than `per_stage` layers for each n, and 2."""
    if depth < per_stage + 2 or depth % per_stage != 2:
        raise UserError(f"model.depth={depth}: must be {per_stage}n+2 layers for a {name}, such as {choices}")


def conv_units(image: Size, plan: Sequence[int | str], *, kernel: int = 3) -> tuple[dict[str, nn.Module], Size]:
    """One unit conv-BN-ReLU per width in `plan`, and the shape that the last one emits.

    "P" is a 2x2 max-pool, which belongs to the unit before it; a side that has shrunk to 1 is not pooled any more.
    """
    channels, *sides = image  # sides = [H, W]
    units: dict[str, nn.Module] = {}
    unit = nn.Sequential()
    for width in plan:
        if isinstance(width, int):
            unit = nn.Sequential(*conv_bn(channels, width, kernel=kernel))
            units[f"conv{len(units) + 1}"] = unit
            channels = width
        else:
            pool, sides = max_pool(sides)
            unit.extend(pool)
    return units, (channels, *sides)


def conv_bn(channels: int, width: int, *, kernel: int = 3, stride: int = 1, act: str = "relu") -> list[nn.Module]:
    """[B, channels, H, W] -> [B, width, H/stride, W/stride]: convolution without bias (BN has one), BN, activation."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(width), activation(act)]


def max_pool(sides: Sequence[int]) -> tuple[list[nn.Module], list[int]]:
    """A 2x2 max-pool and the sides that it leaves; no pool, and the same sides, where both have shrunk to 1."""
    if max(sides) == 1:
        return [], list(sides)
    window = tuple(min(2, side) for side in sides)
    return [nn.MaxPool2d(window)], [side // w for side, w in zip(sides, window, strict=True)]


def dense_unit(
    inputs: int, width: int, *, act: str = "relu", batch_norm: bool = False, dropout: float = 0.0, bias: bool = True
) -> nn.Sequential:
    """[B, ...] -> [B, width]: dropout if asked for, flatten, linear, BN if asked for, activation."""
    first = [nn.Dropout(dropout)] if dropout else []
    norm = [nn.BatchNorm1d(width)] if batch_norm else []
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(inputs, width, bias), *norm, activation(act))


def initialise_rectified(modules: Iterable[nn.Module]) -> None:
    """Draw the weights of convolutions and linear layers as He et al., 2015, derive for rectifiers, with zero biases.

    PyTorch's own initialisation shrinks what a rectified layer emits to two fifths. Batch normalisation makes up for
    that; a net without it hands its last layers too little to learn from in a few epochs.
    """
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def initialise_as(init: str) -> Callable[[Iterable[nn.Module]], None]:
    """A function that draws the weights of modules by a name of `INITS`, with zero biases."""

    def initialise(modules: Iterable[nn.Module]) -> None:
        for layer in (layer for module in modules for layer in module.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                INITS[init](layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    return initialise


def initialise_residual(modules: Iterable[nn.Module]) -> None:
    """Draw the weights of convolutions as He et al., 2016, do."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def pooled_head(channels: int, classes: int) -> nn.Sequential:
    """[B, C, H, W] -> [B, classes]: global average pool and one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def linear_head(inputs: int, classes: int, dropout: float, zero: bool, bias: bool = True) -> nn.Module:
    """[B, inputs] -> [B, classes]: dropout and one linear layer, whose weight starts at zero if `zero`."""
    linear = nn.Linear(inputs, classes, bias)
    if zero:
        nn.init.zeros_(linear.weight)
    return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear


def flat_head(inputs: int, classes: int) -> nn.Sequential:
    """[B, ...] -> [B, classes]: one linear layer on all features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
