"""What a paper shows of a representation: maps that can be drawn, and the filters of a first layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from locallearn.errors import UserError

DOTS = 24


class Maps(NamedTuple):
    """Of one sample at one layer, in float32.

    mean        over the channels [H, W]
    component   first principal component [H, W]: positions are the samples, channels the variables; the sign is that
                of the mean map
    share       of the variance over positions that the component has
    channels    those of largest variance over positions [K, H, W], the largest first, and their numbers `numbers` [K]
    dead        share of the channels that are the same at every position
    """

    mean: Tensor
    component: Tensor
    share: float
    channels: Tensor
    numbers: Tensor
    dead: float


def maps(h: Tensor, channels: int = 6) -> Maps:
    """The maps of one sample's output [C, H, W]; a sequence [T, D] is one map, as is a vector [D], folded into rows."""
    h = as_maps(h.detach()).double()
    flat = h.flatten(1)  # [C, positions]
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    index = variance.argsort(descending=True, stable=True)[:channels]
    mean = h.mean(0)
    scale = centred.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    _, values, vectors = torch.linalg.svd(centred / scale, full_matrices=False)
    component = (values[0] * vectors[0] * scale).reshape(mean.shape)
    if float((component * (mean - mean.mean())).sum()) < 0:
        component = -component
    power = values.square()
    return Maps(
        mean.float(),
        component.float(),
        float(power[0] / power.sum()) if float(power.sum()) > 0 else 0.0,
        h[index].float(),
        index,
        float((variance == 0).double().mean()),
    )


def as_maps(h: Tensor) -> Tensor:
    """One sample's output as maps [C, H, W]; of maps of three dimensions the slices, one below the other."""
    if h.dim() == 4:
        return h.flatten(1, 2)
    if h.dim() == 3:
        return h
    if h.dim() == 2:
        return h[None]
    h = h.flatten()
    columns = math.ceil(math.sqrt(len(h)))
    rows = math.ceil(len(h) / columns)
    return torch.cat([h, h.mean().expand(rows * columns - len(h))]).reshape(1, rows, columns)


def as_pixels(inputs: Tensor, pixels: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
    """Inputs [N, C, H, W] in float64 on the scale from 0 (black) to 1 (white), given what a black and a white pixel
    became in each channel (see `Data.pixels`); other inputs, and any inputs where `pixels` is None, as they are."""
    if pixels is None or inputs.dim() != 4:
        return inputs
    black, white = (torch.tensor(x, dtype=torch.float64, device=inputs.device)[:, None, None] for x in pixels)
    return (inputs.double() - black) / (white - black)


def first_filters(model: nn.Module, image: tuple[int, ...]) -> tuple[str, Tensor]:
    """Name and weights of the first layer that reads images [C, H, W]: of a convolution [filters, C, h, w], of a fully
    connected layer [units, C, H, W]. Raises UserError if there is none."""
    if len(image) != 3:
        raise UserError(
            f"the inputs are {list(image)}, not images [C, H, W], so the first layer has no filters to look at; "
            "choose a model and data of images"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == image[0]:
            return name, module.weight.detach()
        if isinstance(module, nn.Linear) and module.in_features == math.prod(image):
            return name, module.weight.detach().unflatten(1, image)
    raise UserError(
        f"no convolution of {image[0]} channels and no linear layer of {math.prod(image)} inputs was found, so there "
        "are no first-layer filters to look at; choose a model that begins with one"
    )


def tiles(filters: Tensor) -> Tensor:
    """Filters [F, C, h, w] side by side in one picture [rows, columns, 3] of numbers from 0 to 1, a thin white line
    between: in colour if C = 3, else a grey tile for each channel. Each filter has its own scale; 0 is grey."""
    filters = filters.detach().cpu().float()
    if filters.shape[1] != 3:
        filters = filters.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    count, _, height, width = filters.shape
    largest = filters.abs().amax((1, 2, 3), keepdim=True)
    scaled = 0.5 + 0.5 * filters / torch.where(largest > 0, largest, 1.0)
    zoom = max(1, round(DOTS / max(height, width)))  # small filters get large pixels, so that the line stays thin
    scaled = scaled.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    height, width = scaled.shape[2:]
    line = max(1, max(height, width) // 12)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = torch.ones(rows * (height + line) - line, columns * (width + line) - line, 3)
    for k, tile in enumerate(scaled):
        top, left = (k // columns) * (height + line), (k % columns) * (width + line)
        canvas[top : top + height, left : left + width] = tile.permute(1, 2, 0)
    return canvas
